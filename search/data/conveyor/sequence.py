"""Consecutive frames of one running belt: the same parts move through the picture from left to right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from search.data.conveyor.belt import draw_view
from search.data.conveyor.factors import DISTRIBUTIONS, Shift
from search.data.conveyor.frames import Frame, Renderer, stream
from search.data.conveyor.light import draw_lighting
from search.data.conveyor.scene import FRAME_WH, Scene, compose

# 30 frames a second on a belt that crosses the picture in about two seconds.
SPEED_PX = 10.0


def shoot_sequence(
    renderer: Renderer, seed: int, split: str, frames: int, shift: Shift | None = None
) -> Iterator[Frame]:
    """Yield `frames` consecutive frames; the stretches of belt that pass by are composed one by one.

    One camera and one light for the whole sequence: its factors are drawn once.
    """
    factors = DISTRIBUTIONS.draw(stream(seed, split, 0, "sequence-factors"))
    if shift is not None:
        factors = shift.apply(factors)
    looks = stream(seed, split, 0, "sequence-looks")
    lighting, view = draw_lighting(looks), draw_view(factors.scale, looks)
    width = FRAME_WH[0]
    stretches: dict[int, Scene] = {}
    for index in range(frames):
        travelled = index * SPEED_PX
        # Stretch k starts at x = travelled - k * width: those in sight are the one at the left edge and the next.
        first = int(travelled // width)
        visible = (first, first + 1)
        for k in visible:
            if k not in stretches:
                stretches[k] = compose(
                    renderer.studio.library, factors, stream(seed, split, k, "stretch"), whole_belt=True
                )
        scene = _joined([(stretches[k], travelled - k * width) for k in visible])
        moved = replace(view, x=view.x - travelled / view.scale)
        yield renderer.shoot(scene, moved, lighting, factors, stream(seed, split, index, "sequence-sensor"))
        for k in [k for k in stretches if k < first]:
            del stretches[k]


def _joined(parts: list[tuple[Scene, float]]) -> Scene:
    """Return one scene of several stretches, each moved along x by its offset in pixels."""
    return Scene(
        tuple(replace(p, x_px=p.x_px + dx) for scene, dx in parts for p in scene.parts),
        tuple(replace(c, x_px=c.x_px + dx) for scene, dx in parts for c in scene.chips),
        tuple(replace(s, x_px=s.x_px + dx) for scene, dx in parts for s in scene.swarf),
        tuple(x + dx for scene, dx in parts for x in scene.seams_px),
    )
