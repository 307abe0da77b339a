"""What lies on the belt and where: parts placed with a bounded overlap, litter, chips, swarf, seams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from search.data.conveyor.factors import Factors
from search.data.conveyor.shapes import FASTENERS, KINDS, LITTER
from search.data.conveyor.sprites import Library, Sprite

FRAME_WH: Final = (640, 480)
MIN_PARTS: Final = 3
MAX_PARTS: Final = 14
_GRID: Final = 4  # placement looks at silhouettes in cells of 4 x 4 pixels
_LEAST_VISIBLE: Final = 0.5
_LEAST_IN_FRAME: Final = 0.5
_ATTEMPTS: Final = 24


@dataclass(frozen=True, slots=True)
class Part:
    """One thing on the belt: which sprite, where, how it lies, and what it is made of.

    label is the class index, or -1 for litter. x_px, y_px: centre; long_px: length of the long side;
    angle_rad: rotation; stretch: width over the variant's own; tilt: foreshortening (1: flat) along tilt_rad.
    """

    kind: str
    label: int
    variant: int
    x_px: float
    y_px: float
    long_px: float
    angle_rad: float
    stretch: float
    tilt: float
    tilt_rad: float
    material: int

    def affine(self, level: NDArray[np.float32], per_px: float = 1.0) -> NDArray[np.float64]:
        """Return the 2x3 matrix from the level's pixels to the frame's, the frame scaled by `per_px`."""
        height, width = level.shape[:2]
        cos, sin = np.cos(self.angle_rad), np.sin(self.angle_rad)
        tx, ty = np.cos(self.tilt_rad), np.sin(self.tilt_rad)
        lean = np.eye(2) - (1.0 - self.tilt) * np.array([[tx * tx, tx * ty], [tx * ty, ty * ty]])
        size = self.long_px * per_px / width
        linear = lean @ np.array([[cos, -sin], [sin, cos]]) @ np.diag([size, size * self.stretch])
        centre = np.array([(width - 1) / 2, (height - 1) / 2])
        target = np.array([self.x_px * per_px - 0.5, self.y_px * per_px - 0.5])
        return np.hstack([linear, (target - linear @ centre)[:, None]])

    def area_px(self, sprite: Sprite) -> float:
        """Return the area of the whole silhouette, in frame and out of it, covered or not."""
        level = sprite.levels[0]
        linear = self.affine(level)[:, :2]
        return float(abs(np.linalg.det(linear)) * level.shape[0] * level.shape[1] * sprite.solid_share)


@dataclass(frozen=True, slots=True)
class Chip:
    """A flat scrap of plastic, wood or metal: a polygon around (x_px, y_px)."""

    x_px: float
    y_px: float
    outline_px: tuple[tuple[float, float], ...]
    rgb: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Swarf:
    """A curl of turned metal: an elliptic arc."""

    x_px: float
    y_px: float
    axes_px: tuple[float, float]
    turn_deg: float
    start_deg: float
    end_deg: float
    bright: int


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything on a stretch of belt, bottom first. seams_px are the x of splices across the belt."""

    parts: tuple[Part, ...]
    chips: tuple[Chip, ...]
    swarf: tuple[Swarf, ...]
    seams_px: tuple[float, ...]


def warp(
    level: NDArray[np.float32],
    affine: NDArray[np.float64],
    wh: tuple[int, int],
    pad: int = 0,
) -> tuple[NDArray[np.float32], tuple[int, int, int, int]] | None:
    """Warp a level into the window of a frame that it touches.

    Return the warped maps and the window (x0, y0, x1, y1), or None when it lies outside the frame.
    """
    height, width = level.shape[:2]
    corners = np.array([[-1, -1, 1], [width, -1, 1], [-1, height, 1], [width, height, 1]]) @ affine.T
    low = np.floor(corners.min(axis=0)).astype(int) - pad
    high = np.ceil(corners.max(axis=0)).astype(int) + 1 + pad
    x0, y0 = max(0, int(low[0])), max(0, int(low[1]))
    x1, y1 = min(wh[0], int(high[0])), min(wh[1], int(high[1]))
    if x0 >= x1 or y0 >= y1:
        return None
    moved = affine.copy()
    moved[:, 2] -= (x0, y0)
    out = cv2.warpAffine(level, moved, (x1 - x0, y1 - y0), flags=cv2.INTER_LINEAR)
    return out.astype(np.float32, copy=False), (x0, y0, x1, y1)


def compose(
    library: Library, factors: Factors, rng: np.random.Generator, *, whole_belt: bool = False
) -> Scene:
    """Lay parts and litter on one frame-sized stretch of belt.

    The number of parts is 3 + Binomial(11, 0.10 + 0.62 clutter); each of them lies on an earlier one with
    probability 0.6 occlusion, yet never so that less than half of anything stays visible. With `whole_belt`
    parts may stick out at the left and right, as on a running belt, and are not held inside the frame.
    """
    busy = 0.10 + 0.62 * factors.clutter
    wanted = MIN_PARTS + int(rng.binomial(MAX_PARTS - MIN_PARTS, busy))
    stray = int(rng.binomial(4, 0.05 + 0.55 * factors.clutter))
    pile = _Pile()
    labels = [int(rng.integers(len(FASTENERS))) for _ in range(wanted)]
    order = rng.permutation(np.array(labels + [-1] * stray))
    for label in order:
        onto = bool(rng.random() < 0.6 * factors.occlusion)
        for _ in range(_ATTEMPTS):
            part = _draw_part(int(label), factors, pile, onto, rng)
            if pile.accepts(part, library[part.kind][part.variant], onto, whole_belt):
                break
    pieces = 1.0 + 13.0 * factors.clutter
    chips = tuple(_draw_chip(factors.scale, rng) for _ in range(int(rng.poisson(0.6 * pieces))))
    swarf = tuple(_draw_swarf(factors.scale, rng) for _ in range(int(rng.poisson(0.5 * pieces))))
    seams = (float(rng.uniform(0, FRAME_WH[0])),) if rng.random() < 0.22 else ()
    return Scene(tuple(pile.parts), chips, swarf, seams)


