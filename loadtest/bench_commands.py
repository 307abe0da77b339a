"""Commands that measure what is claimed about serving. Each starts its own servers on this machine."""

from __future__ import annotations

import asyncio
import statistics
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from loadtest import bench_change, bench_generator, bench_load, bench_stream
from loadtest.bench_overhead import (
    LEAST_THROUGHPUT,
    MOST_P50,
    MOST_P99,
    SERVER_CORE,
    bare_server,
    overhead,
)
from loadtest.closed import ConversationError
from loadtest.frames import read_frames
from loadtest.process import free_port
from loadtest.raw import BareTarget
from loadtest.screen import errors_in_words

RepoOption = Annotated[Path, typer.Option("--repo", help="a published model repository")]
FramesOption = Annotated[Path, typer.Option("--frames", help="a folder of labelled frames")]

bench = typer.Typer(no_args_is_help=True, help="Measure what is claimed about serving, on this machine.")


@bench.command("overhead")
def overhead_(
    repo: RepoOption,
    frames: FramesOption,
    points: Annotated[str, typer.Option(help="operating points, comma-separated")] = "fast,balanced",
    rounds: Annotated[int, typer.Option(min=1, help="of both servers in turn")] = 5,
) -> None:
    """Compare the gateway with a bare socket server around the same decode and engine.

    Exit status 1 when its p50 is above 1.10 times, its p99 above 1.3 times or its throughput at saturation
    below 0.9 of the bare server's; medians of the rounds' ratios.
    """
    table = Table("operating point", "", "p50 ms", "p99 ms", "answers/s")
    holds = True
    with errors_in_words(ConversationError):
        contents = _contents(frames)
        for point in points.split(","):
            result = overhead(repo, contents, point, rounds=rounds)
            for name, rows in (("bare", result.bare), ("gateway", result.gateway)):
                for row in rows:
                    table.add_row(point, name, f"{row.p50_ms:.2f}", f"{row.p99_ms:.2f}", f"{row.per_s:.0f}")
            table.add_row(
                point,
                "median ratio",
                f"{result.ratio(lambda row: row.p50_ms):.3f} (at most {MOST_P50})",
                f"{result.ratio(lambda row: row.p99_ms):.3f} (at most {MOST_P99})",
                f"{result.ratio(lambda row: row.per_s):.3f} (at least {LEAST_THROUGHPUT})",
                end_section=True,
            )
            holds &= result.holds
    Console().print(table)
    _conclude(holds)


@bench.command()
def budgets(
    repo: RepoOption,
    frames: FramesOption,
    seconds: Annotated[float, typer.Option(help="of load")] = 60.0,
    seed: Annotated[int, typer.Option(help="of arrivals and budgets")] = 0,
) -> None:
    """Send budgets of 10 to 100 ms at 60 % of capacity.

    Exit status 1 when more than 3 % of those are refused whose budget is at least twice the fast plan's p99,
    when fewer than 99.5 % of those let in are answered in time, or when a refusal takes more than 2 ms.
    """

    async def measure() -> bench_load.BudgetsResult:
        contents = _contents(frames)
        async with bench_load.served(repo) as served:
            with bare_server(repo, "fast", core=SERVER_CORE) as port:
                said = await served.target.points()
                bare = BareTarget(port, tuple(said.classes))
                fast = next(point for point in said.operating_points if point.name == "fast")
                try:
                    return await bench_load.budgets(
                        served, bare, contents, fast.p99_ms, seconds=seconds, seed=seed
                    )
                finally:
                    await bare.close()

    with errors_in_words(ConversationError):
        result = asyncio.run(measure())
    _print_capacity(result.capacity)
    Console().print(
        f"{result.requests} requests at 60 % of it; {result.fair} with at least twice the fast plan's p99:"
        f" {result.refused:.2%} of these refused (at most {bench_load.MOST_REFUSED:.0%}). Of all let in"
        f" {result.kept:.2%} in time (at least {bench_load.LEAST_KEPT:.1%}). A refusal takes"
        f" {result.refusal_ms:.2f} ms, median (at most {bench_load.MOST_REFUSAL_MS:g})."
        f" The bare server missed {result.bare_missed:.2%} of the same budgets.",
        highlight=False,
    )
    _conclude(result.holds)


