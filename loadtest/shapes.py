"""Rates that change while a run lasts, and the Poisson arrivals that follow them.

A shape is a rate function λ(t) in requests per second over [0, duration) with its integral

    Λ(t) = ∫₀ᵗ λ(s) ds,

the number of arrivals to expect by then. Arrivals of a Poisson process with that rate are drawn by thinning
(Lewis and Shedler, 1979): candidates of a process of the constant rate λ_max ≥ λ(t), each kept with
probability λ(t) / λ_max. So whatever the shape, the draw is exact, and counts in any interval are Poisson
with the mean Λ(end) − Λ(begin).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from loadtest.schedule import MAX_ARRIVALS, NS_PER_S, Arrivals

Floats = NDArray[np.float64]


class Shape(Protocol):
    """A rate over a run."""

    @property
    def duration_s(self) -> float:
        """Return how long requests are due."""

    @property
    def peak_hz(self) -> float:
        """Return a bound that the rate never passes."""

    def rate_hz(self, at_s: ArrayLike) -> Floats:
        """Return λ at moments [n] of [0, duration)."""

    def expected(self, until_s: float) -> float:
        """Return Λ(until), the expected number of arrivals in [0, until]."""


@dataclass(frozen=True, slots=True)
class Ramp:
    """A rate that grows or falls evenly.

        λ(t) = a + (b − a) t / D,    Λ(t) = a t + (b − a) t² / 2D

    Raises ValueError unless both rates are finite and at least 0, one of them above, and D is positive.
    """

    from_hz: float
    to_hz: float
    duration_s: float

    def __post_init__(self) -> None:
        _check_rates((self.from_hz, self.to_hz), self.duration_s)

    @property
    def peak_hz(self) -> float:
        """Return the higher end."""
        return max(self.from_hz, self.to_hz)

    def rate_hz(self, at_s: ArrayLike) -> Floats:
        """Return λ at moments [n]."""
        return self.from_hz + (self.to_hz - self.from_hz) * _floats(at_s) / self.duration_s

    def expected(self, until_s: float) -> float:
        """Return Λ(until)."""
        return self.from_hz * until_s + (self.to_hz - self.from_hz) * until_s**2 / (2 * self.duration_s)


@dataclass(frozen=True, slots=True)
class Steps:
    """A rate that is constant between moments: levels_hz[i] from starts_s[i] on.

        λ(t) = r_i for s_i ≤ t < s_(i+1),    Λ(t) = Σ_i r_i · max(0, min(t, s_(i+1)) − s_i)

    Raises ValueError unless the first start is 0, starts grow and lie before the end, and rates make sense.
    """

    starts_s: tuple[float, ...]
    levels_hz: tuple[float, ...]
    duration_s: float

    def __post_init__(self) -> None:
        _check_rates(self.levels_hz, self.duration_s)
        if len(self.starts_s) != len(self.levels_hz) or self.starts_s[0] != 0:
            raise ValueError(f"{len(self.levels_hz)} levels need as many starts, the first at 0")
        ends_s = (*self.starts_s[1:], self.duration_s)
        if any(begin >= end for begin, end in zip(self.starts_s, ends_s, strict=True)):
            raise ValueError("the steps' starts must grow and lie before the end")

    @classmethod
    def equal(cls, levels_hz: tuple[float, ...], duration_s: float) -> Steps:
        """Return steps of equal length; raises ValueError as the constructor does."""
        if not levels_hz:
            raise ValueError("steps need at least one level")
        width_s = duration_s / len(levels_hz)
        return cls(tuple(number * width_s for number in range(len(levels_hz))), levels_hz, duration_s)

    @property
    def peak_hz(self) -> float:
        """Return the highest level."""
        return max(self.levels_hz)

    def rate_hz(self, at_s: ArrayLike) -> Floats:
        """Return λ at moments [n]."""
        step = np.searchsorted(self.starts_s, _floats(at_s), side="right") - 1
        return np.asarray(self.levels_hz, dtype=np.float64)[np.maximum(step, 0)]

    def expected(self, until_s: float) -> float:
        """Return Λ(until)."""
        ends_s = (*self.starts_s[1:], self.duration_s)
        parts = zip(self.starts_s, ends_s, self.levels_hz, strict=True)
        return sum(level * max(0.0, min(until_s, end) - begin) for begin, end, level in parts)


@dataclass(frozen=True, slots=True)
class Diurnal:
    """Days compressed into the run, each beginning and ending in the depth of night.

        λ(t) = l + (h − l) (1 − cos 2πkt/D) / 2,    Λ(t) = (l + h) t / 2 − (h − l) D / (4πk) · sin 2πkt/D

    with l at night, h at noon and k days. Raises ValueError unless 0 ≤ l ≤ h, h and k are positive.
    """

    low_hz: float
    high_hz: float
    days: float
    duration_s: float

    def __post_init__(self) -> None:
        _check_rates((self.low_hz, self.high_hz), self.duration_s)
        if self.low_hz > self.high_hz:
            raise ValueError(f"the night's rate {self.low_hz:g} is above the day's {self.high_hz:g}")
        if not (math.isfinite(self.days) and self.days > 0):
            raise ValueError(f"the number of days must be positive and finite, got {self.days}")

    @property
    def peak_hz(self) -> float:
        """Return the rate at noon."""
        return self.high_hz

    def rate_hz(self, at_s: ArrayLike) -> Floats:
        """Return λ at moments [n]."""
        turn = 2 * math.pi * self.days * _floats(at_s) / self.duration_s
        return self.low_hz + (self.high_hz - self.low_hz) * (1 - np.cos(turn)) / 2

    def expected(self, until_s: float) -> float:
        """Return Λ(until)."""
        turns = 2 * math.pi * self.days / self.duration_s
        swing = (self.high_hz - self.low_hz) / (2 * turns) * math.sin(turns * until_s)
        return (self.low_hz + self.high_hz) / 2 * until_s - swing


def burst(
    low_hz: float, high_hz: float, low_s: float, high_s: float, duration_s: float, rng: np.random.Generator
) -> Steps:
    """Draw the path of a two-state Markov chain: the rate of a Markov-modulated Poisson process.

    The rate is low_hz for exponentially distributed times of the mean low_s and high_hz for such of the mean
    high_s, in turn, from a state drawn from the stationary distribution (low with the share
    low_s / (low_s + high_s)). Arrivals that follow it are as Fischer and Meier-Hellstern (1993) describe. The
    mean rate over many runs is (low_hz low_s + high_hz high_s) / (low_s + high_s).

    Raises ValueError when a mean time or the duration is not positive and finite, a rate makes no sense, or
    the chain would change more than MAX_ARRIVALS times.
    """
    means_s = (low_s, high_s)
    if not all(math.isfinite(mean) and mean > 0 for mean in means_s):
        raise ValueError(f"the mean times in both states must be positive and finite, got {means_s} s")
    _check_rates((low_hz, high_hz), duration_s)
    if duration_s / min(means_s) > MAX_ARRIVALS:
        raise ValueError("the states would change too often; lengthen their mean times")
    rates_hz = (low_hz, high_hz)
    state = int(rng.random() >= low_s / (low_s + high_s))
    starts_s, levels_hz, at_s = [0.0], [rates_hz[state]], 0.0
    while (at_s := at_s - means_s[state] * math.log1p(-rng.random())) < duration_s:
        state = 1 - state
        if at_s > starts_s[-1]:
            starts_s.append(at_s)
            levels_hz.append(rates_hz[state])
        else:
            levels_hz[-1] = rates_hz[state]
    if not max(levels_hz) > 0:
        raise ValueError("the whole run lies in a state without requests; lengthen it or take another seed")
    return Steps(tuple(starts_s), tuple(levels_hz), duration_s)


def thinned_ns(shape: Shape, rng: np.random.Generator) -> Arrivals:
    """Draw the arrivals of a Poisson process with a shape's rate; there may be none.

    Raises ValueError when candidates or arrivals would pass MAX_ARRIVALS.
    """
    mean = shape.peak_hz * shape.duration_s
    if not mean <= MAX_ARRIVALS:
        raise ValueError(f"{mean:.0f} requests are more than {MAX_ARRIVALS}; lower the rate or the duration")
    # Given their number, the candidates of a process of constant rate are independent and uniform.
    count = int(rng.poisson(mean))
    at_s = np.sort(rng.random(count) * shape.duration_s)
    kept = rng.random(count) * shape.peak_hz < shape.rate_hz(at_s)
    times = (at_s[kept] * NS_PER_S).astype(np.int64)
    return times[times < shape.duration_s * NS_PER_S]


def _floats(values: ArrayLike) -> Floats:
    return np.asarray(values, dtype=np.float64)


def _check_rates(rates_hz: tuple[float, ...], duration_s: float) -> None:
    if not (math.isfinite(duration_s) and duration_s > 0):
        raise ValueError(f"duration must be positive and finite, got {duration_s} s")
    if not rates_hz or not all(math.isfinite(rate) and rate >= 0 for rate in rates_hz) or not max(rates_hz):
        raise ValueError(
            f"rates must be finite, at least 0, and one of them positive, got {', '.join(map(str, rates_hz))}"
        )
