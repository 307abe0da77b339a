"""Plans: cost from histograms, accuracy from cached answers, thresholds from a wished-for share."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_repo.latency import Histogram
from model_repo.plans import escalate, plan_cost, threshold_for_share

RNG_SEED = 11


def _histogram(mean_ms: float) -> Histogram:
    rng = np.random.default_rng(RNG_SEED)
    return Histogram.of(mean_ms * (0.8 + rng.gamma(2.0, 0.1, 2000)))


def test_cost_is_that_of_simulated_frames() -> None:
    """Mean and p99 of a cascade agree with drawing each stage's latency frame by frame."""
    rng = np.random.default_rng(0)
    decode, fast, large = _histogram(2.0), _histogram(3.0), _histogram(20.0)

    def draw(histogram: Histogram, n: int) -> np.ndarray:
        return np.array([histogram.quantile_ms(q) for q in rng.random(n)])

    frames = 6000
    latency = draw(decode, frames) + draw(fast, frames) + (rng.random(frames) < 0.3) * draw(large, frames)
    cost = plan_cost(decode, [fast, large], [1.0, 0.3])
    assert cost.mean_ms == pytest.approx(latency.mean(), rel=0.03)
    assert cost.p99_ms == pytest.approx(np.quantile(latency, 0.99), rel=0.03)
    assert cost.p99_ms < sum(h.quantile_ms(0.99) for h in (decode, fast, large))


@given(share=st.floats(0, 1))
def test_cost_rises_with_the_escalation_rate(share: float) -> None:
    """A plan that sends more on costs no less on average, and lies between its two ends."""
    decode, stages = _histogram(2.0), [_histogram(3.0), _histogram(20.0)]
    low, mid, high = (plan_cost(decode, stages, [1.0, s]).mean_ms for s in (0.0, share, 1.0))
    assert low <= mid <= high


@pytest.mark.parametrize("reach", [[0.5], [1.0, 1.2], [1.0], []])
def test_reach_must_make_sense(reach: list[float]) -> None:
    """Shares that do not start at 1, rise, or miss a stage are refused."""
    stages = [_histogram(1.0)] * 2
    with pytest.raises(ValueError, match="reach"):
        plan_cost(_histogram(1.0), stages, reach)


@given(share=st.floats(0, 1), seed=st.integers(0, 100))
def test_threshold_sends_the_share_on(share: float, seed: int) -> None:
    """The threshold for a share escalates that share of the frames it was made from, to one frame."""
    gains = np.random.default_rng(seed).normal(size=200).astype(np.float32)
    sent = escalate(gains, threshold_for_share(gains, share)).mean()
    assert sent == pytest.approx(share, abs=1.01 / 200)