@bench.command()
def overload(
    repo: RepoOption,
    frames: FramesOption,
    seconds: Annotated[float, typer.Option(help="of overload")] = 60.0,
    seed: Annotated[int, typer.Option(help="of arrivals")] = 0,
) -> None:
    """Offer three times the capacity, then half of it.

    Exit status 1 when the rate of answers in time falls below 90 % of its peak, when memory grows by more
    than 2 %, or when service is not normal within 5 s after it.
    """

    async def measure() -> bench_load.OverloadResult:
        contents = _contents(frames)
        async with bench_load.served(repo) as served:
            return await bench_load.overload(served, contents, seconds=seconds, seed=seed)

    with errors_in_words(ConversationError):
        result = asyncio.run(measure())
    _print_capacity(result.capacity)
    Console().print(
        f"Answers in time: {result.peak_hz:.0f}/s at best, {result.overload_hz:.0f}/s at three times the"
        f" capacity, {result.overload_hz / result.peak_hz:.1%} (at least {bench_load.LEAST_OF_PEAK:.0%})."
        f" Memory grew by {result.grown:.2%} (at most {bench_load.MOST_GROWN:.0%})."
        f" Normal after {result.recovered_s:g} s (at most {bench_load.MOST_RECOVERY_S:g}).",
        highlight=False,
    )
    _conclude(result.holds)


@bench.command()
def adaptation(
    repo: RepoOption,
    frames: FramesOption,
    seed: Annotated[int, typer.Option(help="of arrivals")] = 0,
) -> None:
    """Send bursts of five times a calm rate, to the adaptive gateway and to each single model.

    Exit status 1 unless its effective accuracy (a late or refused frame counts as empty) is above that of
    every single model, and its attainment at least twice that of the largest.
    """
    console = Console()
    with errors_in_words(ConversationError):
        result = asyncio.run(
            bench_change.adaptation(repo, read_frames(frames, 200), console.print, seed=seed)
        )
    _print_capacity(result.capacity)
    table = Table("served by", "in time", "effective mAP", "adaptive is ahead by")
    for row in (result.adaptive, *result.singles):
        ahead = "" if row is result.adaptive else f"{result.adaptive.ahead_of(row):+.3f}"
        table.add_row(row.name, f"{row.attainment:.1%}", f"{row.effective_map:.3f}", ahead)
    console.print(table)
    _conclude(result.holds)


@bench.command()
def republish(
    repo: RepoOption,
    frames: FramesOption,
    seconds: Annotated[float, typer.Option(help="of load")] = 120.0,
    seed: Annotated[int, typer.Option(help="of arrivals")] = 0,
) -> None:
    """Replace the published set every 5 s under load; exit status 1 when a request fails."""
    with errors_in_words(ConversationError):
        result = asyncio.run(bench_change.republish(repo, _contents(frames), seconds=seconds, seed=seed))
    outcomes = ", ".join(f"{name} {count}" for name, count in sorted(result.outcomes.items()))
    Console().print(
        f"{result.requests} requests during {result.changes} changes: {outcomes}.", highlight=False
    )
    _conclude(result.holds)


@bench.command()
def soak(
    repo: RepoOption,
    frames: FramesOption,
    minutes: Annotated[float, typer.Option(min=3.0, help="of load")] = 20.0,
    seed: Annotated[int, typer.Option(help="of arrivals")] = 0,
) -> None:
    """Load the gateway with 80 % of its capacity for a long time.

    Exit status 1 when resident memory grows by 2 % or more after the first 2 minutes, or when files or
    threads are left open.
    """

    async def measure() -> bench_load.SoakResult:
        contents = _contents(frames)
        async with bench_load.served(repo) as served:
            return await bench_load.soak(served, contents, minutes=minutes, seed=seed)

    with errors_in_words(ConversationError):
        result = asyncio.run(measure())
    _print_capacity(result.capacity)
    Console().print(
        f"{result.requests} requests in {minutes:g} minutes, {result.in_time:.2%} in time. Memory grew by"
        f" {result.grown:.2%} after the first 2 minutes (below {bench_load.MOST_GROWN:.0%}); open files"
        f" {result.files[0]} before and {result.files[1]} after, threads {result.threads[0]} and"
        f" {result.threads[1]}.",
        highlight=False,
    )
    _conclude(result.holds)


