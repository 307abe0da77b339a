"""Histograms keep quantiles within their bucket, and distributions add and mix as they should."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_repo.latency import (
    BUCKET_RATIO,
    Environment,
    Histogram,
    LatencyProfile,
    mixture_pmf,
    quantile_of_pmf_ms,
    sum_pmf,
)

relaxed = settings(deadline=None, max_examples=60)
samples = st.lists(st.floats(0.1, 500.0), min_size=1, max_size=200)


@relaxed
@given(samples, st.floats(0.0, 1.0))
def test_quantile_is_never_too_low_and_off_by_a_bucket_at_most(values: list[float], q: float) -> None:
    """A quantile is at least the sample's own, and at most one bucket above it."""
    exact = float(np.quantile(values, q, method="inverted_cdf"))
    read = Histogram.of(values).quantile_ms(q)
    assert exact <= read * (1 + 1e-9)
    assert read <= exact * BUCKET_RATIO * (1 + 1e-6)


@relaxed
@given(samples, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_quantiles_rise(values: list[float], p: float, q: float) -> None:
    """A higher quantile is not lower; the mean and the count are the samples' own."""
    histogram = Histogram.of(values)
    low, high = sorted((p, q))
    assert histogram.quantile_ms(low) <= histogram.quantile_ms(high)
    assert histogram.total == len(values)
    assert histogram.mean_ms == pytest.approx(np.mean(values))


@relaxed
@given(samples, st.floats(0.1, 10.0))
def test_scaling(values: list[float], factor: float) -> None:
    """A histogram of a machine that is k times slower has k times the mean and the quantiles."""
    histogram = Histogram.of(values)
    scaled = histogram.scaled(factor)
    assert scaled.mean_ms == pytest.approx(histogram.mean_ms * factor)
    assert scaled.quantile_ms(0.9) == pytest.approx(histogram.quantile_ms(0.9) * factor)


@relaxed
@given(samples, samples)
def test_means_add(a: list[float], b: list[float]) -> None:
    """The mean of a sum of independent latencies is the sum of means, within grid and buckets."""
    total = sum_pmf([Histogram.of(a).pmf(), Histogram.of(b).pmf()])
    assert total.sum() == pytest.approx(1.0)
    mean = float(total @ np.arange(len(total))) * 0.05
    assert mean == pytest.approx(np.mean(a) + np.mean(b), rel=0.011, abs=0.06)


def test_p99_of_a_sum_is_below_the_sum_of_p99s() -> None:
    """Two stages with rare slow runs are seldom slow together."""
    slow = [1.0] * 97 + [50.0] * 3
    one = Histogram.of(slow)
    both = quantile_of_pmf_ms(sum_pmf([one.pmf(), one.pmf()]), 0.99)
    assert both < 2 * one.quantile_ms(0.99) * 0.6


def test_mixture() -> None:
    """A mixture weighs its parts, whatever their lengths, and refuses weights that do not add up."""
    fast, slow = Histogram.of([1.0]).pmf(), Histogram.of([10.0]).pmf()
    mixed = mixture_pmf([(0.75, fast), (0.25, slow)])
    assert mixed.sum() == pytest.approx(1.0)
    assert quantile_of_pmf_ms(mixed, 0.7) == pytest.approx(1.0, abs=0.1)
    assert quantile_of_pmf_ms(mixed, 0.8) == pytest.approx(10.0, abs=0.2)
    with pytest.raises(ValueError, match="add up"):
        mixture_pmf([(0.5, fast), (0.6, slow)])


@pytest.mark.parametrize("values", [[], [0.0], [-1.0, 2.0], [float("nan")], [float("inf")]])
def test_refuses_samples_that_are_none(values: list[float]) -> None:
    """No sample, or one that is not positive and finite, is a ValueError."""
    with pytest.raises(ValueError, match="latency samples"):
        Histogram.of(values)


def test_refuses_impossible_quantiles_and_empty_counts() -> None:
    """A quantile outside [0, 1] and a histogram without a sample are refused."""
    with pytest.raises(ValueError, match="quantile"):
        Histogram.of([1.0]).quantile_ms(1.1)
    with pytest.raises(ValueError, match="at least one sample"):
        Histogram(start_ms=1.0, ratio=1.02, counts=(0, 0), mean_ms=1.0)


def test_profile_reads_its_histogram() -> None:
    """A profile's mean and quantiles are those of its samples."""
    environment = Environment(machine="m", device="cpu", cores=2, python="3.11", os="Linux", libraries={})
    profile = LatencyProfile(
        runtime="openvino", runtime_version="1", precision="f32", threads=1, batch=1, concurrency=1,
        histogram=Histogram.of([2.0, 4.0]), environment=environment,
    )  # fmt: skip
    assert profile.mean_ms == 3.0
    assert profile.quantile_ms(1.0) == pytest.approx(4.0, rel=0.021)
