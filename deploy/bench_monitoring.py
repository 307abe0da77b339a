"""The claim that monitoring explains: `python -m deploy.bench_monitoring --repo … --frames …`.

A real Prometheus watches a real gateway with every feature turned on, under the committed rules with all
windows a sixtieth as long. Healthy load comes first, and no alert may fire; then every query of the board has
to return data; then one fault after another is made, and each alert has to fire within its stated time.
What is stated of an alert for a share is for what the fault really made of that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from deploy.board import every_panel
from deploy.callers import Traffic
from deploy.demo import POINT, Behind, behind_triton, demo, published
from deploy.drill import BUDGET_MS, FAULTS, Fault, Ground
from deploy.live import Fired, Prometheus, PrometheusError, Seen
from deploy.rules import Scale, alerts
from deploy.scene import Served, scene
from loadtest.frames import FramesError, read_frames
from loadtest.process import ServerError
from model_repo import publish
from tests.e2e.triton_server import triton_environment

SCALE = Scale(1 / 60, 1.0)
_RATE_HZ = 5.0
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
    unasked: tuple[Fired, ...]
    queries: int
    without_data: tuple[str, ...]
    seen: tuple[tuple[str, Seen], ...]

    @property
    def holds(self) -> bool:
        """Whether nothing fired without a fault, everything fired with one, and the board has data."""
        return not self.unasked and not self.without_data and all(seen.holds for _, seen in self.seen)


def chosen(only: Sequence[str]) -> tuple[Fault, ...]:
    """Return the faults whose names hold one of these texts, all without any.

    Raises ValueError, which names all faults, for a text that none holds.
    """
    for text in only:
        if not any(text in fault.name for fault in FAULTS):
            raise ValueError(f"no fault {text!r}; there are: {', '.join(fault.name for fault in FAULTS)}")
    return tuple(fault for fault in FAULTS if not only or any(text in fault.name for text in only))


def measure(
    repo: Path,
    frames: Sequence[bytes],
    folder: Path,
    *,
    healthy_s: float,
    faults: Sequence[Fault],
    board: bool,
    say: Callable[[str], None],
) -> Result:
    """Run healthy load and then faults; raises ServerError or PrometheusError when nothing can be run.

    board: ask the board's queries as well. Without Triton's environment its row of the board and its two
    alerts are left out, which is said.
    """
    repository = publish.read(repo)
    champion, challenger = (
        published(repository, demo(repository.frontier), folder / name) for name in ("champion", "challenger")
    )
    served = Served(champion, challenger, ("--threads", "1", "--workers", "2"))
    callers = Traffic(frames, _RATE_HZ, BUDGET_MS, POINT)
    with ExitStack() as stack:
        behind: Behind | None = None
        if board or any(fault.needs_triton for fault in faults):
            triton_env = triton_environment()
            if triton_env is None:
                say("no Triton: bash tests/e2e/make_triton_env.sh makes it; two alerts are left out")
            else:
                behind = stack.enter_context(behind_triton(triton_env, repository, frames, folder))
        others = () if behind is None else (behind.metrics,)
        run = stack.enter_context(scene(served, callers, SCALE, folder, others=others))
        say(f"{healthy_s:g} s of healthy load")
        began_s = time.monotonic()
        time.sleep(healthy_s)
        unasked = run.prometheus.fired(time.monotonic() - began_s)
        queries = tuple(
            query.expr
            for row, panel in every_panel()
            for query in panel.queries
            if board and (behind is not None or row.feature != "Triton")
        )
        without = _without_data(run.prometheus, queries)
        ground = Ground(run, frames, None if behind is None else behind.server)
        possible = [fault for fault in faults if behind is not None or not fault.needs_triton]
        seen = tuple(_seen(ground, possible, say))
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


def _seen(ground: Ground, faults: Sequence[Fault], say: Callable[[str], None]) -> Iterator[tuple[str, Seen]]:
    """Make one fault after another, each once its alerts are silent, and yield what it raised."""
    watching = ground.run.prometheus
    for fault in faults:
        keys = [(alert.name, alert.windows) for alert in alerts(SCALE) if alert.name in fault.alerts]
        if rung := sorted({name for name, _ in watching.ringing(keys)}):
            say(f"… until {', '.join(rung)} are silent")
        watching.quiet(keys, _QUIET_S)
        say(fault.name)
        for seen in watching.watch(keys, lambda fault=fault: fault.make(ground)):  # type: ignore[misc]  # a lambda's default has no type
            yield fault.name, seen


def main(
    repo: Annotated[Path, typer.Option("--repo", help="a published model repository")],
    frames: Annotated[Path, typer.Option("--frames", help="a folder of labelled frames")],
    minutes: Annotated[float, typer.Option(min=0.1, help="of healthy load")] = 10.0,
    only: Annotated[
        list[str] | None,
        typer.Option(help="only the faults whose names hold this text, and no look at the board; repeatable"),
    ] = None,
) -> None:
    """Watch a gateway under healthy load and under every fault that an alert is for.

    Exit status 1 when an alert fires under healthy load, when one does not fire within its stated time on its
    fault, or when a query of the board returns nothing.
    """
    console, began_s = Console(width=_COLUMNS), time.monotonic()

    def say(text: str) -> None:
        console.print(f"{time.monotonic() - began_s:6.0f} s  {text}", highlight=False)

    try:
        faults = chosen(only or ())
        contents = [frame.content for frame in read_frames(frames, 120)]
        with TemporaryDirectory(prefix="paretogate-bench-") as folder:
            result = measure(
                repo,
                contents,
                Path(folder),
                healthy_s=60.0 * minutes,
                faults=faults,
                board=not only,
                say=say,
            )
    except (ServerError, PrometheusError, FramesError, ValueError) as error:
        Console(stderr=True).print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error
    _tell(console, result)
    if not result.holds:
        raise typer.Exit(1)


def _tell(console: Console, result: Result) -> None:
    table = Table("fault", "alert", "windows", "share", "stated s", "fired after s", "")
    for fault, seen in result.seen:
        after = "never" if seen.after_s is None else f"{seen.after_s:.1f}"
        after = "before the fault" if seen.before else after
        share = "" if seen.made is None else f"{seen.made.since:.0%}"
        table.add_row(fault, *seen.key, share, f"{seen.stated_s:.1f}", after, _word(seen.holds))
    console.print(table)
    fired = "; ".join(_described(one, result.healthy_s) for one in result.unasked) or "none"
    console.print(f"Fired in {result.healthy_s:g} s of healthy load: {fired}. {_word(not result.unasked)}")
    if result.queries:
        console.print(
            f"Queries of the board with data: {result.queries - len(result.without_data)} of"
            f" {result.queries}. {_word(not result.without_data)}"
        )
    for query in result.without_data:
        console.print(f"  {query}", highlight=False, soft_wrap=True)


def _described(fired: Fired, healthy_s: float) -> str:
    name, windows = fired.key
    said = ", ".join(part for part in (windows, fired.subject) if part)
    return f"{name}{f' ({said})' if said else ''} after {max(healthy_s - fired.ago_s, 0.0):.0f} s"


def _word(holds: bool) -> str:
    return "HOLDS" if holds else "MISSES"


if __name__ == "__main__":
    typer.run(main)
