"""What is asked of a server that runs: one client, several in a closed loop, Poisson rates, the trace."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import numpy as np

from loadtest.closed import latencies_ms, saturated_per_s
from loadtest.peers.goodput import Served, rush_ns, rush_seconds, serve_of
from loadtest.peers.launch import Running
from loadtest.peers.processes import memory_of
from loadtest.peers.records import Goodput, Overhead
from loadtest.runner import Limits, Request, run_open_loop
from loadtest.schedule import Arrivals, arrivals_ns
from loadtest.target import Target
from model_repo.scoring import Truth

CLIENTS = 4
_WARM_UP = 30
_ONE_CLIENT = 200
_STEPS = 5
# A p99 needs some requests to speak of; a slow server is asked for longer, within reason, but for so many.
_LEAST_REQUESTS, _LONGEST, _ANY_REQUESTS = 300, 4, 20
# A probe that came this near is tried once more: on a shared machine a neighbour's hiccup fails one.
_NEAR = 0.95
_LIMITS = Limits(timeout_s=5.0, in_flight=4_000)


@dataclass(frozen=True, slots=True)
class Load:
    """What everybody is asked with: the frames' bytes and labels, the budget, a probe's length, the seed."""

    frames: tuple[bytes, ...]
    truths: tuple[Truth, ...]
    classes: int
    budget_ms: float
    seconds: float
    seed: int

    @property
    def step_s(self) -> float:
        """Return how long a step of the trace is."""
        return self.seconds / 2


def warm(server: Running, load: Load, point: str | None) -> None:
    """Ask some frames and forget the answers; raises ConversationError."""
    conversation = server.connect(point)
    latencies_ms(conversation, load.frames, _WARM_UP)
    conversation.close()


def saturated_hz(server: Running, load: Load, point: str | None = None) -> float:
    """Return the answers per second to a few clients that ask again at once; raises ConversationError."""
    return saturated_per_s(lambda: server.connect(point), load.frames, clients=CLIENTS, seconds=load.seconds)


def overhead(
    server: Running, load: Load, contender: str, number: int, model: str, point: str | None
) -> Overhead:
    """Measure one client and a saturated server; raises ConversationError."""
    warm(server, load, point)
    conversation = server.connect(point)
    taken_ms = latencies_ms(conversation, load.frames, _ONE_CLIENT)
    conversation.close()
    return Overhead(
        contender=contender,
        round=number,
        model=model,
        p50_ms=float(np.quantile(taken_ms, 0.5)),
        p99_ms=float(np.quantile(taken_ms, 0.99)),
        saturated_hz=saturated_hz(server, load, point),
    )


def goodput(
    server: Running,
    load: Load,
    contender: str,
    number: int,
    model: str,
    unit_hz: float,
    *,
    point: str | None = None,
    reach: float = 1.1,
) -> Goodput:
    """Find the rate that keeps the budget, and put the trace on a server; raises ConversationError.

    reach: the highest rate that is thought of, over the saturated one: a server that gives way under load
    answers more of a Poisson stream than of a few clients' requests.
    """
    warm(server, load, point)
    saturated = saturated_hz(server, load, point)
    request = Request(load.budget_ms, point)
    probes, rush = asyncio.run(_open_loops(server, load, request, reach * saturated, unit_hz, number))
    return Goodput(
        contender=contender,
        round=number,
        model=model,
        saturated_hz=saturated,
        probes=probes,
        rush=rush,
        memory=memory_of(server.processes()),
    )


async def _open_loops(
    server: Running, load: Load, request: Request, high_hz: float, unit_hz: float, number: int
) -> tuple[tuple[Served, ...], Served]:
    target = server.target()
    try:
        probes = await _probes(target, load, request, high_hz, number)
        rng = np.random.default_rng([load.seed, number, 0x805])
        times = rush_ns(unit_hz, load.step_s, rng)
        return probes, await _served(target, load, request, times, rush_seconds(load.step_s))
    finally:
        await target.close()


async def _probes(
    target: Target, load: Load, request: Request, high_hz: float, number: int
) -> tuple[Served, ...]:
    """Halve the interval between none and `high_hz` again and again around the rate that just holds."""
    probes, low_hz = [], 0.0
    for step in range(_STEPS):
        rate_hz = (low_hz + high_hz) / 2
        seconds = _probe_seconds(rate_hz, load.seconds)
        for chance in range(2):
            rng = np.random.default_rng([load.seed, number, step, chance])
            probe = await _served(
                target, load, request, arrivals_ns("poisson", rate_hz, seconds, rng), seconds
            )
            probes.append(probe)
            if probe.holds or probe.attainment < _NEAR:
                break
        low_hz, high_hz = (rate_hz, high_hz) if probe.holds else (low_hz, rate_hz)
    return tuple(probes)


def _probe_seconds(rate_hz: float, seconds: float) -> float:
    longest_s = max(_LONGEST * seconds, _ANY_REQUESTS / rate_hz)
    return float(np.clip(_LEAST_REQUESTS / rate_hz, seconds, longest_s))


async def _served(target: Target, load: Load, request: Request, times: Arrivals, seconds: float) -> Served:
    samples = await run_open_loop(target, load.frames, times, request, _LIMITS)
    # Requests that were given up here may still wait in the server; they are not the next run's.
    await target.send(load.frames[0], None, None)
    return serve_of(samples, seconds, load.budget_ms, load.truths, load.classes)
