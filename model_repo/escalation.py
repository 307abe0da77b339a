"""Which frames go on: features of a fast answer, the predicted gain of a larger model, and the rule.

After ORIC ("offloading with rewards in context"): the label a gain model learns is the change in data-set AP
that a larger model's answer to this image brings; the features are the best 25 boxes and what surrounds
them. Deciding must cost far less than what it saves, so everything is a handful of vector operations over at
most 100 boxes and a few rows of the frame.
"""

from __future__ import annotations

import math
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
)
_ANSWER = TOP_BOXES + len(_LEVELS)


def features(aligned: Detections, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Describe a fast answer and its frame by the numbers named in FEATURES, float32 [len(FEATURES)].

    aligned: the answer under aligned scores, in source pixels. image: the decoded frame or the letterboxed
    input, RGB uint8 [h, w, 3]; the same one must be used when fitting.

    1. The best 25 scores, zero where there are fewer; how many scores reach each of ten levels.
    2. The sum of scores; the sum of score·(1 − score), alone and as a share of it.
    3. Over the best boxes of score 0.1 and more: log of their sides, how much each meets its closest
       neighbour, the entropy of the classes.
    4. Light, contrast, and differences of neighbouring pixels.
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
    strong = min(int(above[_STRONG_LEVEL]), TOP_BOXES)
    if strong:
        best = order[:strong]
        out[_ANSWER + 3 : _ANSWER + 9] = _arrangement(
            aligned.xyxy[best], ordered[:strong], aligned.label[best]
        )
    out[_ANSWER + 9 :] = image_statistics(image)
    return out


def _arrangement(
    xyxy: NDArray[np.float32], score: NDArray[np.float32], label: NDArray[np.int64]
) -> tuple[float, float, float, float, float, float]:
    """Return mean, least and spread of log sides; mean and greatest crowding; entropy of the classes."""
    count = len(score)
    wh = xyxy[:, 2:] - xyxy[:, :2]
    size = np.log(np.maximum(wh[:, 0] * wh[:, 1], 1.0))
    size *= 0.5
    mean = float(size.sum()) / count
    spread = math.sqrt(max(float(size @ size) / count - mean * mean, 0.0))
    overlap = iou_matrix(xyxy, xyxy)
    overlap.flat[:: count + 1] = 0.0
    crowding = overlap.max(axis=1)
    mass = np.bincount(label, weights=score)
    mass = mass[mass > 0]
    share = mass / mass.sum()
    return (
        mean,
        float(size.min()),
        spread,
        float(crowding.sum()) / count,
        float(crowding.max()),
        -float(share @ np.log(share)),
    )


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

    features: Literal[1] = 1
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
