"""Training images, varied: pasted objects, mosaics, zoom and shift, flips, colour, blur and noise.

Every geometric change is one affine map from the source frame to the model's input, so pixels are resampled
once and boxes follow by the same map.  Coordinates are continuous: pixel i covers [i, i + 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from model_repo.frame import FILL

# Objects that one frame may get from another, places tried for each, how much of the smaller of two may be
# covered, and over how much of its half width an object fades out beyond its ellipse.
_PASTED = 4
_TRIES = 10
_MOST_COVERED = 0.1
_FADES_OVER = 0.2


@dataclass(frozen=True)
class Sample:
    """An image with its objects: RGB uint8 [H, W, 3], xyxy float32 [n, 4] in its pixels, int64 [n]
    classes."""

    image: NDArray[np.uint8]
    boxes_xyxy: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class AugmentConfig:
    """How much training images vary.

    Attributes:
        paste: chance of a frame to get some objects of another one, at their size, where nothing lies yet.
        mosaic: chance of a mosaic of four frames instead of one frame.
        zoom: range of the size of a lone frame, relative to its letterboxed size.
        mosaic_zoom: the same for the frames in a mosaic.
        stretch: largest relative change of the aspect ratio.
        horizontal_flip, vertical_flip, transpose: chances; the last two only suit scenes that have no up.
        hue, saturation, brightness: largest relative change of each.
        blur, noise: chance of a slight Gaussian blur, of Gaussian noise.
        min_visible: objects with a smaller share of their box left in the image are dropped.
    """

    paste: float = 0.0
    mosaic: float = 0.7
    zoom: tuple[float, float] = (0.75, 1.4)
    mosaic_zoom: tuple[float, float] = (0.5, 1.2)
    stretch: float = 0.1
    horizontal_flip: float = 0.5
    vertical_flip: float = 0.0
    transpose: float = 0.0
    hue: float = 0.015
    saturation: float = 0.4
    brightness: float = 0.3
    blur: float = 0.05
    noise: float = 0.05
    min_visible: float = 0.25

    def without_mosaic(self) -> AugmentConfig:
        """Return the milder variation of a training's last part: lone frames as they are, near true size."""
        return replace(self, paste=0.0, mosaic=0.0, zoom=(0.9, 1.15))


Draw = Callable[[np.random.Generator], Sample]
"""Draws a further source frame, for the other quarters of a mosaic."""


def augmented(
    source: Sample,
    draw: Draw,
    config: AugmentConfig,
    resolution_wh: tuple[int, int],
    rng: np.random.Generator,
) -> Sample:
    """Return a varied training image of `resolution_wh` made of `source` and, in a mosaic, frames from
    `draw`."""

    def richer(frame: Sample) -> Sample:
        return pasted(frame, draw(rng), rng) if rng.random() < config.paste else frame

    if rng.random() < config.mosaic:
        sources = [richer(source), *(richer(draw(rng)) for _ in range(3))]
        sample = _mosaic(sources, config, resolution_wh, rng)
    else:
        sample = _placed(richer(source), config, config.zoom, resolution_wh, rng)
    return Sample(_recoloured(sample.image, config, rng), sample.boxes_xyxy, sample.labels)


