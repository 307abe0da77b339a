"""What the largest subnet and the others learn from: labels, and the largest subnet's own predictions.

Class scores learn the expected overlap by cross entropy, which at background anchors is weighted by the
distance from the target (quality focal loss with power 1, https://arxiv.org/abs/2006.04388) and at positive
ones is whole. Without the weight, the thousands of background anchors push the class branch to zero on frames
with few objects, and its ReLUs never recover (measured: all scores equal after 1,100 steps). With the square
that the paper takes, large subnets learn slowly (measured after 400 steps on blood cells: mAP@0.5 0.736
against 0.801). Boxes learn by generalized IoU (https://arxiv.org/abs/1902.09630).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from search.assign import Assignment, Targets, assign
from search.distributed import summed
from search.supernet.decode import Anchors, boxes_from, flattened
from search.supernet.head import RawOutputs

BOX_WEIGHT = 2.5


@dataclass(frozen=True)
class Teacher:
    """The largest subnet's view of a batch, detached: what the other subnets of the step learn from.

    Attributes:
        scores: [N, A, classes] its class scores.
        boxes_xyxy: [N, A, 4] its boxes in input pixels.
        soft_targets: [N, A, classes] the label targets under its assignment.
        assignment: its positive anchors.
    """

    scores: Tensor
    boxes_xyxy: Tensor
    soft_targets: Tensor
    assignment: Assignment


@dataclass(frozen=True)
class Loss:
    """A loss in its two parts, scalars; `total` is what is minimized.

    Where several processes train, each holds its own frames' part of the global batch's loss: they add up.
    """

    classes: Tensor
    boxes: Tensor

    @property
    def total(self) -> Tensor:
        """Return the weighted sum."""
        return self.classes + BOX_WEIGHT * self.boxes


def label_loss(raw: RawOutputs, anchors: Anchors, targets: Targets) -> tuple[Loss, Teacher]:
    """Score raw outputs against the labels; the assignment and the predictions come back as a teacher."""
    logits, distances = flattened(raw)
    boxes = boxes_from(distances, anchors)
    scores = logits.detach().sigmoid()
    found = assign(scores, boxes.detach(), anchors, targets)
    soft = torch.zeros_like(scores)
    soft[found.image, found.anchor, targets.labels[found.target]] = found.quality
    normalizer = summed(found.quality.sum()).clamp(min=1.0)
    class_loss = _class_loss(logits, soft, found) / normalizer
    predicted = boxes[found.image, found.anchor]
    labelled = targets.boxes_xyxy[found.target]
    box_loss = (found.quality * (1 - generalized_iou(predicted, labelled))).sum() / normalizer
    teacher = Teacher(scores=scores, boxes_xyxy=boxes.detach(), soft_targets=soft, assignment=found)
    return Loss(class_loss, box_loss), teacher


def distillation_loss(
    raw: RawOutputs, anchors: Anchors, targets: Targets, teacher: Teacher, *, share: float
) -> Loss:
    """Score a subnet's raw outputs against a mixture of the teacher (`share`) and the labels (the rest).

    The teacher's assignment serves for the labels too, so no second one is computed; boxes learn at its
    positive anchors.

    Raises:
        ValueError: when `share` is outside 0..1.
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share must be in 0..1, got {share}")
    logits, distances = flattened(raw)
    boxes = boxes_from(distances, anchors)
    found = teacher.assignment
    normalizer = summed(found.quality.sum()).clamp(min=1.0)
    mixed = torch.lerp(teacher.soft_targets, teacher.scores, share)
    class_loss = _class_loss(logits, mixed, found) / normalizer
    predicted = boxes[found.image, found.anchor]
    labelled = generalized_iou(predicted, targets.boxes_xyxy[found.target])
    taught = generalized_iou(predicted, teacher.boxes_xyxy[found.image, found.anchor])
    overlap = torch.lerp(labelled, taught, share)
    box_loss = (found.quality * (1 - overlap)).sum() / normalizer
    return Loss(class_loss, box_loss)


def _class_loss(logits: Tensor, wanted: Tensor, found: Assignment) -> Tensor:
    """Sum the cross entropy to `wanted` [N, A, classes], whole at positive anchors, elsewhere weighted by the
    distance of the score from what is wanted."""
    weight = (logits.detach().sigmoid() - wanted).abs()
    weight[found.image, found.anchor] = 1.0
    return F.binary_cross_entropy_with_logits(logits, wanted, weight, reduction="sum")


def generalized_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Return the generalized IoU, in [-1, 1], of box i of `a` [P, 4] with box i of `b` [P, 4]."""
    low = torch.maximum(a_xyxy[:, :2], b_xyxy[:, :2])
    high = torch.minimum(a_xyxy[:, 2:], b_xyxy[:, 2:])
    shared = _area(high - low)
    union = _area(a_xyxy[:, 2:] - a_xyxy[:, :2]) + _area(b_xyxy[:, 2:] - b_xyxy[:, :2]) - shared
    hull_low = torch.minimum(a_xyxy[:, :2], b_xyxy[:, :2])
    hull_high = torch.maximum(a_xyxy[:, 2:], b_xyxy[:, 2:])
    hull = _area(hull_high - hull_low).clamp(min=1e-6)
    return shared / union.clamp(min=1e-6) - (hull - union) / hull


def _area(wh: Tensor) -> Tensor:
    clipped = wh.clamp(min=0)
    return clipped[:, 0] * clipped[:, 1]
