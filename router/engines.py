"""The loaded engine: which plans it can run, what its stages cost here, and whether it is well.

A latency that was measured elsewhere is no evidence. When the manifest's profiles come from another machine,
another version of the runtime or another number of threads, the variants are measured again at start, the
same way as the search measures: whole stages on decoded frames, one at a time and with every worker busy.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model_repo.frontier import (
    Frontier,
    NoCertificate,
    OperatingPoint,
    Plan,
    PlanAccuracy,
    SplitName,
    Stage,
    Variant,
)
from model_repo.latency import Environment, Histogram, LatencyProfile, RuntimeName, at_concurrency
from model_repo.publish import Repository
from model_repo.runtime.engine import Engine, EngineUnavailable, answer_frame

_LOG = logging.getLogger(__name__)
_WARM_UP = 3
_SAMPLES = 40
_FRAME_WH = (640, 480)


class StartupError(RuntimeError):
    """The gateway cannot serve this repository on this engine; the message says what to do."""


@dataclass(frozen=True, slots=True)
class ServedPoint:
    """An operating point as it is served here; `published` is the plan it names in the manifest."""

    name: str
    plan: Plan
    published: str


@dataclass(frozen=True, slots=True)
class Fleet:
    """What an engine serves of a repository.

    profiles: those in force, by variant name. source: the runtime whose measurements in the manifest apply;
    it differs from the engine's where Triton runs what was published for one of the embedded runtimes.
    """

    classes: tuple[str, ...]
    plans: tuple[Plan, ...]
    variants: Mapping[str, Variant]
    points: tuple[ServedPoint, ...]
    profiles: Mapping[str, tuple[LatencyProfile, ...]]
    source: RuntimeName
    measured_here: bool

    @property
    def alone(self) -> Mapping[str, Plan]:
        """Return, by variant, a plan of it by itself, for whoever asks for that model by name.

        It is no plan of the frontier, even where that has the same stage, so that none takes its place.
        """
        return {name: self._alone(name) for name in self.variants}

    def _alone(self, variant: str) -> Plan:
        profile = min(self.profiles[variant], key=lambda profile: profile.concurrency)
        return Plan(
            name=f"{variant}-alone",
            stages=(Stage(variant=variant),),
            fusion=self.plans[0].fusion,
            runtime=self.source,
            engines=(self.source,),
            accuracy=(),
            mean_ms=profile.mean_ms,
            p99_ms=profile.quantile_ms(0.99),
            certificate=NoCertificate(reason="it is not a plan of the frontier"),
        )

    def mean_ms(self, decode: Histogram, busy: int = 1) -> Mapping[str, float]:
        """Return what a frame costs on average with each plan, by name, under the profiles in force.

        busy: workers at work; the next concurrency that was measured counts.

        Stages count by the share of frames that reached them on the plan's first split; all do where that
        is not known.
        """
        return {
            plan.name: decode.mean_ms
            + sum(
                share * at_concurrency(self.profiles[stage.variant], busy).mean_ms
                for share, stage in zip(reach(plan), plan.stages, strict=True)
            )
            for plan in (*self.plans, *self.alone.values())
        }


_STEP = 0.95


def ladder(fleet: Fleet, home: str, cost_ms: Mapping[str, float]) -> tuple[ServedPoint, ...]:
    """Return what load may choose from in place of an operating point, cheapest first, itself last.

    The cheaper operating points; and, going down from itself, each time the costliest plan that saves at
    least a twentieth and is more accurate (on its first split) than all that are cheaper: smaller steps would
    give accuracy away for next to nothing. Such a plan goes by its own name. cost_ms: by plan, here.
    """
    last = next(point for point in fleet.points if point.name == home)
    named = {point.plan.name: point for point in reversed(fleet.points)}
    plans = sorted(fleet.plans, key=lambda plan: cost_ms[plan.name])
    worth, best = set(), -1.0
    for plan in plans:
        accuracy = plan.accuracy[0].map if plan.accuracy else 0.0
        if accuracy > best:
            worth.add(plan.name)
            best = accuracy
    rungs, below_ms = [last], _STEP * cost_ms[last.plan.name]
    for plan in reversed(plans):
        if plan.name in worth and cost_ms[plan.name] <= below_ms:
            rungs.append(named.get(plan.name) or ServedPoint(plan.name, plan, plan.name))
            below_ms = _STEP * cost_ms[plan.name]
        elif plan.name in named and cost_ms[plan.name] < cost_ms[last.plan.name]:
            rungs.append(named[plan.name])
    return tuple(reversed(rungs))


_SPLITS: tuple[SplitName, ...] = ("test", "valid", "calibration", "train")


def published_accuracy(plan: Plan) -> PlanAccuracy | None:
    """Return a plan's accuracy as users are told it: of test where it was scored there; None if nowhere."""
    by_split = {accuracy.split: accuracy for accuracy in plan.accuracy}
    return next((by_split[split] for split in _SPLITS if split in by_split), None)


def reach(plan: Plan) -> tuple[float, ...]:
    """Return the share of frames that reach each stage of a plan, on its first split; 1 where not known."""
    later = len(plan.stages) - 1
    known = plan.accuracy[0].escalated if plan.accuracy else ()
    return (1.0, *(known if len(known) == later else (1.0,) * later))


