"""The gateway under load: budgets kept, overload survived, accuracy given way before availability.

The gateway is pinned to core 0, the load to core 1. Capacity is found first, on this machine and now: the
highest Poisson rate at which the operating point `fast` answers 99 % of all requests within three times the
p50 of a single client. Every rate below is a share of it.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from loadtest.bench_overhead import LOAD_CORE, SERVER_CORE
from loadtest.closed import HttpConversation, latencies_ms
from loadtest.process import free_port, gateway
from loadtest.raw import RawTarget
from loadtest.runner import Limits, Request, run_open_loop
from loadtest.sample import Sample
from loadtest.schedule import arrivals_ns
from loadtest.target import Target

QUANTILE = 0.99
TIMES_P50 = 3.0
_SINGLE_REQUESTS = 300
_CALM_S, _PROBE_S = 15.0, 8.0
_STEPS = 6
LIMITS = Limits(timeout_s=5.0, in_flight=4_000)


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one core does: p50 with next to no load, the latency that counts as in time, and the rate held."""

    p50_ms: float
    limit_ms: float
    rate_hz: float


@dataclass(frozen=True, slots=True)
class Served:
    """A gateway that runs on its own core, and how to reach it."""

    port: int
    pid: int
    target: RawTarget


@asynccontextmanager
async def served(repo: Path, *options: str) -> AsyncIterator[Served]:
    """Run a pinned gateway with this process on the load's core; raises ServerError."""
    before = os.sched_getaffinity(0)
    with TemporaryDirectory(prefix="paretogate-bench-") as scratch:
        port = free_port()
        with gateway(repo, port, Path(scratch) / "gateway.log", *options, core=SERVER_CORE) as process:
            os.sched_setaffinity(0, {LOAD_CORE})
            target = RawTarget(port)
            try:
                yield Served(port, process.pid, target)
            finally:
                await target.close()
                os.sched_setaffinity(0, before)


async def find_capacity(served: Served, frames: Sequence[bytes], point: str, *, seed: int) -> Capacity:
    """Return the highest rate at which a point answers 99 % of all requests within three times its p50.

    The p50 is that of Poisson arrivals at a twentieth of what one client gets back to back: a machine that
    was idle for a moment answers later than one that never is. Then the interval between none and that rate
    is halved again and again; each probe is its own Poisson schedule of some seconds, and one that fails gets
    a second chance, for on a shared machine a neighbour's hiccup fails a probe by itself.
    """
    request = Request(operating_point=point)
    conversation = HttpConversation(served.port, (("X-Operating-Point", point),))
    high_hz = 1e3 / float(np.median(latencies_ms(conversation, frames, _SINGLE_REQUESTS)))
    conversation.close()
    calm = await load(served.target, frames, high_hz / 20, _CALM_S, request, seed=seed)
    p50_ms = float(np.median([sample.latency_ms for sample in calm]))
    limit_ms, low_hz = TIMES_P50 * p50_ms, 0.0
    for step in range(_STEPS):
        rate_hz = (low_hz + high_hz) / 2
        for chance in range(2):
            number = seed + 10 * step + chance
            samples = await load(served.target, frames, rate_hz, _PROBE_S, request, seed=number)
            holds = in_time(samples, limit_ms) >= QUANTILE
            await asyncio.sleep(0.5)
            if holds:
                break
        if holds:
            low_hz = rate_hz
        else:
            high_hz = rate_hz
    return Capacity(p50_ms, limit_ms, low_hz)


async def load(
    target: Target,
    frames: Sequence[bytes],
    rate_hz: float,
    seconds: float,
    request: Request | Callable[[int], Request],
    *,
    seed: int,
) -> tuple[Sample, ...]:
    """Send Poisson arrivals for some seconds; no sample when nothing was due."""
    times = arrivals_ns("poisson", max(rate_hz, 1.0), seconds, np.random.default_rng([seed, 0x10AD]))
    return await run_open_loop(target, frames, times, request, LIMITS)


def in_time(samples: Sequence[Sample], budget_ms: float) -> float:
    """Return the share of requests that were answered within a budget of the moment they were due."""
    return sum(sample.met(budget_ms) for sample in samples) / max(len(samples), 1)