def pasted(sample: Sample, donor: Sample, rng: np.random.Generator) -> Sample:
    """Copy up to `_PASTED` objects of another frame into a sample, each where it covers none that is there.

    Classes are drawn evenly, so that rare ones are pasted as often as common ones. An object is mirrored at
    random and keeps its size; inside its box it fades out toward the corners, for what is there is its own
    background. The sample itself stays as it is.
    """
    height, width = sample.image.shape[:2]
    image = sample.image.copy()
    boxes, labels = list(sample.boxes_xyxy), list(sample.labels)
    for _ in range(int(rng.integers(1, _PASTED + 1)) if len(donor.labels) else 0):
        of_class = np.flatnonzero(donor.labels == rng.choice(np.unique(donor.labels)))
        index = int(rng.choice(of_class))
        x1, y1, x2, y2 = (int(edge) for edge in np.round(donor.boxes_xyxy[index]))
        patch = donor.image[max(y1, 0) : y2, max(x1, 0) : x2]
        patch = patch[:: -1 if rng.random() < 0.5 else 1, :: -1 if rng.random() < 0.5 else 1]
        h, w = patch.shape[:2]
        if min(h, w) < 2 or h > height or w > width:
            continue
        corners = rng.integers(0, (width - w + 1, height - h + 1), (_TRIES, 2))
        places = np.concatenate([corners, corners + np.array([w, h])], axis=1).astype(np.float32)
        free = [place for place in places if all(_overlap(place, box) <= _MOST_COVERED for box in boxes)]
        if not free:
            continue
        place = free[0]
        x, y = int(place[0]), int(place[1])
        region = image[y : y + h, x : x + w]
        opacity = _fading(w, h)
        region[:] = np.round(region * (1.0 - opacity) + patch * opacity).astype(np.uint8)
        boxes.append(place)
        labels.append(donor.labels[index])
    return Sample(image, np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64))


