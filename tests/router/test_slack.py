"""Giving way to those who wait."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_repo.publish import Repository
from router.engines import ServedPoint
from router.slack import SHARE, bearable_ms, giving_way

LEFT = st.lists(st.floats(-50.0, 200.0, allow_nan=False), max_size=12)


def test_with_nobody_waiting_there_is_no_bound() -> None:
    """An empty queue costs no accuracy."""
    assert bearable_ms([], 2, 1.0) == math.inf


@pytest.mark.parametrize(
    ("left_ms", "workers", "rounds"), [([40.0], 1, 2.0), ([40.0], 2, 1.5), ([90.0, 40.0, 90.0], 1, 3.0)]
)
def test_the_tightest_of_those_queued_sets_the_bound(
    left_ms: list[float], workers: int, rounds: float
) -> None:
    """Whoever has least time for the rounds before and of its own turn decides."""
    assert bearable_ms(left_ms, workers, 1.0) == pytest.approx(SHARE * 40.0 / rounds)


@given(LEFT, st.integers(1, 8), st.floats(0.0, 20.0))
def test_one_more_in_the_queue_never_allows_more(left_ms: list[float], workers: int, least_ms: float) -> None:
    """The bound falls with every request behind."""
    bounds = [bearable_ms(left_ms[:count], workers, least_ms) for count in range(len(left_ms) + 1)]
    assert all(longer <= shorter for shorter, longer in pairwise(bounds))


@given(LEFT, st.lists(st.floats(-50.0, 4.9), max_size=5), st.integers(1, 8))
def test_who_cannot_be_saved_hurries_nobody(left_ms: list[float], lost_ms: list[float], workers: int) -> None:
    """A request for which even the cheapest plan comes too late is refused at its turn and takes none."""
    assert bearable_ms([*lost_ms, *left_ms], workers, 5.0) == bearable_ms(left_ms, workers, 5.0)


def test_who_has_no_deadline_takes_a_turn_but_sets_no_bound() -> None:
    """However long it has waited."""
    assert bearable_ms([math.inf], 1, 5.0) == math.inf
    assert bearable_ms([math.inf, 60.0], 1, 5.0) == pytest.approx(SHARE * 60.0 / 3.0)


def test_the_costliest_that_those_queued_can_bear_is_taken(repository: Repository) -> None:
    """Down to the cheapest, which is taken even where it is too much."""
    plans = {plan.name: plan for plan in repository.frontier.plans}
    choices = [ServedPoint(name, plans[name], name) for name in ("tiny-1", "tiny-0")]
    cost_ms = {"tiny-1": 10.0, "tiny-0": 3.0}.__getitem__
    taken = {left: giving_way(choices, cost_ms, [left], 1).name for left in (60.0, 30.0, 6.5)}
    assert taken == {60.0: "tiny-1", 30.0: "tiny-0", 6.5: "tiny-0"}
