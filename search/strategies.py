"""How the next subnets are drawn, and what each of them has to beat.

- `nsga2`: accuracy and latency as two objectives (Deb et al., "A fast and elitist multiobjective genetic
  algorithm: NSGA-II", 2002). A candidate has to beat the best finished one that is no slower.
- `evolution`: one score, accuracy − weight · latency, tournaments among the last evaluated (Real et al.,
  "Regularized evolution for image classifier architecture search", 2019). It has to beat the worst of the
  best few.
- `random`: draws that lean to the small or to the large end; what the other two are compared with. Beaten
  ones are given up as with nsga2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from search.candidates import Candidate, finished, ranks
from search.racing import bars, margins
from search.space import Architecture, Space

Algorithm = Literal["nsga2", "evolution", "random"]
_TRIES_PER_PLACE = 50
_TOURNAMENT = 4

Latency = Callable[[Architecture], float]


@dataclass(frozen=True, slots=True)
class Task:
    """A subnet to evaluate, and the objective per slice below which to give it up (empty: never)."""

    architecture: Architecture
    bars: tuple[float, ...]


class Strategy(Protocol):
    """Draws subnets from what has been evaluated; all randomness comes from `rng`."""

    def propose(
        self, done: Sequence[Candidate], seen: set[Architecture], count: int, rng: np.random.Generator
    ) -> list[Task]:
        """Return at most `count` subnets that are not in `seen`, fewer only when the space has no more."""


def strategy(
    algorithm: Algorithm, space: Space, latency_ms: Latency, *, population: int, latency_weight: float | None
) -> Strategy:
    """Return the strategy of that name.

    latency_weight: what a millisecond costs in points of the objective, as a fraction; evolution needs it,
    the others know no such trade. Raises ValueError when it is missing or of no use.
    """
    if (algorithm == "evolution") != (latency_weight is not None):
        raise ValueError(
            f"latency_weight: {algorithm} "
            + (
                "needs one: accuracy − weight · latency is its score"
                if latency_weight is None
                else "has none"
            )
        )
    if algorithm == "nsga2":
        return _Nsga2(space, latency_ms, population)
    if algorithm == "random":
        return _Random(space, latency_ms)
    assert latency_weight is not None  # checked above
    return _Evolution(space, latency_ms, population, latency_weight)


@dataclass(frozen=True, slots=True)
class _Nsga2:
    space: Space
    latency_ms: Latency
    population: int

    def propose(
        self, done: Sequence[Candidate], seen: set[Architecture], count: int, rng: np.random.Generator
    ) -> list[Task]:
        whole = finished(done)
        rank, crowding = ranks(whole)
        order = sorted(range(len(whole)), key=lambda i: (rank[i], -crowding[i], i))[: self.population]
        parents = [Architecture.parse(whole[i].architecture) for i in order]

        def child() -> Architecture:
            # Parents are sorted, so the better of two is the one that stands first.
            a, b = (parents[int(rng.integers(len(parents), size=2).min())] for _ in range(2))
            crossed = self.space.crossover(a, b, rng)
            if crossed in seen or rng.random() < 0.9:
                return self.space.mutate(crossed, rng)
            return crossed

        drawn = _distinct(self.space, child, seen, count, rng)
        return _against_the_frontier(drawn, whole, self.latency_ms)


@dataclass(frozen=True, slots=True)
class _Random:
    space: Space
    latency_ms: Latency

    def propose(
        self, done: Sequence[Candidate], seen: set[Architecture], count: int, rng: np.random.Generator
    ) -> list[Task]:
        drawn = _distinct(self.space, lambda: graded(self.space, rng), seen, count, rng)
        return _against_the_frontier(drawn, finished(done), self.latency_ms)


@dataclass(frozen=True, slots=True)
class _Evolution:
    space: Space
    latency_ms: Latency
    population: int
    weight: float

    def propose(
        self, done: Sequence[Candidate], seen: set[Architecture], count: int, rng: np.random.Generator
    ) -> list[Task]:
        whole = finished(done)
        young = whole[-self.population :]

        def winner() -> Architecture:
            drawn = (young[int(i)] for i in rng.integers(len(young), size=_TOURNAMENT))
            return Architecture.parse(max(drawn, key=self._score).architecture)

        def child() -> Architecture:
            return self.space.mutate(self.space.crossover(winner(), winner(), rng), rng)

        drawn = _distinct(self.space, child, seen, count, rng)
        rival = sorted(whole, key=self._score, reverse=True)[: self.population][-1]
        margin = margins(whole)
        return [Task(one, bars(rival, margin, self._saved(one, rival))) for one in drawn]

    def _score(self, candidate: Candidate) -> float:
        return candidate.accuracy - self.weight * candidate.latency_ms

    def _saved(self, one: Architecture, rival: Candidate) -> float:
        return self.weight * (rival.latency_ms - self.latency_ms(one))


def _against_the_frontier(
    drawn: Sequence[Architecture], whole: Sequence[Candidate], latency_ms: Latency
) -> list[Task]:
    margin = margins(whole)
    tasks: list[Task] = []
    for one in drawn:
        ms = latency_ms(one)
        no_slower = [candidate for candidate in whole if candidate.latency_ms <= ms]
        rival = max(no_slower, key=lambda candidate: candidate.accuracy, default=None)
        tasks.append(Task(one, bars(rival, margin)))
    return tasks


def _distinct(
    space: Space,
    draw: Callable[[], Architecture],
    seen: set[Architecture],
    count: int,
    rng: np.random.Generator,
) -> list[Architecture]:
    """Draw subnets that are new; where that keeps failing, fill up uniformly, down to the last of a space."""
    new: dict[Architecture, None] = {}
    for _ in range(count * _TRIES_PER_PLACE):
        if len(new) == count:
            break
        one = draw()
        if one not in seen:
            new[one] = None
    while len(new) < count and len(new) + len(seen) < space.size():
        one = space.sample(rng)
        if one not in seen:
            new[one] = None
    return list(new)


def graded(space: Space, rng: np.random.Generator) -> Architecture:
    """Draw a subnet whose genes lean to the small or to the large end together."""
    lean = rng.random()
    sizes = np.asarray(space.gene_sizes)
    genes = np.clip(np.rint((lean + rng.normal(0, 0.25, len(sizes))) * (sizes - 1)), 0, sizes - 1)
    return space.from_genes(genes.astype(np.int64))
