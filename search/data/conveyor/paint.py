"""Paint a scene: belt, seams, chips, swarf, shadows, and metal shaded by what it mirrors."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from search.data.conveyor.belt import BELT_COUNT, BeltView, build_belt, show
from search.data.conveyor.light import ENVIRONMENT_SIDE, Lighting, environment, illumination
from search.data.conveyor.scene import FRAME_WH, Chip, Part, Scene, Swarf, warp
from search.data.conveyor.shapes import KINDS
from search.data.conveyor.sprites import Library, build_sprites

_SHIFT: Final = 4  # OpenCV draws at 1/16 pixel
_SUB: Final = 1 << _SHIFT


@dataclass(frozen=True, slots=True)
class Material:
    """A finish: mirrored colour, share of diffuse light, matt or polished."""

    name: str
    rgb: tuple[float, float, float]
    diffuse: float
    matt: bool


MATERIALS: Final = (
    Material("zinc", (0.86, 0.90, 0.96), 0.16, False),
    Material("zinc", (0.84, 0.87, 0.92), 0.20, True),
    Material("steel", (0.74, 0.73, 0.72), 0.12, True),
    Material("stainless", (0.95, 0.94, 0.92), 0.10, False),
    Material("yellow zinc", (0.92, 0.80, 0.52), 0.14, False),
    Material("brass", (0.94, 0.74, 0.38), 0.12, True),
    Material("black oxide", (0.36, 0.36, 0.39), 0.07, True),
)
RUBBER: Final = Material("rubber", (0.16, 0.16, 0.17), 0.05, True)


@dataclass(frozen=True, slots=True)
class Studio:
    """What is made once and shared by all frames: sprites and belts."""

    library: Library
    belts: tuple[NDArray[np.uint8], ...]


def build_studio(pool: Executor) -> Studio:
    """Build sprites and belts on the threads of `pool`."""
    belts = [pool.submit(build_belt, index) for index in range(BELT_COUNT)]
    sprites = {name: pool.submit(build_sprites, kind) for name, kind in KINDS.items()}
    library = {name: future.result() for name, future in sprites.items()}
    return Studio(library, tuple(future.result() for future in belts))


def paint(
    studio: Studio,
    scene: Scene,
    view: BeltView,
    lighting: Lighting,
) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
    """Paint a scene before the camera.

    Return the radiance, [480, 640, 3] RGB float32 with 255 for white, and the index in `scene.parts` of the
    part that each pixel shows, [480, 640] int16, -1 for the belt.
    """
    ground = show(studio.belts, view, FRAME_WH)
    for seam in scene.seams_px:
        _paint_seam(ground, seam, view.scale)
    for chip in scene.chips:
        _paint_chip(ground, chip)
    for curl in scene.swarf:
        _paint_swarf(ground, curl)
    canvas = ground.astype(np.float32)
    canvas *= np.float32(view.gain)
    owner = np.full((FRAME_WH[1], FRAME_WH[0]), -1, np.int16)
    mirrors = environment(lighting)
    sun = lighting.tube_rad + (np.pi if lighting.tube_offsets[0] > 0 else 0.0)
    for index, part in enumerate(scene.parts):
        _paint_part(canvas, owner, index, part, studio.library, mirrors, sun)
    field = illumination(lighting)
    tinted = cv2.merge([field * np.float32(tint) for tint in lighting.tint_rgb])
    return cv2.multiply(canvas, tinted).astype(np.float32, copy=False), owner


def _paint_part(
    canvas: NDArray[np.float32],
    owner: NDArray[np.int16],
    index: int,
    part: Part,
    library: Library,
    mirrors: tuple[NDArray[np.float32], NDArray[np.float32]],
    sun_rad: float,
) -> None:
    sprite = library[part.kind][part.variant]
    level = sprite.level_for(part.long_px)
    reach = part.long_px * sprite.thickness
    pad = int(np.ceil(2 + 0.9 * reach))
    warped = warp(level, part.affine(level), FRAME_WH, pad)
    if warped is None:
        return
    maps, (x0, y0, x1, y1) = warped
    alpha = maps[..., 3]
    ground = canvas[y0:y1, x0:x1]
    shade = _shadow(alpha, reach, sun_rad)
    ground *= shade[..., None]
    material = RUBBER if part.kind == "o_ring" else MATERIALS[part.material % len(MATERIALS)]
    keep = 1.0 / np.maximum(alpha, np.float32(1e-3))
    cos, sin = np.float32(np.cos(part.angle_rad)), np.float32(np.sin(part.angle_rad))
    sx, sy = maps[..., 0] * keep, maps[..., 1] * keep
    lean = np.sqrt(max(0.0, 1.0 - part.tilt**2)) * 0.8
    near_x = (part.x_px / FRAME_WH[0] - 0.5) * 0.30 + lean * np.cos(part.tilt_rad)
    near_y = (part.y_px / FRAME_WH[1] - 0.5) * 0.24 + lean * np.sin(part.tilt_rad)
    half = (ENVIRONMENT_SIDE - 1) / 2
    u = (cos * sx - sin * sy + np.float32(near_x * 0.6)) * np.float32(half) + np.float32(half)
    v = (sin * sx + cos * sy + np.float32(near_y * 0.6)) * np.float32(half) + np.float32(half)
    mirrored = cv2.remap(mirrors[int(material.matt)], u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    bright = (mirrored + np.float32(material.diffuse)) * (maps[..., 2] * keep)
    cover = alpha[..., None]
    colour = bright[..., None] * (np.array(material.rgb, np.float32) * np.float32(255))
    ground += (colour - ground) * cover
    owner[y0:y1, x0:x1][alpha >= 0.5] = index


def _shadow(alpha: NDArray[np.float32], reach_px: float, sun_rad: float) -> NDArray[np.float32]:
    """Return what is left of the light around a part: a cast shadow and a tight contact shadow."""
    dx, dy = 0.55 * reach_px * np.cos(sun_rad), 0.55 * reach_px * np.sin(sun_rad)
    moved = np.array([[1, 0, dx], [0, 1, dy]])
    size = (alpha.shape[1], alpha.shape[0])
    cast = cv2.GaussianBlur(cv2.warpAffine(alpha, moved, size), (0, 0), 0.8 + 0.22 * reach_px)
    contact = cv2.GaussianBlur(alpha, (0, 0), 1.0 + 0.06 * reach_px)
    left = (1.0 - 0.55 * cast) * (1.0 - 0.40 * contact)
    return left.astype(np.float32, copy=False)


def _points(points: NDArray[np.float64]) -> NDArray[np.int32]:
    return np.round(points * _SUB).astype(np.int32)


def _paint_seam(ground: NDArray[np.uint8], x_px: float, scale: float) -> None:
    """Paint a finger splice: a zigzag of cut lines across the belt, dark with a bright lip."""
    step = 26.0 * scale
    count = int(FRAME_WH[1] / step) + 2
    ys = np.arange(count) * step
    xs = x_px + np.where(np.arange(count) % 2 == 0, -1.0, 1.0) * 17.0 * scale
    line = np.stack([xs, ys], axis=1)
    tone = ground[:, max(0, min(FRAME_WH[0] - 1, int(x_px)))].mean(axis=0)
    dark = tuple(float(v) for v in tone * 0.55)
    lip = tuple(float(v) for v in np.minimum(tone * 1.18 + 6, 255))
    thick = max(1, round(2.2 * scale))
    cv2.polylines(ground, [_points(line + np.array((1.6 * scale, 0.0)))], False, lip, 1, cv2.LINE_AA, _SHIFT)
    cv2.polylines(ground, [_points(line)], False, dark, thick, cv2.LINE_AA, _SHIFT)


def _paint_chip(ground: NDArray[np.uint8], chip: Chip) -> None:
    outline = np.array(chip.outline_px) + np.array((chip.x_px, chip.y_px))
    x, y = int(np.clip(chip.x_px, 0, FRAME_WH[0] - 1)), int(np.clip(chip.y_px, 0, FRAME_WH[1] - 1))
    under = tuple(float(v) * 0.5 for v in ground[y, x])
    cv2.fillConvexPoly(ground, _points(outline + np.array((1.5, 2.0))), under, cv2.LINE_AA, _SHIFT)
    cv2.fillConvexPoly(ground, _points(outline), chip.rgb, cv2.LINE_AA, _SHIFT)
    centre = outline.mean(axis=0)
    lit = tuple(min(255.0, 1.16 * v + 6) for v in chip.rgb)
    cv2.fillConvexPoly(
        ground, _points(centre + (outline - centre) * 0.6 - (0.7, 0.7)), lit, cv2.LINE_AA, _SHIFT
    )


def _paint_swarf(ground: NDArray[np.uint8], curl: Swarf) -> None:
    sweep = np.deg2rad(np.linspace(curl.start_deg, curl.end_deg, 24))
    shrink = np.linspace(1.0, 0.55, 24)
    turn = np.deg2rad(curl.turn_deg)
    ex, ey = curl.axes_px[0] * np.cos(sweep) * shrink, curl.axes_px[1] * np.sin(sweep) * shrink
    points = np.stack([ex * np.cos(turn) - ey * np.sin(turn), ex * np.sin(turn) + ey * np.cos(turn)], axis=1)
    points = points + np.array((curl.x_px, curl.y_px))
    x, y = int(np.clip(curl.x_px, 0, FRAME_WH[0] - 1)), int(np.clip(curl.y_px, 0, FRAME_WH[1] - 1))
    under = tuple(float(v) * 0.55 for v in ground[y, x])
    cv2.polylines(ground, [_points(points + np.array((1.2, 1.6)))], False, under, 2, cv2.LINE_AA, _SHIFT)
    bright = (float(curl.bright), float(curl.bright), float(min(255, curl.bright + 6)))
    cv2.polylines(ground, [_points(points[:14])], False, bright, 2, cv2.LINE_AA, _SHIFT)
    cv2.polylines(
        ground, [_points(points[13:])], False, tuple(0.6 * v for v in bright), 2, cv2.LINE_AA, _SHIFT
    )
