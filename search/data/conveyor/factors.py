"""The factors that make a frame hard, their distributions, and the shifts for drift work.

Each factor is drawn on its own from a Kumaraswamy distribution on [low, high], which is shaped like a Beta
but has a closed form both ways:

    F(x) = 1 - (1 - x^a)^b        x = (1 - (1 - u)^(1/b))^(1/a)        value = low + (high - low) x

so a frame's factor values give back their quantiles exactly. The *hardness* of a factor is its quantile,
counted from the easy end. A frame's scalar difficulty is

    difficulty = sum_k  weight_k * hardness_k^2,        sum_k weight_k = 1

in [0, 1] and increasing in each hardness; the square lets one bad factor count for more than two middling
ones, as it does for a detector. The numbers are part of the data set: changing one means a new
`SCHEMA_VERSION`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import MappingProxyType
from typing import Final

import numpy as np

SCHEMA_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Distribution:
    """A Kumaraswamy(a, b) distribution stretched to [low, high]; `harder_high` says which end is hard."""

    low: float
    high: float
    a: float
    b: float
    harder_high: bool
    weight: float

    def value(self, u: float) -> float:
        """Return the value at quantile `u` in [0, 1]."""
        unit: float = (1.0 - (1.0 - u) ** (1.0 / self.b)) ** (1.0 / self.a)
        return self.low + (self.high - self.low) * unit

    def quantile(self, value: float) -> float:
        """Return the share of draws below `value`; 0 or 1 outside the support, where only shifts lead."""
        unit = min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))
        share: float = 1.0 - (1.0 - unit**self.a) ** self.b
        return share

    def hardness(self, value: float) -> float:
        """Return the share of draws that are easier than `value`."""
        below = self.quantile(value)
        return below if self.harder_high else 1.0 - below


@dataclass(frozen=True, slots=True)
class Factors:
    """What was drawn for one frame.

    clutter and occlusion are shares in [0, 1] that steer how many things lie on the belt and how many of them
    lie on others; scale is the camera's magnification (1: a bolt is about 112 px long at 640x480); blur_px is
    the length of the motion blur along the belt; light is the exposure gain; noise_dn is the standard
    deviation of the sensor noise at middle grey, in 8-bit steps.
    """

    clutter: float
    occlusion: float
    scale: float
    blur_px: float
    light: float
    noise_dn: float


@dataclass(frozen=True, slots=True)
class Distributions:
    """One independent distribution for each field of `Factors`, with the schema version that fixes them."""

    clutter: Distribution
    occlusion: Distribution
    scale: Distribution
    blur_px: Distribution
    light: Distribution
    noise_dn: Distribution
    schema_version: int = SCHEMA_VERSION

    def of(self, name: str) -> Distribution:
        """Return the distribution of the factor called `name`."""
        found = getattr(self, name)
        if not isinstance(found, Distribution):
            raise KeyError(name)
        return found

    def draw(self, rng: np.random.Generator) -> Factors:
        """Draw every factor independently, always the same number of uniforms in the same order."""
        return Factors(**{name: self.of(name).value(float(rng.random())) for name in FACTOR_NAMES})

    def difficulty(self, factors: Factors) -> float:
        """Return the scalar difficulty in [0, 1]; the module docstring states the formula."""
        total = sum(
            self.of(name).weight * self.of(name).hardness(getattr(factors, name)) ** 2
            for name in FACTOR_NAMES
        )
        return float(min(1.0, total))

    def as_json(self) -> dict[str, object]:
        """Return a plain mapping for `conveyor.json`."""
        return asdict(self)


FACTOR_NAMES: Final = tuple(field.name for field in fields(Factors))

DISTRIBUTIONS: Final = Distributions(
    clutter=Distribution(0.0, 1.0, 1.2, 2.2, True, 0.15),
    occlusion=Distribution(0.0, 1.0, 1.0, 2.5, True, 0.15),
    scale=Distribution(0.55, 1.20, 2.5, 1.6, False, 0.30),
    blur_px=Distribution(0.0, 9.0, 1.1, 4.0, True, 0.18),
    light=Distribution(0.25, 1.10, 3.0, 1.3, False, 0.10),
    noise_dn=Distribution(0.8, 14.0, 1.0, 4.0, True, 0.12),
)


@dataclass(frozen=True, slots=True)
class Shift:
    """A named change of a frame's factors after they were drawn: value -> value * times + plus."""

    name: str
    scale_times: float = 1.0
    blur_plus_px: float = 0.0
    light_times: float = 1.0
    noise_plus_dn: float = 0.0

    def apply(self, factors: Factors) -> Factors:
        """Return the shifted factors; they may leave the support of the distributions on purpose."""
        return replace(
            factors,
            scale=factors.scale * self.scale_times,
            blur_px=factors.blur_px + self.blur_plus_px,
            light=factors.light * self.light_times,
            noise_dn=factors.noise_dn + self.noise_plus_dn,
        )


SHIFTS: Final[Mapping[str, Shift]] = MappingProxyType(
    {
        shift.name: shift
        for shift in (
            Shift("dark", light_times=0.40),
            Shift("blurred", blur_plus_px=8.0),
            Shift("noisy", noise_plus_dn=14.0),
            Shift("other_scale", scale_times=0.60),
        )
    }
)
