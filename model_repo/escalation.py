"""Which frames go on: features of a fast answer, the predicted gain of a larger model, and the rule.

After ORIC ("offloading with rewards in context"): the label a gain model learns is the change in data-set AP
that a larger model's answer to this image brings; the features are the best 25 boxes and what surrounds
them. Deciding must cost far less than what it saves, so everything is a handful of vector operations over at
most 100 boxes and a few rows of the frame.

Which boxes a larger model would improve depends on what they are, not only on how many there are: small ones
of middling score, cut ones, elongated ones, overlapping ones. So the best boxes are also counted by score
against each of these, as a histogram with soft edges (a box between two knots counts for both in part). What
a larger model adds is close to a sum over boxes, so a linear model of these counts is close to a sum of a
learnt function of each box. They are not counted by class: the number of features would depend on the data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from model_repo.detections import Detections, iou_matrix
from model_repo.value import Value

TOP_BOXES = 25
_LEVELS = np.array([0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9], dtype=np.float32)
_STRONG_LEVEL = 1
_ROWS, _COLUMNS = 24, 64
_CLIP = 6.0

_SCORE_KNOTS = (0.05, 0.2, 0.4, 0.6, 0.75, 0.9)
_SIDE_KNOTS = (-3.6, -3.0, -2.6, -2.2, -1.7, -1.0)
# Of these, boxes at zero are those that are left: counting them would say nothing new.
_FROM_ZERO: tuple[tuple[str, tuple[float, ...]], ...] = (
    ("elongation", (0.5, 1.0, 1.6)),
    ("under_better", (0.15, 0.4, 0.8)),
    ("over_any", (0.15, 0.4, 0.8)),
)
_CUT = 0.008
"""Nearer than this share of the frame's long side to its edge, a box counts as cut."""

FEATURES: tuple[str, ...] = (
    *(f"score_{i}" for i in range(TOP_BOXES)),
    *(f"above_{level:.2f}" for level in _LEVELS),
    "score_sum",
    "doubt_sum",
    "doubt_share",
    "size_mean",
    "size_min",
    "size_spread",
    "crowding_mean",
    "crowding_max",
    "class_entropy",
    "brightness",
    "contrast",
    "sharpness",
    "fine_sharpness",
    *(
        f"{name}_at_{score:.2f}"
        for score in _SCORE_KNOTS
        for name in (
            *(f"side_{knot:.1f}" for knot in _SIDE_KNOTS),
            *(f"{kind}_{knot:.2f}" for kind, knots in _FROM_ZERO for knot in knots),
            "cut",
        )
    ),
)
_ANSWER = TOP_BOXES + len(_LEVELS)
_COUNTED = FEATURES.index("fine_sharpness") + 1


@dataclass(frozen=True, slots=True, eq=False)
class FrameView:
    """What features need of a frame itself: its size in pixels, and its `image_statistics`, float32 [4]."""

    width: int
    height: int
    statistics: NDArray[np.float32]

    @classmethod
    def of(cls, image: NDArray[np.uint8]) -> FrameView:
        """Look at a decoded frame, uint8 [h, w, 3]."""
        return cls(image.shape[1], image.shape[0], image_statistics(image))


