"""Which operating point answers requests that name none: moved by load, with hysteresis.

The rungs are the published plans up to the configured operating point (home), cheapest first: the more
there are, the less accuracy a given load costs. Two signals are smoothed over `horizon_s`: the queue per
worker q, and the arrival rate λ. With w workers and m a rung's mean cost, u = λ·m·slow-down / w is the share
of capacity that it would take.

    down   when u of the present rung > `full`, or q > `crowded` and the last move is `down_s` ago:
           to the costliest cheaper rung with u ≤ `headroom`; because of a queue, also at most 3/4 as costly,
           for then costs are not what they were thought to be
    up     when q < `calm` and the last move is `up_s` ago: to the costliest rung with u ≤ `headroom`

The gap between `headroom` and `full`, and `up_s`, keep it from swinging; should the costs be wrong all the
same, a climb that had to be taken back doubles the wait before the next one, up to `up_most_s`.

Averages come too late for the first requests of a burst, and they know nothing of deadlines: those are kept
frame by frame, see `router.slack`, by whoever gives way below the rung in force.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rung:
    """An operating point, or another plan under its own name, and its mean cost in milliseconds."""

    name: str
    mean_ms: float


@dataclass(frozen=True, slots=True)
class ControllerSettings:
    """Thresholds of the module's rules: shares of capacity, queue per worker, and seconds."""

    full: float = 0.95
    headroom: float = 0.75
    crowded: float = 3.0
    calm: float = 0.5
    horizon_s: float = 1.0
    down_s: float = 0.5
    up_s: float = 2.0
    up_most_s: float = 80.0

    def __post_init__(self) -> None:
        if not 0 <= self.calm < self.crowded or not 0 < self.headroom < self.full or self.horizon_s <= 0:
            raise ValueError("expected 0 <= calm < crowded, 0 < headroom < full and a positive horizon")


# How much cheaper a rung has to be when a queue says that costs are not what they were thought to be.
_CHEAPER = 0.75


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

    def arrived(self, now_ns: int, waiting: int, slow_down: float = 1.0) -> None:
        """Note an arrival with `waiting` requests queued, and move if that is called for."""
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
        present = self._rungs[self._at]
        crowded = self._queue > settings.crowded and since_s >= settings.down_s
        if self._at > 0 and (crowded or self._share(present, slow_down) > settings.full):
            taken_back = crowded and self._climbed and since_s < settings.up_s
            self._up_s = min(self._up_s * 2, settings.up_most_s) if taken_back else settings.up_s
            most_ms = present.mean_ms * (_CHEAPER if crowded else 1.0)
            self._move(self._costliest(self._at, most_ms, slow_down), now_ns)
        elif self._queue < settings.calm and since_s >= self._up_s:
            bearable = self._costliest(len(self._rungs), math.inf, slow_down)
            if bearable > self._at:
                self._move(bearable, now_ns)

    def _move(self, to: int, now_ns: int) -> None:
        self._climbed = to > self._at
        self._at, self._moved_ns = to, now_ns

    def _share(self, rung: Rung, slow_down: float) -> float:
        return self._rate_per_s * rung.mean_ms * slow_down / 1e3 / self._workers

    def _costliest(self, below: int, most_ms: float, slow_down: float) -> int:
        """Return the last rung before `below` that costs at most so much and leaves headroom, or 0."""
        for number in range(below - 1, 0, -1):
            rung = self._rungs[number]
            if rung.mean_ms <= most_ms and self._share(rung, slow_down) <= self._settings.headroom:
                return number
        return 0
