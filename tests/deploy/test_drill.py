"""The faults that a watched gateway is put to."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from deploy.bench_monitoring import chosen
from deploy.demo import POINT, demo, stage_s
from deploy.drill import BUDGET_MS, FAULTS
from deploy.rules import Scale, alerts
from model_repo import publish
from router.planner import QUANTILE

REPO = Path(__file__).parents[2] / "model_repo"
# The most that `router.drift.SlowDown` takes a step for, and what is kept back for sending.
MOST_SLOWER, ANSWER_MS = 4.0, 1.0


def test_every_alert_has_one_fault() -> None:
    """No alert is left out, and none is waited for twice: what one fault leaves would spoil the other."""
    assert Counter(name for fault in FAULTS for name in fault.alerts) == Counter(
        {alert.name for alert in alerts(Scale())}
    )


def test_faults_are_chosen_by_a_part_of_their_name() -> None:
    """`--only` takes texts; without any it is all faults, in their order; an unknown one is told."""
    assert chosen(()) == FAULTS
    assert [fault.name for fault in chosen(("gateway ends", "key"))] == [
        "a wrong key is tried",
        "the gateway ends",
    ]
    with pytest.raises(ValueError, match=r"no fault 'flood'.*a camera sends too much"):
        chosen(("flood",))


def test_the_planner_goes_on_answering_whatever_is_interrupted() -> None:
    """Steps four times as slow as their profiles, the most that is learnt, still fit the budget."""
    frontier = demo(publish.read(REPO).frontier)
    plan = frontier.plan(next(point.plan for point in frontier.operating_points if point.name == POINT))
    first = frontier.variant(plan.stages[0].variant).on(plan.runtime).latency
    steps_ms = frontier.decode.quantile_ms(QUANTILE) + max(one.quantile_ms(QUANTILE) for one in first)
    assert MOST_SLOWER * steps_ms + ANSWER_MS < BUDGET_MS


def test_profiles_are_those_of_a_slower_machine() -> None:
    """The demo keeps to its profiles with as much again to spare; a stage's own time is what was measured."""
    before = publish.read(REPO).frontier
    frontier = demo(before)
    plan = frontier.plan(next(point.plan for point in frontier.operating_points if point.name == POINT))
    assert len(plan.stages) == 2
    measured = before.variant(plan.stages[0].variant).on(plan.runtime).latency[0]
    slower = frontier.variant(plan.stages[0].variant).on(plan.runtime).latency[0]
    assert slower.mean_ms == pytest.approx(2.0 * measured.mean_ms)
    assert stage_s(frontier) == pytest.approx(measured.quantile_ms(0.5) / 1e3, rel=1e-6)
