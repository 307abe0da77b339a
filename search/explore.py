"""The multi-objective search over subnets: NSGA-II, bounded, seeded, resumable.

Deb et al., "A fast and elitist multiobjective genetic algorithm: NSGA-II" (2002). Objectives: mAP on a fixed
set of validation images, to be high, and latency, to be low.

The search's state is what has been evaluated, generation by generation, and each generation draws from a
generator of its own, derived from (seed, generation). So a search that is killed and started again walks the
same way: candidates that the journal knows cost nothing, the first unknown one is evaluated next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Annotated, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from model_repo.alignment import Unit
from model_repo.frontier import non_dominated
from model_repo.value import Value
from search.run_folder import Journal, Progress, RunError, Silent
from search.space import Architecture, Space

POPULATION = 24
_DRAWS_PER_PLACE = 6


class Candidate(Value):
    """An evaluated subnet: mAP on the search's validation images, latency measured or predicted."""

    architecture: str
    generation: NonNegativeInt
    accuracy: Unit
    latency_ms: PositiveFloat
    seconds: Annotated[NonNegativeFloat, Field(description="what its evaluation took")]


class Evaluate(Protocol):
    """Evaluate architectures, yielding mAP and seconds for each, in their order, as each is done."""

    def __call__(self, architectures: Sequence[Architecture]) -> Iterable[tuple[float, float]]:
        """Yield (mAP, seconds) for each architecture."""


def explore(
    space: Space,
    evaluate: Evaluate,
    latency_ms: Callable[[Architecture], float],
    journal: Journal,
    *,
    budget: int,
    seed: int,
    population: int = POPULATION,
    minutes: float | None = None,
    progress: Progress | None = None,
) -> list[Candidate]:
    """Evaluate `budget` distinct subnets, smallest and largest first, and return them in that order.

    The journal holds one line per finished candidate; those lines are not evaluated again. With `minutes`, no
    candidate is started after that time, and the search then does not repeat exactly. Raises RunError when
    the journal is of another search, ValueError when the budget is below 2.
    """
    if budget < 2:
        raise ValueError(f"the budget must be at least 2 candidates, got {budget}")
    progress = progress or Silent()
    known = [Candidate.model_validate_json(line) for line in journal.lines()]
    budget = min(budget, space.size())
    progress.start("explore", budget)
    started_s = time.monotonic()
    done: list[Candidate] = []
    seen: set[Architecture] = set()
    generation = 0
    while len(done) < budget:
        rng = np.random.default_rng([seed, generation])
        wanted = min(population, budget - len(done))
        batch = (
            _first_generation(space, latency_ms, wanted, rng)
            if generation == 0
            else _offspring(space, done, seen, wanted, population, rng)
        )
        if not batch:
            break
        seen.update(batch)
        past = known[len(done) : len(done) + len(batch)]
        for candidate, architecture in zip(past, batch, strict=False):
            if candidate.architecture != architecture.name:
                raise RunError(
                    f"{journal.path}: candidate {len(done)} is {candidate.architecture}, this search draws"
                    f" {architecture.name}: the journal is of another search"
                )
            done.append(candidate)
            progress.advance(1)
        todo = batch[len(past) :]
        for architecture, (accuracy, seconds) in zip(todo, evaluate(todo), strict=False):
            candidate = Candidate(
                architecture=architecture.name,
                generation=generation,
                accuracy=accuracy,
                latency_ms=latency_ms(architecture),
                seconds=seconds,
            )
            journal.append(candidate.model_dump_json())
            done.append(candidate)
            progress.advance(1, f"{accuracy:.3f} mAP at {candidate.latency_ms:.1f} ms")
            if minutes is not None and time.monotonic() - started_s > 60 * minutes:
                return done
        generation += 1
    return done


