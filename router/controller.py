"""Which operating point answers requests that name none: moved by load, with hysteresis.

The rungs are the operating points up to the configured one (home), cheapest first. Signals, both smoothed
over `horizon_s`: the queue per worker q, and the arrival rate λ. With w workers and m the mean cost of a
rung's plan:

    down one rung   when q > `crowded`, at most every `down_s`
    up one rung     when q < `calm` and λ·m(next)·slow-down < `headroom`·w, at most every `up_s`

Stepping down reacts to what is there (a queue); stepping up asks what would be there, because an empty queue
on a cheap rung says nothing about the next one. That condition, the gap between `calm` and `crowded`, and
`up_s` > `down_s` together keep it from swinging; should the costs be wrong all the same, a climb that had to
be taken back doubles the wait before the next one, up to `up_most_s`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rung:
    """An operating point and the mean cost of its plan in milliseconds."""

    name: str
    mean_ms: float


@dataclass(frozen=True, slots=True)
class ControllerSettings:
    """Thresholds of the module's rules: queue per worker, share of capacity, and seconds."""

    crowded: float = 1.5
    calm: float = 0.2
    headroom: float = 0.7
    horizon_s: float = 1.0
    down_s: float = 0.5
    up_s: float = 5.0
    up_most_s: float = 80.0

    def __post_init__(self) -> None:
        if not 0 <= self.calm < self.crowded or not 0 < self.headroom <= 1 or self.horizon_s <= 0:
            raise ValueError("expected 0 <= calm < crowded, 0 < headroom <= 1 and a positive horizon")


class Controller:
    """Hold the present operating point; lives on the event loop and is not thread-safe."""

    def __init__(
        self,
        rungs: Sequence[Rung],
        home: str,
        workers: int,
        settings: ControllerSettings | None = None,
        *,
        at: str | None = None,
    ) -> None:
        """Begin at home, or at the rung called `at` where there is one."""
        ordered = sorted(rungs, key=lambda rung: rung.mean_ms)
        names = [rung.name for rung in ordered]
        if home not in names:
            raise ValueError(f"no operating point {home!r} among {names}")
        self._rungs = ordered[: names.index(home) + 1]
        self._workers = workers
        self._settings = settings or ControllerSettings()
        known = [rung.name for rung in self._rungs]
        self._at = known.index(at) if at in known else len(known) - 1
        self._queue = 0.0
        self._rate_per_s = 0.0
        self._seen_ns: int | None = None
        self._moved_ns = 0
        self._up_s = self._settings.up_s
        self._climbed = False

    @property
    def point(self) -> str:
        """Return the operating point for requests that name none."""
        return self._rungs[self._at].name

    @property
    def home(self) -> str:
        """Return the operating point that it returns to when there is no load."""
        return self._rungs[-1].name

    def arrived(self, now_ns: int, waiting: int, slow_down: float = 1.0) -> str:
        """Note an arrival with `waiting` requests queued; return the operating point in force."""
        settings = self._settings
        if self._seen_ns is None:
            self._moved_ns = self._seen_ns = now_ns
        kept = math.exp(-max(now_ns - self._seen_ns, 0) / 1e9 / settings.horizon_s)
        self._seen_ns = now_ns
        # Each arrival adds 1/horizon to a rate that decays: its mean is the arrival rate.
        self._rate_per_s = self._rate_per_s * kept + 1.0 / settings.horizon_s
        # A sample weighs by the time it stands for; arrivals are what samples the queue.
        self._queue = self._queue * kept + (1.0 - kept) * waiting / self._workers
        since_s = (now_ns - self._moved_ns) / 1e9
        if self._queue > settings.crowded and self._at > 0 and since_s >= settings.down_s:
            taken_back = self._climbed and since_s < settings.up_s
            self._up_s = min(self._up_s * 2, settings.up_most_s) if taken_back else settings.up_s
            self._at -= 1
            self._moved_ns, self._climbed = now_ns, False
        elif (
            self._queue < settings.calm
            and self._at < len(self._rungs) - 1
            and since_s >= self._up_s
            and self._bears(self._rungs[self._at + 1], slow_down)
        ):
            self._at += 1
            self._moved_ns, self._climbed = now_ns, True
        return self.point

    def _bears(self, rung: Rung, slow_down: float) -> bool:
        busy_workers = self._rate_per_s * rung.mean_ms * slow_down / 1e3
        return busy_workers < self._settings.headroom * self._workers
