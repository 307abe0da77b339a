"""What a run says about the gateway, and whether it says anything at all.

A run is VALID when it shows, with the confidence asked for, that the q-quantile of latency over *all*
requests of the schedule keeps the budget. One that was refused, dropped, failed or answered late is late, so
shedding cannot buy a good percentile. With n requests and t of them late it shows that when

    P[Binomial(n, 1 − q) ≤ t] ≤ 1 − confidence,

which is MLPerf Inference's early-stopping rule, see `loadtest.early_stopping`. And it must be able to say so:
the generator held the schedule (its own p99 issue delay stays below a bound, every request was sent). Of
what else a run has to keep (an effective accuracy, a baseline) each is a check of its own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from loadtest.early_stopping import allowed_late, estimate_ms, requests_needed
from loadtest.latencies import Latencies
from loadtest.sample import OUTCOMES, Outcome, Sample
from model_repo.detections import Detections
from model_repo.scoring import Score, Truth, score

CheckName = Literal["generator", "samples", "latency", "accuracy", "baseline p50", "baseline p99"]


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a run is judged by; raises ValueError when a number makes no sense.

    tolerance: MLPerf's d, put off the quantile before it is tested. issue_delay_ms: bound on the generator's
    own p99 delay. effective_map: the least effective accuracy, None to ask for none.
    """

    budget_ms: float
    quantile: float = 0.99
    confidence: float = 0.99
    tolerance: float = 0.0
    issue_delay_ms: float = 10.0
    effective_map: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.budget_ms) and self.budget_ms > 0):
            raise ValueError(f"the budget must be positive and finite, got {self.budget_ms} ms")
        if not (0 < self.quantile < 1 and 0 < self.confidence < 1):
            raise ValueError(f"quantile and confidence lie inside (0, 1), got {self}")
        if not 0 <= self.tolerance < self.quantile:
            raise ValueError(f"the tolerance lies between 0 and the quantile, got {self.tolerance}")
        if not self.issue_delay_ms > 0:
            raise ValueError(f"the bound on issue delay must be positive, got {self.issue_delay_ms} ms")
        if self.effective_map is not None and not 0 <= self.effective_map <= 1:
            raise ValueError(f"an effective mAP lies between 0 and 1, got {self.effective_map}")

    @property
    def tested(self) -> float:
        """Return the quantile that is tested: the one asked for, less the tolerance."""
        return self.quantile - self.tolerance

    @property
    def percentile(self) -> str:
        """Return the quantile as people say it, such as p99.9."""
        return f"p{self.quantile * 100:.10g}"

    @property
    def minimum_samples(self) -> int:
        """Return how many samples it takes to speak of the quantile, when none of them is late."""
        return requests_needed(0, self.tested, self.confidence)

    def allowed_late(self, requests: int) -> int | None:
        """Return how many of so many requests may be late; None when they are too few to speak of."""
        return allowed_late(requests, self.tested, self.confidence)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that a run has to keep: what it was, whether it did, and why it did not or by how much."""

    name: CheckName
    passed: bool
    says: str


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

    planned: requests of the schedule, of which `requests` were due before the run ended. late: how many of
    them were not answered in time; allowed: how many might have been, None when they are too few.
    latency counts from the scheduled time, service from the sent time. estimate_ms: the early-stopping
    estimate of the quantile, None when there are too few requests or too many without an answer. `accuracy`
    is of what came, `effective` has every late or missing answer empty; both are None when the frames carry
    no labels.
    """

    checks: tuple[Check, ...]
    conditions: Conditions
    planned: int
    requests: int
    late: int
    allowed: int | None
    outcomes: tuple[tuple[Outcome, int], ...]
    details: tuple[tuple[str, int], ...]
    offered_hz: float
    answered_hz: float
    attainment: float
    latency: Latencies | None
    service: Latencies | None
    issue_delay: Latencies | None
    estimate_ms: float | None
    groups: tuple[Group, ...]
    cuts: tuple[tuple[str, int], ...]
    escalated: float
    accuracy: Score | None
    effective: Score | None

    @property
    def valid(self) -> bool:
        """Return whether everything was kept."""
        return all(check.passed for check in self.checks)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Return why the run is not valid."""
        return tuple(check.says for check in self.checks if not check.passed)

    @property
    def says_something(self) -> bool:
        """Return whether the generator did its part, so that the figures are the gateway's."""
        return all(check.passed for check in self.checks if check.name == "generator")


