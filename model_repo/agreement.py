"""How far two answers to one frame differ, with no labels: what an early answer loses, as far as can be told.

The larger model's answer stands in for the labels. Where it errs the estimate errs with it, and it says
nothing about objects that both miss; but it moves when early answers get worse, and it needs nobody to label.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model_repo.detections import Detections, iou_matrix

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
LEAST_SCORE = 0.3
"""Boxes with a smaller aligned score are left out of both answers."""


def disagreement(early: Detections, reference: Detections) -> float:
    """Return 1 − F1, mean over IoU 0.50:0.95, of an answer's boxes against another's; both aligned.

    In [0, 1]; two answers without boxes agree. Boxes are matched within a class, best score first, each to
    the best that is left, as COCO does.
    """
    own, other = (answer.select(answer.score >= LEAST_SCORE).top() for answer in (early, reference))
    if not len(own) and not len(other):
        return 0.0
    overlap = iou_matrix(own.xyxy, other.xyxy)
    overlap[own.label[:, None] != other.label[None, :]] = 0.0
    hits = [_matches(overlap.copy(), threshold) for threshold in IOU_THRESHOLDS]
    return 1.0 - 2.0 * float(np.mean(hits)) / (len(own) + len(other))


def _matches(overlap: NDArray[np.float32], threshold: float) -> int:
    """Count greedy matches of rows, best first, to columns; uses the matrix up."""
    if not overlap.shape[1]:
        return 0
    hits = 0
    for row in overlap:
        best = int(np.argmax(row))
        if row[best] >= threshold:
            overlap[:, best] = 0.0
            hits += 1
    return hits
