"""Consecutive frames of one running belt: the same parts move through the picture from left to right."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

from search.data.conveyor.belt import BELT_WH, draw_view
from search.data.conveyor.factors import DISTRIBUTIONS, Shift
from search.data.conveyor.frames import Frame, Renderer, stream
from search.data.conveyor.light import draw_lighting
from search.data.conveyor.scene import FRAME_WH, Scene, compose

# 30 frames a second on a belt that crosses the picture in about two seconds.
SPEED_PX: Final = 10.0


def shoot_sequence(
    renderer: Renderer, seed: int, split: str, indices: Iterable[int], shift: Shift | None = None
) -> Iterator[tuple[int, Frame]]:
    """Yield (index, frame) for frames of a sequence, in the order asked for; frame 0 is the first.

    One camera and one light for the whole sequence: its factors are drawn once. A frame does not depend on
    which others are asked for; in rising order each stretch of belt is composed once.
    """
    factors = DISTRIBUTIONS.draw(stream(seed, split, 0, "sequence-factors"))
    if shift is not None:
        factors = shift.apply(factors)
    looks = stream(seed, split, 0, "sequence-looks")
    lighting, view = draw_lighting(looks), draw_view(factors.scale, looks)
    width = FRAME_WH[0]
    stretches: dict[int, Scene] = {}
    for index in indices:
        travelled = index * SPEED_PX
        # Stretch k starts at x = travelled - k * width. Two of them fill the picture; parts that stick out of
        # the one that has just left it and of the one that comes next reach into it too.
        first = int(travelled // width)
        near = range(first - 1, first + 3)
        stretches = {
            k: stretches.get(k)
            or compose(renderer.studio.library, factors, stream(seed, split, k, "stretch"), whole_belt=True)
            for k in near
        }
        scene = _joined([(stretches[k], travelled - k * width) for k in near])
        moved = replace(view, x=(view.x - travelled / view.scale) % BELT_WH[0])
        sensor = stream(seed, split, index, "sequence-sensor")
        yield index, renderer.shoot(scene, moved, lighting, factors, sensor)


def _joined(parts: list[tuple[Scene, float]]) -> Scene:
    """Return one scene of several stretches, each moved along x by its offset in pixels."""
    return Scene(
        tuple(replace(p, x_px=p.x_px + dx) for scene, dx in parts for p in scene.parts),
        tuple(replace(c, x_px=c.x_px + dx) for scene, dx in parts for c in scene.chips),
        tuple(replace(s, x_px=s.x_px + dx) for scene, dx in parts for s in scene.swarf),
        tuple(x + dx for scene, dx in parts for x in scene.seams_px),
    )
