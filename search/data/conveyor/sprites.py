"""Parts as sampled normals: each shape evaluated once, kept at several sizes, warped when painted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from search.data.conveyor.shapes import KINDS, Kind

FULL_LONG_PX: Final = 224
SMALLEST_LONG_PX: Final = 20
VARIANTS: Final = 12
_SUPERSAMPLE: Final = 2
_LIBRARY_SEED: Final = 20240


@dataclass(frozen=True, slots=True)
class Sprite:
    """One variant of a part.

    levels: [h, w, 4] float32 maps, each 1/sqrt(2) of the one before, with the normal's x and y, shade and
    alpha; the first three are premultiplied by alpha. solid_share is the silhouette's area over the canvas
    area.
    """

    kind: str
    levels: tuple[NDArray[np.float32], ...]
    thickness: float
    solid_share: float

    def level_for(self, long_px: float) -> NDArray[np.float32]:
        """Return the smallest level that is at least as long as `long_px`, or the largest."""
        fitting = [level for level in self.levels if level.shape[1] >= long_px]
        return fitting[-1] if fitting else self.levels[0]


Library = Mapping[str, tuple[Sprite, ...]]


def build_sprites(kind: Kind) -> tuple[Sprite, ...]:
    """Evaluate every variant of a kind; the same parts always, since they belong to the schema version."""
    rng = np.random.default_rng([_LIBRARY_SEED, list(KINDS).index(kind.name)])
    return tuple(_sprite(kind, rng) for _ in range(VARIANTS))


def _sprite(kind: Kind, rng: np.random.Generator) -> Sprite:
    width = FULL_LONG_PX * _SUPERSAMPLE
    height = round(width * kind.aspect)
    height += height % 2
    xs = (np.arange(width, dtype=np.float32) + 0.5) / width - 0.5
    ys = (np.arange(height, dtype=np.float32) + 0.5 - height / 2) / width
    x, y = np.meshgrid(xs.astype(np.float32, copy=False), ys.astype(np.float32, copy=False))
    shape = kind.draw(x, y, rng)
    grain = cv2.GaussianBlur(rng.standard_normal(x.shape, dtype=np.float32), (0, 0), 1.2)
    relief = shape.height + 0.0011 * grain
    slope_y, slope_x = np.gradient(relief, np.float32(1.0 / width))
    length = np.sqrt(1.0 + slope_x * slope_x + slope_y * slope_y)
    stain = cv2.GaussianBlur(rng.standard_normal(x.shape, dtype=np.float32), (0, 0), width / 24)
    stain = np.clip(1.0 - 0.10 * np.maximum(stain / max(float(stain.std()), 1e-6), 0.0), 0.6, 1.0)
    maps = np.dstack([-slope_x / length, -slope_y / length, shape.shade * stain, np.ones_like(x)])
    maps = (maps * shape.solid[..., None]).astype(np.float32)
    size = (width // _SUPERSAMPLE, height // _SUPERSAMPLE)
    levels = [_shrink(maps, size)]
    while levels[-1].shape[1] / np.sqrt(2.0) >= SMALLEST_LONG_PX:
        factor = np.sqrt(0.5) ** len(levels)
        small = (round(size[0] * factor), max(3, round(size[1] * factor)))
        levels.append(_shrink(maps, small))
    return Sprite(kind.name, tuple(levels), shape.thickness, float((shape.solid >= 0.5).mean()))


def _shrink(maps: NDArray[np.float32], wh: tuple[int, int]) -> NDArray[np.float32]:
    return cv2.resize(maps, wh, interpolation=cv2.INTER_AREA).astype(np.float32, copy=False)
