"""How many late requests a run may have and still show that a quantile keeps its budget.

Let a request be late with the probability r, each by itself. A server just misses the claim "the q-quantile
keeps the budget" when r = 1 − q. Of n requests to such a server t or fewer are late with the probability

    odds(n, t) = P[Binomial(n, 1 − q) ≤ t] = Σ_{k≤t} C(n, k) (1 − q)^k q^(n−k) = I_q(n − t, t + 1)

with I the regularized incomplete beta function. A run with t late of n shows the claim with confidence c when
odds(n, t) ≤ 1 − c: who misses the claim looks so good at most that often. In terms of MLPerf Inference
(LoadGen's `early_stopping`): with h = n − t in time, h must be at least the minimum for t. A tolerance d puts
q − d in the place of q. For p99 at 99 % confidence 459 requests do when none is late, 662 when one is.

Requests of one run are not quite independent (a queue makes its neighbours late together), so the confidence
is that of the model; MLPerf takes it so as well.

The same bound gives an estimate of the quantile from above: the largest t with odds(n, t) ≤ 1 − c, and the
t-th highest latency, t ≥ 1; a budget there would have been shown to hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def log_odds(requests: int, quantile: float) -> NDArray[np.float64]:
    """Return ln odds(requests, t) for t = 0 … requests, float64 [requests + 1], growing to 0.

    Raises ValueError unless there is a request and the quantile lies inside (0, 1).
    """
    if requests < 1 or not 0.0 < quantile < 1.0:
        raise ValueError(f"{requests} requests and quantile {quantile}: expected one at least, inside (0, 1)")
    # Each term is the one before times (n − k) / (k + 1) · (1 − q) / q.
    k = np.arange(requests, dtype=np.float64)
    ratios = np.log(requests - k) - np.log1p(k) + math.log1p(-quantile) - math.log(quantile)
    terms = requests * math.log(quantile) + np.concatenate(([0.0], np.cumsum(ratios)))
    return np.minimum(np.logaddexp.accumulate(terms), 0.0)


@lru_cache(maxsize=4096)
def allowed_late(requests: int, quantile: float, confidence: float) -> int | None:
    """Return how many of so many requests may be late, None when even none is too few requests.

    The largest t with odds(requests, t) ≤ 1 − confidence. Raises ValueError as `log_odds`, and for a
    confidence outside (0, 1).
    """
    _check_confidence(confidence)
    holds = log_odds(requests, quantile) <= math.log1p(-confidence)
    return int(holds.sum()) - 1 if holds[0] else None


@lru_cache(maxsize=4096)
def requests_needed(late: int, quantile: float, confidence: float) -> int:
    """Return the least number of requests of which `late` may be; raises ValueError as `allowed_late`."""
    if late < 0:
        raise ValueError(f"{late} late requests")

    def enough(requests: int) -> bool:
        allowed = allowed_late(requests, quantile, confidence)
        return allowed is not None and allowed >= late

    low, high = late, late + 1
    while not enough(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def surely_missed(requests: int, late: int, quantile: float, confidence: float) -> bool:
    """Return whether so many are late that a server which just keeps the quantile would hardly show it.

    P[Binomial(n, 1 − q) ≥ late] ≤ 1 − confidence. Raises ValueError as `allowed_late`.
    """
    _check_confidence(confidence)
    if late == 0:
        return False
    below = float(log_odds(requests, quantile)[late - 1])
    return -math.expm1(below) <= 1.0 - confidence


def estimate_ms(latencies_ms: Sequence[float], quantile: float, confidence: float) -> float | None:
    """Return the early-stopping estimate of a latency quantile; a missing answer is given as infinite.

    None when the requests are too few for one of them to be late, 662 for p99 at 99 %.
    """
    if not latencies_ms:
        return None
    late = allowed_late(len(latencies_ms), quantile, confidence)
    if late is None or late < 1:
        return None
    return sorted(latencies_ms)[len(latencies_ms) - late]


def _check_confidence(confidence: float) -> None:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"the confidence lies inside (0, 1), got {confidence}")


class Decision:
    """Watch a run and say when it is decided, by looks at its first n requests in schedule order.

    Looking often and stopping when it looks good would deceive: one of many looks succeeds by chance. So the
    looks are planned, at the least number of requests and at every doubling of it, and share the risk of an
    error equally with the end of the run (Bonferroni): K looks in all, each at the confidence

        1 − (1 − confidence) / K.

    A look waits until the first n requests all have their outcome, for late ones come last.
    """

    def __init__(self, total: int, quantile: float, confidence: float) -> None:
        """total: of the schedule's requests."""
        self._quantile = quantile
        self._looks: tuple[int, ...] = ()
        # More looks make each stricter, which needs more requests, which leaves room for fewer looks.
        for count in range(max(total.bit_length(), 1), 0, -1):
            self._confidence = 1.0 - (1.0 - confidence) / count
            first = requests_needed(0, quantile, self._confidence)
            self._looks = tuple(first << number for number in range(count - 1))
            if not self._looks or self._looks[-1] < total:
                break
        self._met = np.full(total, -1, dtype=np.int8)
        self._known = self._late = self._past = 0
        self._decided = False

    @property
    def confidence(self) -> float:
        """Return the confidence of each look, at which the whole run is to be judged as well."""
        return self._confidence

    @property
    def looks(self) -> tuple[int, ...]:
        """Return after how many requests the run is looked at."""
        return self._looks

    @property
    def decided(self) -> bool:
        """Return whether a look has shown that the quantile keeps its budget, or that it does not."""
        return self._decided

    def done(self, position: int, met: bool) -> None:
        """Take the outcome of the request at a position of the schedule."""
        self._met[position] = met
        while not self._decided and self._known < len(self._met) and self._met[self._known] >= 0:
            self._late += self._met[self._known] == 0
            self._known += 1
            if self._past < len(self._looks) and self._known == self._looks[self._past]:
                self._past += 1
                self._look()

    def _look(self) -> None:
        allowed = allowed_late(self._known, self._quantile, self._confidence)
        shown = allowed is not None and self._late <= allowed
        self._decided = shown or surely_missed(self._known, int(self._late), self._quantile, self._confidence)
