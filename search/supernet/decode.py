"""From raw outputs to boxes: anchor points, distances, and the fixed-size answer that a published model
gives."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from search.space import LEVEL_STRIDES
from search.supernet.head import RawOutputs

TOP_DETECTIONS = 100
MAX_LOG_DISTANCE = 5.0
"""Distances are cut at e^5 = 148 strides: farther than any input is wide, and far from overflow."""


class Anchors(NamedTuple):
    """Anchor points of an input size: `points_xy` [A, 2] in pixels and `strides` [A] in pixels, finest
    level first."""

    points_xy: Tensor
    strides: Tensor


def anchors_for(resolution_wh: tuple[int, int]) -> Anchors:
    """Return the anchor points, one in the middle of every cell of every level, row by row."""
    width, height = resolution_wh
    points: list[Tensor] = []
    strides: list[Tensor] = []
    for stride in LEVEL_STRIDES:
        xs = (torch.arange(width // stride, dtype=torch.float32) + 0.5) * stride
        ys = (torch.arange(height // stride, dtype=torch.float32) + 0.5) * stride
        grid_y, grid_x = torch.meshgrid(ys, xs, indexing="ij")
        points.append(torch.stack([grid_x.reshape(-1), grid_y.reshape(-1)], dim=1))
        strides.append(torch.full((grid_x.numel(),), float(stride)))
    return Anchors(torch.cat(points), torch.cat(strides))


def flattened(raw: RawOutputs) -> tuple[Tensor, Tensor]:
    """Return logits [N, A, classes] and distances [N, A, 4] in float32, anchors in the order of
    `anchors_for`."""
    logits = torch.cat([level.float().flatten(2).transpose(1, 2) for level in raw.logits], dim=1)
    distances = torch.cat([level.float().flatten(2).transpose(1, 2) for level in raw.distances], dim=1)
    return logits, distances


def boxes_from(distances: Tensor, anchors: Anchors) -> Tensor:
    """Turn log distances [N, A, 4] in strides into boxes [N, A, 4], xyxy in input pixels."""
    reach = distances.clamp(max=MAX_LOG_DISTANCE).exp() * anchors.strides[:, None]
    points = anchors.points_xy
    return torch.cat([points - reach[..., :2], points + reach[..., 2:]], dim=-1)


def detections_from(raw: RawOutputs, resolution_wh: tuple[int, int]) -> Tensor:
    """Return the model's answer [N, 100, 6]: x1, y1, x2, y2 in input pixels, score, class; best first.

    1. Scores are sigmoids; one that is not the largest of its class in its 3x3 neighbourhood on its level
       becomes 0 (a peak filter: near-duplicates of one object do not use up the 100 places; measured on
       blood cells with suppression on the host after it: 0.5 points of mAP@0.5 for a large subnet, 7 for the
       smallest).
    2. The best 100 of all (class, anchor) pairs are kept.
    3. Places without a score carry class -1.
    """
    peaks: list[Tensor] = []
    for logits in raw.logits:
        scores = logits.float().sigmoid()
        best = F.max_pool2d(scores, 3, 1, 1)
        peaks.append(torch.where(scores == best, scores, torch.zeros_like(scores)).flatten(2))
    by_class = torch.cat(peaks, dim=2)  # [N, classes, A]
    count, classes, anchors_count = by_class.shape
    places = min(TOP_DETECTIONS, classes * anchors_count)
    scores, index = by_class.reshape(count, -1).topk(places, dim=1)
    labels = index // anchors_count
    _, distances = flattened(raw)
    boxes = boxes_from(distances, anchors_for(resolution_wh))
    chosen = (index % anchors_count)[:, :, None].expand(-1, -1, 4)
    labels = torch.where(scores > 0, labels, torch.full_like(labels, -1))
    answer = torch.cat(
        [boxes.gather(1, chosen), scores[:, :, None], labels[:, :, None].to(scores.dtype)], dim=2
    )
    padding = answer.new_zeros(count, TOP_DETECTIONS - places, 6)
    padding[:, :, 5] = -1.0
    return torch.cat([answer, padding], dim=1)
