"""The claim that monitoring explains: `python -m deploy.bench_monitoring --repo … --frames …`.

A real Prometheus watches a real gateway with every feature turned on, under the committed rules with all
windows a sixtieth as long. Healthy load comes first, and no alert may fire; then every query of the board has
to return data; then one fault after another is made, and each alert has to fire within its stated time.
What is stated of a burn rate is for the share that the fault really spoilt.

The demo frontier is served with two changes: `balanced` is a cascade, so that there is something to escalate;
and its profiles say twice what was measured, so that a shared machine keeps to them by itself.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from deploy.board import every_panel
from deploy.callers import Traffic, filming, streaming, traffic
from deploy.faults import shifted, throttled
from deploy.live import Key, Prometheus, PrometheusError, Seen
from deploy.rules import Scale, alerts
from deploy.scene import Scene, Served, scene
from loadtest.frames import FramesError, read_frames
from loadtest.process import HOST, ServerError, free_port, running, wait_until_ready
from model_repo import publish, triton
from model_repo.frontier import Frontier, OperatingPoint, Variant
from tests.e2e.triton_server import TritonServer, run_triton, triton_environment

SCALE = Scale(1 / 60, 1.0)
_POINT, _RATE_HZ, _BUDGET_MS = "balanced", 5.0, 150.0
_ESCALATED, _SLOWER = 0.25, 2.0
# Four scrapes or more, as Grafana takes it.
_WINDOW = "10s"
# The longest of the short windows, and a little: what a fault leaves behind is over before the next one.
_QUIET_S = 400.0
_DATA_S = 30.0
_COLUMNS = 140


@dataclass(frozen=True, slots=True)
class Result:
    """What fired under healthy load; the board's queries, and those without data; and what faults raised."""

    healthy_s: float
    unasked: tuple[Key, ...]
    queries: int
    without_data: tuple[str, ...]
    seen: tuple[tuple[str, Seen], ...]

    @property
    def holds(self) -> bool:
        """Whether nothing fired without a fault, everything fired with one, and the board has data."""
        return not self.unasked and not self.without_data and all(seen.holds for _, seen in self.seen)


def measure(
    repo: Path, frames: Sequence[bytes], folder: Path, *, healthy_s: float, say: Callable[[str], None]
) -> Result:
    """Run healthy load and then all faults; raises ServerError or PrometheusError when nothing can be run.

    Without Triton's environment its row of the board and its two alerts are left out, which is said.
    """
    repository = publish.read(repo)
    champion, challenger = (
        _published(repository, _demo(repository.frontier), folder / name)
        for name in ("champion", "challenger")
    )
    served = Served(champion, challenger, ("--threads", "1", "--workers", "1"))
    callers = Traffic(frames, _RATE_HZ, _BUDGET_MS, _POINT)
    with ExitStack() as stack:
        behind = stack.enter_context(_behind_triton(repository, frames, folder, say))
        others = () if behind is None else (behind.metrics,)
        run = stack.enter_context(scene(served, callers, SCALE, folder, others=others))
        say(f"{healthy_s:g} s of healthy load")
        time.sleep(healthy_s)
        unasked = tuple(sorted(run.prometheus.fired(healthy_s)))
        queries = tuple(
            query.expr
            for row, panel in every_panel()
            for query in panel.queries
            if behind is not None or row.feature != "Triton"
        )
        without = _without_data(run.prometheus, queries)
        seen = tuple(_seen(run, _faults(run, frames, behind), say))
        failed = run.prometheus.failed_rules()
        if failed:
            raise PrometheusError("; ".join(failed))
    return Result(healthy_s, unasked, len(queries), without, seen)


def _without_data(watching: Prometheus, queries: Sequence[str]) -> tuple[str, ...]:
    """Return the queries that give nothing for a while: some things are rare."""
    give_up_s = time.monotonic() + _DATA_S
    while (without := watching.without_data(queries, _WINDOW)) and time.monotonic() < give_up_s:
        time.sleep(1.0)
    return without


@dataclass(frozen=True, slots=True)
class _Fault:
    """What goes wrong while what `make` gives lasts, and the alerts that have to say so."""

    name: str
    alerts: tuple[str, ...]
    make: Callable[[], AbstractContextManager[object]]


