"""Arrival schedules."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.schedule import MAX_ARRIVALS, arrivals_ns, constant_ns, poisson_ns

RATES = st.floats(min_value=0.1, max_value=1_000.0)


@settings(deadline=None)
@given(rate_hz=RATES, count=st.integers(1, 300), seed=st.integers(0, 2**32 - 1))
def test_poisson_repeats_with_its_seed_and_never_runs_backwards(
    rate_hz: float, count: int, seed: int
) -> None:
    """The same seed gives the same arrivals, and no arrival precedes the one before it."""
    times = poisson_ns(rate_hz, count, np.random.default_rng(seed))
    assert len(times) == count
    assert times[0] >= 0
    assert (np.diff(times) >= 0).all()
    assert (times == poisson_ns(rate_hz, count, np.random.default_rng(seed))).all()


@settings(deadline=None)
@given(rate_hz=RATES, seed=st.integers(0, 1000))
def test_a_slower_rate_stretches_the_same_draws(rate_hz: float, seed: int) -> None:
    """Halving the rate doubles every arrival time, to a nanosecond of rounding."""
    fast = poisson_ns(rate_hz, 50, np.random.default_rng(seed))
    slow = poisson_ns(rate_hz / 2, 50, np.random.default_rng(seed))
    assert np.abs(slow - 2 * fast).max() <= 2


def test_poisson_gaps_have_the_mean_and_spread_of_an_exponential() -> None:
    """Over 20,000 gaps mean and standard deviation both are 1/rate within five standard errors."""
    gaps_s = np.diff(poisson_ns(40.0, 20_001, np.random.default_rng(3))) / 1e9
    assert gaps_s.mean() == pytest.approx(1 / 40, abs=5 / 40 / math.sqrt(20_000))
    assert gaps_s.std() == pytest.approx(1 / 40, abs=5 * math.sqrt(2) / 40 / math.sqrt(20_000))


def test_constant_arrivals_are_equally_far_apart() -> None:
    """A constant schedule of 50 Hz has one arrival every 20 ms, the first at zero."""
    assert constant_ns(50.0, 4).tolist() == [0, 20_000_000, 40_000_000, 60_000_000]


@settings(deadline=None)
@given(rate_hz=RATES, duration_s=st.floats(0.01, 5.0), seed=st.integers(0, 100))
def test_arrivals_stay_inside_the_duration(rate_hz: float, duration_s: float, seed: int) -> None:
    """No arrival of a schedule of a given duration is due at its end or later."""
    for kind in ("poisson", "constant"):
        times = arrivals_ns(kind, rate_hz, duration_s, np.random.default_rng(seed))
        assert (times < duration_s * 1e9).all()


def test_a_poisson_schedule_is_the_beginning_of_a_longer_one() -> None:
    """Cutting at a duration keeps every arrival before it: the process is drawn past the cut."""
    times = arrivals_ns("poisson", 200.0, 2.0, np.random.default_rng(5))
    longer = poisson_ns(200.0, 2_000, np.random.default_rng(5))
    assert times.tolist() == longer[longer < 2e9].tolist()


@pytest.mark.parametrize("rate_hz", [0.0, -1.0, math.nan, math.inf])
def test_a_rate_without_sense_is_refused(rate_hz: float) -> None:
    """Rates that are not positive and finite are a ValueError."""
    with pytest.raises(ValueError, match=r"rate|requests"):
        arrivals_ns("poisson", rate_hz, 1.0, np.random.default_rng(0))


def test_a_schedule_is_bounded() -> None:
    """More requests than the bound, or a duration without sense, are a ValueError."""
    with pytest.raises(ValueError, match="more than"):
        arrivals_ns("poisson", MAX_ARRIVALS, 2.0, np.random.default_rng(0))
    with pytest.raises(ValueError, match="duration"):
        arrivals_ns("constant", 1.0, math.inf, np.random.default_rng(0))
