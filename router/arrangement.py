"""How many cores an inference takes and how many inferences run at once: measured at start, and remembered.

Narrow inferences answer most requests per second, wide ones a single request soonest; how much one costs of
the other depends on the models and the machine. Throughput comes first here, for a gateway that cannot keep
up misses every budget; between arrangements that are nearly equal in it, the wider one is taken.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from model_repo.frontier import Plan, Variant
from model_repo.latency import Environment, RuntimeName
from model_repo.publish import Repository
from model_repo.runtime.engine import Engine, EngineUnavailable, answer_frame
from router.engines import noise, reach

_LOG = logging.getLogger(__name__)
_NEARLY = 0.95
_ROUNDS = 3
_ROUND_S = 0.15


@dataclass(frozen=True, slots=True, order=True)
class Arrangement:
    """Cores per inference, and inferences at once."""

    threads: int
    workers: int

    def __str__(self) -> str:
        return f"{self.workers} x {self.threads} cores"


def possible(cores: int, *, threads: int | None, workers: int | None) -> tuple[Arrangement, ...]:
    """Return the arrangements that a number of cores allows, narrowest first; what is given is kept to.

    Widths are powers of two, and all cores together.
    """
    if threads is not None:
        return (Arrangement(threads, workers or max(cores // threads, 1)),)
    if workers is not None:
        return (Arrangement(max(cores // workers, 1), workers),)
    powers = itertools.takewhile(lambda width: width < cores, (2**power for power in itertools.count()))
    return tuple(Arrangement(width, cores // width) for width in (*powers, cores))


def best(per_s: Mapping[Arrangement, float]) -> Arrangement:
    """Return the widest arrangement that answers nearly as many frames per second as the best one."""
    enough = _NEARLY * max(per_s.values())
    return max(arrangement for arrangement, rate in per_s.items() if rate >= enough)


def user_cache() -> Path:
    """Return the user's folder for what can be found out again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "paretogate"


Make = Callable[[Arrangement], Engine]


def arrange(
    repository: Repository,
    operating_point: str,
    runtime: RuntimeName,
    choices: Sequence[Arrangement],
    make: Make,
    here: Environment,
    cache: Path | None,
) -> Arrangement:
    """Return the arrangement that suits an operating point's plan, from `cache` where it was found before.

    Half a second is spent on each. One that the engine refuses is out; where all are, or no plan is for this
    runtime, the narrowest is returned, and loading the models will tell what is wrong. cache: a folder, None
    to measure every time; one that cannot be written costs a warning.
    """
    plan = _plan(repository, operating_point, runtime)
    if len(choices) == 1 or plan is None:
        return choices[0]
    remembered = None if cache is None else cache / f"{_key(repository, plan, runtime, choices, here)}.json"
    found = None if remembered is None else _recall(remembered)
    if found is not None and found in choices:
        return found
    per_s = measure(repository, plan, choices, make)
    if not per_s:
        return choices[0]
    chosen = best(per_s)
    rates = ", ".join(f"{arrangement}: {rate:.0f}/s" for arrangement, rate in per_s.items())
    _LOG.info("%s, measured with %s (%s)", chosen, plan.name, rates)
    if remembered is not None:
        _remember(remembered, chosen)
    return chosen


def measure(
    repository: Repository, plan: Plan, choices: Sequence[Arrangement], make: Make
) -> dict[Arrangement, float]:
    """Return how many frames per second a plan answers in each arrangement with every worker at work.

    Arrangements take turns, and the median of their rounds counts; later stages run for the share of frames
    that reach them. Those that the engine refuses are missing.
    """
    stages = [repository.frontier.variant(stage.variant) for stage in plan.stages]
    shares = reach(plan)
    image = noise()
    engines: dict[Arrangement, Engine] = {}
    rates: dict[Arrangement, list[float]] = {}
    try:
        for arrangement in choices:
            engine = make(arrangement)
            try:
                for variant in stages:
                    engine.load(repository.root, variant)
                    answer_frame(engine, variant, image)
            except EngineUnavailable as error:
                _LOG.warning("%s is out of the question: %s", arrangement, error)
                engine.close()
            else:
                engines[arrangement] = engine
                rates[arrangement] = []
        for _ in range(_ROUNDS):
            for arrangement, engine in engines.items():
                rates[arrangement].append(_per_s(engine, stages, shares, image, arrangement.workers))
    finally:
        for engine in engines.values():
            engine.close()
    return {arrangement: median(seen) for arrangement, seen in rates.items()}


def _per_s(
    engine: Engine, stages: Sequence[Variant], shares: Sequence[float], image: NDArray[np.uint8], workers: int
) -> float:
    until = time.perf_counter() + _ROUND_S

    def run(_: int) -> float:
        # A stage is due whenever its share of the frames so far has reached the next whole one.
        begin, frames = time.perf_counter(), 0
        while frames == 0 or time.perf_counter() < until:
            for variant, share in zip(stages, shares, strict=True):
                if int((frames + 1) * share) > int(frames * share):
                    answer_frame(engine, variant, image)
            frames += 1
        return frames / (time.perf_counter() - begin)

    with ThreadPoolExecutor(workers) as threads:
        return sum(threads.map(run, range(workers)))


def _plan(repository: Repository, operating_point: str, runtime: RuntimeName) -> Plan | None:
    """Return the operating point's plan, or the cheapest where that one is not for this runtime."""
    frontier = repository.frontier
    here = [plan for plan in frontier.plans if runtime in plan.engines]
    wished = {point.plan for point in frontier.operating_points if point.name == operating_point}
    ordered = sorted(here, key=lambda plan: (plan.name not in wished, plan.mean_ms))
    return ordered[0] if ordered else None


def _key(
    repository: Repository,
    plan: Plan,
    runtime: RuntimeName,
    choices: Sequence[Arrangement],
    here: Environment,
) -> str:
    choices_said = [str(choice) for choice in choices]
    circumstances = [repository.digest, plan.name, runtime, choices_said, here.model_dump(mode="json")]
    return f"arrangement-{hashlib.sha256(json.dumps(circumstances).encode()).hexdigest()[:16]}"


class _Remembered(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    threads: PositiveInt
    workers: PositiveInt


def _recall(path: Path) -> Arrangement | None:
    try:
        found = _Remembered.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        _LOG.warning("%s cannot be used, measuring again: %s", path, error)
        return None
    return Arrangement(found.threads, found.workers)


def _remember(path: Path, arrangement: Arrangement) -> None:
    document = _Remembered(threads=arrangement.threads, workers=arrangement.workers)
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(document.model_dump_json())
        os.replace(temporary, path)
    except OSError as error:
        _LOG.warning("%s cannot be written, the next start will measure again: %s", path, error)
