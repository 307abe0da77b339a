"""How many requests may be inside at once, and who has to leave: Limit computes, Limiter enforces.

The limit follows from Little's law. With w workers that each spend S milliseconds on a request, n requests
inside mean that the last of them waits about (n − w)·S/w. Keeping that below W gives

    n ≤ w · (1 + W/S),     held within [w, w + max_queue].

S is the mean service time seen lately, so the limit falls by itself when the machine slows down or plans get
costlier, and rises again when they get cheaper. (A gradient limit would have to find by probing what is
known here: the number of workers and the time that each request holds one.)

Requests of lower priority may fill only a part of the queue, so that the rest is there for the others.

The Limiter lives on the event loop and is not thread-safe.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from router.wishes import Priority

_QUEUE: Mapping[Priority, float] = {"high": 1.0, "normal": 0.9, "low": 0.5}


class Limit(Protocol):
    """Compute how many requests may be inside."""

    @property
    def value(self) -> int:
        """Return the present limit, at least 1."""

    @property
    def service_ms(self) -> float:
        """Return the present estimate of how long a request holds a worker."""

    def observe(self, service_ms: float) -> None:
        """Learn from a request that held a worker for `service_ms`."""


class LittleLimit:
    """The limit of the module's formula; S is an exponential mean that forgets with weight 0.05."""

    _WEIGHT = 0.05

    def __init__(self, workers: int, *, service_ms: float, max_wait_ms: float, max_queue: int) -> None:
        if workers < 1 or service_ms <= 0 or max_wait_ms < 0 or max_queue < 0:
            raise ValueError("expected workers >= 1, service_ms > 0, max_wait_ms >= 0 and max_queue >= 0")
        self._workers, self._service_ms = workers, service_ms
        self._max_wait_ms, self._max_queue = max_wait_ms, max_queue

    @property
    def value(self) -> int:
        """Return w·(1 + W/S) within [w, w + max_queue]."""
        allowed = math.floor(self._workers * (1.0 + self._max_wait_ms / self._service_ms))
        return min(max(allowed, self._workers), self._workers + self._max_queue)

    @property
    def service_ms(self) -> float:
        """Return S."""
        return self._service_ms

    def observe(self, service_ms: float) -> None:
        """Move S toward a new observation."""
        self._service_ms += self._WEIGHT * (max(service_ms, 1e-3) - self._service_ms)


@dataclass(frozen=True, slots=True)
class Shed:
    """A request turned away because of load; `retry_after_s` is when the queue should have drained."""

    reason: str
    retry_after_s: float


class Permit:
    """The right to be inside; give it back exactly once."""

    __slots__ = ("_limiter",)

    def __init__(self, limiter: Limiter) -> None:
        self._limiter: Limiter | None = limiter

    def release(self, service_ms: float | None = None) -> None:
        """Leave; `service_ms` is how long a worker was held, None when none was.

        Raises RuntimeError when the permit was given back before.
        """
        if self._limiter is None:
            raise RuntimeError("a permit was released twice")
        limiter, self._limiter = self._limiter, None
        limiter.leave(service_ms)


class Limiter:
    """Enforce a limit and predict waiting times for `workers` workers."""

    def __init__(self, limit: Limit, workers: int) -> None:
        self._limit, self._workers = limit, workers
        self._inside = 0

    @property
    def inside(self) -> int:
        """Return how many permits are out."""
        return self._inside

    @property
    def limit(self) -> int:
        """Return the present limit."""
        return self._limit.value

    def acquire(self, priority: Priority = "normal") -> Permit | Shed:
        """Let a request in, or say why not."""
        queue = self._limit.value - self._workers
        limit = self._limit.value if queue <= 0 else self._workers + math.ceil(queue * _QUEUE[priority])
        if self._inside >= limit:
            return self.shed(f"{self._inside} requests are inside, the limit for {priority} ones is {limit}")
        self._inside += 1
        return Permit(self)

    def shed(self, reason: str) -> Shed:
        """Return a Shed with the time after which the present queue should have drained."""
        return Shed(reason, max(self._inside * self._limit.service_ms / self._workers / 1e3, 0.05))

    def wait_ms(self, ahead: Sequence[float], busy: int) -> float:
        """Predict the wait of a request with `busy` workers at work and queued ones before it.

        ahead: the least that each of those costs, for they give way to the ones behind them. A free worker
        means no wait; otherwise the running requests are half done on average.
        """
        if len(ahead) + busy < self._workers:
            return 0.0
        return sum(ahead) / self._workers + self._limit.service_ms * 0.5

    def leave(self, service_ms: float | None) -> None:
        """Take a permit back; called by `Permit.release` alone."""
        self._inside -= 1
        if service_ms is not None:
            self._limit.observe(service_ms)
