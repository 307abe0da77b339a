"""What HTTP, JSON and policy cost: the gateway beside a bare socket server around the same decode and engine.

Both servers are pinned to core 0 and the load to core 1. They are asked in turn, in slices of a fraction of a
second, so that what the machine does meanwhile falls on both; ratios are taken within a round of such slices,
and their median counts. Every round starts both servers anew: where a process happens to lie in memory makes
it some percent faster or slower for as long as it lives.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from loadtest.closed import BareConversation, Conversation, HttpConversation, latencies_ms, saturated_per_s
from loadtest.process import ServerError, free_port, gateway, printed_port, running

MOST_P50, MOST_P99, LEAST_THROUGHPUT = 1.10, 1.30, 0.90
SERVER_CORE, LOAD_CORE = 0, 1
_WARM_UP = 50
_SLICES = 10
# Of detections in the answers of both servers.
_MIN_SCORE = 0.0005


@dataclass(frozen=True, slots=True)
class Figures:
    """A server in one round: latency of one client in milliseconds, and answers per second when saturated."""

    p50_ms: float
    p99_ms: float
    per_s: float


@dataclass(frozen=True, slots=True)
class OverheadResult:
    """An operating point's rounds, the bare server's and the gateway's."""

    point: str
    bare: tuple[Figures, ...]
    gateway: tuple[Figures, ...]

    def ratio(self, of: Callable[[Figures], float]) -> float:
        """Return the median over rounds of the gateway's figure over the bare server's."""
        return float(np.median([of(g) / of(b) for g, b in zip(self.gateway, self.bare, strict=True)]))

    @property
    def holds(self) -> bool:
        """Whether all three ratios are within what is claimed."""
        return (
            self.ratio(lambda figures: figures.p50_ms) <= MOST_P50
            and self.ratio(lambda figures: figures.p99_ms) <= MOST_P99
            and self.ratio(lambda figures: figures.per_s) >= LEAST_THROUGHPUT
        )


def overhead(
    repo: Path,
    frames: Sequence[bytes],
    point: str,
    *,
    rounds: int = 5,
    requests: int = 400,
    clients: int = 4,
    seconds: float = 5.0,
) -> OverheadResult:
    """Measure one operating point; raises ServerError when a server does not start.

    Pins this process to LOAD_CORE until it returns; needs two cores.
    """
    before = os.sched_getaffinity(0)
    if len(before) < 2:
        raise ServerError("two cores are needed, one for the servers and one for the load")
    found: tuple[list[Figures], list[Figures]] = ([], [])
    for _ in range(rounds):
        with _servers(repo, point) as connects:
            os.sched_setaffinity(0, {LOAD_CORE})
            try:
                _round(connects, frames, _WARM_UP, clients, 0.5)
                taken = _round(connects, frames, requests, clients, seconds)
            finally:
                os.sched_setaffinity(0, before)
        for into, figures in zip(found, taken, strict=True):
            into.append(figures)
    return OverheadResult(point, tuple(found[0]), tuple(found[1]))


@contextmanager
def _servers(repo: Path, point: str) -> Iterator[tuple[Callable[[], Conversation], ...]]:
    """Run both servers; yield what connects to the bare one and to the gateway."""
    port, headers = free_port(), (("X-Operating-Point", point),)
    options = ("--min-score", str(_MIN_SCORE))
    with (
        TemporaryDirectory(prefix="paretogate-bench-") as scratch,
        bare_server(repo, point, core=SERVER_CORE) as bare_port,
        gateway(repo, port, Path(scratch) / "gateway.log", *options, core=SERVER_CORE),
    ):
        yield (lambda: BareConversation(bare_port), lambda: HttpConversation(port, headers))


@contextmanager
def bare_server(repo: Path, point: str, *, core: int) -> Iterator[int]:
    """Run `loadtest.bare` pinned to a core and return its port; raises ServerError when it does not start."""
    with TemporaryDirectory(prefix="paretogate-bench-") as scratch:
        log = Path(scratch) / "bare.log"
        command = ["loadtest.bare", "--repo", str(repo), "--point", point, "--min-score", str(_MIN_SCORE)]
        with running(command, log, core=core) as process:
            yield printed_port(process, log)


def _round(
    connects: Sequence[Callable[[], Conversation]],
    frames: Sequence[bytes],
    requests: int,
    clients: int,
    seconds: float,
) -> list[Figures]:
    """Return the figures of each server; they take turns, and who begins changes from slice to slice."""
    each = math.ceil(requests / _SLICES)
    conversations = [connect() for connect in connects]
    taken_ms: list[list[float]] = [[] for _ in connects]
    per_s: list[list[float]] = [[] for _ in connects]
    for turn in range(_SLICES):
        for which in range(len(connects))[:: 1 if turn % 2 == 0 else -1]:
            taken_ms[which].extend(latencies_ms(conversations[which], frames, each, start=turn * each))
    for conversation in conversations:
        conversation.close()
    for turn in range(_SLICES):
        for which in range(len(connects))[:: 1 if turn % 2 == 0 else -1]:
            per_s[which].append(
                saturated_per_s(connects[which], frames, clients=clients, seconds=seconds / _SLICES)
            )
    return [
        Figures(float(np.quantile(taken, 0.5)), float(np.quantile(taken, 0.99)), float(np.mean(rates)))
        for taken, rates in zip(taken_ms, per_s, strict=True)
    ]
