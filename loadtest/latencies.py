"""Percentiles of a run's times, through an HdrHistogram that can be kept and merged with other runs'."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hdrh.histogram import HdrHistogram

# Whole microseconds up to an hour, three significant digits: a percentile is off by 0.1 % at most.
_HIGHEST_US = 3_600_000_000
_DIGITS = 3
_US_PER_MS = 1_000.0


@dataclass(frozen=True, slots=True)
class Latencies:
    """Percentiles in milliseconds of `count` times; `hdr` is the histogram, base64 of HdrHistogram V2."""

    count: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    hdr: str

    @classmethod
    def of(cls, times_ms: Iterable[float]) -> Latencies | None:
        """Count times in milliseconds; None when there are none. Raises ValueError on a negative one."""
        histogram = HdrHistogram(1, _HIGHEST_US, _DIGITS)
        for time_ms in times_ms:
            if time_ms < 0:
                raise ValueError(f"a time of {time_ms} ms")
            histogram.record_value(min(round(time_ms * _US_PER_MS), _HIGHEST_US))
        if histogram.get_total_count() == 0:
            return None

        def at(percentile: float) -> float:
            return float(histogram.get_value_at_percentile(percentile)) / _US_PER_MS

        return cls(
            count=int(histogram.get_total_count()),
            mean_ms=float(histogram.get_mean_value()) / _US_PER_MS,
            p50_ms=at(50.0),
            p90_ms=at(90.0),
            p99_ms=at(99.0),
            p999_ms=at(99.9),
            max_ms=float(histogram.get_max_value()) / _US_PER_MS,
            hdr=histogram.encode().decode("ascii"),
        )
