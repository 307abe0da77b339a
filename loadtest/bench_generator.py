"""The generator itself: how well it keeps its schedule, and that a server's stall shows in full.

The server is `loadtest.trivial` on the first core, the generator on the second. A closed loop, which sends
the next request when the answer is there, meets a stall with one request and hides it; an open loop meets it
with every request that was due.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from loadtest.bench_overhead import LOAD_CORE, SERVER_CORE
from loadtest.closed import HttpConversation, latencies_ms
from loadtest.latencies import Latencies
from loadtest.process import ServerError, printed_port, running
from loadtest.raw import RawTarget
from loadtest.runner import Limits, Request, run_open_loop, warm_up
from loadtest.sample import Sample
from loadtest.schedule import arrivals_ns

RATE_HZ, MOST_DELAY_MS = 500.0, 1.0
_WARM_UP = 100
# About a camera's JPEG; nobody looks at it.
_FRAME = bytes(30_000)


@dataclass(frozen=True, slots=True)
class GeneratorResult:
    """The generator's own delay, the latency with it, and how many requests had no answer."""

    issue_delay: Latencies
    latency: Latencies
    unanswered: int

    @property
    def holds(self) -> bool:
        """Whether the schedule was kept and everything answered."""
        return self.issue_delay.p99_ms < MOST_DELAY_MS and self.unanswered == 0


@dataclass(frozen=True, slots=True)
class Loop:
    """What a loop saw of a stall; slow: requests that took half of it or longer."""

    latency: Latencies
    slow: int


@dataclass(frozen=True, slots=True)
class StallResult:
    """A stall as an open and a closed loop saw it; expected: requests due in its first half."""

    stall_ms: float
    expected: float
    open: Loop
    closed: Loop

    @property
    def holds(self) -> bool:
        """Whether the open loop's slowest request waited for the whole stall, and those due then with it."""
        # Poisson arrivals: fewer than half of those expected come once in thousands of runs.
        return self.open.latency.max_ms >= 0.95 * self.stall_ms and self.open.slow >= self.expected / 2


def generator(*, rate_hz: float = RATE_HZ, seconds: float, seed: int) -> GeneratorResult:
    """Measure the issue delay; raises ServerError, ValueError when nothing was due or came back."""
    with _trivial() as port:
        samples = asyncio.run(_open_loop(port, rate_hz, seconds, seed))
    issue_delay = Latencies.of(sample.issue_delay_ms for sample in samples)
    latency = Latencies.of(sample.latency_ms for sample in samples if sample.answered)
    if issue_delay is None or latency is None:
        raise ValueError("nothing was due or came back; raise the rate or the seconds")
    return GeneratorResult(issue_delay, latency, sum(not sample.answered for sample in samples))


def stall(*, rate_hz: float, seconds: float, stall_ms: float, seed: int) -> StallResult:
    """Let a server stop once in the middle of each loop; raises ServerError, ValueError as `generator`."""
    requests = max(round(rate_hz * seconds), 2)
    with _trivial("--stall-at", str(_WARM_UP + requests // 2), "--stall-ms", str(stall_ms)) as port:
        samples = asyncio.run(_open_loop(port, rate_hz, seconds, seed))
    with _trivial("--stall-at", str(requests // 2), "--stall-ms", str(stall_ms)) as port:
        conversation = HttpConversation(port)
        try:
            closed_ms = latencies_ms(conversation, [_FRAME], requests).tolist()
        finally:
            conversation.close()
    open_ms = [sample.latency_ms for sample in samples if sample.answered]
    return StallResult(
        stall_ms, rate_hz * stall_ms / 2e3, _loop(open_ms, stall_ms), _loop(closed_ms, stall_ms)
    )


def _loop(times_ms: Sequence[float], stall_ms: float) -> Loop:
    latency = Latencies.of(times_ms)
    if latency is None:
        raise ValueError("nothing was due or came back; raise the rate or the seconds")
    return Loop(latency, sum(time >= stall_ms / 2 for time in times_ms))


@contextmanager
def _trivial(*options: str) -> Iterator[int]:
    """Run the server pinned and return its port, with this process on the other core meanwhile."""
    before = os.sched_getaffinity(0)
    if len(before) < 2:
        raise ServerError("two cores are needed, one for the server and one for the generator")
    with TemporaryDirectory(prefix="paretogate-bench-") as scratch:
        log = Path(scratch) / "trivial.log"
        with running(["loadtest.trivial", *options], log, core=SERVER_CORE) as process:
            port = printed_port(process, log)
            os.sched_setaffinity(0, {LOAD_CORE})
            try:
                yield port
            finally:
                os.sched_setaffinity(0, before)


async def _open_loop(port: int, rate_hz: float, seconds: float, seed: int) -> tuple[Sample, ...]:
    target = RawTarget(port)
    times = arrivals_ns("poisson", rate_hz, seconds, np.random.default_rng([seed, 0x6E17]))
    try:
        await warm_up(target, [_FRAME], Request(), _WARM_UP)
        return await run_open_loop(target, [_FRAME], times, Request(), Limits())
    finally:
        await target.close()