@bench.command()
def stream(
    repo: RepoOption,
    frames: FramesOption,
    point: Annotated[str, typer.Option(help="operating point")] = "accurate",
    seconds: Annotated[float, typer.Option(help="of each stream")] = 30.0,
) -> None:
    """Stream three times as many frames as the gateway can answer, over a WebSocket and over gRPC.

    Exit status 1 when the p99 of the answers' age exceeds two frames' intervals and the plan's p99, when a
    frame without a result was not told as dropped, or when memory grows by more than 2 %.
    """

    async def measure() -> list[bench_stream.StreamResult]:
        contents = _contents(frames)
        grpc_port = free_port()
        edges: tuple[tuple[bench_stream.Edge, int], ...]
        async with bench_load.served(repo, "--grpc-port", str(grpc_port)) as served:
            edges = (("websocket", served.port), ("grpc", grpc_port))
            return [
                await bench_stream.stream(served, edge, port, contents, point, seconds=seconds)
                for edge, port in edges
            ]

    with errors_in_words(ConversationError):
        results = asyncio.run(measure())
    table = Table(
        "over",
        "alone: mean, p99 ms",
        "sent/s",
        "answers/s",
        "age p50, p99 ms",
        "at most",
        "dropped",
        "memory",
    )
    for one in results:
        table.add_row(
            one.edge,
            f"{one.mean_ms:.1f}, {one.p99_ms:.1f}",
            f"{one.rate_hz:.0f}",
            f"{len(one.ages_ms) * one.rate_hz / one.sent:.1f}",
            f"{statistics.median(one.ages_ms):.1f}, {one.age_ms:.1f}",
            f"{one.bound_ms:.1f}",
            f"{one.missing} of {one.sent}, told {one.told}",
            f"{one.grown:+.2%}",
        )
    Console().print(table)
    _conclude(all(one.holds for one in results))


@bench.command()
def generator(
    rate: Annotated[float, typer.Option(help="requests per second")] = bench_generator.RATE_HZ,
    seconds: Annotated[float, typer.Option(help="of load")] = 30.0,
    seed: Annotated[int, typer.Option(help="of arrivals")] = 0,
) -> None:
    """Send to a server that does nothing, on another core, and see how well the schedule is kept.

    Exit status 1 when the p99 of the issue delay is 1 ms or more, or a request had no answer.
    """
    with errors_in_words(ConversationError):
        result = bench_generator.generator(rate_hz=rate, seconds=seconds, seed=seed)
    table = Table("ms", "requests", "p50", "p99", "p99.9", "max")
    for name, times in (("issue delay", result.issue_delay), ("latency", result.latency)):
        row = (times.p50_ms, times.p99_ms, times.p999_ms, times.max_ms)
        table.add_row(name, str(times.count), *(f"{value:.3f}" for value in row))
    Console().print(table)
    Console().print(
        f"{'HOLDS' if result.holds else 'MISSES'}: at {rate:g}/s the p99 issue delay is"
        f" {result.issue_delay.p99_ms:.3f} ms (below {bench_generator.MOST_DELAY_MS:g}),"
        f" {result.unanswered} of {result.issue_delay.count} without an answer.",
        highlight=False,
    )
    if not result.holds:
        raise typer.Exit(1)


@bench.command()
def stall(
    rate: Annotated[float, typer.Option(help="requests per second")] = 200.0,
    seconds: Annotated[float, typer.Option(help="of load")] = 10.0,
    stall_ms: Annotated[float, typer.Option(help="for which the server stops, once")] = 200.0,
    seed: Annotated[int, typer.Option(help="of arrivals")] = 0,
) -> None:
    """Ask a server that stops once, in an open loop and in a closed one, and compare what they saw of it.

    Exit status 1 unless the open loop's slowest percentiles show the stall in full.
    """
    with errors_in_words(ConversationError):
        result = bench_generator.stall(rate_hz=rate, seconds=seconds, stall_ms=stall_ms, seed=seed)
    table = Table("loop", "requests", "p50 ms", "p99 ms", "max ms", f"slower than {stall_ms / 2:g} ms")
    for name, loop in (("open", result.open), ("closed", result.closed)):
        row = (loop.latency.p50_ms, loop.latency.p99_ms, loop.latency.max_ms)
        table.add_row(name, str(loop.latency.count), *(f"{value:.1f}" for value in row), str(loop.slow))
    Console().print(table)
    Console().print(
        f"{'HOLDS' if result.holds else 'MISSES'}: the open loop saw {result.open.slow} requests wait half of"
        f" the stall or longer, {result.expected:.0f} were due then; the closed loop {result.closed.slow}.",
        highlight=False,
    )
    if not result.holds:
        raise typer.Exit(1)


def _print_capacity(capacity: bench_load.Capacity) -> None:
    Console().print(
        f"With next to no load: p50 {capacity.p50_ms:.2f} ms. Capacity: {capacity.rate_hz:.0f} requests/s"
        f" with 99 % in {capacity.limit_ms:.1f} ms.",
        highlight=False,
    )


def _contents(frames: Path) -> list[bytes]:
    return [frame.content for frame in read_frames(frames, 200)]


def _conclude(holds: bool) -> None:
    Console().print("Holds." if holds else "DOES NOT HOLD.")
    if not holds:
        raise typer.Exit(1)