def judge(
    samples: Sequence[Sample],
    conditions: Conditions,
    truths: Sequence[Truth],
    classes: Sequence[str],
    *,
    planned: int | None = None,
) -> Verdict:
    """Judge a run; `truths` has one entry per frame, boxes numbered by `classes`.

    planned: requests of the schedule, where the run ended before all were due.
    Raises ValueError when there are no samples at all.
    """
    if not samples:
        raise ValueError("a run without a request cannot be judged")
    answered = [sample for sample in samples if sample.answered]
    attained = attainment(samples, conditions.budget_ms)
    outcomes = Counter(sample.reply.outcome for sample in samples)
    issue_delay = Latencies.of(s.issue_delay_ms for s in samples if s.reply.outcome != "unsent")
    effective = _accuracy(samples, truths, classes, conditions.budget_ms)
    late = sum(not sample.met(conditions.budget_ms) for sample in samples)
    estimate = estimate_ms(
        [sample.latency_ms if sample.answered else math.inf for sample in samples],
        conditions.tested,
        conditions.confidence,
    )
    sent_s = max(sample.scheduled_ns for sample in samples) / 1e9
    done_s = max(sample.done_ns for sample in samples) / 1e9
    return Verdict(
        checks=(
            _generator(outcomes["unsent"], len(samples), issue_delay, conditions),
            _samples(len(samples), conditions),
            _latency(len(samples), late, attained, conditions),
            *_accurate(effective, conditions),
        ),
        conditions=conditions,
        planned=len(samples) if planned is None else planned,
        requests=len(samples),
        late=late,
        allowed=conditions.allowed_late(len(samples)),
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
        estimate_ms=estimate if estimate is not None and math.isfinite(estimate) else None,
        groups=_groups(answered),
        cuts=tuple(Counter(s.reply.cut for s in answered if s.reply.cut is not None).most_common()),
        escalated=sum(len(s.reply.stages) > 1 for s in answered) / len(answered) if answered else 0.0,
        accuracy=_accuracy(answered, truths, classes, None),
        effective=effective,
    )


def attainment(samples: Sequence[Sample], budget_ms: float) -> float:
    """Return the share of all requests that were answered within `budget_ms` of their scheduled time."""
    return sum(sample.met(budget_ms) for sample in samples) / len(samples)


def _generator(unsent: int, requests: int, issue_delay: Latencies | None, conditions: Conditions) -> Check:
    said = []
    if unsent:
        said.append(f"the generator could not send {unsent} of {requests} requests")
    p99_ms = 0.0 if issue_delay is None else issue_delay.p99_ms
    if p99_ms > conditions.issue_delay_ms:
        said.append(
            f"the generator fell behind: p99 issue delay {p99_ms:.1f} ms, bound"
            f" {conditions.issue_delay_ms:g} ms: a core of its own or more senders may help;"
            " the run says nothing about the gateway"
        )
    kept = f"the generator kept the schedule, p99 issue delay {p99_ms:.2f} ms"
    return Check("generator", not said, "; ".join(said) or kept)


def _samples(requests: int, conditions: Conditions) -> Check:
    needed = conditions.minimum_samples
    enough = requests >= needed
    return Check(
        "samples",
        enough,
        f"{requests} requests are {'enough' if enough else 'too few'} for {conditions.percentile} at"
        f" {conditions.confidence:.2%} confidence: {needed} are needed",
    )


def _latency(requests: int, late: int, attained: float, conditions: Conditions) -> Check:
    says = (
        f"{attained:.2%} of all requests were answered within {conditions.budget_ms:g} ms of their"
        f" scheduled time, {conditions.quantile * 100:.10g}% must be"
    )
    if attained < conditions.quantile:
        return Check("latency", False, says)
    allowed = conditions.allowed_late(requests)
    if allowed is None or late > allowed:
        needed = requests_needed(late, conditions.tested, conditions.confidence)
        return Check(
            "latency",
            False,
            f"{says}, but that is not shown: of {requests} requests {late} were late, for"
            f" {conditions.confidence:.2%} confidence that takes {needed} requests",
        )
    return Check("latency", True, f"{says}; {late} were late, {allowed} might have been")


def _accurate(effective: Score | None, conditions: Conditions) -> tuple[Check, ...]:
    if conditions.effective_map is None:
        return ()
    if effective is None:
        return (Check("accuracy", False, "the frames carry no labels: there is no effective mAP"),)
    return (
        Check(
            "accuracy",
            effective.map >= conditions.effective_map,
            f"effective mAP {effective.map:.3f}, at least {conditions.effective_map:g} is asked for",
        ),
    )


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
