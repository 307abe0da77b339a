"""Height fields of the parts, seen from above: what each fastener is made of, in units of its long side.

A shape is evaluated on a grid of x (right, from -0.5 to 0.5 along the long side) and y (down) and gives
`height` (z above the belt), `solid` (1 on the silhouette, between 0 and 1 where one looks into a hole) and
`shade` (dirt, thread roots and holes darken it). Long parts lie on their side with the axis along x; round
ones lie flat.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

Grid = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Shape:
    """A sampled height field: three [h, w] float32 arrays, and the part's height for its shadow."""

    height: Grid
    solid: Grid
    shade: Grid
    thickness: float


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of part: its long side in pixels at scale 1, width over length, and how to draw one variant."""

    name: str
    long_px: float
    aspect: float
    draw: Callable[[Grid, Grid, np.random.Generator], Shape]


def _thread(x: Grid, y: Grid, radius: float, pitch: float, depth: float) -> Grid:
    """Return the depth of a helical V thread below `radius`; it leans by half a pitch across the rod."""
    phase = x / pitch + 0.5 * np.clip(y / radius, -1, 1)
    vee = np.abs(2.0 * (phase - np.floor(phase)) - 1.0)
    return (radius * depth * vee).astype(np.float32)


def _turned(y: Grid, radius: Grid) -> tuple[Grid, Grid]:
    """Return height and silhouette of a body of revolution with the axis along x and radius [h, w]."""
    inside = np.maximum(radius * radius - y * y, 0.0)
    return np.sqrt(inside).astype(np.float32), (np.abs(y) < radius).astype(np.float32)


def _hex_prism(y: Grid, apothem: float, roll: float) -> Grid:
    """Return the height over the axis of a hexagonal bar that lies along x, rolled by `roll` radians."""
    top = np.full_like(y, 10.0)
    bottom = np.full_like(y, -10.0)
    for side in range(6):
        angle = roll + side * np.pi / 3
        ny, nz = np.sin(angle), np.cos(angle)
        if nz > 1e-3:
            top = np.minimum(top, (apothem - ny * y) / nz)
        elif nz < -1e-3:
            bottom = np.maximum(bottom, (apothem - ny * y) / nz)
    return np.where(top > bottom, top, 0.0).astype(np.float32)


def _rod_radius(x: Grid, start: float, end: float, radius: float, chamfer: float) -> Grid:
    """Return the radius of a plain rod from `start` to `end` with chamfered ends; 0 outside."""
    edge = np.minimum(x - start, end - x)
    body = radius * np.clip(0.72 + 0.28 * edge / chamfer, 0.0, 1.0)
    return np.where(edge > 0, body, 0.0).astype(np.float32)


def _screw(x: Grid, y: Grid, rng: np.random.Generator) -> Shape:
    """Draw a self-tapping screw: countersunk or pan head, coarse thread, pointed tip."""
    shank = rng.uniform(0.052, 0.072)
    head = rng.uniform(0.115, 0.15)
    head_len = rng.uniform(0.09, 0.13)
    tip = rng.uniform(0.14, 0.22)
    pitch = rng.uniform(0.045, 0.062)
    plain = rng.uniform(0.0, 0.2)
    along = x + 0.5
    taper = np.clip((1.0 - along) / tip, 0.0, 1.0) ** 0.75
    body = shank * taper
    threaded = (along > head_len + 0.02 + plain).astype(np.float32)
    body = body * (1.0 - 0.28 * (1 - threaded)) - threaded * taper * _thread(x, y, shank, pitch, 0.42)
    if rng.random() < 0.55:
        cone = head + (shank * 0.8 - head) * np.clip((along - 0.02) / head_len, 0.0, 1.0)
    else:
        cone = head * np.sqrt(np.clip(1.0 - np.clip((head_len - along) / head_len, 0, 1) ** 2.4, 0.05, 1.0))
    radius = np.where(along < head_len, cone, np.maximum(body, 0.004)).astype(np.float32)
    height, solid = _turned(y, radius)
    shade = 1.0 - 0.45 * threaded * _thread(x, y, shank, pitch, 1.0) / shank
    return Shape(height, solid, shade.astype(np.float32), shank * 2)


def _bolt(x: Grid, y: Grid, rng: np.random.Generator) -> Shape:
    """Draw a hex bolt: hexagonal head, plain shank, fine thread, blunt end."""
    shank = rng.uniform(0.062, 0.082)
    apothem = rng.uniform(0.118, 0.145)
    head_len = rng.uniform(0.105, 0.14)
    plain = rng.uniform(0.08, 0.45)
    pitch = rng.uniform(0.028, 0.038)
    along = x + 0.5
    head = (along < head_len).astype(np.float32)
    radius = _rod_radius(x, -0.5, 0.5, shank, 0.03)
    threaded = (along > head_len + plain).astype(np.float32)
    radius = np.maximum(radius - threaded * _thread(x, y, shank, pitch, 0.28), 0.0).astype(np.float32)
    round_height, round_solid = _turned(y, radius)
    prism = _hex_prism(y, apothem, float(rng.uniform(0, np.pi / 3)))
    edge = np.minimum(along, head_len - along)
    prism = prism * np.clip(0.86 + 0.14 * edge / 0.02, 0.0, 1.0) * (prism > 0)
    height = np.where(head > 0, prism, round_height).astype(np.float32)
    solid = np.where(head > 0, (prism > 0).astype(np.float32), round_solid).astype(np.float32)
    root = _thread(x, y, shank, pitch, 1.0) / shank
    neck = np.clip((along - head_len) / 0.03, 0.35, 1.0)
    shade = (1.0 - 0.4 * threaded * root) * np.where(head > 0, 1.0, neck)
    return Shape(height, solid, shade.astype(np.float32), apothem * 1.4)


def _stud(x: Grid, y: Grid, rng: np.random.Generator) -> Shape:
    """Draw a stud: a rod without a head, threaded all along or at both ends."""
    radius0 = rng.uniform(0.06, 0.085)
    pitch = rng.uniform(0.03, 0.044)
    middle = rng.uniform(0.1, 0.22) if rng.random() < 0.6 else 0.0
    threaded = (np.abs(x) > middle).astype(np.float32)
    radius = _rod_radius(x, -0.5, 0.5, radius0, 0.03) - threaded * _thread(x, y, radius0, pitch, 0.3)
    height, solid = _turned(y, np.maximum(radius, 0.0).astype(np.float32))
    shade = 1.0 - 0.42 * threaded * _thread(x, y, radius0, pitch, 1.0) / radius0
    return Shape(height, solid, shade.astype(np.float32), radius0 * 2)


def _pin(x: Grid, y: Grid, rng: np.random.Generator) -> Shape:
    """Draw a dowel pin: a plain polished rod. It is litter here and carries no label."""
    radius0 = rng.uniform(0.075, 0.1)
    height, solid = _turned(y, _rod_radius(x, -0.5, 0.5, radius0, 0.04))
    return Shape(height, solid, np.ones_like(x), radius0 * 2)


def _hexagon(x: Grid, y: Grid) -> Grid:
    """Return the distance from the centre in the norm whose ball is a hexagon with unit apothem."""
    distance = np.abs(y)
    for angle in (np.pi / 6, -np.pi / 6):
        distance = np.maximum(distance, np.abs(x * np.cos(angle) + y * np.sin(angle)))
    return distance.astype(np.float32)


def _hex_top(x: Grid, y: Grid, apothem: float, hole: float, thick: float) -> tuple[Grid, Grid, Grid]:
    """Return height, silhouette and shade of a hexagonal nut's top with its threaded hole."""
    r = np.hypot(x, y)
    hexagon = _hexagon(x, y)
    height = np.minimum(thick, thick - 0.62 * (r - apothem * 0.97))
    height = np.minimum(height, thick - 1.2 * (hexagon - apothem + 0.014))
    height = np.minimum(height, thick - 1.0 * (hole * 1.14 - r))
    rings = 0.5 + 0.5 * np.cos((hole - r) / 0.022 * 2 * np.pi)
    bore = hole * 0.76
    solid = (hexagon < apothem).astype(np.float32)
    wall = (r < hole) & (r >= bore)
    shade = np.where(wall, 0.18 + 0.3 * rings, 1.0)
    shade = np.where(r < bore, 0.05, shade)
    solid = np.where(r < bore, 0.62, solid)
    return height.astype(np.float32), solid.astype(np.float32), shade.astype(np.float32)


