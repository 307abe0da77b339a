"""What serving shows against what was measured: latencies, escalation rates, and what frames look like.

Three questions, kept apart on purpose. `SlowDown` asks how fast the machine is just now and is used for
decisions; it follows quickly and forgets. `LatencyAlarm` asks whether the stored baseline still holds and is
meant for people; it looks at medians of many raw measurements and is not fooled by a busy second.
`DistributionDrift` asks whether frames and answers are still like those of calibration, on which alignments,
thresholds and certificates rest; while it rings, certificates are void.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from model_repo.frontier import Plan
from model_repo.reference import TRACKED, Cusum, Reference
from router.budget import Clock


@dataclass(slots=True)
class _Track:
    factor: float = 1.0
    seen_ns: int = 0


class SlowDown:
    """Track measured ÷ profile per step as an exponential mean.

    One sample counts for at most `max_ratio`, so that a single hiccup does not stop a stage. Without samples
    a factor returns to 1 with time constant `forget_s`: a stage that is never started because it is thought
    slow would otherwise never be measured again.

    Written on the event loop, read from worker threads: a factor is one attribute, replaced as a whole.
    """

    def __init__(
        self, clock: Clock, *, weight: float = 0.1, max_ratio: float = 4.0, forget_s: float = 5.0
    ) -> None:
        self._clock = clock
        self._weight, self._max_ratio, self._forget_s = weight, max_ratio, forget_s
        self._tracks: dict[str, _Track] = {}

    def observe(self, step: str, measured_ms: float, expected_ms: float) -> None:
        """Learn that a step took `measured_ms` where its profile's mean says `expected_ms`."""
        ratio = min(max(measured_ms / expected_ms, 1.0 / self._max_ratio), self._max_ratio)
        before = self.factor(step)
        self._tracks[step] = _Track(before + self._weight * (ratio - before), self._clock.now_ns())

    def factor(self, step: str) -> float:
        """Return the factor in force now; 1 for a step that was never seen."""
        track = self._tracks.get(step)
        if track is None:
            return 1.0
        idle_s = (self._clock.now_ns() - track.seen_ns) / 1e9
        return 1.0 + (track.factor - 1.0) * math.exp(-max(idle_s, 0.0) / self._forget_s)

    def factors(self) -> Mapping[str, float]:
        """Return the factors in force of every step seen so far."""
        return {step: self.factor(step) for step in tuple(self._tracks)}


class LatencyAlarm:
    """Ring when a step's median stays `rings_at` times above its baseline's median; clear below `clears_at`.

    It judges the last `window` ratios, once there are `needed` of them, and then at every 32nd: a median of
    256 numbers costs too much to be taken for every frame.
    """

    _EVERY = 32

    def __init__(
        self, *, window: int = 256, needed: int = 64, rings_at: float = 1.3, clears_at: float = 1.15
    ) -> None:
        if not 1.0 <= clears_at <= rings_at or not 1 <= needed <= window:
            raise ValueError("expected 1 <= clears_at <= rings_at and 1 <= needed <= window")
        self._window, self._needed = window, needed
        self._rings_at, self._clears_at = rings_at, clears_at
        self._ratios: dict[str, deque[float]] = {}
        self._seen: dict[str, int] = {}
        self._ringing: set[str] = set()

    def observe(self, step: str, measured_ms: float, baseline_ms: float) -> bool:
        """Note one raw measurement beside its baseline's median; return whether the step rings."""
        ratios = self._ratios.setdefault(step, deque(maxlen=self._window))
        ratios.append(measured_ms / baseline_ms)
        self._seen[step] = seen = self._seen.get(step, 0) + 1
        if len(ratios) >= self._needed and seen % self._EVERY == 0:
            middle = median(ratios)
            if middle > self._rings_at:
                self._ringing.add(step)
            elif middle < self._clears_at:
                self._ringing.discard(step)
        return step in self._ringing

    @property
    def ringing(self) -> frozenset[str]:
        """Return the steps whose baseline does not hold."""
        return frozenset(self._ringing)


