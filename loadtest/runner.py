"""The open loop: every request is sent when it is due, whatever became of the earlier ones.

Waiting for an answer before sending the next request hides exactly the delays that a load test is for
("coordinated omission": a stalled server is asked less). So requests are tasks of their own, and latency
counts from the scheduled time. What the generator itself adds, by being late, is the issue delay; the
verdict calls a run with too much of it invalid rather than slow.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from loadtest.sample import Reply, Sample
from loadtest.schedule import Arrivals
from loadtest.target import Target

_NS_PER_S = 1_000_000_000
# The event loop's timers are whole milliseconds: the last one is spent asking for the time.
_TIMER_NS = 1_000_000
# Time between the call and the schedule's zero, so that the first requests are not born late.
_LEAD_NS = 50_000_000


@dataclass(frozen=True, slots=True)
class Request:
    """What every request of a run carries besides its frame; None leaves the choice to the gateway."""

    budget_ms: float | None = None
    operating_point: str | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a run: the wait for one answer, and how many requests may be open at once."""

    timeout_s: float = 5.0
    in_flight: int = 2_000

    def __post_init__(self) -> None:
        if self.timeout_s <= 0 or self.in_flight < 1:
            raise ValueError(f"timeout and open requests must be positive, got {self}")


def _ignore(_: int, __: Sample) -> None:
    pass


def _never() -> bool:
    return False


async def warm_up(target: Target, frames: Sequence[bytes], request: Request, count: int) -> None:
    """Send a few requests one after another and forget them: connections open, caches fill."""
    for position in range(count):
        await target.send(frames[position % len(frames)], request.budget_ms, request.operating_point)


async def run_open_loop(
    target: Target,
    frames: Sequence[bytes],
    arrivals_ns: Arrivals,
    request: Request | Callable[[int], Request],
    limits: Limits,
    on_done: Callable[[int, Sample], None] = _ignore,
    *,
    frame_of: Callable[[int], int] | None = None,
    start_ns: int | None = None,
    stopped: Callable[[], bool] = _never,
) -> tuple[Sample, ...]:
    """Send a frame at each arrival and return one sample per arrival, in schedule order.

    request: what they all carry, or what request number i does. on_done: is told of each, with its number.
    frame_of: the position of request i's frame; i mod n unless given. start_ns: the schedule's zero on the
    event loop's clock, a moment from now unless given, so that several processes can share one.
    stopped: asked before each arrival; from then on nothing is sent, and what was not has no sample.
    The running event loop's clock is the clock. It ends at the last arrival plus `limits.timeout_s` at the
    latest. Raises ValueError without frames; an error that `target.send` raises is a fault of the generator
    and ends the run.
    """
    if not frames:
        raise ValueError("a load needs at least one frame")
    loop = asyncio.get_running_loop()
    zero_ns = round(loop.time() * _NS_PER_S) + _LEAD_NS if start_ns is None else start_ns
    samples: list[Sample | None] = [None] * len(arrivals_ns)
    in_flight = 0

    def now_ns() -> int:
        return round(loop.time() * _NS_PER_S) - zero_ns

    def record(position: int, sample: Sample) -> None:
        samples[position] = sample
        on_done(position, sample)

    async def send(position: int, frame: int, scheduled_ns: int) -> None:
        nonlocal in_flight
        carried = request if isinstance(request, Request) else request(position)
        sent_ns = now_ns()
        try:
            async with asyncio.timeout(limits.timeout_s):
                reply = await target.send(frames[frame], carried.budget_ms, carried.operating_point)
        except TimeoutError:
            reply = Reply("timed_out", detail=f"no answer within {limits.timeout_s:g} s")
        finally:
            in_flight -= 1
        record(position, Sample(scheduled_ns, sent_ns, max(now_ns(), sent_ns), frame, reply))

    with _collector_at_rest():
        async with asyncio.TaskGroup() as group:
            for position, arrival in enumerate(arrivals_ns):
                scheduled_ns = int(arrival)
                # Late or not, the loop is given up once per arrival, so that open requests make progress.
                await asyncio.sleep(max(0.0, (scheduled_ns - _TIMER_NS - now_ns()) / _NS_PER_S))
                while now_ns() < scheduled_ns:  # noqa: ASYNC110 - no event tells that a moment has come
                    await asyncio.sleep(0)
                if stopped():
                    break
                frame = position % len(frames) if frame_of is None else frame_of(position)
                if in_flight >= limits.in_flight:
                    late_ns = max(now_ns(), scheduled_ns)
                    reply = Reply("unsent", detail=f"{in_flight} requests were open")
                    record(position, Sample(scheduled_ns, late_ns, late_ns, frame, reply))
                    continue
                in_flight += 1
                group.create_task(send(position, frame, scheduled_ns))
    return tuple(sample for sample in samples if sample is not None)


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Keep the cyclic garbage collector from holding up requests: samples are many and make no cycles."""
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