def features(aligned: Detections, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Describe a fast answer and its frame, decoded, uint8 [h, w, 3], as `view_features` does."""
    return view_features(aligned, FrameView.of(image))


def view_features(aligned: Detections, view: FrameView) -> NDArray[np.float32]:
    """Describe a fast answer and its frame by the numbers named in FEATURES, float32 [len(FEATURES)].

    aligned: the answer under aligned scores, in the pixels of the frame that `view` is of.

    1. The best 25 scores, zero where there are fewer; how many scores reach each of ten levels.
    2. The sum of scores; the sum of score·(1 − score), alone and as a share of it.
    3. Over the best boxes of score 0.1 and more: log of their sides, how much each meets its closest
       neighbour, the entropy of the classes.
    4. Light, contrast, and differences of neighbouring pixels.
    5. The best 25 boxes counted by score against: the log of the side as a share of the frame's; how
       elongated they are, |log(w/h)|; the IoU with the closest better box, and with any; whether the frame's
       edge cuts them.
    """
    out = np.zeros(len(FEATURES), dtype=np.float32)
    order = np.argsort(-aligned.score, kind="stable")
    ordered = aligned.score[order]
    out[: min(len(ordered), TOP_BOXES)] = ordered[:TOP_BOXES]
    above = np.searchsorted(-ordered, -_LEVELS, side="right")
    out[TOP_BOXES:_ANSWER] = above
    total = float(ordered.sum())
    doubt = total - float(ordered @ ordered)
    out[_ANSWER : _ANSWER + 3] = (total, doubt, doubt / max(total, 1e-3))
    best = order[:TOP_BOXES]
    if len(best):
        xyxy, score = aligned.xyxy[best], ordered[:TOP_BOXES]
        wh = np.maximum(xyxy[:, 2:] - xyxy[:, :2], 1.0)
        log_wh = np.log(wh)
        log_side = 0.5 * (log_wh[:, 0] + log_wh[:, 1])
        overlap = iou_matrix(xyxy, xyxy)
        overlap.flat[:: len(best) + 1] = 0.0
        strong = min(int(above[_STRONG_LEVEL]), TOP_BOXES)
        if strong:
            out[_ANSWER + 3 : _ANSWER + 9] = _arrangement(
                log_side[:strong], overlap[:strong, :strong], score[:strong], aligned.label[best[:strong]]
            )
        out[_COUNTED:] = _counted(xyxy, score, log_wh, log_side, overlap, view)
    out[_ANSWER + 9 : _COUNTED] = view.statistics
    return out


def _arrangement(
    log_side: NDArray[np.float32],
    overlap: NDArray[np.float32],
    score: NDArray[np.float32],
    label: NDArray[np.int64],
) -> tuple[float, float, float, float, float, float]:
    """Return mean, least and spread of log sides; mean and greatest crowding; entropy of the classes."""
    count = len(score)
    mean = float(log_side.sum()) / count
    spread = math.sqrt(max(float(log_side @ log_side) / count - mean * mean, 0.0))
    crowding = overlap.max(axis=1)
    mass = np.bincount(label, weights=score)
    mass = mass[mass > 0]
    share = mass / mass.sum()
    return (
        mean,
        float(log_side.min()),
        spread,
        float(crowding.sum()) / count,
        float(crowding.max()),
        -float(share @ np.log(share)),
    )


def _hats(knots: Sequence[float], *, from_zero: bool = False) -> list[tuple[float, float, float, float]]:
    """Return (a, b, c, d) for each knot: its hat is min(a·v + b, c·v + d) cut to [0, 1].

    A hat is 1 at its knot and 0 at the neighbouring ones, and at zero where they count from zero; the first,
    unless they do, and the last stay 1 beyond theirs.
    """
    lines = []
    for k, knot in enumerate(knots):
        before = knots[k - 1] if k else 0.0
        up = (1 / (knot - before), -before / (knot - before)) if k or from_zero else (0.0, 1.0)
        after = knots[k + 1] if k + 1 < len(knots) else math.inf
        down = (-1 / (after - knot), after / (after - knot)) if math.isfinite(after) else (0.0, 1.0)
        lines.append((*up, *down))
    return lines


_HATS = (
    _hats(_SCORE_KNOTS),
    _hats(_SIDE_KNOTS),
    *(_hats(knots, from_zero=True) for _, knots in _FROM_ZERO),
)
_WHOSE = np.repeat(np.arange(len(_HATS)), [len(lines) for lines in _HATS])
_LINES = np.concatenate(_HATS).astype(np.float32).T[:, :, None].copy()
_BETTER = np.tril(np.ones((TOP_BOXES, TOP_BOXES), dtype=np.float32), -1)


def _counted(
    xyxy: NDArray[np.float32],
    score: NDArray[np.float32],
    log_wh: NDArray[np.float32],
    log_side: NDArray[np.float32],
    overlap: NDArray[np.float32],
    view: FrameView,
) -> NDArray[np.float32]:
    """Return how many of the boxes [k], best first, lie at each knot of the score and at each other knot."""
    height, width = view.height, view.width
    count = len(score)
    values = np.empty((len(_HATS), count), dtype=np.float32)
    values[0] = score
    values[1] = log_side
    values[1] -= 0.5 * math.log(height * width)
    np.abs(log_wh[:, 0] - log_wh[:, 1], out=values[2])
    (overlap * _BETTER[:count, :count]).max(axis=1, out=values[3])
    overlap.max(axis=1, out=values[4])
    up = values.take(_WHOSE, axis=0)
    down = up * _LINES[2]
    down += _LINES[3]
    up *= _LINES[0]
    up += _LINES[1]
    # One row more, for what is no matter of degree.
    hats = np.empty((len(_WHOSE) + 1, count), dtype=np.float32)
    np.minimum(up, down, out=hats[:-1])
    np.maximum(hats[:-1], 0.0, out=hats[:-1])
    np.minimum(hats[:-1], 1.0, out=hats[:-1])
    margin = _CUT * max(height, width)
    near = xyxy < margin
    far = xyxy > (math.inf, math.inf, width - margin, height - margin)
    hats[-1] = (near[:, 0] | near[:, 1]) | (far[:, 2] | far[:, 3])
    return np.asarray((hats[: len(_SCORE_KNOTS)] @ hats[len(_SCORE_KNOTS) :].T).ravel())


def image_statistics(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return brightness, contrast, coarse and fine sharpness, float32 [4], each in [0, 1].

    Of the green channel, which carries most of the light, at about 24 rows of the frame. Blur and noise
    show between direct neighbours (fine), structure between pixels 1/64 of the width apart (coarse).
    """
    height, width = image.shape[:2]
    rows = np.ascontiguousarray(image[:: max(height // _ROWS, 1), :, 1])
    grid = np.ascontiguousarray(rows[:, :: max(width // _COLUMNS, 1)])
    mean, deviation = cv2.meanStdDev(grid)
    statistics = (mean[0, 0], deviation[0, 0], _mean_step(grid), _mean_step(rows))
    return np.asarray(statistics, dtype=np.float32) * np.float32(1 / 255)


def _mean_step(rows: NDArray[np.uint8]) -> float:
    """Return the mean absolute difference of horizontal neighbours, 0 where there are none."""
    if rows.shape[1] < 2:
        return 0.0
    return float(cv2.norm(rows[:, 1:], rows[:, :-1], cv2.NORM_L1)) / (rows.shape[0] * (rows.shape[1] - 1))


class Layer(Value):
    """One affine layer: weight [out][in] and bias [out]."""

    weight: tuple[tuple[float, ...], ...]
    bias: tuple[float, ...]


class GainModel(Value):
    """Predict what a larger model would add to a frame: standardized features through affine layers.

    One layer is a linear model; between layers stands ReLU; the last has one output. Shipped as plain
    numbers: nothing that deserializes can execute.
    """

    features: Literal[2] = 2
    mean: tuple[float, ...]
    scale: tuple[Annotated[float, Field(gt=0.0)], ...]
    layers: Annotated[tuple[Layer, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        width = len(FEATURES)
        if len(self.mean) != width or len(self.scale) != width:
            raise ValueError(f"mean and scale must have {width} numbers")
        for index, layer in enumerate(self.layers):
            if len(layer.weight) != len(layer.bias) or any(len(row) != width for row in layer.weight):
                raise ValueError(f"layer {index} does not take the {width} numbers before it")
            width = len(layer.bias)
        if width != 1:
            raise ValueError("the last layer must have one output")
        return self

    def compiled(self) -> CompiledGain:
        """Return the model as arrays, ready to be asked many times."""
        return CompiledGain(
            np.asarray(self.mean, dtype=np.float32),
            np.asarray(self.scale, dtype=np.float32),
            tuple(
                (np.asarray(layer.weight, dtype=np.float32), np.asarray(layer.bias, dtype=np.float32))
                for layer in self.layers
            ),
        )


class CompiledGain:
    """A gain model as arrays; features are clipped to 6 standard deviations, where nothing was learned."""

    def __init__(
        self,
        mean: NDArray[np.float32],
        scale: NDArray[np.float32],
        layers: tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...],
    ) -> None:
        self._mean, self._inverse_scale, self._layers = mean, 1.0 / scale, layers

    def predict(self, feature_rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return predicted gains [n] of feature rows [n, f]."""
        x = (feature_rows - self._mean) * self._inverse_scale
        np.maximum(x, -_CLIP, out=x)
        np.minimum(x, _CLIP, out=x)
        for index, (weight, bias) in enumerate(self._layers):
            if index:
                x = np.maximum(x, 0.0)
            x = x @ weight.T + bias
        return np.asarray(x[:, 0], dtype=np.float32)