def _seen(run: Scene, faults: Sequence[_Fault], say: Callable[[str], None]) -> Iterator[tuple[str, Seen]]:
    """Make one fault after another, each once its alerts are silent, and yield what it raised."""
    for fault in faults:
        keys = [(alert.name, alert.windows) for alert in alerts(SCALE) if alert.name in fault.alerts]
        run.prometheus.quiet(keys, _QUIET_S)
        say(fault.name)
        for seen in run.prometheus.watch(keys, fault.make):
            yield fault.name, seen


def _faults(run: Scene, frames: Sequence[bytes], behind: _Behind | None) -> tuple[_Fault, ...]:
    """Return the faults in their order: those that leave least behind come first."""
    stranger = Traffic(frames, 10.0, key=f"pg_{'0' * 12}_{'0' * 64}")
    crowd = Traffic(frames, 0.0, _BUDGET_MS, _POINT, key=run.key)
    manifest = run.served.champion.root / publish.MANIFEST
    kill = partial(os.kill, run.pid, signal.SIGKILL)
    return (
        _Fault(
            "datagrams are lost",
            ("ParetogateUdpFramesLost",),
            lambda: filming(run.udp_address, frames, 5.0, loses=5),
        ),
        _Fault("a wrong key is tried", ("ParetogateKeysRefused",), lambda: traffic(run.url, stranger)),
        _Fault(
            "frames are dark and blurred",
            ("ParetogateDrift", "ParetogateCertificateVoid", "ParetogateEscalationDrift"),
            lambda: _other_frames(run.callers, tuple(shifted(frame) for frame in frames)),
        ),
        # Stages are mostly well and requests mostly late: nothing that could be planned for.
        _Fault(
            "it stands still now and then",
            ("ParetogateLatencyBurn", "ParetogateBudgetMisses"),
            lambda: throttled(run.pid, runs_s=0.03, stands_s=0.17),
        ),
        _Fault("too many requests", ("ParetogateShedding",), lambda: traffic(run.url, crowd, clients=48)),
        # Every stage is interrupted: the planner sees that, and sheds what would be late.
        _Fault(
            "a fifth of the time is left",
            ("ParetogateLatencyDrift",),
            lambda: throttled(run.pid, runs_s=0.005, stands_s=0.02),
        ),
        _Fault(
            "a camera sends too much",
            ("ParetogateStreamDrops",),
            lambda: streaming(run.grpc_address, run.key, frames, 150.0),
        ),
        *(
            ()
            if behind is None
            else (
                _Fault(
                    "Triton ends",
                    ("ParetogateEngineDown", "ParetogateEndpointDown"),
                    lambda: _done(behind.server.kill),
                ),
            )
        ),
        _Fault(
            "a broken manifest",
            ("ParetogateRepublishFailed",),
            lambda: _done(partial(manifest.write_text, manifest.read_text()[:1000])),
        ),
        _Fault(
            "champion and challenger differ in classes",
            ("ParetogateChallengerStopped",),
            lambda: _done(partial(_rename_classes, run.served.champion)),
        ),
        _Fault("the gateway ends", ("ParetogateDown",), lambda: _done(kill)),
    )


@contextmanager
def _other_frames(callers: Traffic, frames: Sequence[bytes]) -> Iterator[None]:
    """Send other frames, and more of them: the escalation alert wants so many decisions in its window."""
    before = callers.frames, callers.rate_hz
    callers.frames, callers.rate_hz = frames, 2.0 * _RATE_HZ
    yield
    callers.frames, callers.rate_hz = before


def _done(act: Callable[[], object]) -> AbstractContextManager[None]:
    """Do what cannot be undone."""
    act()
    return nullcontext()


def _rename_classes(repository: publish.Repository) -> None:
    """Publish the same models under other classes: no challenger of before can be compared with them."""
    dataset = repository.frontier.dataset
    renamed = dataset.model_copy(update={"classes": tuple(f"new {name}" for name in dataset.classes)})
    publish.publish(repository.root, repository.frontier.model_copy(update={"dataset": renamed}), {})


def _published(source: publish.Repository, frontier: Frontier, root: Path) -> publish.Repository:
    models = {variant.folder: source.root / publish.MODELS / variant.folder for variant in frontier.variants}
    return publish.publish(root, frontier, models)


