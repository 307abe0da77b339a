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
        times = list(times_ms)
        if not times:
            return None
        if min(times) < 0:
            raise ValueError(f"a time of {min(times)} ms")
        histogram = HdrHistogram(1, _HIGHEST_US, _DIGITS)
        for time_ms in times:
            histogram.record_value(min(round(time_ms * _US_PER_MS), _HIGHEST_US))
        in_us = histogram.get_percentile_to_value_dict([50.0, 90.0, 99.0, 99.9])
        # A bucket is told by its upper edge, which may lie a little above the slowest time in it.
        at = {percentile: min(value / _US_PER_MS, max(times)) for percentile, value in in_us.items()}
        # The library walks its whole range for mean and maximum; both are exact and quicker from the times.
        return cls(
            count=len(times),
            mean_ms=sum(times) / len(times),
            p50_ms=at[50.0],
            p90_ms=at[90.0],
            p99_ms=at[99.0],
            p999_ms=at[99.9],
            max_ms=max(times),
            hdr=histogram.encode().decode("ascii"),
        )
