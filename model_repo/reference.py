"""What a variant's answers and frames looked like in calibration, and the test of whether they still do.

Alignments, thresholds and certificates were fitted to calibration frames and hold for frames like those. A
`Reference` keeps the mean and the spread of what tells frames apart: the scores, sizes and crowding of the
answers, how much of each class they hold, light, contrast and sharpness. `Cusum` watches a stream of them.

The test is a two-sided cumulative sum (Page, 1954) of each number's distance from its mean in spreads, cut at
`CLIP`. It forgives a lasting shift of `SLACK` spreads, for a reference is itself an estimate, and rings when
what is beyond that has added up to `RINGS_AT`. A lasting shift of d spreads rings after about
RINGS_AT / (d − SLACK) frames. It assumes that frames are nearly independent: of a video, observe a frame now
and then.
"""

from __future__ import annotations

from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, model_validator

from model_repo.detections import Detections
from model_repo.escalation import FEATURES
from model_repo.value import Value

TRACKED: tuple[str, ...] = (
    "score_0",
    "above_0.30",
    "above_0.50",
    "score_sum",
    "doubt_share",
    "size_mean",
    "crowding_mean",
    "class_entropy",
    "brightness",
    "contrast",
    "sharpness",
    "fine_sharpness",
)
"""Which features of an answer are watched; the sum of aligned scores of each class follows them."""

SLACK = 0.25
CLIP = 4.0
RINGS_AT = 40.0
_CLEARS_AT = 20.0
_MOST = 60.0
_LEAST_SPREAD = 1e-3
_COLUMNS = np.array([FEATURES.index(name) for name in TRACKED])


def observation(feature_row: NDArray[np.float32], answer: Detections, classes: int) -> NDArray[np.float64]:
    """Return what is watched of one answer, float64 [TRACKED + classes].

    feature_row: `escalation.features` of the answer and its frame. answer: under aligned scores.
    """
    mass = np.bincount(answer.label, weights=answer.score, minlength=classes)
    return np.concatenate((feature_row[_COLUMNS], mass))


class Reference(Value):
    """Mean and spread over `images` calibration frames of what is watched of a variant's aligned answers."""

    variant: str
    images: PositiveInt
    mean: tuple[float, ...]
    spread: tuple[Annotated[float, Field(gt=0.0)], ...]

    @model_validator(mode="after")
    def _is_of_one_length(self) -> Self:
        if len(self.mean) != len(self.spread) or len(self.mean) <= len(TRACKED):
            raise ValueError(f"mean and spread must have {len(TRACKED)} numbers and one per class")
        return self

    @classmethod
    def of(cls, variant: str, observations: NDArray[np.float64]) -> Reference:
        """Summarize observations [n, TRACKED + classes]."""
        spread = np.maximum(observations.std(axis=0), _LEAST_SPREAD)
        mean = observations.mean(axis=0)
        return cls(
            variant=variant,
            images=len(observations),
            mean=tuple(float(f"{value:.6g}") for value in mean),
            spread=tuple(float(f"{value:.6g}") for value in spread),
        )


class Cusum:
    """Two-sided cumulative sums of independent streams side by side, of any shape [...].

    mean, spread: of what is observed while nothing has changed, of the last dimensions of that shape.
    """

    def __init__(
        self, mean: NDArray[np.float64], spread: NDArray[np.float64], streams: tuple[int, ...] = ()
    ) -> None:
        self._mean, self._inverse_spread = mean, 1.0 / spread
        self._up = np.zeros((*streams, *mean.shape))
        self._down = np.zeros_like(self._up)
        self.ringing = np.zeros(self._up.shape, dtype=np.bool_)

    @property
    def height(self) -> NDArray[np.float64]:
        """Return how high the higher sum of each stream stands, in parts of what rings."""
        return np.asarray(np.maximum(self._up, self._down) / RINGS_AT)

    def observe(self, values: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Take one observation per stream; return which ring. One that rings clears at half the height."""
        z = (values - self._mean) * self._inverse_spread
        np.clip(z, -CLIP, CLIP, out=z)
        for total, step in ((self._up, z), (self._down, -z)):
            total += step
            total -= SLACK
            np.clip(total, 0.0, _MOST, out=total)
        height = np.maximum(self._up, self._down)
        self.ringing = (height > RINGS_AT) | (self.ringing & (height > _CLEARS_AT))
        return self.ringing