def load_fleet(
    repository: Repository,
    engine: Engine,
    *,
    triton_runs: RuntimeName = "onnxruntime",
    loaded: Collection[str] = (),
) -> Fleet:
    """Load every variant that a plan for this runtime needs; profiles are the manifest's.

    loaded: folders that the engine has already.

    A Triton that nothing was measured on runs the same files by `triton_runs`, the runtime that its
    repository was rendered for: plans, accuracy and alignments of that one apply, latencies do not.
    A variant that the engine refuses takes its plans out of service, with a warning. Raises StartupError
    when no plan is left.
    """
    frontier = repository.frontier
    source = engine.runtime
    if source == "triton" and not any(source in plan.engines for plan in frontier.plans):
        source = triton_runs
    candidates = [plan for plan in frontier.plans if source in plan.engines]
    names = sorted({stage.variant for plan in candidates for stage in plan.stages})
    ready: dict[str, Variant] = {}
    for name in names:
        variant = frontier.variant(name)
        try:
            if variant.folder not in loaded:
                engine.load(repository.root, variant)
        except EngineUnavailable as error:
            _LOG.warning("variant %s is out of service: %s", name, error)
        else:
            ready[name] = variant
    plans = tuple(plan for plan in candidates if all(stage.variant in ready for stage in plan.stages))
    if not plans:
        for variant in ready.values():
            if variant.folder not in loaded:
                engine.unload(variant)
        raise StartupError(
            f"no plan of {repository.root} runs on {source}: "
            f"{len(candidates)} of {len(frontier.plans)} plans name it, {len(ready)} of {len(names)}"
            " variants were loaded; choose another --runtime or publish for this one"
        )
    points = tuple(_serve_point(point, frontier, plans) for point in frontier.operating_points)
    profiles = {name: variant.on(source).latency for name, variant in ready.items()}
    return Fleet(frontier.dataset.classes, plans, ready, points, profiles, source, measured_here=False)


def _serve_point(point: OperatingPoint, frontier: Frontier, plans: Sequence[Plan]) -> ServedPoint:
    published = frontier.plan(point.plan)
    for plan in plans:
        if plan.name == published.name:
            return ServedPoint(point.name, plan, published.name)
    cheaper = [plan for plan in plans if plan.mean_ms <= published.mean_ms]
    nearest = min(cheaper or plans, key=lambda plan: abs(plan.mean_ms - published.mean_ms))
    _LOG.warning(
        "operating point %s: its plan %s does not run here, %s takes its place",
        point.name,
        published.name,
        nearest.name,
    )
    return ServedPoint(point.name, nearest, published.name)


def difference(profile: LatencyProfile, engine: Engine, here: Environment, threads: int) -> str | None:
    """Say in words how a profile's circumstances differ from the present ones, None when they do not."""
    there = profile.environment
    for what, measured, present in (
        ("runtime", profile.runtime, engine.runtime),
        ("machine", there.machine, here.machine),
        ("device", there.device, here.device),
        ("number of cores", there.cores, here.cores),
        ("version of the runtime", profile.runtime_version, engine.version),
        ("threads per inference", profile.threads, threads),
    ):
        if measured != present:
            return f"the {what} is {present!r}, it was measured on {measured!r}"
    return None


def warm(fleet: Fleet, engine: Engine) -> None:
    """Run every variant a few times, so that no request pays for a first time; raises EngineError."""
    image = np.zeros((_FRAME_WH[1], _FRAME_WH[0], 3), dtype=np.uint8)
    for variant in fleet.variants.values():
        for _ in range(_WARM_UP):
            answer_frame(engine, variant, image)


def noise() -> NDArray[np.uint8]:
    """Return a frame to measure with: a detector's time hardly depends on what it sees."""
    return np.random.default_rng(0).integers(0, 256, (_FRAME_WH[1], _FRAME_WH[0], 3), dtype=np.uint8)


def measure_fleet(
    fleet: Fleet, engine: Engine, here: Environment, threads: int, *, samples: int = _SAMPLES
) -> Fleet:
    """Return the fleet under profiles measured here and now, at concurrency 1 and at the engine's own.

    Every variant runs `samples` times per concurrency on one frame of noise after a warm-up; a detector's
    time hardly depends on what it sees. Raises EngineError when a model does not run.
    """
    image = noise()
    concurrencies = sorted({1, engine.parallelism})
    profiles = {
        name: tuple(
            LatencyProfile(
                runtime=engine.runtime,
                runtime_version=engine.version,
                precision=variant.precision,
                threads=threads,
                batch=1,
                concurrency=concurrency,
                histogram=Histogram.of(_measure(engine, variant, image, concurrency, samples)),
                environment=here,
            )
            for concurrency in concurrencies
        )
        for name, variant in fleet.variants.items()
    }
    return replace(fleet, profiles=profiles, measured_here=True)


def _measure(
    engine: Engine, variant: Variant, image: NDArray[np.uint8], concurrency: int, samples: int
) -> list[float]:
    def run(count: int) -> list[float]:
        times_ms = []
        for _ in range(count):
            start_ns = time.perf_counter_ns()
            answer_frame(engine, variant, image)
            times_ms.append((time.perf_counter_ns() - start_ns) / 1e6)
        return times_ms

    with ThreadPoolExecutor(concurrency) as threads:
        list(threads.map(run, [_WARM_UP] * concurrency))
        share = -(-samples // concurrency)
        return [ms for part in threads.map(run, [share] * concurrency) for ms in part]


class EngineHealth:
    """Whether the engine is well: so many failures in a row make it ill, one success well again."""

    def __init__(self, failures_allowed: int = 3, *, ill: str = "the engine is ill") -> None:
        """ill: what the log says when it falls ill."""
        self._allowed, self._ill = failures_allowed, ill
        self._failures = 0

    @property
    def well(self) -> bool:
        """Return whether requests can expect answers."""
        return self._failures < self._allowed

    def succeeded(self) -> None:
        """Note an inference that ran."""
        self._failures = 0

    def failed(self) -> None:
        """Note an inference that did not."""
        self._failures += 1
        if self._failures == self._allowed:
            _LOG.error("%d failures in a row: %s", self._failures, self._ill)
