"""`loadtest capacity` and `loadtest frontier`: every operating point, and the gateway as it adapts."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from loadtest.baseline import this_machine
from loadtest.edge import Edge, Probe, Search, find_edge
from loadtest.edge_report import (
    Capacity,
    Place,
    Served,
    capacity_html,
    capacity_json,
    capacity_rows,
    frontier_html,
    frontier_json,
    frontier_rows,
    frontier_svg,
)
from loadtest.frames import Frame, read_frames
from loadtest.options import (
    BudgetOption,
    CaOption,
    ConfidenceOption,
    FramesOption,
    IssueDelayOption,
    JsonOption,
    LimitOption,
    ProtocolName,
    QuantileOption,
    ReportOption,
    RequestBudgetOption,
    SeedOption,
    SendersOption,
    TimeoutOption,
    UrlOption,
    connector,
    sent_budget_ms,
)
from loadtest.points import Way, gateway_at, ways, what_is_served
from loadtest.runner import Limits, Request
from loadtest.screen import INVALID, console, errors_in_words
from loadtest.session import Job, carry_out
from loadtest.target import Target
from loadtest.timetable import Schedule
from loadtest.verdict import Conditions, Verdict
from router.documents import PointsDocument

RepoOption = Annotated[
    Path | None, typer.Option("--repo", help="Start a gateway on this repository, in place of --url.")
]
PinnedOption = Annotated[
    bool, typer.Option("--pinned", help="With --repo: the gateway on the first core, the load on the second.")
]
PointsOption = Annotated[
    str, typer.Option("--points", help="Operating points, comma-separated, and adaptive; all unless told.")
]
# Between two loads, so that one's queue is not the other's.
_REST_S = 1.0
_LONGEST_S, _LEAST_HZ = 120.0, 2.0
# A Poisson schedule may have somewhat fewer requests than expected.
_SPARE = 1.3


@dataclass(frozen=True, slots=True)
class _Bench:
    """What all loads of a command share."""

    connect: Callable[[], Target]
    frames: tuple[Frame, ...]
    budget_ms: float | None
    limits: Limits
    conditions: Conditions
    senders: int

    async def load(
        self, way: Way, schedule: Schedule, rate_hz: float, seconds: float, seed: int, *, early_stop: bool
    ) -> Verdict:
        """Put one way to ask under a load; raises what `carry_out` raises."""
        names = [frame.file_name for frame in self.frames]
        job = Job(
            connect=self.connect,
            frames=self.frames,
            timetable=schedule.draw(rate_hz, seconds, seed, names),
            request=Request(self.budget_ms, way.operating_point),
            limits=self.limits,
            conditions=self.conditions,
            senders=self.senders,
            early_stop=early_stop,
        )
        done = await carry_out(job, f"{way.name} at {rate_hz:.1f}/s")
        await asyncio.sleep(_REST_S)
        return done.verdict


def capacity(
    frames: FramesOption,
    url: UrlOption = "http://127.0.0.1:8080",
    repo: RepoOption = None,
    pinned: PinnedOption = False,
    ca: CaOption = None,
    points: PointsOption = "",
    budget_ms: BudgetOption = 50.0,
    quantile: QuantileOption = 0.99,
    confidence: ConfidenceOption = 0.99,
    request_budget_ms: RequestBudgetOption = None,
    start: Annotated[float, typer.Option(help="First rate, requests per second.")] = 10.0,
    most: Annotated[float, typer.Option(help="Highest rate to try.")] = 2_000.0,
    precision: Annotated[float, typer.Option(help="Relative distance at which the edge is found.")] = 0.1,
    requests: Annotated[
        int, typer.Option(min=1, help="Of each load at most; one ends as soon as it is decided.")
    ] = 2_000,
    curve: Annotated[
        int, typer.Option(min=0, help="Rates at which accuracy is measured for every point; 0 for none.")
    ] = 5,
    curve_s: Annotated[float, typer.Option(help="Seconds of each of these.")] = 10.0,
    limit: LimitOption = None,
    seed: SeedOption = 1,
    senders: SendersOption = 1,
    timeout_s: TimeoutOption = 5.0,
    issue_delay_ms: IssueDelayOption = 10.0,
    report: ReportOption = None,
    json: JsonOption = None,
) -> None:
    """Find the highest rate that holds the budget, for each operating point and as the gateway adapts.

    Ends with 0, with 1 when a point holds no rate at all or the generator could not go far enough, with 2
    when it could not be measured.
    """
    with errors_in_words():
        asked = Conditions(budget_ms, quantile, confidence, issue_delay_ms=issue_delay_ms)
        if requests < asked.minimum_samples:
            raise ValueError(f"--requests: it takes {asked.minimum_samples} to show the quantile, and more")
        search = Search(start, min(start, _LEAST_HZ), most, precision)
        images = read_frames(frames, limit)
        budget = sent_budget_ms(request_budget_ms, budget_ms)
        with gateway_at(url, repo, pinned=pinned) as place:
            served = what_is_served(place, ca)
            asking = ways(served, _names(points))
            bench = _bench(place, images, budget, timeout_s, asked, senders, ca)
            found = asyncio.run(_capacities(bench, asking, search, requests, curve, curve_s, seed))
        where = _place(place, frames, "poisson", budget, senders, seed, served)
        if report is not None:
            report.write_text(capacity_html(where, asked, found), encoding="utf-8")
        if json is not None:
            json.write_text(capacity_json(where, asked, found), encoding="utf-8")
    _print(console(), f"{asked.percentile} within {asked.budget_ms:g} ms", *capacity_rows(found))
    complete = all(one.edge.held_hz and one.edge.ended_by != "generator" for one in found)
    raise typer.Exit(0 if complete else INVALID)


def frontier(
    frames: FramesOption,
    url: UrlOption = "http://127.0.0.1:8080",
    repo: RepoOption = None,
    pinned: PinnedOption = False,
    ca: CaOption = None,
    points: PointsOption = "",
    rate: Annotated[float, typer.Option(help="Requests per second.")] = 20.0,
    duration: Annotated[float, typer.Option(help="Seconds of each load.")] = 30.0,
    schedule: Annotated[str, typer.Option(help="As `run` takes it.")] = "poisson",
    budget_ms: BudgetOption = 50.0,
    request_budget_ms: RequestBudgetOption = None,
    limit: LimitOption = None,
    seed: SeedOption = 1,
    senders: SendersOption = 1,
    timeout_s: TimeoutOption = 5.0,
    issue_delay_ms: IssueDelayOption = 10.0,
    report: ReportOption = None,
    svg: Annotated[Path | None, typer.Option(help="Write the picture alone here.")] = None,
    json: JsonOption = None,
) -> None:
    """Draw served accuracy against served p99 under one load, beside the offline frontier.

    Every point gets the same requests at the same moments. Ends with 0, with 1 when the generator fell
    behind, with 2 when it could not be measured.
    """
    with errors_in_words():
        asked = Conditions(budget_ms, issue_delay_ms=issue_delay_ms)
        said = Schedule.parse(schedule)
        images = read_frames(frames, limit)
        budget = sent_budget_ms(request_budget_ms, budget_ms)
        with gateway_at(url, repo, pinned=pinned) as place:
            served = what_is_served(place, ca)
            asking = ways(served, _names(points))
            bench = _bench(place, images, budget, timeout_s, asked, senders, ca)
            found = asyncio.run(_served(bench, asking, said, rate, duration, seed))
        where = _place(place, frames, f"{said}, {rate:g} /s", budget, senders, seed, served)
        if report is not None:
            report.write_text(frontier_html(where, asked, found), encoding="utf-8")
        if svg is not None:
            svg.write_text(frontier_svg(asked, found, standalone=True), encoding="utf-8")
        if json is not None:
            json.write_text(frontier_json(where, asked, found), encoding="utf-8")
    screen = console()
    _print(screen, f"{said} at {rate:g}/s, in time is {budget_ms:g} ms", *frontier_rows(found))
    behind = [one for one in found if not one.verdict.says_something]
    for one in behind:
        screen.print(f"{one.way.name}: {one.verdict.reasons[0]}", markup=False)
    raise typer.Exit(INVALID if behind else 0)


def _bench(
    url: str,
    frames: tuple[Frame, ...],
    budget_ms: float | None,
    timeout_s: float,
    conditions: Conditions,
    senders: int,
    ca: Path | None,
) -> _Bench:
    connect = connector(url, ProtocolName.HTTP, grpc_address="", timeout_s=timeout_s, ca=ca)
    return _Bench(connect, frames, budget_ms, Limits(timeout_s=timeout_s), conditions, senders)


async def _capacities(
    bench: _Bench,
    asking: Sequence[Way],
    search: Search,
    requests: int,
    curve: int,
    curve_s: float,
    seed: int,
) -> tuple[Capacity, ...]:
    poisson, told = Schedule.parse("poisson"), Console(stderr=True)
    edges: list[Edge] = []
    for way in asking:

        async def load_at(rate_hz: float, number: int, way: Way = way) -> Verdict:
            # Long enough to show the quantile, however low the rate.
            least = _SPARE * bench.conditions.minimum_samples
            seconds = max(min(requests / rate_hz, _LONGEST_S), least / rate_hz)
            return await bench.load(way, poisson, rate_hz, seconds, seed + number, early_stop=True)

        def on_probe(probe: Probe, way: Way = way) -> None:
            told.print(f"{way.name}: {_in_words(probe)}", markup=False, highlight=False, soft_wrap=True)

        edges.append(await find_edge(load_at, search, on_probe))
    rates = _common_rates([edge.held_hz for edge in edges if edge.held_hz], curve)
    # In turn at each rate, so that what the machine does meanwhile falls on all of them.
    curves: list[list[Probe]] = [[] for _ in asking]
    for rate_hz in rates:
        for into, way in zip(curves, asking, strict=True):
            into.append(
                Probe(
                    rate_hz, await bench.load(way, poisson, rate_hz, curve_s, seed + 1000, early_stop=False)
                )
            )
    return tuple(
        Capacity(way, edge, tuple(probes)) for way, edge, probes in zip(asking, edges, curves, strict=True)
    )


def _common_rates(held_hz: Sequence[float], count: int) -> list[float]:
    """Return rates from half of the lowest edge to a third beyond the highest, evenly far apart in ratio."""
    if not held_hz or not count:
        return []
    return [float(rate) for rate in np.geomspace(min(held_hz) / 2, max(held_hz) * 4 / 3, count)]


async def _served(
    bench: _Bench, asking: Sequence[Way], schedule: Schedule, rate_hz: float, seconds: float, seed: int
) -> tuple[Served, ...]:
    found = []
    for way in asking:
        verdict = await bench.load(way, schedule, rate_hz, seconds, seed, early_stop=False)
        found.append(Served(way, verdict))
    return tuple(found)


def _in_words(probe: Probe) -> str:
    verdict = probe.verdict
    p99 = verdict.latency.p99_ms if verdict.latency is not None else math.nan
    state = "holds" if probe.holds else verdict.reasons[0]
    return (
        f"{probe.rate_hz:.1f}/s, {verdict.requests} requests, {verdict.attainment:.2%} in time,"
        f" p99 {p99:.1f} ms: {state}"
    )


def _place(
    url: str,
    frames: Path,
    schedule: str,
    budget_ms: float | None,
    senders: int,
    seed: int,
    served: PointsDocument,
) -> Place:
    return Place(
        url=url,
        frames=str(frames),
        schedule=schedule,
        request_budget_ms=budget_ms,
        senders=senders,
        seed=seed,
        machine=this_machine(),
        runtime=f"{served.runtime} {served.runtime_version}",
        manifest=served.manifest,
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _print(screen: Console, title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(*head, title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    screen.print(table)
