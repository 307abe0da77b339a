"""What a run says about the gateway, and whether it says anything at all.

A run is VALID when the q-quantile of latency over *all* requests of the schedule keeps the budget, a request
without an answer counting as infinitely late:

    #{i : answered, latency_i <= budget} >= q · n            (attainment >= q)

so shedding cannot buy a good percentile. And it must be able to say so:

  * the generator held the schedule: its p99 issue delay stays below a bound, every request was sent;
  * there are enough samples: with n of them the slowest lies above the true q-quantile with probability
    1 - q^n, which must reach the confidence asked for, n >= ln(1 - confidence) / ln q (299 for p99, 95 %).

The sample rule is the zero-miss case of early stopping in MLPerf Inference (LoadGen, `early_stopping`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.latencies import Latencies
from loadtest.sample import OUTCOMES, Outcome, Sample
from model_repo.detections import Detections
from model_repo.scoring import Score, Truth, score


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a run is judged by; raises ValueError when a number makes no sense."""

    budget_ms: float
    quantile: float = 0.99
    confidence: float = 0.95
    issue_delay_ms: float = 10.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.budget_ms) and self.budget_ms > 0):
            raise ValueError(f"the budget must be positive and finite, got {self.budget_ms} ms")
        if not (0 < self.quantile < 1 and 0 < self.confidence < 1):
            raise ValueError(f"quantile and confidence lie inside (0, 1), got {self}")
        if not self.issue_delay_ms > 0:
            raise ValueError(f"the bound on issue delay must be positive, got {self.issue_delay_ms} ms")

    @property
    def minimum_samples(self) -> int:
        """Return how many samples it takes to speak of the quantile."""
        return math.ceil(math.log1p(-self.confidence) / math.log(self.quantile))


@dataclass(frozen=True, slots=True)
class Group:
    """The answered requests that took one way: a plan, and how far into it they came."""

    plan: str
    stages: tuple[str, ...]
    share: float
    latency: Latencies


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judged run. Latencies are None when nothing of the kind happened; shares are of answered requests.

    latency counts from the scheduled time, service from the sent time. `accuracy` is of what came,
    `effective` has every late or missing answer empty; both are None when the frames carry no labels.
    """

    valid: bool
    reasons: tuple[str, ...]
    conditions: Conditions
    requests: int
    outcomes: tuple[tuple[Outcome, int], ...]
    details: tuple[tuple[str, int], ...]
    offered_hz: float
    answered_hz: float
    attainment: float
    latency: Latencies | None
    service: Latencies | None
    issue_delay: Latencies | None
    groups: tuple[Group, ...]
    cuts: tuple[tuple[str, int], ...]
    escalated: float
    accuracy: Score | None
    effective: Score | None


def judge(
    samples: Sequence[Sample], conditions: Conditions, truths: Sequence[Truth], classes: Sequence[str]
) -> Verdict:
    """Judge a run; `truths` has one entry per frame, boxes numbered by `classes`.

    Raises ValueError when there are no samples at all.
    """
    if not samples:
        raise ValueError("a run without a request cannot be judged")
    answered = [sample for sample in samples if sample.answered]
    attained = attainment(samples, conditions.budget_ms)
    outcomes = Counter(sample.reply.outcome for sample in samples)
    issue_delay = Latencies.of(s.issue_delay_ms for s in samples if s.reply.outcome != "unsent")
    reasons = _reasons(len(samples), outcomes, attained, issue_delay, conditions)
    sent_s = max(sample.scheduled_ns for sample in samples) / 1e9
    done_s = max(sample.done_ns for sample in samples) / 1e9
    return Verdict(
        valid=not reasons,
        reasons=reasons,
        conditions=conditions,
        requests=len(samples),
        outcomes=tuple((outcome, outcomes[outcome]) for outcome in OUTCOMES if outcomes[outcome]),
        details=tuple(
            Counter(s.reply.detail or "(no reason given)" for s in samples if not s.answered).most_common(10)
        ),
        offered_hz=(len(samples) - 1) / sent_s if sent_s > 0 else 0.0,
        answered_hz=len(answered) / done_s if done_s > 0 else 0.0,
        attainment=attained,
        latency=Latencies.of(sample.latency_ms for sample in answered),
        service=Latencies.of(sample.service_ms for sample in answered),
        issue_delay=issue_delay,
        groups=_groups(answered),
        cuts=tuple(Counter(s.reply.cut for s in answered if s.reply.cut is not None).most_common()),
        escalated=sum(len(s.reply.stages) > 1 for s in answered) / len(answered) if answered else 0.0,
        accuracy=_accuracy(answered, truths, classes, None),
        effective=_accuracy(samples, truths, classes, conditions.budget_ms),
    )


def attainment(samples: Sequence[Sample], budget_ms: float) -> float:
    """Return the share of all requests that were answered within `budget_ms` of their scheduled time."""
    return sum(sample.met(budget_ms) for sample in samples) / len(samples)


def _reasons(
    requests: int,
    outcomes: Counter[Outcome],
    attained: float,
    issue_delay: Latencies | None,
    conditions: Conditions,
) -> tuple[str, ...]:
    reasons = []
    if outcomes["unsent"]:
        reasons.append(f"the generator could not send {outcomes['unsent']} of {requests} requests")
    if issue_delay is not None and issue_delay.p99_ms > conditions.issue_delay_ms:
        reasons.append(
            f"the generator fell behind: p99 issue delay {issue_delay.p99_ms:.1f} ms,"
            f" bound {conditions.issue_delay_ms:g} ms; the run says nothing about the gateway"
        )
    if requests < conditions.minimum_samples:
        reasons.append(
            f"{requests} requests are too few for p{conditions.quantile * 100:g} at"
            f" {conditions.confidence:.0%} confidence: {conditions.minimum_samples} are needed"
        )
    if attained < conditions.quantile:
        reasons.append(
            f"{attained:.2%} of all requests were answered within {conditions.budget_ms:g} ms of their"
            f" scheduled time, {conditions.quantile:.2%} must be"
        )
    return tuple(reasons)


def _groups(answered: Sequence[Sample]) -> tuple[Group, ...]:
    ways: dict[tuple[str, tuple[str, ...]], list[float]] = {}
    for sample in answered:
        way = (sample.reply.plan or "(not said)", sample.reply.stages)
        ways.setdefault(way, []).append(sample.latency_ms)
    return tuple(
        Group(plan, stages, len(times) / len(answered), latency)
        for (plan, stages), times in sorted(ways.items(), key=lambda item: -len(item[1]))
        if (latency := Latencies.of(times)) is not None
    )


def _accuracy(
    samples: Sequence[Sample], truths: Sequence[Truth], classes: Sequence[str], budget_ms: float | None
) -> Score | None:
    """Score the answers, each request as an image of its own; beyond a budget an answer is worth nothing."""
    of_samples = [truths[sample.frame] for sample in samples]
    if not any(len(truth.label) for truth in of_samples):
        return None
    answers = [
        sample.reply.detections if budget_ms is None or sample.met(budget_ms) else Detections.empty()
        for sample in samples
    ]
    return score(of_samples, answers, len(classes))