class _Pile:
    """Parts accepted so far, with who covers each placement cell and how much of each part still shows."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self._wh = (FRAME_WH[0] // _GRID, FRAME_WH[1] // _GRID)
        self._owner = np.full((self._wh[1], self._wh[0]), -1, np.int16)
        self._cells: list[float] = []

    def accepts(self, part: Part, sprite: Sprite, onto: bool, whole_belt: bool) -> bool:
        """Take the part if everything stays visible enough; else leave the pile as it was."""
        level = sprite.level_for(part.long_px / _GRID)
        warped = warp(level, part.affine(level, 1.0 / _GRID), self._wh)
        if warped is None:
            return False
        maps, (x0, y0, x1, y1) = warped
        mask = maps[..., 3] >= 0.5
        area = part.area_px(sprite) / _GRID**2
        if not whole_belt and mask.sum() < _LEAST_IN_FRAME * area:
            return False
        window = self._owner[y0:y1, x0:x1]
        spread = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        if not onto and bool((window[spread] >= 0).any()):
            return False
        hit, lost = np.unique(window[mask], return_counts=True)
        for index, count in zip(hit.tolist(), lost.tolist(), strict=True):
            left = int((self._owner == index).sum()) - count
            if index >= 0 and left < _LEAST_VISIBLE * self._cells[index]:
                return False
        window[mask] = len(self.parts)
        self.parts.append(part)
        self._cells.append(area)
        return True


def _draw_part(label: int, factors: Factors, pile: _Pile, onto: bool, rng: np.random.Generator) -> Part:
    kind = FASTENERS[label] if label >= 0 else LITTER[int(rng.integers(len(LITTER)))]
    long_px = kind.long_px * factors.scale * rng.uniform(0.86, 1.14)
    if onto and pile.parts:
        below = pile.parts[int(rng.integers(len(pile.parts)))]
        reach = rng.uniform(0.30, 0.60) * (below.long_px + long_px) / 2
        bearing = rng.uniform(0, 2 * np.pi)
        x, y = below.x_px + reach * np.cos(bearing), below.y_px + reach * np.sin(bearing)
    else:
        x, y = rng.uniform(0, FRAME_WH[0]), rng.uniform(0.03, 0.97) * FRAME_WH[1]
    return Part(
        kind=kind.name,
        label=label,
        variant=int(rng.integers(12)),
        x_px=float(x),
        y_px=float(y),
        long_px=float(long_px),
        angle_rad=float(rng.uniform(0, 2 * np.pi)),
        stretch=float(rng.uniform(0.93, 1.07)) if KINDS[kind.name].aspect < 0.9 else 1.0,
        tilt=float(1.0 - 0.2 * rng.random() ** 2),
        tilt_rad=float(rng.uniform(0, 2 * np.pi)),
        material=int(rng.integers(1 << 16)),
    )


def _draw_chip(scale: float, rng: np.random.Generator) -> Chip:
    corners = int(rng.integers(4, 8))
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    radii = scale * rng.uniform(3.0, 11.0) * rng.uniform(0.6, 1.2, corners)
    flat = rng.uniform(0.35, 1.0)
    turn = rng.uniform(0, np.pi)
    xs, ys = radii * np.cos(angles), radii * np.sin(angles) * flat
    points = np.stack([xs * np.cos(turn) - ys * np.sin(turn), xs * np.sin(turn) + ys * np.cos(turn)], axis=1)
    tones = ((150, 120, 80), (190, 188, 180), (60, 60, 62), (112, 70, 46), (176, 150, 60), (120, 124, 130))
    tone = np.array(tones[int(rng.integers(len(tones)))]) * rng.uniform(0.7, 1.15)
    red, green, blue = (int(v) for v in np.clip(tone, 0, 255))
    return Chip(
        float(rng.uniform(-10, FRAME_WH[0] + 10)),
        float(rng.uniform(-10, FRAME_WH[1] + 10)),
        tuple((float(px), float(py)) for px, py in points),
        (red, green, blue),
    )


def _draw_swarf(scale: float, rng: np.random.Generator) -> Swarf:
    start = float(rng.uniform(0, 360))
    long = scale * rng.uniform(5, 18)
    return Swarf(
        float(rng.uniform(0, FRAME_WH[0])),
        float(rng.uniform(0, FRAME_WH[1])),
        (float(long), float(long * rng.uniform(0.25, 0.9))),
        float(rng.uniform(0, 180)),
        start,
        start + float(rng.uniform(70, 250)),
        int(rng.integers(120, 235)),
    )
