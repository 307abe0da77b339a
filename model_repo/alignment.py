"""From a model's raw score to the quality that a box of that score turns out to have.

Scores of different models are not comparable: one model's 0.6 meets fewer boxes than another's. The aligned
score is the expected share of the COCO IoU thresholds (0.50, 0.55 … 0.95) that the box meets, per class, so
that rankings over answers of several models make sense. The map is strictly increasing, so that one model's
own ranking, and with it its mAP, stays what it was.
"""

from __future__ import annotations

from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from model_repo.detections import Detections
from model_repo.value import Value

Unit = Annotated[float, Field(ge=0.0, le=1.0)]


class Curve(Value):
    """A piecewise linear, strictly increasing map of [0, 1] into [0, 1]."""

    score: tuple[Unit, ...]
    quality: tuple[Unit, ...]

    @model_validator(mode="after")
    def _increases(self) -> Self:
        if len(self.score) != len(self.quality) or len(self.score) < 2:
            raise ValueError("score and quality must have the same length, at least 2")
        if (np.diff(self.score) <= 0).any() or (np.diff(self.quality) <= 0).any():
            raise ValueError("score and quality must be strictly increasing")
        if self.score[0] != 0.0 or self.score[-1] != 1.0:
            raise ValueError("score must run from 0 to 1")
        return self

    def apply(self, score: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map scores [n] to qualities [n]."""
        return np.interp(score, self.score, self.quality).astype(np.float32)


class Alignment(Value):
    """One curve per class, in the order of the data set's classes, fitted on calibration images."""

    curves: tuple[Curve, ...]
    images: Annotated[int, Field(ge=0)]

    @classmethod
    def identity(cls, classes: int) -> Alignment:
        """Return the alignment that changes nothing (no calibration image was seen)."""
        return cls(curves=(Curve(score=(0.0, 1.0), quality=(0.0, 1.0)),) * classes, images=0)

    def raw_at_least(self, quality: float) -> NDArray[np.float32]:
        """Return raw scores [classes] below which nothing of a class reaches a quality."""
        # Less by more than what float32 rounds, so that nothing is missed that `apply` would let through.
        safe = quality * (1.0 - 1e-6)
        raw = [np.interp(safe, curve.quality, curve.score) for curve in self.curves]
        return np.nextafter(np.array(raw, dtype=np.float32), np.float32(0.0))

    def apply(self, detections: Detections) -> Detections:
        """Return the same detections under aligned scores; raises IndexError on a label without a curve."""
        score = np.empty_like(detections.score)
        for label in np.unique(detections.label):
            of_class = detections.label == label
            score[of_class] = self.curves[int(label)].apply(detections.score[of_class])
        return detections.with_score(score)
