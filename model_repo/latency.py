"""Measured latency as a histogram, and the quantiles and sums that plans need of it.

Samples go into buckets of equal ratio (HdrHistogram's idea: a relative error that is the same everywhere),
so that a profile of any length fits in the manifest and two stages can be added as distributions: the p99
of a cascade is not the sum of two p99s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from model_repo.value import Value

OnnxRuntimeName = Literal["onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt"]
# A new name needs no new version of the manifest: old manifests read as before, and a version of this program
# that does not know the name refuses it by the path of its field.
EmbeddedName = Literal["openvino", OnnxRuntimeName]
RuntimeName = Literal[EmbeddedName, "triton"]
Precision = Literal["f32", "bf16", "fp16", "int8"]

# 2 % wide buckets: a quantile is off by 1 % at most, which is below what a shared machine repeats.
BUCKET_RATIO = 1.02
_GRID_MS = 0.05


class Environment(Value):
    """Name the machine and software that a number was measured on; numbers of another one are no evidence."""

    machine: str
    device: str
    cores: PositiveInt
    python: str
    os: str
    libraries: dict[str, str]


class Histogram(Value):
    """Count samples in buckets [start·ratio^i, start·ratio^(i+1)) milliseconds; the mean is kept exactly."""

    start_ms: PositiveFloat
    ratio: Annotated[float, Field(gt=1.0)]
    counts: tuple[NonNegativeInt, ...]
    mean_ms: PositiveFloat

    @model_validator(mode="after")
    def _has_samples(self) -> Self:
        if sum(self.counts) == 0:
            raise ValueError("a histogram needs at least one sample")
        return self

    @classmethod
    def of(cls, samples_ms: Sequence[float] | NDArray[np.float64]) -> Histogram:
        """Fill a histogram from samples in ms; raises ValueError unless all are positive and finite."""
        samples = np.asarray(samples_ms, dtype=np.float64)
        if samples.size == 0 or not np.isfinite(samples).all() or samples.min() <= 0:
            raise ValueError("latency samples must be positive, finite, and at least one")
        start = float(samples.min())
        index = np.floor(np.log(samples / start) / math.log(BUCKET_RATIO) + 1e-9).astype(np.int64)
        counts = np.bincount(np.maximum(index, 0))
        return cls(
            start_ms=start,
            ratio=BUCKET_RATIO,
            counts=tuple(int(count) for count in counts),
            mean_ms=float(samples.mean()),
        )

    @property
    def total(self) -> int:
        """Return the number of samples."""
        return sum(self.counts)

    def quantile_ms(self, q: float) -> float:
        """Return the q-quantile in milliseconds, 0 ≤ q ≤ 1: the upper edge of its bucket (never too low)."""
        if not 0.0 <= q <= 1.0:
            raise ValueError(f"quantile must lie in [0, 1], got {q}")
        cumulative = np.cumsum(self.counts)
        bucket = int(np.searchsorted(cumulative, q * cumulative[-1], side="left"))
        bucket = min(bucket, len(self.counts) - 1)
        return float(self.start_ms * self.ratio ** (bucket + 1))

    def scaled(self, factor: float) -> Histogram:
        """Return the histogram of the same samples, each `factor` times as long."""
        return self.model_copy(update={"start_ms": self.start_ms * factor, "mean_ms": self.mean_ms * factor})

    def pmf(self) -> NDArray[np.float64]:
        """Return probabilities on the grid of multiples of 0.05 ms, for adding distributions."""
        edges = self.start_ms * self.ratio ** np.arange(len(self.counts) + 1)
        centres = np.sqrt(edges[:-1] * edges[1:])
        index = np.maximum(np.rint(centres / _GRID_MS).astype(np.int64), 0)
        weights = np.bincount(index, weights=np.asarray(self.counts, dtype=np.float64))
        return np.asarray(weights / weights.sum())


def sum_pmf(parts: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the distribution of the sum of independent latencies, each given by `Histogram.pmf`."""
    total = np.array([1.0])
    for part in parts:
        total = np.convolve(total, part)
    return total


def mixture_pmf(parts: Sequence[tuple[float, NDArray[np.float64]]]) -> NDArray[np.float64]:
    """Return the mixture of distributions, each with its weight; weights must add up to 1."""
    weight = sum(share for share, _ in parts)
    if abs(weight - 1.0) > 1e-6:
        raise ValueError(f"weights add up to {weight}, expected 1")
    out = np.zeros(max(len(pmf) for _, pmf in parts))
    for share, pmf in parts:
        out[: len(pmf)] += share * pmf
    return out


def quantile_of_pmf_ms(pmf: NDArray[np.float64], q: float) -> float:
    """Return the q-quantile in milliseconds of a distribution on the 0.05 ms grid."""
    cumulative = np.cumsum(pmf)
    return float(min(int(np.searchsorted(cumulative, q * cumulative[-1])), len(pmf) - 1) * _GRID_MS)


class LatencyProfile(Value):
    """A stage's latency on one runtime: from decoded pixels to detections (resize, inference, NMS)."""

    runtime: RuntimeName
    runtime_version: str
    precision: Precision
    threads: PositiveInt
    batch: PositiveInt
    concurrency: PositiveInt
    histogram: Histogram
    environment: Environment

    @property
    def mean_ms(self) -> float:
        """Return the mean in milliseconds."""
        return self.histogram.mean_ms

    def quantile_ms(self, q: float) -> float:
        """Return the q-quantile in milliseconds."""
        return self.histogram.quantile_ms(q)


def at_concurrency(profiles: Sequence[LatencyProfile], busy: int) -> LatencyProfile:
    """Return the profile for so many inferences at once: that of the next concurrency that was measured."""
    ordered = sorted(profiles, key=lambda profile: profile.concurrency)
    return next((profile for profile in ordered if profile.concurrency >= busy), ordered[-1])
