"""The early-stopping bound, against scipy and direct computation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import betainc
from scipy.stats import binom

from loadtest.early_stopping import (
    Decision,
    allowed_late,
    estimate_ms,
    log_odds,
    requests_needed,
    surely_missed,
)

QUANTILES = st.sampled_from([0.5, 0.9, 0.95, 0.99, 0.999])
CONFIDENCES = st.floats(0.5, 0.999)


@settings(deadline=None)
@given(requests=st.integers(1, 3_000), quantile=QUANTILES)
def test_the_odds_are_the_binomial_tail_and_the_incomplete_beta(requests: int, quantile: float) -> None:
    """odds(n, t) is scipy's binomial distribution function and LoadGen's incomplete beta function."""
    late = np.arange(requests)
    odds = np.exp(log_odds(requests, quantile))[:-1]
    np.testing.assert_allclose(odds, binom.cdf(late, requests, 1 - quantile), rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(odds, betainc(requests - late, late + 1, quantile), rtol=1e-6, atol=1e-12)


def test_a_million_requests_are_computed_without_underflow() -> None:
    """Where single terms are below the least float, the sum still is what scipy says."""
    odds = log_odds(1_000_000, 0.99)
    for late in (9_000, 9_700, 10_000):
        assert odds[late] == pytest.approx(binom.logcdf(late, 1_000_000, 0.01), rel=1e-5)


@pytest.mark.parametrize(
    ("late", "quantile", "requests"), [(0, 0.99, 459), (1, 0.99, 662), (1, 0.9, 64), (0, 0.999, 4603)]
)
def test_mlperfs_numbers(late: int, quantile: float, requests: int) -> None:
    """At 99 % confidence p99 needs 459 requests with none late and 662 with one, p90 64 with one."""
    assert requests_needed(late, quantile, 0.99) == requests


@settings(deadline=None, max_examples=60)
@given(late=st.integers(0, 20), quantile=st.sampled_from([0.9, 0.95, 0.99]), confidence=CONFIDENCES)
def test_needed_and_allowed_are_each_others_inverse(late: int, quantile: float, confidence: float) -> None:
    """With the least number of requests so many may be late, with one less they may not."""
    needed = requests_needed(late, quantile, confidence)
    assert (allowed_late(needed, quantile, confidence) or 0) >= late
    assert binom.cdf(late, needed, 1 - quantile) <= 1 - confidence + 1e-9
    if needed - 1 > late:
        assert (allowed_late(needed - 1, quantile, confidence) or -1) < max(late, 0) or late == 0
        assert binom.cdf(late, needed - 1, 1 - quantile) > 1 - confidence - 1e-9


@settings(deadline=None)
@given(requests=st.integers(1, 4_000), quantile=QUANTILES, confidence=CONFIDENCES)
def test_no_run_both_passes_and_surely_misses(requests: int, quantile: float, confidence: float) -> None:
    """What may be late is below what is surely too much, and less than the plain share 1 − q allows."""
    allowed = allowed_late(requests, quantile, confidence)
    if allowed is None:
        assert quantile**requests > 1 - confidence - 1e-9
        return
    assert not surely_missed(requests, allowed, quantile, confidence)
    assert allowed <= (1 - quantile) * requests + 1
    tail = binom.sf(requests // 2 - 1, requests, 1 - quantile)
    if requests > 1 and abs(tail - (1 - confidence)) > 1e-9:
        assert surely_missed(requests, requests // 2, quantile, confidence) == (tail <= 1 - confidence)


def test_the_estimate_is_loadgens() -> None:
    """Of 662 requests the highest is p99's estimate, of 1,000 the third highest; of 661 there is none."""
    times = [float(number) for number in range(1, 1001)]
    assert estimate_ms(times[:661], 0.99, 0.99) is None
    assert estimate_ms(times[:662], 0.99, 0.99) == 662.0
    allowed = allowed_late(1000, 0.99, 0.99)
    assert allowed is not None
    assert estimate_ms(times, 0.99, 0.99) == 1001.0 - allowed
    assert estimate_ms([*times, *[math.inf] * 50], 0.99, 0.99) == math.inf
    assert estimate_ms([], 0.99, 0.99) is None


def test_the_estimate_lies_above_the_true_quantile_as_often_as_it_says() -> None:
    """In 99 % of 400 seeded runs of 2,000 exponential latencies the estimate is above the true p99."""
    rng = np.random.default_rng(11)
    true_ms = -math.log(0.01)
    above = sum(
        (estimate_ms(rng.exponential(size=2_000).tolist(), 0.99, 0.99) or 0.0) >= true_ms for _ in range(400)
    )
    assert above >= 392


def decided_after(outcomes: list[bool], total: int) -> int | None:
    """Return after how many outcomes a run was decided."""
    decision = Decision(total, 0.99, 0.99)
    for position, met in enumerate(outcomes):
        decision.done(position, met)
        if decision.decided:
            return position + 1
    return None


def test_a_clear_run_is_decided_at_its_first_look() -> None:
    """None late, and one in five late, are decided after the first look; one in a hundred never is."""
    first = Decision(10_000, 0.99, 0.99).looks[0]
    assert decided_after([True] * 10_000, 10_000) == first
    assert decided_after([number % 5 > 0 for number in range(10_000)], 10_000) == first
    assert decided_after([number % 100 > 0 for number in range(10_000)], 10_000) is None


def test_a_look_waits_for_the_late_ones() -> None:
    """Outcomes come in any order: nothing is decided while one of the first requests is open."""
    decision = Decision(10_000, 0.99, 0.99)
    first = decision.looks[0]
    for position in range(1, first):
        decision.done(position, True)
    assert not decision.decided
    decision.done(0, True)
    assert decision.decided


def test_looks_share_the_risk_and_fit_the_run() -> None:
    """Every look is stricter than a single one would be; a run too short for looks has none."""
    decision = Decision(10_000, 0.99, 0.99)
    assert len(decision.looks) >= 2
    assert decision.looks[-1] < 10_000
    assert decision.confidence == pytest.approx(1 - 0.01 / (len(decision.looks) + 1))
    assert decision.looks[0] == requests_needed(0, 0.99, decision.confidence)
    assert Decision(300, 0.99, 0.99).looks == ()
    assert Decision(300, 0.99, 0.99).confidence == 0.99


def test_looking_does_not_let_a_bad_server_pass_more_often() -> None:
    """Of 1,000 seeded runs of a server that is late a bit too often, at most 1 % are stopped as passing."""
    rng = np.random.default_rng(4)
    total, passed = 4_000, 0
    looks = Decision(total, 0.99, 0.99)
    for _ in range(1_000):
        late = np.cumsum(rng.random(total) < 0.01)
        for look in (*looks.looks, total):
            allowed = allowed_late(look, 0.99, looks.confidence)
            if allowed is not None and late[look - 1] <= allowed:
                passed += 1
                break
    assert passed <= 10


def test_numbers_without_sense_are_refused() -> None:
    """A quantile or confidence of one, no request, a negative count: ValueError."""
    with pytest.raises(ValueError, match="quantile"):
        log_odds(10, 1.0)
    with pytest.raises(ValueError, match="requests"):
        log_odds(0, 0.99)
    with pytest.raises(ValueError, match="confidence"):
        allowed_late(10, 0.99, 1.0)
    with pytest.raises(ValueError, match="late"):
        requests_needed(-1, 0.99, 0.99)
