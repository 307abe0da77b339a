"""Which plan a frame starts with and, before each later stage, whether to go on: pure functions of numbers.

A step is started only when its predicted p99 fits what is left of the budget:

    decode + stage + answering ≤ left,   each term = quantile(profile at the present concurrency) · slow-down

Whoever asks for a plan never gets a costlier one. When its first stage does not fit, the costliest plan whose
first stage does takes its place, and the answer says so; when none fits, the request is refused at once
instead of answered late. A cascade needs only its first stage to fit: whether the next one does is asked
again when it is known how long the first one took.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from model_repo.frontier import Plan
from model_repo.latency import Histogram, LatencyProfile, at_concurrency

QUANTILE = 0.99
DECODE = "decode"
CutReason = Literal["deadline", "engine"]


class SlowDownFactors(Protocol):
    """Tell how much longer a step takes at present than its profile says."""

    def factor(self, step: str) -> float:
        """Return the factor of a variant, or of DECODE; 1 when nothing is known."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A stage that was not run, of which plan, and why; the answer that carries it has no certificate."""

    stage: str
    plan: str
    reason: CutReason
    needed_ms: float
    left_ms: float


@dataclass(frozen=True, slots=True)
class Start:
    """The plan to run; `cut` is set when it takes the place of the plan that was asked for."""

    plan: Plan
    cut: Cut | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Nothing fits: the fastest plan that may answer needs `idle_ms` on an idle gateway, `needed_ms` now."""

    idle_ms: float
    needed_ms: float
    left_ms: float

    @property
    def hopeless(self) -> bool:
        """Return whether the budget is too small even without load."""
        return self.left_ms < self.idle_ms


class Costs:
    """Predicted latency of every step, from the profiles in force and the slow-down seen online.

    answer_ms: what is kept back for fusing, encoding and sending an answer.
    """

    def __init__(
        self,
        decode: Histogram,
        profiles: Mapping[str, Sequence[LatencyProfile]],
        slow_down: SlowDownFactors,
        *,
        answer_ms: float,
    ) -> None:
        self._decode_ms = decode.quantile_ms(QUANTILE)
        self._quantiles_ms = {name: _by_busy(measured) for name, measured in profiles.items()}
        self._slow_down = slow_down
        self.answer_ms = answer_ms

    def decode_ms(self) -> float:
        """Return the predicted p99 of decoding a frame now."""
        return self._decode_ms * self._slow_down.factor(DECODE)

    def stage_ms(self, variant: str, busy: int) -> float:
        """Return the predicted p99 of a stage now, with `busy` workers at work, the asking one included."""
        return self._profile_ms(variant, busy) * self._slow_down.factor(variant)

    def slow_down(self, variant: str) -> float:
        """Return how much longer a variant takes now than its profile says."""
        return self._slow_down.factor(variant)

    def idle_ms(self, variant: str) -> float:
        """Return the p99 of a frame through one stage on an idle gateway, as fast as it was measured."""
        return self._decode_ms + self._profile_ms(variant, 1) + self.answer_ms

    def _profile_ms(self, variant: str, busy: int) -> float:
        quantiles = self._quantiles_ms[variant]
        return quantiles[min(max(busy, 1), len(quantiles)) - 1]


def _by_busy(measured: Sequence[LatencyProfile]) -> tuple[float, ...]:
    """Return the quantile for 1, 2, … workers at work."""
    most = max(profile.concurrency for profile in measured)
    return tuple(at_concurrency(measured, busy).quantile_ms(QUANTILE) for busy in range(1, most + 1))


class Planner:
    """Choose among the plans that this gateway can run."""

    def __init__(
        self,
        plans: Sequence[Plan],
        mean_ms: Mapping[str, float],
        costs: Costs,
        busy_ms: Mapping[str, float] | None = None,
        alone: Sequence[Plan] = (),
    ) -> None:
        """Order plans by `mean_ms`, what a frame costs on average with each of them, by name.

        busy_ms: that with every worker at work, where it is something else. alone: plans that neither take
        another's place nor have one that takes theirs.
        """
        if not plans:
            raise ValueError("a planner needs at least one plan")
        self._costs, self._busy_ms = costs, mean_ms if busy_ms is None else busy_ms
        costliest_first = sorted(plans, key=lambda plan: -mean_ms[plan.name])
        self._candidates = {
            plan.name: (
                plan,
                *(other for other in costliest_first if mean_ms[other.name] < mean_ms[plan.name]),
            )
            for plan in plans
        } | {plan.name: (plan,) for plan in alone}
        # What a plan needs to begin depends on its first variant alone, of which there are few.
        self._firsts = {
            name: tuple(dict.fromkeys(plan.stages[0].variant for plan in candidates))
            for name, candidates in self._candidates.items()
        }
        self._idle_ms = {
            name: min(costs.idle_ms(variant) for variant in firsts) for name, firsts in self._firsts.items()
        }

    def admit(self, asked: str, left_ms: float, wait_ms: float, busy: int) -> Refusal | None:
        """Say whether any plan can still answer a frame that first waits `wait_ms` and is then decoded.

        asked: name of the plan asked for. busy: workers at work once the frame runs. Raises KeyError.
        """
        firsts = self._firsts[asked]
        if left_ms == math.inf:
            return None
        fixed_ms = wait_ms + self._costs.decode_ms() + self._costs.answer_ms
        needed_ms = fixed_ms + min(self._costs.stage_ms(variant, busy) for variant in firsts)
        if needed_ms <= left_ms:
            return None
        return Refusal(self._idle_ms[asked], needed_ms, left_ms)

    def start(self, asked: str, left_ms: float, busy: int) -> Start | Refusal:
        """Choose the plan for a decoded frame; raises KeyError on a plan that is not run here."""
        candidates = self._candidates[asked]
        if left_ms == math.inf:
            return Start(candidates[0])
        wanted_ms = self._first_ms(candidates[0], busy) + self._costs.answer_ms
        if wanted_ms <= left_ms:
            return Start(candidates[0])
        fastest_ms = wanted_ms
        for plan in candidates[1:]:
            needed_ms = self._first_ms(plan, busy) + self._costs.answer_ms
            if needed_ms <= left_ms:
                first = candidates[0].stages[0].variant
                return Start(plan, Cut(first, candidates[0].name, "deadline", wanted_ms, left_ms))
            fastest_ms = min(fastest_ms, needed_ms)
        return Refusal(self._idle_ms[asked], fastest_ms, left_ms)

    def busy_ms(self, plan: str) -> float:
        """Return what a frame costs on average with a plan now, every worker at work; raises KeyError."""
        return self._busy_ms[plan] * self._costs.slow_down(self._candidates[plan][0].stages[0].variant)

    def go_on(self, plan: Plan, stage: int, left_ms: float, busy: int) -> Cut | None:
        """Say whether stage number `stage` of a plan may start; a Cut says why it may not."""
        needed_ms = self._costs.stage_ms(plan.stages[stage].variant, busy) + self._costs.answer_ms
        return None if needed_ms <= left_ms else self.cut(plan, stage, "deadline", left_ms, busy)

    def cut(self, plan: Plan, stage: int, reason: CutReason, left_ms: float, busy: int) -> Cut:
        """Describe a stage of a plan that is not run."""
        variant = plan.stages[stage].variant
        needed_ms = self._costs.stage_ms(variant, busy) + self._costs.answer_ms
        return Cut(variant, plan.name, reason, needed_ms, left_ms)

    def refuse(self, plan: Plan, left_ms: float) -> Refusal:
        """Describe a request whose first stage was not answered within the `left_ms` that it had."""
        return Refusal(0.0, self._idle_ms[plan.name], left_ms)

    def _first_ms(self, plan: Plan, busy: int) -> float:
        return self._costs.stage_ms(plan.stages[0].variant, busy)
