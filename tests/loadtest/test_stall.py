"""A server that stops for 200 ms: the open loop shows it in full, the closed loop beside it hides it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from loadtest.latencies import Latencies
from loadtest.process import printed_port, running
from loadtest.raw import RawTarget
from loadtest.runner import Limits, Request, run_open_loop
from loadtest.sample import Reply, Sample
from loadtest.schedule import constant_ns
from tests.loadtest.conftest import RunVirtually
from tests.loadtest.scripted import ANSWER

SERVICE_S, STALL_S, RATE_HZ, COUNT = 0.002, 0.2, 100.0, 200
# Just before a request is due.
STALLS_AT_S = 0.999


class OneAtATime:
    """A server of one worker that takes 2 ms for a frame and stops for 200 ms, one second in."""

    def __init__(self) -> None:
        self._began_s: float | None = None
        self._free_s = 0.0

    async def send(self, frame: bytes, budget_ms: float | None, operating_point: str | None) -> Reply:
        """Answer when the worker has come to it."""
        now_s = asyncio.get_running_loop().time()
        self._began_s = now_s if self._began_s is None else self._began_s
        stalls_s = self._began_s + STALLS_AT_S
        starts_s = max(now_s, self._free_s)
        if stalls_s <= starts_s < stalls_s + STALL_S:
            starts_s = stalls_s + STALL_S
        self._free_s = starts_s + SERVICE_S
        await asyncio.sleep(self._free_s - now_s)
        return ANSWER

    async def describe(self) -> Any:  # Any: nobody asks
        """Is not asked."""
        raise NotImplementedError

    async def close(self) -> None:
        """Close nothing."""


async def open_loop() -> tuple[Sample, ...]:
    """Send on schedule."""
    arrivals = constant_ns(RATE_HZ, COUNT)
    return await run_open_loop(OneAtATime(), [b"a"], arrivals, Request(), Limits())


async def closed_loop() -> list[float]:
    """Send a request 10 ms after the one before, or as soon as that is answered: as many a second as above
    while nothing stalls. Returns latencies in milliseconds from the moment each was sent."""
    target, loop, times = OneAtATime(), asyncio.get_running_loop(), []
    for _ in range(COUNT):
        sent_s = loop.time()
        await target.send(b"a", None, None)
        times.append((loop.time() - sent_s) * 1e3)
        await asyncio.sleep(max(0.0, sent_s + 1 / RATE_HZ - loop.time()))
    return times


def test_a_stall_shows_in_full_in_the_open_loop_and_is_hidden_by_a_closed_one(
    run_virtually: RunVirtually[Any],
) -> None:
    """20 of 200 requests were due in it: the open loop's p99 is nearly all of it, the closed loop's 2 ms."""
    samples = run_virtually(open_loop())
    opened = Latencies.of(sample.latency_ms for sample in samples)
    closed = Latencies.of(run_virtually(closed_loop()))
    assert opened is not None
    assert closed is not None
    assert sum(sample.latency_ms > 10.0 for sample in samples) >= 20
    assert opened.max_ms == pytest.approx(201.0, abs=0.5)
    assert opened.p99_ms >= 180.0
    assert opened.p90_ms >= 10.0
    assert closed.p50_ms == pytest.approx(opened.p50_ms, abs=0.1)
    assert closed.max_ms == pytest.approx(201.0, abs=10.0)
    assert closed.p99_ms == pytest.approx(2.0, abs=0.1)


def test_a_real_server_that_stalls_keeps_every_request_waiting_that_was_due(tmp_path: Path) -> None:
    """Through real sockets: of the requests due until 100 ms before the stall's end, 19 are answered before
    it and all others wait that long."""
    log = tmp_path / "trivial.log"
    with running(["loadtest.trivial", "--stall-at", "20", "--stall-ms", "200"], log) as process:
        port = printed_port(process, log)

        async def load() -> tuple[Sample, ...]:
            target = RawTarget(port)
            try:
                return await run_open_loop(
                    target, [bytes(1_000)], constant_ns(500.0, 200), Request(), Limits(timeout_s=60.0)
                )
            finally:
                await target.close()

        samples = asyncio.run(load())
    assert {sample.reply.outcome for sample in samples} == {"answered"}
    # The 20th frame is sent at 38 ms at the earliest, so the stall ends at 238 ms or later. 69 requests are
    # due until 100 ms before that, of which 19 can have been answered before it began.
    assert sum(sample.latency_ms >= 100.0 for sample in samples[:69]) >= 50
    assert max(sample.latency_ms for sample in samples) >= 199.0
