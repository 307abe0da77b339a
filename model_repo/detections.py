"""Detections of one frame as a validated numpy value, and the suppression of duplicates among them.

Layout is in the names: `xyxy` is x1, y1, x2, y2 in pixels, `score` the confidence in [0, 1], `label` the
0-based index into the data set's classes. Arrays are read-only: a value that several stages look at
must not change under one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

ROW_WIDTH = 6
MAX_ROWS = 100
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """Hold what one model says about one frame, best score first or not: the order is the maker's.

    xyxy: float32 [n, 4], pixels; score: float32 [n] in [0, 1]; label: int64 [n] >= 0.
    Raises ValueError, naming the array, when a shape, a range or a number is wrong.
    """

    xyxy: NDArray[np.float32]
    score: NDArray[np.float32]
    label: NDArray[np.int64]

    def __post_init__(self) -> None:
        count = len(self.score)
        if self.xyxy.shape != (count, 4):
            raise ValueError(f"xyxy has shape {self.xyxy.shape}, expected ({count}, 4)")
        if self.score.shape != (count,) or self.label.shape != (count,):
            raise ValueError(f"score {self.score.shape} and label {self.label.shape} must be flat and equal")
        if count:
            if not np.isfinite(self.xyxy).all():
                raise ValueError("xyxy has a number that is not finite")
            # Written so that NaN fails it too.
            if not (self.score.min() >= 0.0 and self.score.max() <= 1.0):
                raise ValueError("score must lie in [0, 1]")
            if self.label.min() < 0:
                raise ValueError("label must not be negative")
        for array in (self.xyxy, self.score, self.label):
            array.flags.writeable = False

    def __len__(self) -> int:
        return len(self.score)

    @classmethod
    def make(cls, xyxy: ArrayLike, score: ArrayLike, label: ArrayLike) -> Detections:
        """Copy anything array-like into a value."""
        return cls(
            np.array(xyxy, dtype=np.float32).reshape(-1, 4),
            np.array(score, dtype=np.float32).reshape(-1),
            np.array(label, dtype=np.int64).reshape(-1),
        )

    @classmethod
    def empty(cls) -> Detections:
        """Return the answer that holds nothing."""
        return cls.make([], [], [])

    @classmethod
    def from_rows(cls, rows: NDArray[np.float32]) -> Detections:
        """Read a model's output rows [k, 6]: x1, y1, x2, y2, score, class; rows of class -1 are padding."""
        if rows.ndim != 2 or rows.shape[1] != ROW_WIDTH:
            raise ValueError(f"rows have shape {rows.shape}, expected [k, {ROW_WIDTH}]")
        kept = rows[(rows[:, 5] >= 0) & (rows[:, 4] > 0)]
        # Low precisions overshoot 1 by a rounding step.
        return cls.make(kept[:, :4], np.clip(kept[:, 4], 0.0, 1.0), kept[:, 5])

    def select(self, index: NDArray[np.bool_] | NDArray[np.intp]) -> Detections:
        """Return the detections at a mask or at positions, in that order."""
        # What was chosen from valid arrays is valid: checking them again would double the cost of choosing.
        chosen = object.__new__(Detections)
        _take(chosen, "xyxy", self.xyxy[index])
        _take(chosen, "score", self.score[index])
        _take(chosen, "label", self.label[index])
        return chosen

    def top(self, count: int = MAX_ROWS) -> Detections:
        """Return the `count` best by score, best first; ties keep their order."""
        return self.select(np.argsort(-self.score, kind="stable")[:count])

    def at_least(self, score: float) -> Detections:
        """Return those with at least a score, in their order."""
        return self.select(self.score >= np.float32(score))

    def with_score(self, score: NDArray[np.float32]) -> Detections:
        """Return the same boxes under other scores."""
        return Detections(self.xyxy, score.astype(np.float32), self.label)

    def with_xyxy(self, xyxy: NDArray[np.float32]) -> Detections:
        """Return the same scores on other boxes."""
        return Detections(xyxy.astype(np.float32), self.score, self.label)


def _take(into: Detections, name: str, array: NDArray[Any]) -> None:
    array.flags.writeable = False
    object.__setattr__(into, name, array)


def iou_matrix(a_xyxy: NDArray[np.float32], b_xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return intersection over union, [n, m], of boxes [n, 4] and [m, 4]; empty boxes meet nothing."""
    intersection, union = _intersection_union(a_xyxy, b_xyxy)
    # Where the union is empty so is the intersection: any positive divisor gives 0.
    np.maximum(union, _TINY, out=union)
    return np.divide(intersection, union, out=intersection)


def _intersection_union(
    a_xyxy: NDArray[np.float32], b_xyxy: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the areas [n, m]; by coordinate and in place, which is three times faster than by corner."""
    a, b = a_xyxy.T[:, :, None], b_xyxy.T[:, None, :]
    width = np.minimum(a[2], b[2])
    width -= np.maximum(a[0], b[0])
    np.maximum(width, 0.0, out=width)
    height = np.minimum(a[3], b[3])
    height -= np.maximum(a[1], b[1])
    np.maximum(height, 0.0, out=height)
    intersection = np.multiply(width, height, out=width)
    union = np.add(_area(a_xyxy)[:, None], _area(b_xyxy)[None, :], out=height)
    union -= intersection
    return intersection, union


def _area(xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
    wh = np.maximum(xyxy[:, 2:] - xyxy[:, :2], 0.0)
    return np.asarray(wh[:, 0] * wh[:, 1])


def nms(detections: Detections, iou: float) -> Detections:
    """Suppress, per class, every box that overlaps a better one by more than `iou`; best first.

    Greedy, as in every detector since R-CNN. It runs on the host because it costs tens of microseconds on
    at most 100 rows, while an NMS operator in the graph brings data-dependent shapes.
    """
    if len(detections) < 2:
        return detections
    ordered = detections.top(len(detections))
    intersection, union = _intersection_union(ordered.xyxy, ordered.xyxy)
    union *= iou
    overlaps = intersection > union
    overlaps &= ordered.label[:, None] == ordered.label[None, :]
    overlaps.flat[:: len(ordered) + 1] = False
    keep = np.ones(len(ordered), dtype=np.bool_)
    # Only rows that overlap another one can suppress anything: the loop visits those alone.
    for i in np.flatnonzero(overlaps.any(axis=1)):
        if keep[i]:
            keep[i + 1 :] &= ~overlaps[i, i + 1 :]
    return ordered.select(keep)
