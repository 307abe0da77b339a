"""What is served while monitoring is measured: the demo frontier made fit for it, and a gateway with Triton.

Two changes make the demo frontier fit: `balanced` is a cascade, so that there is something to escalate; and
profiles say twice what was measured, so that a shared machine keeps to them by itself. What Triton adds to an
inference no profile of an embedded runtime holds, so that is measured first, at the pace at which it is asked
later: a server that is asked twice a second answers from cold caches, and takes several times as long as one
that is never idle.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.callers import Traffic, traffic
from loadtest.process import HOST, free_port, running, wait_until_ready
from model_repo import publish, triton
from model_repo.frame import decode
from model_repo.frontier import Frontier, OperatingPoint, Variant
from model_repo.latency import Histogram, RuntimeName
from model_repo.runtime.engine import answer_frame
from model_repo.runtime.select import make_engine
from tests.e2e.triton_server import TritonServer, run_triton

POINT = "balanced"
_ESCALATED, _SLOWER = 0.25, 2.0
_TRITON_RUNS: RuntimeName = "openvino"
_RATE_HZ, _BUDGET_MS = 2.0, 1_000.0
_SAMPLES = 24


def published(source: publish.Repository, frontier: Frontier, root: Path) -> publish.Repository:
    """Publish a frontier of another repository's models at `root`."""
    models = {variant.folder: source.root / publish.MODELS / variant.folder for variant in frontier.variants}
    return publish.publish(root, frontier, models)


def demo(frontier: Frontier) -> Frontier:
    """Return a frontier whose balanced point escalates a quarter of the frames, with profiles to spare."""
    cascades = [plan for plan in frontier.plans if len(plan.stages) == 2 and plan.accuracy]
    chosen = min(cascades, key=lambda plan: abs(plan.accuracy[0].escalated[0] - _ESCALATED))
    points = tuple(
        OperatingPoint(name=point.name, plan=chosen.name if point.name == POINT else point.plan)
        for point in frontier.operating_points
    )
    return _slower(frontier).model_copy(update={"operating_points": points})


def stage_s(frontier: Frontier) -> float:
    """Return how long the first stage of `demo`'s balanced point takes, by what was really measured."""
    plan = frontier.plan(next(point.plan for point in frontier.operating_points if point.name == POINT))
    profile = frontier.variant(plan.stages[0].variant).on(plan.runtime).latency[0]
    return profile.quantile_ms(0.5) / _SLOWER / 1e3


def _slower(frontier: Frontier, measured: Mapping[str, Histogram] | None = None) -> Frontier:
    """Return a frontier with profiles of a slower machine.

    measured: latencies by variant in place of those that are published.
    """
    return frontier.model_copy(
        update={
            "variants": tuple(
                _slower_variant(variant, (measured or {}).get(variant.name)) for variant in frontier.variants
            )
        }
    )


def _slower_variant(variant: Variant, measured: Histogram | None) -> Variant:
    measurements = []
    for measurement in variant.measurements:
        profiles = tuple(
            profile.model_copy(update={"histogram": (measured or profile.histogram).scaled(_SLOWER)})
            for profile in measurement.latency
        )
        measurements.append(measurement.model_copy(update={"latency": profiles}))
    return variant.model_copy(update={"measurements": tuple(measurements)})


@dataclass(frozen=True, slots=True)
class Behind:
    """A second gateway, in front of a Triton: where its metrics are."""

    metrics: str
    server: TritonServer


@contextmanager
def behind_triton(
    triton_env: Path, repository: publish.Repository, frames: Sequence[bytes], folder: Path
) -> Iterator[Behind]:
    """Run a Triton with the fastest model, a gateway in front of it, and callers, until the block ends.

    triton_env: the folder that `tests/e2e/make_triton_env.sh` made.
    """
    alone = published(repository, _fastest_alone(repository.frontier), folder / "alone")
    rendered = triton.render_repository(alone, "python", folder / "rendered")
    port, admin_port = free_port(), free_port()
    with run_triton(triton_env, rendered, folder / "triton.log") as server:
        publish.publish(alone.root, _slower(alone.frontier, _measured(alone, server.url, frames)), {})
        command = (
            "router", "--repo", str(alone.root), "--port", str(port), "--admin-port", str(admin_port),
            "--grpc-port", "0", "--runtime", "triton", "--triton-url", server.url,
            "--triton-runs", _TRITON_RUNS, "--measure", "never",
        )  # fmt: skip
        log = folder / "gateway-triton.log"
        with running(command, log) as process:
            wait_until_ready(process, f"http://{HOST}:{port}", log)
            with traffic(f"http://{HOST}:{port}", Traffic(frames, _RATE_HZ, _BUDGET_MS)):
                yield Behind(f"{HOST}:{admin_port}", server)


def _measured(repository: publish.Repository, url: str, frames: Sequence[bytes]) -> Mapping[str, Histogram]:
    """Return what inferences take by a Triton, by variant, when one is asked for now and then."""
    engine = make_engine("triton", url=url)
    found: dict[str, Histogram] = {}
    try:
        for variant in repository.frontier.variants:
            engine.load(repository.root, variant)
            taken_ms = []
            for k in range(_SAMPLES):
                time.sleep(1.0 / _RATE_HZ)
                image = decode(frames[k % len(frames)])
                start_ns = time.perf_counter_ns()
                answer_frame(engine, variant, image)
                taken_ms.append((time.perf_counter_ns() - start_ns) / 1e6)
            found[variant.name] = Histogram.of(taken_ms[1:])
    finally:
        engine.close()
    return found


def _fastest_alone(frontier: Frontier) -> Frontier:
    """Return a frontier of the cheapest plan of one stage alone."""
    plan = min((plan for plan in frontier.plans if len(plan.stages) == 1), key=lambda plan: plan.mean_ms)
    name = plan.stages[0].variant
    return frontier.model_copy(
        update={
            "variants": tuple(variant for variant in frontier.variants if variant.name == name),
            "references": tuple(one for one in frontier.references if one.variant == name),
            "plans": (plan,),
            "operating_points": tuple(
                OperatingPoint(name=point.name, plan=plan.name) for point in frontier.operating_points
            ),
        }
    )