@dataclass(frozen=True, slots=True)
class BudgetsResult:
    """Requests with budgets of their own at 60 % of capacity.

    fair: those whose budget was at least twice the fast plan's p99. refused: of these, turned away. kept: of
    all that were let in, answered in time. refusal_ms: median latency of a refusal, with the wire and reading
    the frame, asked for with budgets that nothing can meet. bare_missed: of the same trace on the bare
    server, what was not answered within its budget.
    """

    capacity: Capacity
    requests: int
    fair: int
    refused: float
    kept: float
    refusal_ms: float
    bare_missed: float

    @property
    def holds(self) -> bool:
        """Whether few are refused, those let in are answered in time, and refusing is quick."""
        return self.refused <= MOST_REFUSED and self.kept >= LEAST_KEPT and self.refusal_ms <= MOST_REFUSAL_MS


MOST_REFUSED, LEAST_KEPT, MOST_REFUSAL_MS = 0.03, 0.995, 2.0
_BUDGETS_MS = (10.0, 100.0)
_BUDGETS_SHARE, _HOPELESS_MS = 0.6, 1.0


def drawn_budgets_ms(count: int, seed: int) -> NDArray[np.float64]:
    """Return the budgets of a run's requests, uniform between 10 and 100 ms."""
    return np.random.default_rng([seed, 0xB0D]).uniform(*_BUDGETS_MS, count)


async def budgets(
    served: Served,
    bare: Target,
    frames: Sequence[bytes],
    fast_p99_ms: float,
    *,
    seconds: float = 60.0,
    seed: int = 0,
) -> BudgetsResult:
    """Send budgets of 10 to 100 ms at 60 % of capacity, to the gateway and then to the bare server."""
    capacity = await find_capacity(served, frames, "fast", seed=seed)
    rate_hz = _BUDGETS_SHARE * capacity.rate_hz
    budgets_ms = drawn_budgets_ms(2 * math.ceil(rate_hz * seconds) + 100, seed)

    def request(position: int) -> Request:
        return Request(budget_ms=float(budgets_ms[position]), operating_point="fast")

    samples = await load(served.target, frames, rate_hz, seconds, request, seed=seed + 100)
    on_bare = await load(bare, frames, rate_hz, seconds, request, seed=seed + 100)
    hopeless = Request(budget_ms=_HOPELESS_MS, operating_point="fast")
    turned_away = await load(served.target, frames, rate_hz, _CALM_S, hopeless, seed=seed + 101)
    given = budgets_ms[: len(samples)]
    outcomes = np.array([sample.reply.outcome for sample in samples])
    refused = (outcomes == "shed") | (outcomes == "rejected")
    met = np.array([sample.met(float(ms)) for sample, ms in zip(samples, given, strict=True)])
    fair = given >= 2 * fast_p99_ms
    refusals_ms = [sample.service_ms for sample in turned_away if sample.reply.outcome == "rejected"]
    missed = [not sample.met(float(ms)) for sample, ms in zip(on_bare, given, strict=True)]
    return BudgetsResult(
        capacity=capacity,
        requests=len(samples),
        fair=int(fair.sum()),
        refused=float(refused[fair].mean()),
        kept=float(met[~refused].mean()),
        refusal_ms=float(np.median(refusals_ms)) if refusals_ms else math.nan,
        bare_missed=float(np.mean(missed)),
    )


@dataclass(frozen=True, slots=True)
class OverloadResult:
    """Three times the capacity for a minute.

    peak_hz: the highest rate of answers in time that was seen at any offered rate up to capacity and above.
    overload_hz: that rate during the overload. grown: how much the resident memory grew between the first
    tenth of it and its end, relative. recovered_s: seconds until a whole second's requests were again
    answered in time, at half of capacity; infinite when they never were.
    """

    capacity: Capacity
    peak_hz: float
    overload_hz: float
    grown: float
    recovered_s: float

    @property
    def holds(self) -> bool:
        """Whether answers in time stay near their peak, memory stays flat and service comes back."""
        return (
            self.overload_hz >= LEAST_OF_PEAK * self.peak_hz
            and self.grown <= MOST_GROWN
            and self.recovered_s <= MOST_RECOVERY_S
        )


LEAST_OF_PEAK, MOST_GROWN, MOST_RECOVERY_S = 0.90, 0.02, 5.0
_OVERLOAD = 3.0
_PEAK_RATES = (0.8, 1.0, 1.25)
_AFTER_S = 8


