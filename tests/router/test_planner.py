"""Which plan starts, and whether a stage goes on."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_repo.publish import Repository
from router.planner import DECODE, Costs, Planner, Refusal, Start


@dataclass
class Factors:
    """Slow-down as a test sets it."""

    of: dict[str, float] = field(default_factory=dict)

    def factor(self, step: str) -> float:
        """Return what was set."""
        return self.of.get(step, 1.0)


def planner_of(repository: Repository, factors: Factors | None = None) -> tuple[Planner, Costs]:
    frontier = repository.frontier
    profiles = {variant.name: variant.on("openvino").latency for variant in frontier.variants}
    costs = Costs(frontier.decode, profiles, factors or Factors(), answer_ms=1.0)
    return Planner(frontier.plans, {plan.name: plan.mean_ms for plan in frontier.plans}, costs), costs


def test_a_plan_that_fits_is_run_as_asked(repository: Repository) -> None:
    """With enough left the plan asked for starts, uncut."""
    planner, _ = planner_of(repository)
    start = planner.start("tiny-1", 100.0, busy=1)
    assert isinstance(start, Start)
    assert (start.plan.name, start.cut) == ("tiny-1", None)


def test_a_cheaper_plan_takes_the_place_of_one_that_does_not_fit(repository: Repository) -> None:
    """The large model at 6 ms does not fit 5 ms: a plan that begins with the small one runs, and says so."""
    planner, _ = planner_of(repository)
    start = planner.start("tiny-1", 5.0, busy=1)
    assert isinstance(start, Start)
    assert start.plan.stages[0].variant == "tiny-0"
    assert start.cut is not None
    assert (start.cut.stage, start.cut.plan, start.cut.reason) == ("tiny-1", "tiny-1", "deadline")
    assert start.cut.needed_ms > start.cut.left_ms == 5.0


def test_nobody_gets_a_costlier_plan_than_asked(repository: Repository) -> None:
    """The fast plan stays the fast plan however much time there is."""
    planner, _ = planner_of(repository)
    start = planner.start("tiny-0", 1e6, busy=1)
    assert isinstance(start, Start)
    assert start.plan.name == "tiny-0"


def test_a_budget_below_the_idle_cost_is_hopeless(repository: Repository) -> None:
    """A budget too small for an idle gateway is refused as such."""
    planner, _ = planner_of(repository)
    refusal = planner.admit("tiny-1", 1.0, wait_ms=0.0, busy=1)
    assert isinstance(refusal, Refusal)
    assert refusal.hopeless


@pytest.mark.parametrize(("wait_ms", "factor"), [(50.0, 1.0), (0.0, 20.0)])
def test_a_budget_that_load_makes_too_small_is_not_hopeless(
    repository: Repository, wait_ms: float, factor: float
) -> None:
    """A queue or a slow machine refuses a budget that an idle gateway would meet, as load."""
    planner, _ = planner_of(repository, Factors({"tiny-0": factor}))
    refusal = planner.admit("tiny-0", 20.0, wait_ms=wait_ms, busy=1)
    assert isinstance(refusal, Refusal)
    assert not refusal.hopeless
    assert refusal.needed_ms > 20.0


def test_a_later_stage_starts_only_when_it_fits(repository: Repository) -> None:
    """Before the second stage its p99 and the answer's cost must fit what is left."""
    planner, costs = planner_of(repository)
    cascade = repository.frontier.plan("tiny-0-then-tiny-1")
    needed_ms = costs.stage_ms("tiny-1", 1) + 1.0
    assert planner.go_on(cascade, 1, needed_ms, busy=1) is None
    cut = planner.go_on(cascade, 1, needed_ms - 0.01, busy=1)
    assert cut is not None
    assert (cut.stage, cut.reason, cut.needed_ms) == ("tiny-1", "deadline", needed_ms)


def test_busy_workers_are_predicted_by_the_profile_of_their_number(repository: Repository) -> None:
    """Concurrency 2 has its own profile; more than was measured takes the highest."""
    _, costs = planner_of(repository)
    assert costs.stage_ms("tiny-0", 2) > costs.stage_ms("tiny-0", 1)
    assert costs.stage_ms("tiny-0", 7) == costs.stage_ms("tiny-0", 2)


def test_slow_down_scales_every_step(repository: Repository) -> None:
    """A factor of 3 makes decoding and stages three times as long."""
    _, plain = planner_of(repository)
    _, slowed = planner_of(repository, Factors({"tiny-0": 3.0, DECODE: 3.0}))
    assert slowed.stage_ms("tiny-0", 1) == pytest.approx(3 * plain.stage_ms("tiny-0", 1))
    assert slowed.decode_ms() == pytest.approx(3 * plain.decode_ms())


@given(left_ms=st.floats(0.1, 100), more_ms=st.floats(0, 100), asked=st.sampled_from(["tiny-0", "tiny-1"]))
def test_more_time_never_means_a_cheaper_plan(
    repository: Repository, left_ms: float, more_ms: float, asked: str
) -> None:
    """The plan that starts is monotone in the time that is left."""
    planner, _ = planner_of(repository)

    def cost(left: float) -> float:
        start = planner.start(asked, left, busy=1)
        return start.plan.mean_ms if isinstance(start, Start) else 0.0

    assert cost(left_ms + more_ms) >= cost(left_ms)
