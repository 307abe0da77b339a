"""Where a request's latency budget comes from, and the clock that it runs on.

Over HTTP the clock starts when the request's headers are parsed. A budget stands in `X-Latency-Budget-Ms`;
proxies and other gateways say theirs in `grpc-timeout`, `x-envoy-expected-rq-timeout-ms` or
`x-request-timeout-seconds`, and over gRPC it is the call's own deadline as well. The smallest wins: whoever
waits for the least time is the first to hang up. Where nothing is said the configured default applies, and
none is longer than the configured maximum.

Everything inside works with one `Deadline` on one monotonic clock, which is injected so that policies are
tested without sleeping.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from router.errors import MalformedBudget
from router.headers import Headers, only

BUDGET_HEADER = "X-Latency-Budget-Ms"
GRPC_TIMEOUT_HEADER = "grpc-timeout"
ENVOY_HEADER = "x-envoy-expected-rq-timeout-ms"
SECONDS_HEADER = "x-request-timeout-seconds"
MAX_BUDGET_MS = 3_600_000.0
# Plain decimals only: float() would also take "nan", "1_000" and "0x1p3" spelled in other ways.
_DECIMAL = re.compile(r"[0-9]{1,9}(\.[0-9]{1,6})?")
_GRPC_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])")
_GRPC_UNIT_MS = {"H": 3.6e6, "M": 6e4, "S": 1e3, "m": 1.0, "u": 1e-3, "n": 1e-6}
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


@dataclass(frozen=True, slots=True)
class Budgets:
    """The rule that turns what a request says into its deadline; milliseconds.

    default_ms: for requests that say nothing, None for no deadline. most_ms: no budget is longer.
    """

    default_ms: float | None = None
    most_ms: float = MAX_BUDGET_MS

    def deadline(
        self,
        headers: Headers,
        start_ns: int,
        *,
        call_s: float | None = None,
    ) -> Deadline:
        """Return the deadline of a request whose clock started at `start_ns`.

        headers: by lower-case name, all values. call_s: what a gRPC call has left, None when it has no end.
        Raises MalformedBudget, which names the header.
        """
        said: list[float] = []
        if not _KEYS.isdisjoint(headers):
            texts = ((read, only(headers, name, MalformedBudget)) for name, read in _READERS)
            said = [read(text) for read, text in texts if text is not None]
        # A call without a deadline is told as years.
        if call_s is not None and call_s * 1e3 <= MAX_BUDGET_MS:
            said.append(call_s * 1e3)
        if not said and self.default_ms is None:
            return Deadline.none()
        budget_ms = min(said) if said else self.default_ms
        assert budget_ms is not None, "no default has been dealt with"
        return Deadline.after(start_ns, min(budget_ms, self.most_ms))


def _decimal(header: str, ms_per_unit: float, unit: str) -> Callable[[str], float]:
    """Return a reader of one positive decimal number of a unit, at most an hour of it."""

    def read(text: str) -> float:
        if not _DECIMAL.fullmatch(text):
            raise MalformedBudget(f"{header}: {text[:40]!r} is not a decimal number of {unit}")
        budget_ms = float(text) * ms_per_unit
        if not 0.0 < budget_ms <= MAX_BUDGET_MS:
            most = MAX_BUDGET_MS / ms_per_unit
            raise MalformedBudget(f"{header}: {text} lies outside (0, {most:.0f}] {unit}")
        return budget_ms

    return read


def _grpc_timeout(text: str) -> float:
    """Read gRPC's own form, an integer and a unit; senders without a deadline may say years."""
    found = _GRPC_TIMEOUT.fullmatch(text)
    budget_ms = int(found[1]) * _GRPC_UNIT_MS[found[2]] if found else 0.0
    if budget_ms <= 0.0:
        raise MalformedBudget(
            f"{GRPC_TIMEOUT_HEADER}: {text[:40]!r} is not a positive number of at most 8 digits and a unit"
            " (H, M, S, m, u or n)"
        )
    return budget_ms


_READERS: tuple[tuple[str, Callable[[str], float]], ...] = (
    (BUDGET_HEADER, _decimal(BUDGET_HEADER, 1.0, "milliseconds")),
    (GRPC_TIMEOUT_HEADER, _grpc_timeout),
    (ENVOY_HEADER, _decimal(ENVOY_HEADER, 1.0, "milliseconds")),
    (SECONDS_HEADER, _decimal(SECONDS_HEADER, 1e3, "seconds")),
)
_KEYS = frozenset(name.lower().encode() for name, _ in _READERS)
