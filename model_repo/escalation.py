"""Which frames go on: features of a fast answer, the predicted gain of a larger model, and the rule.

After ORIC ("offloading with rewards in context"): the label a gain model learns is the change in data-set AP
that a larger model's answer to this image brings; the features are the best 25 boxes and what surrounds
them. Deciding must cost far less than what it saves, so everything is a handful of vector operations over at
most 100 boxes and a 64-pixel wide grey copy of the frame.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from model_repo.detections import Detections, iou_matrix
from model_repo.value import Value

TOP_BOXES = 25
_LEVELS = np.array([0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9], dtype=np.float32)
_GREY_WH = (64, 48)

FEATURES: tuple[str, ...] = (
    *(f"score_{i}" for i in range(TOP_BOXES)),
    *(f"above_{level:.2f}" for level in _LEVELS),
    "score_sum",
    "doubt_sum",
    "doubt_share",
    "middle_count",
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


def features(aligned: Detections, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Describe a fast answer and its frame by the numbers named in FEATURES, float32 [len(FEATURES)].

    aligned: the answer under aligned scores, in source pixels. image: the decoded frame or the letterboxed
    input, RGB uint8 [h, w, 3]; the same one must be used when fitting.
    """
    best = aligned.top(TOP_BOXES)
    score = np.zeros(TOP_BOXES, dtype=np.float32)
    score[: len(best)] = best.score
    every = aligned.score
    doubt = every * (1.0 - every)
    above = (every[:, None] >= _LEVELS).sum(axis=0)
    total = float(every.sum())

    strong = best.score >= 0.1
    if strong.any():
        xyxy = best.xyxy[strong]
        side = np.sqrt(np.maximum((xyxy[:, 2] - xyxy[:, 0]) * (xyxy[:, 3] - xyxy[:, 1]), 1.0))
        size = np.log(side)
        overlap = iou_matrix(xyxy, xyxy)
        np.fill_diagonal(overlap, 0.0)
        crowding = overlap.max(axis=1)
        mass = np.bincount(best.label[strong], weights=best.score[strong])
        share = mass[mass > 0] / mass.sum()
        shape = (
            float(size.mean()),
            float(size.min()),
            float(size.std()),
            float(crowding.mean()),
            float(crowding.max()),
            float(-(share * np.log(share)).sum()),
        )
    else:
        shape = (0.0,) * 6

    middle = float(((every > 0.2) & (every < 0.6)).sum())
    return np.concatenate(
        (
            score,
            above.astype(np.float32),
            np.array([total, doubt.sum(), doubt.sum() / max(total, 1e-3), middle, *shape], dtype=np.float32),
            image_statistics(image),
        )
    ).astype(np.float32)


def image_statistics(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return brightness, contrast, sharpness of a coarse copy and of a full-size patch grid, float32 [4]."""
    coarse = cv2.cvtColor(cv2.resize(image, _GREY_WH, interpolation=cv2.INTER_NEAREST), cv2.COLOR_RGB2GRAY)
    grey = coarse.astype(np.float32) * np.float32(1 / 255)
    # Neighbouring pixels of the frame itself at sparse rows: blur and noise show there and not in the copy.
    rows = image[:: max(image.shape[0] // 16, 1), :, 1].astype(np.float32)
    fine = float(np.abs(np.diff(rows, axis=1)).mean()) / 255 if image.shape[1] > 1 else 0.0
    sharp = float(np.abs(np.diff(grey, axis=1)).mean())
    return np.array([grey.mean(), grey.std(), sharp, fine], dtype=np.float32)


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
        self._mean, self._scale, self._layers = mean, scale, layers

    def predict(self, feature_rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return predicted gains [n] of feature rows [n, f]."""
        x = np.clip((feature_rows - self._mean) / self._scale, -6.0, 6.0)
        for index, (weight, bias) in enumerate(self._layers):
            if index:
                x = np.maximum(x, 0.0)
            x = x @ weight.T + bias
        return np.asarray(x[:, 0], dtype=np.float32)
