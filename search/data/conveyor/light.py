"""Light over the belt: what a polished surface mirrors, and how bright each place is.

Metal is shaded by looking its normal up in a map of the surroundings: r = 2 (n.v) n - v with the camera
straight above, v = (0, 0, 1), is where the camera looks after the reflection. Around it are a grey sky,
two tube lamps and a dark horizon; the normal is moved a little with the place in the frame: lamps are near.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from search.data.conveyor.scene import FRAME_WH

ENVIRONMENT_SIDE: Final = 96


@dataclass(frozen=True, slots=True)
class Lighting:
    """One lamp arrangement: two tubes (direction, offsets, width, power), sky, gradient, vignette, tint."""

    tube_rad: float
    tube_offsets: tuple[float, float]
    tube_width: float
    tube_power: tuple[float, float]
    sky: float
    gradient_rad: float
    gradient: float
    spot_xy: tuple[float, float]
    vignette: float
    tint_rgb: tuple[float, float, float]


def draw_lighting(rng: np.random.Generator) -> Lighting:
    """Draw a lamp arrangement; brightness itself is the factor `light` and is applied by the camera."""
    first = float(rng.uniform(0.15, 0.55))
    warm = float(rng.uniform(-0.06, 0.06))
    return Lighting(
        tube_rad=float(rng.uniform(0, np.pi)),
        tube_offsets=(first, first - float(rng.uniform(0.7, 1.0))),
        tube_width=float(rng.uniform(0.08, 0.17)),
        tube_power=(float(rng.uniform(0.9, 1.5)), float(rng.uniform(0.3, 1.0))),
        sky=float(rng.uniform(0.42, 0.62)),
        gradient_rad=float(rng.uniform(0, 2 * np.pi)),
        gradient=float(rng.uniform(0.0, 0.28)),
        spot_xy=(float(rng.uniform(0.25, 0.75)), float(rng.uniform(0.25, 0.75))),
        vignette=float(rng.uniform(0.05, 0.30)),
        tint_rgb=(1.0 + warm, 1.0, 1.0 - warm),
    )


def environment(lighting: Lighting) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the mirrored brightness over the normal's (x, y) in [-1, 1]^2, for polished and matt metal."""
    axis = np.linspace(-1, 1, ENVIRONMENT_SIDE, dtype=np.float32)
    nx, ny = np.meshgrid(axis, axis)
    nz = np.sqrt(np.maximum(1.0 - nx * nx - ny * ny, 0.0))
    rx, ry, rz = 2 * nz * nx, 2 * nz * ny, 2 * nz * nz - 1
    across = rx * np.cos(lighting.tube_rad) + ry * np.sin(lighting.tube_rad)
    along = -rx * np.sin(lighting.tube_rad) + ry * np.cos(lighting.tube_rad)
    bright = lighting.sky * (0.30 + 0.70 * np.clip(rz, 0, 1)) * (0.85 + 0.15 * ry)
    for offset, power in zip(lighting.tube_offsets, lighting.tube_power, strict=True):
        tube = np.exp(-(((across - offset) / lighting.tube_width) ** 2)) * np.clip(
            1.4 - np.abs(along) * 1.2, 0, 1
        )
        bright = bright + power * tube * np.clip(rz + 0.35, 0, 1)
    bright = bright * np.clip(1.0 + 0.95 * np.minimum(rz, 0.0), 0.06, 1.0)
    polished = bright.astype(np.float32)
    return polished, cv2.GaussianBlur(polished, (0, 0), 5.0)


def illumination(lighting: Lighting) -> NDArray[np.float32]:
    """Return the relative brightness of each place, [480, 640] float32 with mean about 1."""
    width, height = 40, 30
    x, y = np.meshgrid(
        np.linspace(0, 1, width, dtype=np.float32), np.linspace(0, 1, height, dtype=np.float32)
    )
    slope = (x - 0.5) * np.cos(lighting.gradient_rad) + (y - 0.5) * np.sin(lighting.gradient_rad)
    away = np.hypot(x - lighting.spot_xy[0], (y - lighting.spot_xy[1]) * 0.75)
    field = 1.0 + 2 * lighting.gradient * slope + lighting.vignette * (0.38 - away)
    return cv2.resize(field.astype(np.float32), FRAME_WH, interpolation=cv2.INTER_LINEAR)
