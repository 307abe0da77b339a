"""The highest rate that still holds a budget: stepped up to, then closed in on.

A rate holds when a Poisson load of it is VALID by the verdict's own rule: with the confidence asked for, the
quantile of all requests keeps the budget. From a first rate on, rates double while they hold (or halve until
one does); then the geometric middle between the highest that held and the lowest that did not is tried, until
the two are closer than the precision. A rate that misses has a second chance with other arrivals, for on a
shared machine a neighbour's hiccup fails a load by itself. A load that the generator could not keep says
nothing about the server: the search ends there, and says that the rate is a lower bound.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from loadtest.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Search:
    """How the edge is looked for; raises ValueError when a number makes no sense.

    start_hz: the first rate. least_hz, most_hz: rates beyond which it is given up. precision: relative
    distance of the rates in between which the edge lies in the end.
    """

    start_hz: float = 10.0
    least_hz: float = 0.5
    most_hz: float = 5_000.0
    precision: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.least_hz <= self.start_hz <= self.most_hz < math.inf:
            raise ValueError(f"rates must be positive and finite, the start between the others, got {self}")
        if not self.precision > 0:
            raise ValueError(f"the precision must be positive, got {self.precision}")


@dataclass(frozen=True, slots=True)
class Probe:
    """A load of one rate and what it was judged."""

    rate_hz: float
    verdict: Verdict

    @property
    def holds(self) -> bool:
        """Return whether the rate held."""
        return self.verdict.valid


@dataclass(frozen=True, slots=True)
class Edge:
    """The highest rate that held (0 when none did), the lowest above it that did not (None when none was
    found), what ended the search, and every load on the way."""

    held_hz: float
    missed_hz: float | None
    ended_by: Literal["precision", "most", "least", "generator"]
    probes: tuple[Probe, ...]

    @property
    def at_edge(self) -> Probe | None:
        """Return the load at the highest rate that held."""
        held = [probe for probe in self.probes if probe.holds and probe.rate_hz == self.held_hz]
        return held[-1] if held else None


LoadAt = Callable[[float, int], Awaitable[Verdict]]


async def find_edge(load_at: LoadAt, search: Search, on_probe: Callable[[Probe], None]) -> Edge:
    """Look for the edge; load_at: puts the server under a load of a rate with a seed of its own.

    on_probe: is told of every load. Raises what `load_at` raises.
    """
    probes: list[Probe] = []

    async def holds(rate_hz: float) -> bool:
        for _ in range(2):
            probe = Probe(rate_hz, await load_at(rate_hz, len(probes)))
            probes.append(probe)
            on_probe(probe)
            if probe.holds or not probe.verdict.says_something:
                break
        return probes[-1].holds

    def ended(by: Literal["precision", "most", "least", "generator"]) -> Edge:
        return Edge(held_hz, missed_hz, by, tuple(probes))

    held_hz, missed_hz, rate_hz = 0.0, None, search.start_hz
    while True:
        if await holds(rate_hz):
            held_hz = rate_hz
            if rate_hz >= search.most_hz:
                return ended("most")
        elif not probes[-1].verdict.says_something:
            return ended("generator")
        else:
            missed_hz = rate_hz
            if rate_hz <= search.least_hz:
                return ended("least")
        if missed_hz is None:
            rate_hz = min(2 * held_hz, search.most_hz)
        elif not held_hz:
            rate_hz = max(missed_hz / 2, search.least_hz)
        elif missed_hz <= held_hz * (1 + search.precision):
            return ended("precision")
        else:
            rate_hz = math.sqrt(held_hz * missed_hz)