class EscalationRate:
    """Track, per plan, the share of frames whose first rule said go on: a mean over about the last 200."""

    _WEIGHT = 0.01

    def __init__(self) -> None:
        self._shares: dict[str, tuple[int, float]] = {}

    def observe(self, plan: str, escalated: bool) -> None:
        """Note one decision of a plan's first rule."""
        seen, share = self._shares.get(plan, (0, 0.0))
        # A plain mean at first, so that the first frame does not weigh like all before it.
        weight = max(self._WEIGHT, 1.0 / (seen + 1))
        self._shares[plan] = (seen + 1, share + weight * (escalated - share))

    def shares(self) -> Mapping[str, float]:
        """Return the share of every plan that has decided at least once."""
        return {plan: share for plan, (_, share) in self._shares.items()}


@dataclass(frozen=True, slots=True)
class Signal:
    """Something watched: a feature or a class of a variant's answers, or a plan's share of escalations.

    height: how far its sum has come, 1 where it rings.
    """

    subject: str
    name: str
    height: float
    rings: bool


ESCALATIONS = "escalations"
# Of a plan that sent next to nothing on in calibration, or next to everything.
_LEAST_SHARE = 0.02


class _Watch:
    """Sums of one variant's or plan's numbers, fed at most once per interval."""

    def __init__(
        self, names: tuple[str, ...], mean: NDArray[np.float64], spread: NDArray[np.float64]
    ) -> None:
        self.names = names
        self.sums = Cusum(mean, spread)
        self.due_ns = 0


class DistributionDrift:
    """Watch the first answers of plans and the plans' decisions against calibration.

    interval_s: neighbouring frames of a camera are nearly one frame, so that a variant or plan is looked at
    no more often than this. Written on the event loop; `due` may be asked from any thread.
    """

    def __init__(
        self,
        references: Sequence[Reference],
        plans: Sequence[Plan],
        classes: tuple[str, ...],
        clock: Clock,
        *,
        interval_s: float = 0.2,
    ) -> None:
        self._clock, self._interval_ns = clock, round(interval_s * 1e9)
        names = (*TRACKED, *(f"class {name}" for name in classes))
        self._variants = {
            reference.variant: _Watch(names, np.asarray(reference.mean), np.asarray(reference.spread))
            for reference in references
        }
        self._plans: dict[str, _Watch] = {}
        for plan in plans:
            if len(plan.stages) > 1 and plan.accuracy:
                share = min(max(plan.accuracy[0].escalated[0], _LEAST_SHARE), 1.0 - _LEAST_SHARE)
                spread = math.sqrt(share * (1.0 - share))
                self._plans[plan.name] = _Watch((ESCALATIONS,), np.array([share]), np.array([spread]))

    def due(self, variant: str) -> bool:
        """Return whether an answer of this variant would be looked at now."""
        watch = self._variants.get(variant)
        return watch is not None and self._clock.now_ns() >= watch.due_ns

    def observe(self, variant: str, observed: NDArray[np.float64]) -> None:
        """Note an answer of a variant as `model_repo.reference.observation` describes it."""
        self._feed(self._variants.get(variant), observed)

    def decided(self, plan: str, escalated: bool) -> None:
        """Note a decision of a plan's first rule."""
        self._feed(self._plans.get(plan), np.array([float(escalated)]))

    def _feed(self, watch: _Watch | None, values: NDArray[np.float64]) -> None:
        now_ns = self._clock.now_ns()
        if watch is not None and now_ns >= watch.due_ns:
            watch.due_ns = now_ns + self._interval_ns
            watch.sums.observe(values)

    def voids(self, plan: Plan) -> bool:
        """Return whether a plan's certificate does not hold at present."""
        watches = (self._variants.get(plan.stages[0].variant), self._plans.get(plan.name))
        return any(watch is not None and bool(watch.sums.ringing.any()) for watch in watches)

    def signals(self) -> tuple[Signal, ...]:
        """Return everything that is watched."""
        return tuple(
            Signal(subject, name, float(height), bool(rings))
            for watches in (self._variants, self._plans)
            for subject, watch in watches.items()
            for name, height, rings in zip(
                watch.names, watch.sums.height.tolist(), watch.sums.ringing.tolist(), strict=True
            )
        )
