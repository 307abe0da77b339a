"""The verdict."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.sample import Sample
from loadtest.verdict import Conditions, attainment, judge
from model_repo.detections import Detections
from model_repo.scoring import Truth
from tests.loadtest.scripted import sample

CLASSES = ("red", "green")
BLANK = Truth(np.empty((0, 4), np.float32), np.empty(0, np.int64), np.empty(0, np.bool_))
ONE_BOX = Truth(np.array([[10, 10, 30, 30]], np.float32), np.array([1], np.int64), np.array([False]))
SEEN = Detections.make([[10, 10, 30, 30]], [0.9], [1])
BUDGET = Conditions(budget_ms=50.0)


def steady(count: int, latency_ms: float = 20.0) -> list[Sample]:
    """Return `count` answers, all equally fast."""
    return [sample(10.0 * i, latency_ms) for i in range(count)]


def test_a_run_in_time_with_enough_requests_is_valid() -> None:
    """700 answers within the budget are VALID, with their rates and percentiles."""
    verdict = judge(steady(700), BUDGET, [BLANK], CLASSES)
    assert verdict.estimate_ms == 20.0
    assert verdict.valid
    assert verdict.reasons == ()
    assert verdict.attainment == 1.0
    assert verdict.outcomes == (("answered", 700),)
    assert verdict.latency is not None
    assert verdict.latency.p99_ms == pytest.approx(20.0, rel=0.002)
    assert verdict.offered_hz == pytest.approx(100.0)
    assert verdict.accuracy is None


def test_too_few_requests_are_invalid_though_none_was_late() -> None:
    """For p99 at 99 % confidence 459 samples are needed: one less makes the run INVALID."""
    assert BUDGET.minimum_samples == 459
    assert judge(steady(459), BUDGET, [BLANK], CLASSES).valid
    verdict = judge(steady(458), BUDGET, [BLANK], CLASSES)
    assert not verdict.valid
    assert "too few" in verdict.reasons[0]


def test_as_many_may_be_late_as_the_early_stopping_rule_allows() -> None:
    """One late takes 662 requests to show p99; a share below 1 % that shows nothing yet is told apart from
    one above."""
    late = [sample(10.0 * i, 51.0) for i in range(4)]
    assert judge(steady(661) + late[:1], BUDGET, [BLANK], CLASSES).valid
    not_shown = judge(steady(660) + late[:1], BUDGET, [BLANK], CLASSES)
    assert "of 661 requests 1 were late, for 99.00% confidence that takes 662" in not_shown.reasons[0]
    assert (not_shown.late, not_shown.allowed) == (1, 0)
    missed = judge(steady(595) + 2 * late, BUDGET, [BLANK], CLASSES)
    assert not missed.valid
    assert missed.reasons[0].startswith("98.67% of all requests were answered within 50 ms")
    assert "shown" not in missed.reasons[0]


def test_a_tolerance_and_another_quantile_change_what_is_needed() -> None:
    """p99.9 takes 4,603 requests, 4,185 with a tolerance of 0.0001 put off it."""
    assert Conditions(50.0, quantile=0.999).minimum_samples == 4603
    assert Conditions(50.0, quantile=0.999, tolerance=0.0001).minimum_samples == 4185
    assert Conditions(50.0, quantile=0.999).percentile == "p99.9"


def test_an_effective_accuracy_can_be_asked_for() -> None:
    """Too little of it makes a run INVALID, and so does asking for it of frames without labels."""
    asked = Conditions(budget_ms=50.0, effective_map=0.9)
    seen = [sample(10.0 * i, 20.0, detections=SEEN) for i in range(459)]
    assert judge(seen, asked, [ONE_BOX], CLASSES).valid
    blind = judge(steady(459), asked, [ONE_BOX], CLASSES)
    assert blind.reasons == ("effective mAP 0.000, at least 0.9 is asked for",)
    assert "no labels" in judge(steady(459), asked, [BLANK], CLASSES).reasons[0]


def test_shedding_does_not_buy_a_good_percentile() -> None:
    """Refused requests count as misses although every answer that came was in time."""
    shed = [sample(10.0 * i, 1.0, outcome="shed", detail="overload") for i in range(30)]
    verdict = judge(steady(600) + shed, BUDGET, [BLANK], CLASSES)
    assert not verdict.valid
    assert dict(verdict.outcomes) == {"answered": 600, "shed": 30}
    assert verdict.details == (("overload", 30),)
    assert verdict.latency is not None
    assert verdict.latency.p99_ms < 50.0


def test_a_generator_that_fell_behind_is_invalid_not_slow() -> None:
    """Issue delay over its bound is INVALID even when every answer was in time."""
    behind = [sample(10.0 * i, 30.0, issue_delay_ms=15.0) for i in range(459)]
    verdict = judge(behind, BUDGET, [BLANK], CLASSES)
    assert verdict.attainment == 1.0
    assert [reason[:26] for reason in verdict.reasons] == ["the generator fell behind:"]


def test_a_request_that_was_not_sent_is_invalid() -> None:
    """A generator that could not send everything says so."""
    verdict = judge([*steady(600), sample(0.0, 0.0, outcome="unsent")], BUDGET, [BLANK], CLASSES)
    assert "could not send 1 of 601" in verdict.reasons[0]


def test_accuracy_counts_what_came_and_effective_accuracy_what_came_in_time() -> None:
    """Late and missing answers leave mAP alone and take effective mAP down to the share in time."""
    good = [sample(10.0 * i, 20.0, detections=SEEN) for i in range(6)]
    late = [sample(10.0 * i, 90.0, detections=SEEN) for i in range(2)]
    shed = [sample(10.0 * i, 1.0, outcome="shed") for i in range(2)]
    verdict = judge(good + late + shed, BUDGET, [ONE_BOX], CLASSES)
    assert verdict.accuracy is not None
    assert verdict.effective is not None
    assert verdict.accuracy.map == pytest.approx(1.0)
    assert verdict.effective.map == pytest.approx(0.6, abs=0.01)


def test_answers_are_grouped_by_plan_and_stages() -> None:
    """Shares of plans and stages add up to one, the most frequent first; escalation is their later stages."""
    small = steady(30)
    both = [sample(10.0 * i, 40.0, plan="cascade", stages=("small", "large")) for i in range(10)]
    verdict = judge(small + both, BUDGET, [BLANK], CLASSES)
    assert [(g.plan, g.stages, g.share) for g in verdict.groups] == [
        ("small", ("small",), 0.75),
        ("cascade", ("small", "large"), 0.25),
    ]
    assert verdict.escalated == 0.25


@settings(deadline=None)
@given(latencies_ms=st.lists(st.floats(0.1, 100.0), min_size=1, max_size=60), budget_ms=st.floats(1.0, 90.0))
def test_a_looser_budget_never_lowers_attainment(latencies_ms: list[float], budget_ms: float) -> None:
    """Attainment grows with the budget and lies in [0, 1]."""
    samples = [sample(10.0 * i, latency) for i, latency in enumerate(latencies_ms)]
    tight = attainment(samples, budget_ms)
    loose = attainment(samples, budget_ms * 1.1)
    assert 0.0 <= tight <= loose <= 1.0


def test_nothing_cannot_be_judged() -> None:
    """A run without requests and conditions without sense are a ValueError."""
    with pytest.raises(ValueError, match="without a request"):
        judge([], BUDGET, [BLANK], CLASSES)
    with pytest.raises(ValueError, match="budget"):
        Conditions(budget_ms=0.0)
    with pytest.raises(ValueError, match="run backwards"):
        sample(10.0, -1.0)
