"""The demonstration: rendered frames, a real gateway, real load, one table row per operating point.

Frames and gateway come from `python -m search render` and `python -m router`, run as processes of their own:
a load test knows a gateway by its address alone. Whatever was started is stopped by its PID.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from loadtest.frames import Frame, read_frames
from loadtest.gateway import connect
from loadtest.process import HOST, free_port, gateway, tail
from loadtest.runner import Limits, Request
from loadtest.schedule import poisson_ns
from loadtest.session import Job, Run, carry_out
from loadtest.timetable import Timetable
from loadtest.verdict import Conditions

_RENDER_S = 120.0
_POLL_S = 0.1
# The demonstration judges nothing: answers are shown whatever they took.
_SHOWN = Conditions(budget_ms=1_000.0)


class DemoError(RuntimeError):
    """The demonstration cannot go on; the message says what failed and shows its last words."""


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """What to show. `frames` is a folder to use instead of rendering; port 0 takes a free one."""

    repo: Path
    frames: Path | None
    count: int
    rate_hz: float
    seed: int
    port: int
    leave_running: bool


def show(settings: DemoSettings, console: Console) -> None:
    """Run the demonstration; with `leave_running` it ends when the gateway does or on Ctrl-C.

    Raises DemoError when a step fails or a frame gets no answer, and what reading frames raises.
    """
    with tempfile.TemporaryDirectory(prefix="paretogate-demo-") as scratch:
        folder = settings.frames or _render(settings, Path(scratch) / "frames", console)
        frames = read_frames(folder, settings.count)
        port, admin_port = settings.port or free_port(), free_port()
        options = ("--admin-port", str(admin_port), "--console-frames", "12")
        with gateway(settings.repo, port, Path(scratch) / "gateway.log", *options) as process:
            url = f"http://{HOST}:{port}"
            console.print(f"gateway on {url}, pid {process.pid}, repository {settings.repo}")
            runs = asyncio.run(_load_every_point(url, frames, settings))
            console.print(_table(runs))
            metrics = f"http://{HOST}:{admin_port}/metrics"
            _print_address(console, url, metrics, folder / frames[0].file_name, runs[-1][0])
            _check(runs)
            if settings.leave_running:
                _wait_for_the_end(process, console)


def _render(settings: DemoSettings, folder: Path, console: Console) -> Path:
    began_s = time.monotonic()
    command = [
        sys.executable, "-m", "search", "render",
        "--out", str(folder), "--frames", f"test={settings.count}", "--seed", str(settings.seed),
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_RENDER_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise DemoError(f"rendering took longer than {_RENDER_S:g} s") from error
    if done.returncode != 0:
        raise DemoError(f"rendering failed with status {done.returncode}:\n{tail(done.stderr)}")
    console.print(f"rendered {settings.count} frames of the belt in {time.monotonic() - began_s:.1f} s")
    return folder / "test"


async def _load_every_point(
    url: str, frames: Sequence[Frame], settings: DemoSettings
) -> tuple[tuple[str, Run], ...]:
    to_gateway = partial(connect, url, "http", timeout_s=Limits().timeout_s)
    target = to_gateway()
    points = (await target.describe()).operating_points
    await target.close()
    runs = []
    for point in points:
        # Each point meets the same frames at the same moments.
        arrivals = poisson_ns(settings.rate_hz, len(frames), np.random.default_rng(settings.seed))
        timetable = Timetable.of(arrivals, len(frames))
        request = Request(operating_point=point)
        job = Job(to_gateway, tuple(frames), timetable, request, Limits(), _SHOWN)
        runs.append((point, await carry_out(job, point)))
    return tuple(runs)


def _table(runs: Sequence[tuple[str, Run]]) -> Table:
    table = Table("operating point", "plan", "frames", "escalated", "p50 ms", "p99 ms", "mAP", "mAP@.5")
    table.columns[1].overflow = "fold"
    for column in table.columns[2:]:
        column.justify = "right"
    for point, run in runs:
        verdict = run.verdict
        plans = ", ".join(dict.fromkeys(group.plan for group in verdict.groups))
        latency, accuracy = verdict.latency, verdict.accuracy
        table.add_row(
            point,
            plans or "–",
            str(verdict.requests),
            f"{verdict.escalated:.0%}",
            f"{latency.p50_ms:.1f}" if latency else "–",
            f"{latency.p99_ms:.1f}" if latency else "–",
            f"{accuracy.map:.3f}" if accuracy else "–",
            f"{accuracy.map50:.3f}" if accuracy else "–",
        )
    return table


def _print_address(console: Console, url: str, metrics: str, frame: Path, point: str) -> None:
    console.print(
        f"the gateway listens on {url} (console: {url}/, API: {url}/openapi.json, metrics: {metrics});"
        " for instance:"
    )
    console.print(
        f"  curl -s --data-binary @{frame} -H 'Content-Type: image/{_subtype(frame)}'"
        f" -H 'X-Operating-Point: {point}' -H 'X-Latency-Budget-Ms: 200' {url}/v1/detect",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


def _subtype(frame: Path) -> str:
    return "png" if frame.suffix.lower() == ".png" else "jpeg"


def _check(runs: Sequence[tuple[str, Run]]) -> None:
    for point, run in runs:
        if run.verdict.details:
            reason, _ = run.verdict.details[0]
            lost = sum(not sample.answered for sample in run.samples)
            raise DemoError(f"{lost} of {run.verdict.requests} frames got no answer at {point!r}: {reason}")


def _wait_for_the_end(process: subprocess.Popen[bytes], console: Console) -> None:
    """Wait for Ctrl-C or for the gateway to end; a flag and no exception, which could hit anywhere."""
    told = threading.Event()
    before = signal.signal(signal.SIGINT, lambda number, frame: told.set())
    try:
        console.print("Ctrl-C ends it")
        while process.poll() is None and not told.wait(_POLL_S):
            pass
    finally:
        signal.signal(signal.SIGINT, before)
    if not told.is_set():
        raise DemoError(f"the gateway ended by itself with status {process.returncode}")
    console.print("stopping the gateway")
