"""What counts as an accurate answer in time, and what follows from it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.peers.goodput import (
    RUSH,
    Served,
    best_model,
    candidates,
    held,
    rush_ns,
    rush_seconds,
    serve_of,
)
from model_repo.detections import Detections
from model_repo.scoring import Truth
from tests.loadtest.scripted import sample

BOX = (10.0, 10.0, 50.0, 50.0)
TRUTH = Truth(np.array([BOX], np.float32), np.array([0]), np.array([False]))
RIGHT = Detections.make([BOX], [0.9], [0])


def served(rate_hz: float, attainment: float, effective_map: float) -> Served:
    return Served(
        rate_hz=rate_hz,
        requests=100,
        attainment=attainment,
        p50_ms=5.0,
        p99_ms=20.0,
        effective_map=effective_map,
        mean_map=effective_map,
        issue_delay_ms=0.1,
    )


def test_right_answers_in_time_count_in_full() -> None:
    """Where every answer is right and in time, the goodput is the rate."""
    run = serve_of([sample(i * 10, 5, detections=RIGHT) for i in range(20)], 0.5, 50, [TRUTH], 1)
    assert (run.rate_hz, run.attainment) == (40.0, 1.0)
    assert run.goodput == pytest.approx(40.0)
    assert run.holds


def test_late_and_missing_answers_are_empty() -> None:
    """A late answer and a refused request add to the rate that was offered and nothing to the accuracy."""
    samples = [sample(i, 5, detections=RIGHT) for i in range(50)]
    samples += [sample(i, 51, detections=RIGHT) for i in range(25)]
    samples += [sample(i, 1, outcome="shed") for i in range(25)]
    run = serve_of(samples, 1.0, 50, [TRUTH], 1)
    assert run.attainment == 0.5
    # The recalls that COCO reads, 0 to 1 by 0.01, are met up to the half.
    assert run.effective_map == pytest.approx(51 / 101)
    assert run.mean_map == pytest.approx(76 / 101)
    assert not run.holds


def test_a_run_without_an_answer_is_worth_nothing() -> None:
    """A server that answers nothing has no latency and no goodput; a run without requests is refused."""
    run = serve_of([sample(0, 1, outcome="failed")], 1.0, 50, [TRUTH], 1)
    assert (run.p99_ms, run.goodput) == (None, 0.0)
    with pytest.raises(ValueError, match="without a request"):
        serve_of([], 1.0, 50, [TRUTH], 1)


@given(st.lists(st.floats(1, 200), min_size=1, max_size=30), st.floats(1, 200), st.floats(1, 200))
def test_a_larger_budget_never_costs_goodput(latencies: list[float], one: float, two: float) -> None:
    """Goodput and attainment grow with the budget."""
    samples = [sample(i, latency, detections=RIGHT) for i, latency in enumerate(latencies)]
    small, large = (serve_of(samples, 1.0, budget, [TRUTH], 1) for budget in sorted((one, two)))
    assert small.goodput <= large.goodput + 1e-12
    assert small.attainment <= large.attainment


def test_only_rates_that_keep_the_budget_are_held() -> None:
    """The held goodput is the best among the rates at which 99 % came in time, not the highest rate's."""
    fast, accurate, broken = served(200, 0.992, 0.5), served(150, 1.0, 0.8), served(300, 0.9, 0.8)
    assert held([fast, accurate, broken]) == accurate
    assert held([broken]) is None


def test_the_trace_climbs_and_falls() -> None:
    """Every step of the trace has its share of the unit as its rate; one seed gives one trace."""
    times = rush_ns(1_000, 2.0, np.random.default_rng(3))
    assert (np.diff(times) >= 0).all()
    assert times[0] >= 0
    assert times[-1] < rush_seconds(2.0) * 1e9
    counts = np.histogram(times / 1e9, bins=np.arange(len(RUSH) + 1) * 2.0)[0]
    expected = np.array(RUSH) * 2_000
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()
    assert np.array_equal(times, rush_ns(1_000, 2.0, np.random.default_rng(3)))


_COSTS = st.dictionaries(
    st.sampled_from("abcdef"), st.tuples(st.floats(1, 30), st.floats(0.1, 0.9)), min_size=1
)


@given(_COSTS, st.sampled_from([1.0, 2.0, 4.0, 8.0, 16.0]))
def test_the_best_model_for_any_overhead_is_tried(
    models: dict[str, tuple[float, float]], added_ms: float
) -> None:
    """Whatever a server adds to each request, the model of most goodput then is among those tried."""
    cost = {name: ms for name, (ms, _) in models.items()}
    accuracy = {name: found for name, (_, found) in models.items()}
    rate = {name: 1 / (cost[name] + added_ms) for name in models}
    tried = candidates(cost, accuracy)
    best = max(rate[name] * accuracy[name] for name in models)
    assert max(rate[name] * accuracy[name] for name in tried) == pytest.approx(best)
    assert [cost[name] for name in tried] == sorted(cost[name] for name in tried)


def test_a_server_holds_its_best_model() -> None:
    """Of the models that a server was tried with it holds the one of most mAP-weighted answers per second."""
    assert best_model({"small": 100, "large": 80}, {"small": 0.6, "large": 0.8}) == "large"
    assert best_model({"small": 100, "large": 60}, {"small": 0.6, "large": 0.8}) == "small"