def _first_generation(
    space: Space, latency_ms: Callable[[Architecture], float], count: int, rng: np.random.Generator
) -> list[Architecture]:
    """Return smallest and largest, both also at other resolutions, and random ones spread over log latency.

    Drawn uniformly, nearly all subnets of a large space cost about the same; the ends of the curve would
    have to be found by mutation alone. The best resolution of the largest network is rarely the highest.
    """
    steps = max(len(space.resolutions) // 5, 1)
    ladder = space.resolutions[steps:-1:steps]
    every = [space.smallest, space.largest, *(replace(space.largest, resolution=r) for r in ladder)]
    every += [replace(space.smallest, resolution=r) for r in ladder[: len(ladder) // 2]]
    ends = list(dict.fromkeys(every))[:count]
    pool = list(dict.fromkeys(_graded(space, rng) for _ in range(count * _DRAWS_PER_PLACE)))
    pool = [architecture for architecture in pool if architecture not in ends]
    log_ms = np.log([latency_ms(architecture) for architecture in pool]) if pool else np.empty(0)
    low, high = np.log(latency_ms(space.smallest)), np.log(latency_ms(space.largest))
    chosen: list[int] = []
    for place in np.linspace(low, high, count - len(ends) + 2)[1:-1]:
        free = [i for i in range(len(pool)) if i not in chosen]
        if free:
            chosen.append(min(free, key=lambda i: (abs(log_ms[i] - place), i)))
    return [*ends, *(pool[i] for i in chosen)]


def _graded(space: Space, rng: np.random.Generator) -> Architecture:
    """Draw a subnet whose genes lean to the small or to the large end together."""
    lean = rng.random()
    sizes = np.asarray(space.gene_sizes)
    genes = np.clip(np.rint((lean + rng.normal(0, 0.25, len(sizes))) * (sizes - 1)), 0, sizes - 1)
    return space.from_genes(genes.astype(np.int64))


def _offspring(
    space: Space,
    done: Sequence[Candidate],
    seen: set[Architecture],
    count: int,
    population: int,
    rng: np.random.Generator,
) -> list[Architecture]:
    """Return new subnets: crossed over from parents won in binary tournaments, then mutated; no repeats."""
    rank, crowding = ranks(done)
    order = sorted(range(len(done)), key=lambda i: (rank[i], -crowding[i], i))[:population]
    parents = [Architecture.parse(done[i].architecture) for i in order]

    def winner() -> Architecture:
        # Parents are sorted, so the better of two is the one that stands first.
        return parents[int(rng.integers(len(parents), size=2).min())]

    children: dict[Architecture, None] = {}
    for _ in range(count * 50):
        if len(children) == count:
            break
        child = space.crossover(winner(), winner(), rng)
        if child in seen or rng.random() < 0.9:
            child = space.mutate(child, rng)
        if child not in seen:
            children[child] = None
    while len(children) < count and len(children) + len(seen) < space.size():
        child = space.sample(rng)
        if child not in seen:
            children[child] = None
    return list(children)


def ranks(candidates: Sequence[Candidate]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return each candidate's non-domination rank (0 is best) and its crowding distance in its front."""
    # pymoo takes half a second to import: only what explores pays for it.
    from pymoo.operators.survival.rank_and_crowding.metrics import get_crowding_function
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    points = np.array([[candidate.latency_ms, -candidate.accuracy] for candidate in candidates])
    # Crowding in log latency, or the cheap end of the curve would look crowded.
    points[:, 0] = np.log(points[:, 0])
    rank = np.zeros(len(points), dtype=np.int64)
    crowding = np.zeros(len(points))
    for k, front in enumerate(NonDominatedSorting().do(points)):
        rank[front] = k
        crowding[front] = get_crowding_function("cd").do(points[front])
    return rank, crowding


def kept(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """Return at most `count` candidates to measure, cheapest first: the non-dominated, thinned or filled.

    Too many: repeatedly drop the one whose neighbours in (log latency, accuracy) are nearest, never an end.
    Too few: fill up from the later fronts, since measured latency and quantization will reorder near ties.
    """
    if count < 2:
        raise ValueError(f"at least 2 must be kept, got {count}")
    points = [(candidate.latency_ms, candidate.accuracy) for candidate in candidates]
    front = [candidates[i] for i in non_dominated(points)]
    while len(front) > count:
        log_ms = np.log([candidate.latency_ms for candidate in front])
        accuracy = np.array([candidate.accuracy for candidate in front])
        spread_ms, spread = max(np.ptp(log_ms), 1e-9), max(np.ptp(accuracy), 1e-9)
        gap = (log_ms[2:] - log_ms[:-2]) / spread_ms + (accuracy[2:] - accuracy[:-2]) / spread
        del front[1 + int(np.argmin(gap))]
    rest = [candidate for candidate in candidates if candidate not in front]
    while len(front) < count and rest:
        best = [rest[i] for i in non_dominated([(c.latency_ms, c.accuracy) for c in rest])]
        front += best[: count - len(front)]
        rest = [candidate for candidate in rest if candidate not in best]
    return sorted(front, key=lambda candidate: (candidate.latency_ms, candidate.architecture))