def _nut(x: Grid, y: Grid, rng: np.random.Generator) -> Shape:
    """Draw a hex nut from above."""
    apothem = 0.5 * np.cos(np.pi / 6) * 0.99
    height, solid, shade = _hex_top(x, y, float(apothem), rng.uniform(0.24, 0.29), 0.36)
    return Shape(height, solid, shade, 0.36)


def _flange_nut(x: Grid, y: Grid, rng: np.random.Generator) -> Shape:
    """Draw a flange nut from above: a smaller hexagon on a round, sloping skirt."""
    apothem = rng.uniform(0.315, 0.35)
    height, solid, shade = _hex_top(x, y, apothem, rng.uniform(0.18, 0.215), 0.42)
    r = np.hypot(x, y)
    skirt = 0.13 - 0.32 * np.maximum(r - apothem, 0.0) - 2.0 * np.maximum(r - 0.478, 0.0)
    on_hex = solid > 0
    near = np.clip((_hexagon(x, y) - apothem) / 0.035, 0.45, 1.0)
    height = np.where(on_hex, height, skirt)
    shade = np.where(on_hex, shade, near)
    disc = (r < 0.496).astype(np.float32)
    return Shape(
        height.astype(np.float32),
        np.where(on_hex, solid, disc).astype(np.float32),
        shade.astype(np.float32),
        0.36,
    )