def _overlap(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Return the share of the smaller box that the other one covers."""
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    least = min(np.prod(one[2:] - one[:2]), np.prod(other[2:] - other[:2]))
    return float(np.prod(np.maximum(sides, 0.0)) / max(least, 1.0))


def _fading(width: int, height: int) -> NDArray[np.float64]:
    """Return opacities [height, width, 1]: 1 within the ellipse that fills the box, falling outside of it."""
    x = (np.arange(width) + 0.5) / width * 2.0 - 1.0
    y = (np.arange(height) + 0.5) / height * 2.0 - 1.0
    beyond = np.sqrt(x[None] ** 2 + y[:, None] ** 2) - 1.0
    return np.asarray(np.clip(1.0 - beyond / _FADES_OVER, 0.0, 1.0)[:, :, None])


def flipped(sample: Sample, *, horizontal: bool = False, vertical: bool = False) -> Sample:
    """Mirror a sample; exact to the pixel."""
    height, width = sample.image.shape[:2]
    matrix = _flip_matrix(width, height, horizontal=horizontal, vertical=vertical, transpose=False)
    return warped(sample, matrix, (width, height), min_visible=0.0)


def warped(
    sample: Sample, matrix: NDArray[np.float64], size_wh: tuple[int, int], *, min_visible: float
) -> Sample:
    """Carry a sample through a 2x3 affine map of continuous coordinates, whose linear part mirrors or
    transposes but does not rotate; grey fills what the source does not cover.

    Boxes are cut at the edges; those with less than `min_visible` of their area left are dropped, and so are
    those that are left with less than a pixel.
    """
    width, height = size_wh
    in_pixels = matrix.copy()  # OpenCV's maps speak of pixel centres: x + 0.5
    in_pixels[:, 2] += matrix[:, :2] @ np.array([0.5, 0.5]) - 0.5
    image = cv2.warpAffine(
        sample.image,
        in_pixels,
        (width, height),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(FILL, FILL, FILL),
    )
    corners = sample.boxes_xyxy.reshape(-1, 2, 2).astype(np.float64) @ matrix[:, :2].T + matrix[:, 2]
    low, high = corners.min(axis=1), corners.max(axis=1)
    limit = np.array([width, height], np.float64)
    cut_low, cut_high = np.clip(low, 0, limit), np.clip(high, 0, limit)
    area = np.prod(high - low, axis=1)
    left = cut_high - cut_low
    kept = (np.prod(left, axis=1) >= min_visible * area) & (left.min(axis=1, initial=np.inf) >= 1.0)
    boxes = np.concatenate([cut_low, cut_high], axis=1)[kept].astype(np.float32)
    return Sample(np.asarray(image, np.uint8), boxes, sample.labels[kept])


def _flip_matrix(
    width: float, height: float, *, horizontal: bool, vertical: bool, transpose: bool
) -> NDArray[np.float64]:
    matrix = np.eye(3)
    if horizontal:
        matrix = np.array([[-1.0, 0, width], [0, 1, 0], [0, 0, 1]]) @ matrix
    if vertical:
        matrix = np.array([[1.0, 0, 0], [0, -1, height], [0, 0, 1]]) @ matrix
    if transpose:
        matrix = np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]]) @ matrix
    return matrix[:2]


def _placed(
    sample: Sample,
    config: AugmentConfig,
    zoom: tuple[float, float],
    region_wh: tuple[int, int],
    rng: np.random.Generator,
    letterbox_wh: tuple[int, int] | None = None,
) -> Sample:
    """Flip, size and shift one frame into a region; its size is relative to its letterbox in
    `letterbox_wh`."""
    target_w, target_h = letterbox_wh or region_wh
    height, width = sample.image.shape[:2]
    scale = min(target_w / width, target_h / height)
    transpose = bool(rng.random() < config.transpose)
    flip = _flip_matrix(
        width,
        height,
        horizontal=bool(rng.random() < config.horizontal_flip),
        vertical=bool(rng.random() < config.vertical_flip),
        transpose=transpose,
    )
    if transpose:
        width, height = height, width
    size = scale * np.exp(rng.uniform(np.log(zoom[0]), np.log(zoom[1])))
    ratio = np.exp(rng.uniform(-0.5, 0.5) * config.stretch)
    scale_xy = np.array([size * ratio, size / ratio])
    # anywhere between "left edges meet" and "right edges meet": a frame larger than the region is cropped,
    # a smaller one lies within it
    slack = np.array(region_wh) - scale_xy * np.array([width, height])
    shift = slack * rng.random(2)
    matrix = flip * scale_xy[:, None]
    matrix[:, 2] += shift
    return warped(sample, matrix, region_wh, min_visible=config.min_visible)


def _mosaic(
    sources: list[Sample], config: AugmentConfig, resolution_wh: tuple[int, int], rng: np.random.Generator
) -> Sample:
    """Fill the four quarters around a random middle with one frame each."""
    width, height = resolution_wh
    middle_x = int(width * rng.uniform(0.3, 0.7))
    middle_y = int(height * rng.uniform(0.3, 0.7))
    image = np.empty((height, width, 3), np.uint8)
    boxes: list[NDArray[np.float32]] = []
    labels: list[NDArray[np.int64]] = []
    quarters = [
        (0, 0, middle_x, middle_y),
        (middle_x, 0, width, middle_y),
        (0, middle_y, middle_x, height),
        (middle_x, middle_y, width, height),
    ]
    for source, (x1, y1, x2, y2) in zip(sources, quarters, strict=True):
        part = _placed(source, config, config.mosaic_zoom, (x2 - x1, y2 - y1), rng, resolution_wh)
        image[y1:y2, x1:x2] = part.image
        boxes.append(part.boxes_xyxy + np.array([x1, y1, x1, y1], np.float32))
        labels.append(part.labels)
    return Sample(image, np.concatenate(boxes), np.concatenate(labels))


def _recoloured(
    image: NDArray[np.uint8], config: AugmentConfig, rng: np.random.Generator
) -> NDArray[np.uint8]:
    hue, saturation, brightness = rng.uniform(-1, 1, 3) * (config.hue, config.saturation, config.brightness)
    levels = np.arange(256, dtype=np.float64)
    tables = np.stack(
        [
            np.mod(levels + 180.0 * hue, 180.0),
            np.clip(levels * (1 + saturation), 0, 255),
            np.clip(levels * (1 + brightness), 0, 255),
        ],
        axis=1,
    ).astype(np.uint8)
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    recoloured = cv2.cvtColor(cv2.LUT(hsv, tables[None]), cv2.COLOR_HSV2RGB)
    if rng.random() < config.blur:
        recoloured = cv2.GaussianBlur(recoloured, (3, 3), float(rng.uniform(0.3, 1.5)))
    if rng.random() < config.noise:
        noise = rng.standard_normal(recoloured.shape, np.float32) * np.float32(rng.uniform(2, 10))
        recoloured = np.clip(recoloured + noise, 0, 255).astype(np.uint8)
    return np.asarray(recoloured, np.uint8)
