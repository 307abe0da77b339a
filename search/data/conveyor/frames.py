"""One frame from (seed, split, index): factors, scene, picture and boxes, each from its own random stream.

A box is tight around what is *visible* of a part: the pixels of its sharp silhouette that lie in the frame
and that no later part covers. Visible extents, not amodal ones, because a detector is judged by IoU up to
0.95 and cannot know where a covered end lies. A part of which less than 35 % of the silhouette is visible is
written with `iscrowd: 1`, which COCO scoring ignores either way; placement makes that rare in independent
frames, while on a running belt it happens at the frame's edge. What shows less than 2 % is not annotated.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from search.data.conveyor.belt import BeltView, draw_view
from search.data.conveyor.camera import build_noise, encode_jpeg, expose
from search.data.conveyor.factors import DISTRIBUTIONS, Factors, Shift
from search.data.conveyor.light import Lighting, draw_lighting
from search.data.conveyor.paint import Studio, build_studio, paint
from search.data.conveyor.scene import Scene, compose

VISIBLE_FOR_LABEL: Final = 0.35
VISIBLE_FOR_NOTE: Final = 0.02


@dataclass(frozen=True, slots=True)
class PaintedPart:
    """An annotation: class index, visible box (x0, y0, x1, y1) in pixels, visible share, crowd or not."""

    label: int
    box_xyxy: tuple[float, float, float, float]
    visible_px: int
    visible_share: float
    crowd: bool


@dataclass(frozen=True, slots=True)
class Frame:
    """A rendered frame: JPEG bytes, annotations, and the factors (after any shift) with their difficulty."""

    jpeg: bytes
    parts: tuple[PaintedPart, ...]
    factors: Factors
    difficulty: float


@dataclass(frozen=True, slots=True)
class Renderer:
    """Everything that frames share; build it once per process."""

    studio: Studio
    noise: NDArray[np.float32]

    def render(self, seed: int, split: str, index: int, shift: Shift | None = None) -> Frame:
        """Render one independent frame; equal arguments give equal bytes on one version of the libraries."""
        factors = DISTRIBUTIONS.draw(stream(seed, split, index, "factors"))
        if shift is not None:
            factors = shift.apply(factors)
        scene = compose(self.studio.library, factors, stream(seed, split, index, "scene"))
        looks = stream(seed, split, index, "looks")
        lighting, view = draw_lighting(looks), draw_view(factors.scale, looks)
        return self.shoot(scene, view, lighting, factors, stream(seed, split, index, "sensor"))

    def shoot(
        self,
        scene: Scene,
        view: BeltView,
        lighting: Lighting,
        factors: Factors,
        sensor: np.random.Generator,
    ) -> Frame:
        """Paint a scene, take its picture, and measure what is visible."""
        radiance, owner = paint(self.studio, scene, view, lighting)
        picture = expose(radiance, factors, self.noise, sensor)
        parts = self._annotate(scene, owner)
        return Frame(encode_jpeg(picture), parts, factors, DISTRIBUTIONS.difficulty(factors))

    def _annotate(self, scene: Scene, owner: NDArray[np.int16]) -> tuple[PaintedPart, ...]:
        found = []
        for index, part in enumerate(scene.parts):
            if part.label < 0:
                continue
            box = visible_box(owner, index)
            if box is None:
                continue
            pixels = int((owner[box[1] : box[3], box[0] : box[2]] == index).sum())
            share = min(1.0, pixels / part.area_px(self.studio.library[part.kind][part.variant]))
            if share < VISIBLE_FOR_NOTE:
                continue
            x0, y0, x1, y1 = (float(v) for v in box)
            found.append(PaintedPart(part.label, (x0, y0, x1, y1), pixels, share, share < VISIBLE_FOR_LABEL))
        return tuple(found)


def build_renderer() -> Renderer:
    """Build the shared sprites, belts and noise on all cores; about four seconds of work and 160 MB."""
    # OpenCV's own threads would only stand in the way of those here: the pieces are small and many.
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            noise = pool.submit(build_noise)
            return Renderer(build_studio(pool), noise.result())
    finally:
        cv2.setNumThreads(before)


def stream(seed: int, split: str, index: int, source: str) -> np.random.Generator:
    """Return the generator of one source of randomness in one frame, independent of all others."""
    digest = hashlib.sha256(f"{seed}/{split}/{index}/{source}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def visible_box(owner: NDArray[np.int16], index: int) -> tuple[int, int, int, int] | None:
    """Return the half-open pixel box (x0, y0, x1, y1) around all pixels that show `index`, or None."""
    mask = owner == index
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