async def overload(
    served: Served, frames: Sequence[bytes], *, seconds: float = 60.0, seed: int = 0
) -> OverloadResult:
    """Offer three times the capacity, with budgets of the latency that counts as in time, then half of it."""
    capacity = await find_capacity(served, frames, "fast", seed=seed)
    request = Request(budget_ms=capacity.limit_ms, operating_point="fast")

    async def rate_in_time(share: float, lasting_s: float, number: int) -> float:
        samples = await load(
            served.target, frames, share * capacity.rate_hz, lasting_s, request, seed=seed + number
        )
        return sum(sample.met(capacity.limit_ms) for sample in samples) / lasting_s

    peak_hz = max([await rate_in_time(share, 15.0, 200 + i) for i, share in enumerate(_PEAK_RATES)])
    memory: list[int] = []
    watching = asyncio.create_task(_watch_memory(served.pid, memory))
    overload_hz = await rate_in_time(_OVERLOAD, seconds, 210)
    watching.cancel()
    after = await load(
        served.target, frames, 0.5 * capacity.rate_hz, float(_AFTER_S), request, seed=seed + 220
    )
    begin, end = memory[len(memory) // 10], max(memory[-3:])
    return OverloadResult(
        capacity, peak_hz, overload_hz, end / begin - 1.0, _recovered_s(after, capacity.limit_ms)
    )


async def _watch_memory(pid: int, into: list[int]) -> None:
    while True:
        into.append(resident_bytes(pid))
        await asyncio.sleep(1.0)


def resident_bytes(pid: int) -> int:
    """Return a process's resident memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _recovered_s(samples: Sequence[Sample], limit_ms: float) -> float:
    """Return the end of the first whole second from whose start on 95 % of each second's were in time."""
    seconds: list[list[bool]] = [[] for _ in range(_AFTER_S)]
    for sample in samples:
        seconds[min(int(sample.scheduled_ns / 1e9), _AFTER_S - 1)].append(sample.met(limit_ms))
    good = [not part or sum(part) >= 0.95 * len(part) for part in seconds]
    bad = [number for number, fine in enumerate(good) if not fine]
    if not bad:
        return 0.0
    return math.inf if bad[-1] == _AFTER_S - 1 else float(bad[-1] + 1)


@dataclass(frozen=True, slots=True)
class SoakResult:
    """A long load at 80 % of capacity; files and threads of the gateway before and after it."""

    capacity: Capacity
    requests: int
    in_time: float
    grown: float
    files: tuple[int, int]
    threads: tuple[int, int]

    @property
    def holds(self) -> bool:
        """Whether nothing grew."""
        return (
            self.grown < MOST_GROWN
            and self.files[1] <= self.files[0] + _SPARE
            and self.threads[1] <= self.threads[0] + _SPARE
        )


_SOAK_SHARE = 0.8
_SETTLED_S = 120
# Connections that are just being closed, and threads of the event loop's own pool.
_SPARE = 4


async def soak(
    served: Served, frames: Sequence[bytes], *, minutes: float = 20.0, seed: int = 0
) -> SoakResult:
    """Load a gateway for a long time; memory counts from two minutes on."""
    capacity = await find_capacity(served, frames, "balanced", seed=seed)
    await served.target.close()
    await asyncio.sleep(1.0)
    before = _open_files(served.pid), _threads(served.pid)
    memory: list[int] = []
    watching = asyncio.create_task(_watch_memory(served.pid, memory))
    rate_hz = _SOAK_SHARE * capacity.rate_hz
    requests, met = 0, 0
    # In parts: the samples of a long run would fill this process's memory, and say no more than their counts.
    for part in range(math.ceil(minutes)):
        samples = await load(
            served.target, frames, rate_hz, 60.0, Request(operating_point="balanced"), seed=seed + 300 + part
        )
        requests += len(samples)
        met += sum(sample.met(capacity.limit_ms) for sample in samples)
    watching.cancel()
    await served.target.close()
    await asyncio.sleep(1.0)
    after = _open_files(served.pid), _threads(served.pid)
    settled = memory[min(_SETTLED_S, len(memory) // 2) :]
    grown = max(settled[-10:]) / settled[0] - 1.0
    files, threads = zip(before, after, strict=True)
    return SoakResult(
        capacity, requests, met / max(requests, 1), grown, (files[0], files[1]), (threads[0], threads[1])
    )


def _open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))