def _demo(frontier: Frontier) -> Frontier:
    """Return a frontier whose balanced point escalates a quarter of the frames, with profiles to spare."""
    cascades = [plan for plan in frontier.plans if len(plan.stages) == 2 and plan.accuracy]
    chosen = min(cascades, key=lambda plan: abs(plan.accuracy[0].escalated[0] - _ESCALATED))
    points = tuple(
        OperatingPoint(name=point.name, plan=chosen.name if point.name == _POINT else point.plan)
        for point in frontier.operating_points
    )
    variants = tuple(_slower(variant) for variant in frontier.variants)
    return frontier.model_copy(update={"operating_points": points, "variants": variants})


def _slower(variant: Variant) -> Variant:
    """Return a variant with profiles of a slower machine."""
    measurements = []
    for measurement in variant.measurements:
        profiles = tuple(
            profile.model_copy(update={"histogram": profile.histogram.scaled(_SLOWER)})
            for profile in measurement.latency
        )
        measurements.append(measurement.model_copy(update={"latency": profiles}))
    return variant.model_copy(update={"measurements": tuple(measurements)})


@dataclass(frozen=True, slots=True)
class _Behind:
    """A second gateway, in front of a Triton: where its metrics are."""

    metrics: str
    server: TritonServer


@contextmanager
def _behind_triton(
    repository: publish.Repository, frames: Sequence[bytes], folder: Path, say: Callable[[str], None]
) -> Iterator[_Behind | None]:
    """Run a Triton with the fastest model, a gateway in front of it, and callers; None without Triton."""
    environment = triton_environment()
    if environment is None:
        say("no Triton: bash tests/e2e/make_triton_env.sh makes its environment; two alerts are left out")
        yield None
        return
    alone = _published(repository, _fastest_alone(repository.frontier), folder / "alone")
    rendered = triton.render_repository(alone, "python", folder / "rendered")
    port, admin_port = free_port(), free_port()
    with run_triton(environment, rendered, folder / "triton.log") as server:
        command = (
            "router", "--repo", str(alone.root), "--port", str(port), "--admin-port", str(admin_port),
            "--grpc-port", "0", "--runtime", "triton", "--triton-url", server.url,
            "--triton-runs", "openvino", "--measure", "never",
        )  # fmt: skip
        log = folder / "gateway-triton.log"
        with running(command, log) as process:
            wait_until_ready(process, f"http://{HOST}:{port}", log)
            with traffic(f"http://{HOST}:{port}", Traffic(frames, 2.0, 1_000.0)):
                yield _Behind(f"{HOST}:{admin_port}", server)


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


def main(
    repo: Annotated[Path, typer.Option("--repo", help="a published model repository")],
    frames: Annotated[Path, typer.Option("--frames", help="a folder of labelled frames")],
    minutes: Annotated[float, typer.Option(min=0.2, help="of healthy load")] = 10.0,
) -> None:
    """Watch a gateway under healthy load and under every fault that an alert is for.

    Exit status 1 when an alert fires under healthy load, when one does not fire within its stated time on its
    fault, or when a query of the board returns nothing.
    """
    console = Console(width=_COLUMNS)
    try:
        contents = [frame.content for frame in read_frames(frames, 120)]
        with TemporaryDirectory(prefix="paretogate-bench-") as folder:
            result = measure(
                repo, contents, Path(folder), healthy_s=60.0 * minutes, say=lambda text: console.print(text)
            )
    except (ServerError, PrometheusError, FramesError) as error:
        Console(stderr=True).print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error
    table = Table("fault", "alert", "windows", "spoilt", "stated s", "fired after s", "")
    for fault, seen in result.seen:
        after = "never" if seen.after_s is None else f"{seen.after_s:.1f}"
        after = "before the fault" if seen.before else after
        spoilt = f"{seen.share:.0%}" if seen.key[1] else ""
        table.add_row(fault, *seen.key, spoilt, f"{seen.stated_s:.1f}", after, _word(seen.holds))
    console.print(table)
    unasked = ", ".join(" ".join(key).strip() for key in result.unasked) or "none"
    console.print(f"Fired in {result.healthy_s:g} s of healthy load: {unasked}. {_word(not result.unasked)}")
    console.print(
        f"Queries of the board with data: {result.queries - len(result.without_data)} of {result.queries}."
        f" {_word(not result.without_data)}"
    )
    for query in result.without_data:
        console.print(f"  {query}", highlight=False, soft_wrap=True)
    if not result.holds:
        raise typer.Exit(1)


def _word(holds: bool) -> str:
    return "HOLDS" if holds else "MISSES"


if __name__ == "__main__":
    typer.run(main)
