"""`loadtest run`: one load, its verdict, and what is written of it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from loadtest.baseline import (
    Baseline,
    Setting,
    baseline_of,
    digest_of,
    drifts,
    read_baseline,
    this_machine,
    write_baseline,
)
from loadtest.frames import Frame, read_frames
from loadtest.junit import to_junit
from loadtest.options import (
    BudgetOption,
    CamerasOption,
    CaOption,
    ConfidenceOption,
    FramesOption,
    GrpcOption,
    IssueDelayOption,
    JsonOption,
    LimitOption,
    ProtocolName,
    ProtocolOption,
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
from loadtest.report import Load, to_html, to_json
from loadtest.runner import Limits, Request
from loadtest.screen import INVALID, console, errors_in_words, print_verdict
from loadtest.session import Job, Run, carry_out
from loadtest.timetable import Schedule
from loadtest.trace import write_trace
from loadtest.verdict import Conditions


def run(
    frames: FramesOption,
    url: UrlOption = "http://127.0.0.1:8080",
    grpc_address: GrpcOption = "127.0.0.1:8081",
    protocol: ProtocolOption = ProtocolName.HTTP,
    repo: Annotated[
        Path | None, typer.Option(help="With --protocol triton: what its models were rendered from.")
    ] = None,
    ca: CaOption = None,
    cameras: CamerasOption = 1,
    rate: Annotated[float, typer.Option(help="Requests per second.")] = 20.0,
    duration: Annotated[float, typer.Option(help="Seconds during which requests are due.")] = 30.0,
    schedule: Annotated[
        str,
        typer.Option(
            help="poisson, constant, ramp, step, burst, diurnal or replay:FILE. Parameters follow a colon, as"
            " in step:1x/4x/1x or burst:high=5x,high_s=2 (2x is twice --rate); the README has them all.",
        ),
    ] = "poisson",
    seed: SeedOption = 1,
    record: Annotated[
        Path | None, typer.Option(help="Write the requests to this .jsonl, for replay.")
    ] = None,
    senders: SendersOption = 1,
    budget_ms: BudgetOption = 50.0,
    quantile: QuantileOption = 0.99,
    confidence: ConfidenceOption = 0.99,
    tolerance: Annotated[float, typer.Option(help="Put off the quantile before it is tested.")] = 0.0,
    min_effective_map: Annotated[
        float | None, typer.Option(help="Least mAP with late and missing answers as empty.")
    ] = None,
    early_stop: Annotated[
        bool, typer.Option("--early-stop", help="End the run as soon as it is decided.")
    ] = False,
    request_budget_ms: RequestBudgetOption = None,
    operating_point: Annotated[
        str | None,
        typer.Option(help="Leave the choice to the gateway unless told; the variant for --protocol triton."),
    ] = None,
    limit: LimitOption = None,
    timeout_s: TimeoutOption = 5.0,
    issue_delay_ms: IssueDelayOption = 10.0,
    baseline: Annotated[
        Path | None, typer.Option(help="Compare latencies with this earlier run's; drift is INVALID.")
    ] = None,
    save_baseline: Annotated[
        bool, typer.Option("--save-baseline", help="Where there is none yet, a VALID run becomes it.")
    ] = False,
    drift_margin: Annotated[
        float, typer.Option(min=0.0, help="What p50 and p99 may be above the baseline; 0.15 is 15 %.")
    ] = 0.15,
    report: ReportOption = None,
    json: JsonOption = None,
    junit: Annotated[Path | None, typer.Option(help="Write the checks here, as CI systems read it.")] = None,
) -> None:
    """Send frames on an open-loop schedule and judge the answers.

    Ends with 0 when the run is VALID, 1 when it is INVALID, 2 when it could not be made. The environment's
    PARETOGATE_API_KEY is shown to gateways that ask for one.
    """
    budget = sent_budget_ms(request_budget_ms, budget_ms)
    with errors_in_words():
        if save_baseline and baseline is None:
            raise ValueError("--save-baseline: name the file with --baseline")
        conditions = Conditions(budget_ms, quantile, confidence, tolerance, issue_delay_ms, min_effective_map)
        images = read_frames(frames, limit)
        names = [frame.file_name for frame in images]
        asked = Schedule.parse(schedule)
        timetable = asked.draw(rate, duration, seed, names)
        if record is not None:
            write_trace(record, timetable.rows(names, budget))
        setting = _setting(images, protocol, operating_point, budget, asked, rate)
        before = _before(baseline, save_baseline, setting)
        job = Job(
            connect=connector(
                url,
                protocol,
                grpc_address=grpc_address,
                timeout_s=timeout_s,
                ca=ca,
                repo=repo,
                cameras=cameras,
            ),
            frames=images,
            timetable=timetable,
            request=Request(budget, operating_point),
            limits=Limits(timeout_s=timeout_s),
            conditions=conditions,
            senders=senders,
            early_stop=early_stop,
        )
        began_s = time.monotonic()
        done = _compared(asyncio.run(carry_out(job, f"load on {url}")), before, drift_margin, seed)
        load = Load(
            url=url if protocol is not ProtocolName.TRITON else grpc_address,
            protocol=protocol.value,
            frames=str(frames),
            schedule=str(asked),
            rate_hz=rate if asked.name != "replay" else done.verdict.offered_hz,
            seed=seed,
            operating_point=operating_point,
            request_budget_ms=budget,
            senders=senders,
            machine=this_machine(),
        )
        if report is not None:
            report.write_text(to_html(load, done.verdict, done.samples), encoding="utf-8")
        if json is not None:
            json.write_text(to_json(load, done.verdict), encoding="utf-8")
        if junit is not None:
            name = f"loadtest {operating_point or 'adaptive'} at {load.rate_hz:g}/s, {load.schedule}"
            junit.write_text(to_junit(name, done.verdict, time.monotonic() - began_s), encoding="utf-8")
    screen = console()
    print_verdict(screen, done.verdict)
    if baseline is not None and before is None:
        if not done.verdict.valid:
            screen.print(f"{baseline} was not written: the run is INVALID", markup=False)
        else:
            write_baseline(baseline, baseline_of(setting, done.samples))
            screen.print(f"{baseline} was written", markup=False)
    raise typer.Exit(0 if done.verdict.valid else INVALID)


def _setting(
    frames: tuple[Frame, ...],
    protocol: ProtocolName,
    operating_point: str | None,
    request_budget_ms: float | None,
    schedule: Schedule,
    rate_hz: float,
) -> Setting:
    return Setting(
        machine=this_machine(),
        protocol=protocol.value,
        operating_point=operating_point,
        request_budget_ms=request_budget_ms,
        schedule=str(schedule),
        rate_hz=rate_hz,
        frames=digest_of(frames),
    )


def _before(path: Path | None, save: bool, setting: Setting) -> Baseline | None:
    """Read the baseline before the load, so that a wrong one costs no time."""
    if path is None or (save and not path.exists()):
        return None
    return read_baseline(path, setting)


def _compared(done: Run, before: Baseline | None, margin: float, seed: int) -> Run:
    """Return the run with a check for each quantile that the baseline has."""
    if before is None:
        return done
    checks = tuple(drift.check(margin) for drift in drifts(before, done.samples, seed))
    return Run(replace(done.verdict, checks=(*done.verdict.checks, *checks)), done.samples)
