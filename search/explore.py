"""The search over subnets: bounded, seeded, resumable, in generations.

The search's state is what has been evaluated, generation by generation, and each generation draws from a
generator of its own, derived from (seed, generation), and from what the generations before it found. So a
search that is killed and started again walks the same way: candidates that the journal knows cost nothing,
the first unknown one is evaluated next; and how many processes evaluate changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from search.candidates import Candidate, slice_sizes
from search.run_folder import Journal, Progress, RunError, Silent
from search.space import Architecture, Space
from search.strategies import Latency, Strategy, Task, graded

POPULATION = 24
_DRAWS_PER_PLACE = 6


@dataclass(frozen=True, slots=True)
class Judged:
    """The objective on each slice that a subnet was taken to, and the seconds it took."""

    slices: tuple[float, ...]
    seconds: float


class Evaluate(Protocol):
    """Evaluate subnets, yielding what came out for each, in their order, as each is done."""

    def __call__(self, tasks: Sequence[Task]) -> Iterable[Judged]:
        """Yield what came out for each task."""


def explore(
    space: Space,
    strategy: Strategy,
    evaluate: Evaluate,
    latency_ms: Latency,
    journal: Journal,
    *,
    budget: int,
    images: int,
    seed: int,
    population: int = POPULATION,
    known_good: Sequence[Architecture] = (),
    minutes: float | None = None,
    progress: Progress | None = None,
) -> list[Candidate]:
    """Evaluate `budget` distinct subnets, smallest and largest first, and return them in that order.

    images: how many a candidate that is not given up runs on. known_good: subnets that an earlier search
    found; they begin the first generation, which is as large as they are if need be. The journal holds one
    line per finished evaluation; those lines are not evaluated again. With `minutes`, no candidate is started
    after that time, and the search then does not repeat exactly. Raises RunError when the journal is of
    another search, ValueError when the budget is below 2.
    """
    if budget < 2:
        raise ValueError(f"the budget must be at least 2 candidates, got {budget}")
    progress = progress or Silent()
    known = [Candidate.model_validate_json(line) for line in journal.lines()]
    budget = min(budget, space.size())
    sizes = slice_sizes(images)
    progress.start("explore", budget)
    started_s = time.monotonic()
    done: list[Candidate] = []
    seen: set[Architecture] = set()
    generation = 0
    while len(done) < budget:
        rng = np.random.default_rng([seed, generation])
        wanted = min(population, budget - len(done))
        if generation == 0:
            first = [*known_good, *_first_generation(space, latency_ms, wanted, rng)]
            tasks = [Task(one, ()) for one in list(dict.fromkeys(first))[: max(wanted, len(known_good))]]
        else:
            tasks = strategy.propose(done, seen, wanted, rng)
        if not tasks:
            break
        seen.update(task.architecture for task in tasks)
        past = known[len(done) : len(done) + len(tasks)]
        for candidate, task in zip(past, tasks, strict=False):
            if candidate.architecture != task.architecture.name:
                raise RunError(
                    f"{journal.path}: candidate {len(done)} is {candidate.architecture}, this search draws"
                    f" {task.architecture.name}: the journal is of another search"
                )
            done.append(candidate)
            progress.advance(1)
        todo = tasks[len(past) :]
        for task, judged in zip(todo, evaluate(todo), strict=False):
            candidate = Candidate(
                architecture=task.architecture.name,
                generation=generation,
                slices=judged.slices,
                images=sizes[len(judged.slices) - 1],
                finished=len(judged.slices) == len(sizes),
                latency_ms=latency_ms(task.architecture),
                seconds=judged.seconds,
            )
            journal.append(candidate.model_dump_json())
            done.append(candidate)
            given_up = "" if candidate.finished else f" on {candidate.images} images, given up"
            progress.advance(1, f"{candidate.accuracy:.3f} at {candidate.latency_ms:.1f} ms{given_up}")
            if minutes is not None and time.monotonic() - started_s > 60 * minutes:
                return done
        generation += 1
    return done


def _first_generation(
    space: Space, latency_ms: Latency, count: int, rng: np.random.Generator
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
    pool = list(dict.fromkeys(graded(space, rng) for _ in range(count * _DRAWS_PER_PLACE)))
    pool = [architecture for architecture in pool if architecture not in ends]
    log_ms = np.log([latency_ms(architecture) for architecture in pool]) if pool else np.empty(0)
    low, high = np.log(latency_ms(space.smallest)), np.log(latency_ms(space.largest))
    chosen: list[int] = []
    for place in np.linspace(low, high, count - len(ends) + 2)[1:-1]:
        free = [i for i in range(len(pool)) if i not in chosen]
        if free:
            chosen.append(min(free, key=lambda i: (abs(log_ms[i] - place), i)))
    return [*ends, *(pool[i] for i in chosen)]
