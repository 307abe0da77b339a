"""Certificates: a bound on the mean excess loss that holds as often as it says, alone and in sequence."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.certify import excess_bound, in_fixed_sequence


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.integers(30, 400), st.floats(0.0, 0.4), st.integers(0, 1000))
def test_the_bound_lies_above_the_mean_and_falls_with_confidence(count: int, rate: float, seed: int) -> None:
    """A bound is at least the mean seen, and asking for less confidence lowers it."""
    excess = (np.random.default_rng(seed).random(count) < rate).astype(np.float64)
    sure, unsure = excess_bound(excess, 0.01), excess_bound(excess, 0.2)
    assert float(excess.mean()) <= unsure <= sure <= 1.0


def test_the_bound_holds_as_often_as_it_says() -> None:
    """Over many draws the true mean exceeds the bound at level 0.1 in at most a tenth of them."""
    rng = np.random.default_rng(0)
    true = 0.05
    broken = sum(excess_bound((rng.random(200) < true).astype(np.float64), 0.1) < true for _ in range(300))
    assert broken <= 0.1 * 300


def test_losses_outside_the_unit_interval_are_refused() -> None:
    """The bound is for losses in [0, 1] alone."""
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        excess_bound(np.array([0.2, 1.5]), 0.1)


def test_a_fixed_sequence_rarely_certifies_a_plan_that_loses_more() -> None:
    """Of plans around the asked excess, one that truly exceeds it is certified in at most a share delta of
    draws, and those well below are certified in nearly all."""
    rng = np.random.default_rng(5)
    risks, asked, delta, draws = np.linspace(0.04, 0.07, 8), 0.055, 0.1, 150
    wrong = careful = 0
    for _ in range(draws):
        excesses = [np.minimum(rng.exponential(risk, 600), 1.0) for risk in risks]
        passing = [epsilon <= asked for _, epsilon in in_fixed_sequence(excesses, delta)]
        assert passing == sorted(passing, reverse=True)
        wrong += any(ok and risk > asked for ok, risk in zip(passing, risks, strict=True))
        careful += passing[0]
    assert wrong <= delta * draws
    assert careful >= 0.9 * draws


def test_an_earlier_failure_ends_the_sequence() -> None:
    """A plan after one that loses much is certified for no less than that one."""
    rng = np.random.default_rng(0)
    low, high = rng.uniform(0.0, 0.02, 500), rng.uniform(0.0, 0.4, 500)
    (first, first_epsilon), (second, second_epsilon), (third, third_epsilon) = in_fixed_sequence(
        [low, high, low], 0.1
    )
    assert first == first_epsilon == third
    assert second == second_epsilon == third_epsilon
