"""Belts: periodic textures made once, and the stretch of one that a frame shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

BELT_WH: Final = (2048, 1024)
BELT_COUNT: Final = 5
_BELT_SEED: Final = 20241
# A Gaussian of deviation s lets through exp(-2 (pi f s)^2): below 1e-20 where f s is beyond this.
_CUT: Final = 1.53


@dataclass(frozen=True, slots=True)
class BeltView:
    """Which belt a frame shows and from where: texture index, offset in belt pixels, magnification, gain."""

    belt: int
    x: float
    y: float
    scale: float
    gain: float


def draw_view(scale: float, rng: np.random.Generator) -> BeltView:
    """Draw a belt and a place on it."""
    belt = int(rng.choice(BELT_COUNT, p=(0.34, 0.2, 0.2, 0.14, 0.12)))
    x, y = float(rng.uniform(0, BELT_WH[0])), float(rng.uniform(0, BELT_WH[1]))
    return BeltView(belt, x, y, scale, float(rng.uniform(0.85, 1.15)))


def show(belts: tuple[NDArray[np.uint8], ...], view: BeltView, wh: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the stretch of belt in view, [h, w, 3] RGB uint8."""
    inverse = np.array([[1 / view.scale, 0, view.x], [0, 1 / view.scale, view.y]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    out = cv2.warpAffine(belts[view.belt], inverse, wh, flags=flags, borderMode=cv2.BORDER_WRAP)
    return out.astype(np.uint8, copy=False)


def _cloud(rng: np.random.Generator, sigma_x: float, sigma_y: float) -> NDArray[np.float32]:
    """Return periodic noise with zero mean and unit deviation, smooth over sigma_x by sigma_y pixels."""
    width, height = BELT_WH
    fx = np.fft.rfftfreq(width)
    fy = np.fft.fftfreq(height)[:, None]
    # The transforms down the columns cost most, and few columns are left where it is smooth along x.
    fx = fx[fx * sigma_x < _CUT]
    rows = np.fft.rfft(rng.standard_normal((height, width), dtype=np.float32))
    pass_x, pass_y = np.exp(-2 * (np.pi * fx * sigma_x) ** 2), np.exp(-2 * (np.pi * fy * sigma_y) ** 2)
    spectrum = np.fft.fft(rows[:, : len(fx)], axis=0) * (pass_x * pass_y)
    out = np.fft.irfft(np.fft.ifft(spectrum, axis=0), n=width).astype(np.float32)
    deviation = float(out.std())
    return (out - out.mean()) / np.float32(deviation)


def build_belt(index: int) -> NDArray[np.uint8]:
    """Make a belt, [1024, 2048, 3] RGB uint8 and periodic both ways; part of the schema version."""
    rng = np.random.default_rng([_BELT_SEED, index])
    width, height = BELT_WH
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    turn = np.float32(2 * np.pi)
    grain, wear, blotch = _cloud(rng, 0.7, 0.7), _cloud(rng, 60, 1.2), _cloud(rng, 45, 45)
    tint = np.zeros((height, width), np.float32)
    if index == 0:  # black rubber, woven back showing through
        base, tint = (52, 53, 56), 3.5 * np.sin(x * turn / 8) * np.sin(y * turn / 8) + 2.2 * grain
    elif index == 1:  # green PVC with a rough diamond top
        lattice = np.sin((x + y) * turn / 16) * np.sin((x - y) * turn / 16)
        base, tint = (44, 96, 74), 8.0 * np.tanh(3 * lattice) + 2.0 * grain
    elif index == 2:  # grey polyurethane with speckles
        speckle = np.where(_cloud(rng, 1.1, 1.1) > 2.3, -26.0, 0.0)
        base, tint = (118, 121, 120), (speckle + 2.5 * grain).astype(np.float32)
    elif index == 3:  # blue modular links with hinge lines and drain slots
        hinge = np.abs(((x / 64) % 1) - 0.5) > 0.47
        slot = (np.abs(((x / 64) % 1) - 0.5) < 0.16) & (np.abs(((y / 32) % 1) - 0.5) < 0.10)
        base, tint = (52, 86, 132), np.where(hinge, -24.0, np.where(slot, -30.0, 0.0)) + 1.5 * grain
        tint = cv2.GaussianBlur(tint.astype(np.float32), (0, 0), 0.8)
    else:  # pale food-grade belt, ribbed
        base, tint = (172, 168, 156), 3.0 * np.sin(y * turn / 8) + 2.0 * grain
    tone = tint + 4.0 * wear + 4.5 * blotch
    scuff = np.clip(_cloud(rng, 40, 0.8) - 2.2, 0, 2) * 16.0
    oil = np.clip(_cloud(rng, 16, 11) - 1.7, 0, 1.2) * 15.0
    dust = np.clip(_cloud(rng, 1.3, 1.3) - 3.0, 0, 1) * 60.0
    lift = (tone + scuff - oil + dust)[..., None]
    colour = np.array(base, np.float32)
    picture = lift * (0.4 + 0.6 * (colour / np.float32(max(sum(base) / 3, 60.0))))
    picture += colour
    np.round(picture, out=picture)
    return np.clip(picture, 0, 255, out=picture).astype(np.uint8)
