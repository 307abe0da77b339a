"""Where a request's latency budget comes from, and the clock that it runs on.

Over HTTP the clock starts when the request's headers are parsed and the budget stands in
`X-Latency-Budget-Ms`; over gRPC the budget is the call's own deadline. Everything inside works with one
`Deadline` on one monotonic clock, which is injected so that policies are tested without sleeping.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from router.errors import MalformedBudget

BUDGET_HEADER = "X-Latency-Budget-Ms"
MAX_BUDGET_MS = 3_600_000.0
# Plain decimals only: float() would also take "nan", "1_000" and "0x1p3" spelled in other ways.
_DECIMAL = re.compile(r"[0-9]{1,7}(\.[0-9]{1,6})?")
_NS_PER_MS = 1_000_000


class Clock(Protocol):
    """Tell a time that never goes back."""

    def now_ns(self) -> int:
        """Return nanoseconds since some fixed moment."""


class MonotonicClock:
    """The operating system's monotonic clock."""

    def now_ns(self) -> int:
        """Return nanoseconds of the monotonic clock."""
        return time.monotonic_ns()


@dataclass(frozen=True, slots=True)
class Deadline:
    """The moment at which an answer is worth nothing any more; `at_ns` is None when the caller set none."""

    at_ns: int | None

    @classmethod
    def none(cls) -> Deadline:
        """Return the deadline of a caller who waits as long as it takes."""
        return cls(None)

    @classmethod
    def after(cls, start_ns: int, budget_ms: float) -> Deadline:
        """Return the deadline `budget_ms` milliseconds after `start_ns`."""
        return cls(start_ns + round(budget_ms * _NS_PER_MS))

    def left_ms(self, now_ns: int) -> float:
        """Return milliseconds left, negative once it has passed, infinite when there is no deadline."""
        return math.inf if self.at_ns is None else (self.at_ns - now_ns) / _NS_PER_MS


def parse_budget_ms(values: Sequence[bytes]) -> float | None:
    """Return the budget in milliseconds of all `X-Latency-Budget-Ms` values of a request, None without one.

    Raises MalformedBudget, which names the header, unless it is one decimal number in (0, 3600000].
    """
    if not values:
        return None
    if len(values) > 1:
        raise MalformedBudget(f"{BUDGET_HEADER} stands {len(values)} times, expected once")
    text = values[0].decode("latin-1").strip()
    if not _DECIMAL.fullmatch(text):
        raise MalformedBudget(f"{BUDGET_HEADER}: {text[:40]!r} is not a decimal number of milliseconds")
    budget_ms = float(text)
    if not 0.0 < budget_ms <= MAX_BUDGET_MS:
        raise MalformedBudget(f"{BUDGET_HEADER}: {text} lies outside (0, {MAX_BUDGET_MS:.0f}] milliseconds")
    return budget_ms


def deadline_of_call(now_ns: int, time_remaining_s: float | None) -> Deadline:
    """Return a gRPC call's deadline from its `time_remaining()`, which is None or years without one."""
    if time_remaining_s is None or time_remaining_s * 1e3 > MAX_BUDGET_MS:
        return Deadline.none()
    return Deadline.after(now_ns, time_remaining_s * 1e3)
