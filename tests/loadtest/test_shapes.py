"""Rates that change, and the arrivals that follow them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.schedule import MAX_ARRIVALS
from loadtest.shapes import Diurnal, Ramp, Shape, Steps, burst, thinned_ns

RATES = st.floats(0.0, 200.0)
DURATIONS = st.floats(0.5, 20.0)
SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    """Any shape with some rate in it."""
    duration_s, low, high = draw(DURATIONS), draw(RATES), draw(st.floats(1.0, 200.0))
    kind = draw(st.sampled_from(["ramp", "steps", "diurnal", "burst"]))
    if kind == "ramp":
        return Ramp(low, high, duration_s)
    if kind == "steps":
        return Steps.equal((low, high, *draw(st.lists(RATES, max_size=4))), duration_s)
    if kind == "diurnal":
        return Diurnal(min(low, high), high, draw(st.floats(0.5, 4.0)), duration_s)
    rng = np.random.default_rng(draw(SEEDS))
    return burst(max(low, 0.1), high, draw(st.floats(0.1, 5.0)), draw(st.floats(0.1, 5.0)), duration_s, rng)


@settings(deadline=None)
@given(shape=shapes(), seed=SEEDS)
def test_arrivals_repeat_with_their_seed_in_order_and_in_range(shape: Shape, seed: int) -> None:
    """The same seed gives the same arrivals; none precedes the one before it or lies outside the run."""
    times = thinned_ns(shape, np.random.default_rng(seed))
    assert times.tolist() == thinned_ns(shape, np.random.default_rng(seed)).tolist()
    assert (np.diff(times) >= 0).all()
    assert ((times >= 0) & (times < shape.duration_s * 1e9)).all()


@settings(deadline=None)
@given(shape=shapes(), share=st.floats(0.05, 1.0))
def test_the_expected_count_is_the_integral_of_the_rate(shape: Shape, share: float) -> None:
    """Λ agrees with the rate function, summed over a fine grid, and the rate stays below its peak."""
    until_s = share * shape.duration_s
    middles = (np.arange(20_000) + 0.5) * until_s / 20_000
    rates = shape.rate_hz(middles)
    assert (rates >= -1e-9).all()
    assert (rates <= shape.peak_hz * (1 + 1e-9)).all()
    # A grid misses at most half a cell of the highest rate at each jump.
    jumps = len(shape.starts_s) if isinstance(shape, Steps) else 1
    off = (jumps + 1) * shape.peak_hz * until_s / 20_000
    assert shape.expected(until_s) == pytest.approx(rates.mean() * until_s, abs=off + 1e-6)


@pytest.mark.parametrize(
    "shape",
    [
        Ramp(0.0, 400.0, 50.0),
        Steps.equal((100.0, 500.0, 0.0, 50.0), 40.0),
        Diurnal(20.0, 380.0, 2.0, 50.0),
        burst(50.0, 500.0, 4.0, 1.0, 50.0, np.random.default_rng(7)),
    ],
)
def test_counts_are_as_expected_in_every_part_of_the_run(shape: Shape) -> None:
    """In each tenth of a long run the count lies within five standard deviations of the integral."""
    times_s = thinned_ns(shape, np.random.default_rng(3)) / 1e9
    edges = np.linspace(0.0, shape.duration_s, 11)
    counts, _ = np.histogram(times_s, edges)
    expected = np.diff([shape.expected(edge) for edge in edges])
    assert (np.abs(counts - expected) <= 5 * np.sqrt(np.maximum(expected, 1.0))).all()


def test_bursts_spend_their_mean_times_in_each_state() -> None:
    """Over a long run the share of time in the high state, and its mean length, are those asked for."""
    path = burst(10.0, 50.0, 8.0, 2.0, 40_000.0, np.random.default_rng(5))
    lengths = np.diff((*path.starts_s, path.duration_s))
    high = np.array(path.levels_hz) == 50.0
    assert (high[1:] != high[:-1]).all()
    assert lengths[high].mean() == pytest.approx(2.0, rel=0.06)
    assert lengths[~high].mean() == pytest.approx(8.0, rel=0.06)
    assert path.expected(40_000.0) / 40_000.0 == pytest.approx((10 * 8 + 50 * 2) / 10, rel=0.05)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ramp(0.0, 0.0, 1.0), "one of them positive"),
        (lambda: Ramp(-1.0, 5.0, 1.0), "at least 0"),
        (lambda: Ramp(1.0, math.inf, 1.0), "finite"),
        (lambda: Ramp(1.0, 2.0, 0.0), "duration"),
        (lambda: Steps.equal((), 1.0), "at least one level"),
        (lambda: Steps((0.0, 2.0), (1.0, 2.0), 1.0), "before the end"),
        (lambda: Steps((1.0,), (1.0,), 5.0), "first at 0"),
        (lambda: Diurnal(5.0, 1.0, 1.0, 10.0), "above the day"),
        (lambda: Diurnal(1.0, 5.0, 0.0, 10.0), "days"),
        (lambda: burst(1.0, 5.0, 0.0, 1.0, 10.0, np.random.default_rng(0)), "mean times"),
        (lambda: burst(1.0, 5.0, 1e-9, 1.0, 10.0, np.random.default_rng(0)), "too often"),
        (lambda: thinned_ns(Ramp(0.0, MAX_ARRIVALS, 2.0), np.random.default_rng(0)), "more than"),
    ],
)
def test_a_shape_without_sense_is_refused(make: object, message: str) -> None:
    """Numbers that make no sense are a ValueError that says which."""
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()
