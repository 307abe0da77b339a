"""How an escalated answer and the fast one become one.

`replace` takes the larger model's answer alone. `wbf` is weighted boxes fusion (Solovyev et al., 2019) over
aligned scores: boxes of one class that overlap are averaged by score. Which one a plan uses was measured.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from model_repo.detections import MAX_ROWS, Detections, iou_matrix

Fusion = Literal["replace", "wbf"]
_SAME_OBJECT_IOU = 0.6


def fuse(fast: Detections, escalated: Detections, fusion: Fusion) -> Detections:
    """Combine two aligned answers to one frame, best score first."""
    if fusion == "replace":
        return escalated.top(MAX_ROWS)
    return _weighted_boxes(fast, escalated)


def _weighted_boxes(fast: Detections, escalated: Detections) -> Detections:
    """Pair the two answers' boxes one to one, greedily by score, and average each pair.

    1. Pairs need the same class and IoU of at least 0.6; each box is in one pair at most.
    2. A pair's box is the mean weighted by score; its score the mean of the two.
    3. A box that only one model saw keeps half of its score: the other model denies it.
    """
    overlap = iou_matrix(escalated.xyxy, fast.xyxy)
    overlap[escalated.label[:, None] != fast.label[None, :]] = 0.0
    xyxy = np.concatenate((escalated.xyxy, fast.xyxy))
    score = np.concatenate((escalated.score, fast.score)) * np.float32(0.5)
    label = np.concatenate((escalated.label, fast.label))
    keep = np.ones(len(score), dtype=np.bool_)
    # Only rows that overlap enough can find a partner: the loop visits those alone.
    paired = np.flatnonzero((overlap >= _SAME_OBJECT_IOU).any(axis=1))
    for i in paired[np.argsort(-escalated.score[paired], kind="stable")]:
        j = int(overlap[i].argmax())
        if overlap[i, j] < _SAME_OBJECT_IOU:
            continue
        a, b = float(escalated.score[i]), float(fast.score[j])
        xyxy[i] = (a * escalated.xyxy[i] + b * fast.xyxy[j]) / max(a + b, 1e-6)
        score[i] = (a + b) / 2
        keep[len(escalated) + j] = False
        overlap[:, j] = 0.0
    return Detections(xyxy, score, label).select(keep).top(MAX_ROWS)
