"""Which anchors learn which object: task-aligned assignment (TOOD, https://arxiv.org/abs/2108.07755).

Only anchor points inside an object's box are candidates, so the work is done on the list of (object, anchor)
pairs, a few percent of the full table.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from search.supernet.decode import Anchors


@dataclass(frozen=True)
class Targets:
    """The labelled objects of a batch, all images in one list.

    Attributes:
        image: int64 [T], the position in the batch of the image that holds the object.
        boxes_xyxy: float32 [T, 4] in input pixels.
        labels: int64 [T], 0-based class indices.
    """

    image: Tensor
    boxes_xyxy: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Assignment:
    """The positive anchors of a batch, P of them, each with the one object that it learns.

    Attributes:
        image: int64 [P], position in the batch.
        anchor: int64 [P], index of the anchor point.
        target: int64 [P], index into `Targets`.
        quality: float32 [P] in [0, 1], the class score to learn: the pair's alignment, scaled within each
            object so that its best anchor learns the best overlap.
    """

    image: Tensor
    anchor: Tensor
    target: Tensor
    quality: Tensor


@torch.no_grad()
def assign(
    scores: Tensor,
    boxes_xyxy: Tensor,
    anchors: Anchors,
    targets: Targets,
    *,
    top_k: int = 10,
    score_power: float = 0.5,
    overlap_power: float = 6.0,
) -> Assignment:
    """Pick up to `top_k` anchors per object by score^a * IoU^b of the present predictions.

    Args:
        scores: [N, A, classes] predicted scores in [0, 1].
        boxes_xyxy: [N, A, 4] predicted boxes in input pixels.
        anchors: the A anchor points.
        targets: the objects.
        top_k, score_power, overlap_power: TOOD's parameters, with the values of YOLOv8.

    Steps:
        1. Candidates are anchor points inside an object's box (grown to one finest stride where it is
           smaller, so that every object has a candidate).
        2. Each object keeps its `top_k` best aligned candidates.
        3. An anchor that several objects keep goes to the one that it overlaps most.
    """
    count, anchors_count, _ = scores.shape
    # 1. candidates
    centre = (targets.boxes_xyxy[:, :2] + targets.boxes_xyxy[:, 2:]) / 2
    reach = (targets.boxes_xyxy[:, 2:] - targets.boxes_xyxy[:, :2]) / 2
    reach = reach.clamp(min=float(anchors.strides.min()) / 2 + 1e-3)
    low, high = centre - reach, centre + reach
    x, y = anchors.points_xy[:, 0], anchors.points_xy[:, 1]
    inside = (x > low[:, :1]) & (x < high[:, :1]) & (y > low[:, 1:]) & (y < high[:, 1:])
    target, anchor = inside.nonzero(as_tuple=True)
    image = targets.image[target]
    overlap = pairwise_iou(boxes_xyxy[image, anchor], targets.boxes_xyxy[target])
    score = scores[image, anchor, targets.labels[target]]
    alignment = score.pow(score_power) * overlap.pow(overlap_power)

    # 2. the best per object: sorting by object, then falling alignment, makes a pair's rank its distance from
    # the first pair of its object
    order = (target.double() + 1.0 - alignment.double().clamp(max=1.0 - 1e-9)).argsort(stable=True)
    target, anchor, image = target[order], anchor[order], image[order]
    overlap, alignment = overlap[order], alignment[order]
    sizes = torch.bincount(target, minlength=len(targets.labels))
    first = sizes.cumsum(0) - sizes
    kept = torch.arange(len(target)) - first[target] < top_k
    target, anchor, image = target[kept], anchor[kept], image[kept]
    overlap, alignment = overlap[kept], alignment[kept]

    # 3. one object per anchor: the largest overlap, then the earliest pair
    place = image * anchors_count + anchor
    best = overlap.new_full((count * anchors_count,), -1.0).scatter_reduce(0, place, overlap, "amax")
    pair = torch.arange(len(place))
    contenders = torch.where(overlap == best[place], pair, len(pair))
    winner = pair.new_full((count * anchors_count,), len(pair)).scatter_reduce(0, place, contenders, "amin")
    won = winner[place] == pair
    target, anchor, image = target[won], anchor[won], image[won]
    overlap, alignment = overlap[won], alignment[won]

    objects = len(targets.labels)
    best_alignment = overlap.new_zeros(objects).scatter_reduce(0, target, alignment, "amax")
    best_overlap = overlap.new_zeros(objects).scatter_reduce(0, target, overlap, "amax")
    quality = alignment / best_alignment[target].clamp(min=1e-12) * best_overlap[target]
    return Assignment(image=image, anchor=anchor, target=target, quality=quality)


def pairwise_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Return the intersection over union of box i of `a` with box i of `b`, [P]."""
    low = torch.maximum(a_xyxy[:, :2], b_xyxy[:, :2])
    high = torch.minimum(a_xyxy[:, 2:], b_xyxy[:, 2:])
    shared = (high - low).clamp(min=0).prod(1)
    size_a = (a_xyxy[:, 2:] - a_xyxy[:, :2]).clamp(min=0).prod(1)
    size_b = (b_xyxy[:, 2:] - b_xyxy[:, :2]).clamp(min=0).prod(1)
    return shared / (size_a + size_b - shared).clamp(min=1e-9)
