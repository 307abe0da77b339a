"""The command line: `run` puts a gateway under load and judges it, `demo` shows the published frontier."""

from __future__ import annotations

import asyncio
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from loadtest.bench_commands import bench
from loadtest.demo import DemoError, DemoSettings, show
from loadtest.frames import Frame, FramesError, read_frames
from loadtest.gateway import connect
from loadtest.latencies import Latencies
from loadtest.peers.command import peers
from loadtest.process import ServerError
from loadtest.report import Load, to_html, to_json
from loadtest.runner import Limits, Request
from loadtest.schedule import Arrivals, arrivals_ns
from loadtest.session import Run, run_and_judge
from loadtest.target import TargetError
from loadtest.verdict import Conditions, Verdict

INVALID, USAGE = 1, 2

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(bench, name="bench")
app.command("peers")(peers)


class ProtocolName(StrEnum):
    """What to speak."""

    HTTP = "http"
    GRPC = "grpc"


class ScheduleName(StrEnum):
    """How arrivals are spaced."""

    POISSON = "poisson"
    CONSTANT = "constant"


@app.command()
def run(
    frames: Annotated[Path, typer.Option(help="Folder of frames with _annotations.coco.json.")],
    url: Annotated[str, typer.Option(help="The gateway's HTTP address.")] = "http://127.0.0.1:8080",
    grpc_address: Annotated[
        str, typer.Option(help="Where frames go with --protocol grpc.")
    ] = "127.0.0.1:8081",
    protocol: Annotated[ProtocolName, typer.Option(help="What to speak.")] = ProtocolName.HTTP,
    rate: Annotated[float, typer.Option(help="Requests per second.")] = 20.0,
    duration: Annotated[float, typer.Option(help="Seconds during which requests are due.")] = 20.0,
    schedule: Annotated[ScheduleName, typer.Option(help="How arrivals are spaced.")] = ScheduleName.POISSON,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the arrivals.")] = 1,
    p99_budget_ms: Annotated[
        float, typer.Option(help="99 % of all requests must be answered in this time.")
    ] = 50.0,
    request_budget_ms: Annotated[
        float | None, typer.Option(help="Budget sent along; the p99 budget unless told, 0 for none.")
    ] = None,
    operating_point: Annotated[
        str | None, typer.Option(help="Leave the choice to the gateway unless told.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first frames of the folder.")] = None,
    timeout_s: Annotated[float, typer.Option(help="Give up on an answer after this long.")] = 5.0,
    issue_delay_ms: Annotated[
        float, typer.Option(help="Bound on the generator's own p99 delay; beyond it a run is INVALID.")
    ] = 10.0,
    report: Annotated[Path | None, typer.Option(help="Write a page of HTML here.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write load and verdict here.")] = None,
) -> None:
    """Send frames on an open-loop schedule and judge the answers.

    Ends with 0 when the run is VALID, 1 when it is INVALID, 2 when it could not be made. The environment's
    PARETOGATE_API_KEY is shown to gateways that ask for one.
    """
    budget = p99_budget_ms if request_budget_ms is None else request_budget_ms or None
    request = Request(budget, operating_point)
    try:
        conditions = Conditions(budget_ms=p99_budget_ms, issue_delay_ms=issue_delay_ms)
        limits = Limits(timeout_s=timeout_s)
        times = arrivals_ns(schedule.value, rate, duration, np.random.default_rng(seed))
        images = read_frames(frames, limit)
        done = asyncio.run(
            _put_under_load(url, protocol, grpc_address, images, times, request, limits, conditions)
        )
    except (FramesError, TargetError, ValueError) as error:
        Console(stderr=True).print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(USAGE) from error
    load = Load(
        url, protocol.value, str(frames), schedule.value, rate, len(times), seed, operating_point, budget
    )
    if report is not None:
        report.write_text(to_html(load, done.verdict, done.samples), encoding="utf-8")
    if json is not None:
        json.write_text(to_json(load, done.verdict), encoding="utf-8")
    _print(_console(), done.verdict)
    raise typer.Exit(0 if done.verdict.valid else INVALID)


@app.command()
def demo(
    exit_: Annotated[
        bool, typer.Option("--exit", help="Stop the gateway and end once the table is printed.")
    ] = False,
    repo: Annotated[Path, typer.Option(help="The published repository.")] = Path("model_repo"),
    frames: Annotated[
        Path | None, typer.Option(help="Use this folder of labelled frames instead of rendering the belt.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="How many frames.")] = 120,
    rate: Annotated[float, typer.Option(help="Requests per second.")] = 12.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of frames and arrivals.")] = 11,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The gateway's port; 0 takes a free one.")] = 0,
) -> None:
    """Render frames, start the gateway on a repository, send load, print what each operating point does."""
    try:
        show(DemoSettings(repo, frames, count, rate, seed, port, leave_running=not exit_), _console())
    except (DemoError, ServerError, FramesError, TargetError, ValueError) as error:
        Console(stderr=True).print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(USAGE) from error


async def _put_under_load(
    url: str,
    protocol: ProtocolName,
    grpc_address: str,
    frames: tuple[Frame, ...],
    times: Arrivals,
    request: Request,
    limits: Limits,
    conditions: Conditions,
) -> Run:
    # Not an option: a command line is seen by everybody on the machine.
    api_key = os.environ.get("PARETOGATE_API_KEY")
    target = connect(
        url, protocol.value, grpc_address=grpc_address, api_key=api_key, timeout_s=limits.timeout_s
    )
    try:
        return await run_and_judge(target, frames, times, request, limits, conditions, f"load on {url}")
    finally:
        await target.close()


def _console() -> Console:
    # Into a file or a pipe rich would write 80 columns, which is too narrow for the tables.
    return Console(width=None if sys.stdout.isatty() else 110)


def _print(console: Console, verdict: Verdict) -> None:
    table = Table("ms", "requests", "p50", "p90", "p99", "p99.9", "max")
    for column in table.columns[1:]:
        column.justify = "right"
    named: tuple[tuple[str, Latencies | None], ...] = (
        ("latency, from the scheduled time", verdict.latency),
        ("service, from the sent time", verdict.service),
        ("issue delay of the generator", verdict.issue_delay),
    )
    for name, times in named:
        if times is not None:
            values = (times.p50_ms, times.p90_ms, times.p99_ms, times.p999_ms, times.max_ms)
            table.add_row(name, str(times.count), *(f"{value:.1f}" for value in values))
    console.print(table)
    console.print("outcomes: " + ", ".join(f"{name} {count}" for name, count in verdict.outcomes))
    for group in verdict.groups:
        stages = " → ".join(group.stages) or "(not said)"
        console.print(f"  {group.share:6.1%}  {group.plan}: {stages}, p99 {group.latency.p99_ms:.1f} ms")
    for reason, count in verdict.cuts:
        console.print(f"  cut: {reason}: {count}")
    for reason, count in verdict.details:
        console.print(f"  no answer: {reason}: {count}", markup=False)
    if verdict.accuracy is not None and verdict.effective is not None:
        console.print(
            f"mAP {verdict.accuracy.map:.3f} (@.5 {verdict.accuracy.map50:.3f}) of the answers,"
            f" {verdict.effective.map:.3f} with late and missing ones empty"
        )
    console.print(f"attainment {verdict.attainment:.2%} within {verdict.conditions.budget_ms:g} ms")
    console.print("[bold green]VALID[/]" if verdict.valid else "[bold red]INVALID[/]")
    for reason in verdict.reasons:
        console.print(f"  {reason}", markup=False)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