def _ring(r: Grid, outer: float, inner: float, thick: float, bevel: float) -> tuple[Grid, Grid]:
    edge = np.minimum(outer - r, r - inner)
    height = thick * np.clip(0.55 + 0.45 * edge / bevel, 0.0, 1.0)
    return height.astype(np.float32), (edge > 0).astype(np.float32)


def _washer(x: Grid, y: Grid, rng: np.random.Generator) -> Shape:
    """Draw a plain washer with turning marks."""
    r = np.hypot(x, y)
    inner = rng.uniform(0.24, 0.315)
    height, solid = _ring(r, 0.496, inner, 0.07, 0.016)
    turned = height + 0.0009 * np.sin(r * rng.uniform(240, 330)) + 0.012 * rng.normal() * (0.5 - r)
    return Shape(turned.astype(np.float32), solid, np.ones_like(x), 0.09)


def _lock_washer(x: Grid, y: Grid, rng: np.random.Generator) -> Shape:
    """Draw a split lock washer: a narrow ring of rectangular wire with a slanted gap, sprung apart."""
    r = np.hypot(x, y)
    inner = rng.uniform(0.295, 0.345)
    height, solid = _ring(r, 0.496, inner, 0.13, 0.03)
    angle = np.arctan2(y, x)
    gap = rng.uniform(0.10, 0.17)
    slanted = angle + 1.1 * (r - 0.4) / 0.4
    sprung = height + 0.018 * angle / np.pi
    cut = solid * (np.abs(slanted) > gap)
    shade = np.clip(0.4 + 0.6 * (np.abs(slanted) - gap) / 0.12, 0.4, 1.0)
    return Shape(sprung.astype(np.float32), cut.astype(np.float32), shade.astype(np.float32), 0.15)


def _o_ring(x: Grid, y: Grid, rng: np.random.Generator) -> Shape:
    """Draw a rubber O-ring: a torus. It is litter here and carries no label."""
    r = np.hypot(x, y)
    wire = rng.uniform(0.055, 0.085)
    inside = np.maximum(wire**2 - (r - 0.495 + wire) ** 2, 0.0)
    return Shape(
        np.sqrt(inside).astype(np.float32), (inside > 0).astype(np.float32), np.ones_like(x), wire * 2
    )


FASTENERS: Final[tuple[Kind, ...]] = (
    Kind("screw", 108.0, 0.34, _screw),
    Kind("bolt", 112.0, 0.38, _bolt),
    Kind("stud", 100.0, 0.22, _stud),
    Kind("nut", 64.0, 1.02, _nut),
    Kind("flange_nut", 72.0, 1.02, _flange_nut),
    Kind("washer", 68.0, 1.02, _washer),
    Kind("lock_washer", 62.0, 1.02, _lock_washer),
)
"""The labelled kinds, in the order of their class index. Screw, bolt and stud are told apart by their ends,
nuts and washers by rim and hole: plain at 60 px, a matter of a few pixels at 20."""

LITTER: Final[tuple[Kind, ...]] = (
    Kind("pin", 80.0, 0.26, _pin),
    Kind("o_ring", 70.0, 1.02, _o_ring),
)

KINDS: Final[Mapping[str, Kind]] = MappingProxyType({kind.name: kind for kind in (*FASTENERS, *LITTER)})
CLASS_NAMES: Final = tuple(kind.name for kind in FASTENERS)
