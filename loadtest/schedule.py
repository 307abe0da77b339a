"""When each request is due: pure functions from a rate and a generator to arrival times.

A schedule is made before the first request is sent and looks at no answer (an *open* loop): a server that
falls behind meets the same arrivals as one that keeps up, as it would from callers who know nothing of
each other. Times are nanoseconds from the start of the run, int64 [n], not decreasing.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

ScheduleKind = Literal["poisson", "constant"]
MAX_ARRIVALS = 1_000_000
NS_PER_S = 1e9

Arrivals = NDArray[np.int64]


def poisson_ns(rate_hz: float, count: int, rng: np.random.Generator) -> Arrivals:
    """Return `count` arrivals of a Poisson process of `rate_hz`, the first gap drawn as well.

        t_0 = E_0,    t_i = t_(i-1) + E_i,    E_i = -ln(1 - U_i) / rate,    U_i uniform on [0, 1)

    Raises ValueError for a rate that is not positive and finite or a count outside 1 … MAX_ARRIVALS.
    """
    _check(rate_hz, count)
    gaps_s = -np.log1p(-rng.random(count)) / rate_hz
    return np.asarray(np.cumsum(gaps_s) * NS_PER_S).astype(np.int64)


def constant_ns(rate_hz: float, count: int) -> Arrivals:
    """Return `count` arrivals at equal distance, t_i = i / rate; raises ValueError as `poisson_ns` does."""
    _check(rate_hz, count)
    return np.asarray(np.arange(count) * (NS_PER_S / rate_hz)).astype(np.int64)


def arrivals_ns(kind: ScheduleKind, rate_hz: float, duration_s: float, rng: np.random.Generator) -> Arrivals:
    """Return the arrivals of a schedule that fall in [0, duration); there may be none.

    A Poisson process has rate·duration ± sqrt(rate·duration) arrivals in that time; ten standard deviations
    more are drawn and the rest is cut, so that a shortage is out of the question (below 1e-20).
    Raises ValueError when rate or duration is not positive and finite, or the count passes MAX_ARRIVALS.
    """
    if not (math.isfinite(duration_s) and duration_s > 0):
        raise ValueError(f"duration must be positive and finite, got {duration_s} s")
    expected = rate_hz * duration_s
    if not expected <= MAX_ARRIVALS:
        raise ValueError(
            f"{expected:.0f} requests are more than {MAX_ARRIVALS}; lower the rate or the duration"
        )
    if kind == "constant":
        times = constant_ns(rate_hz, max(1, math.ceil(expected)))
    else:
        drawn = math.ceil(expected + 10.0 * math.sqrt(max(expected, 0.0)) + 10.0)
        times = poisson_ns(rate_hz, drawn, rng)
    return times[times < duration_s * NS_PER_S]


def _check(rate_hz: float, count: int) -> None:
    if not (math.isfinite(rate_hz) and rate_hz > 0):
        raise ValueError(f"rate must be positive and finite, got {rate_hz} Hz")
    # The tail that arrivals_ns draws on top of the greatest count is allowed for.
    if not 1 <= count <= 2 * MAX_ARRIVALS:
        raise ValueError(f"a schedule has 1 to {MAX_ARRIVALS} requests, got {count}")
