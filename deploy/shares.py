"""A share of events in a sliding window, and when it comes to the limit that an alert has for it.

A window of W seconds that a fault entered t seconds ago holds W - t seconds of what was before and t seconds
of the fault. With a share h of bad events before, e since, and k times as many events a second since as
before, it shows

    ((W - t)·h + t·k·e) / ((W - t) + t·k),

which comes to the limit L at

    t = W·(L - h) / ((L - h) + k·(e - L)).

Where none was bad before (h = 0) and as many events come as did (k = 1) that is W·L/e, which is what an alert
states, for the share that its fault is described by. Of a fault that is really made h, e and k are measured.
A window that is not full yet, soon after a start, comes to the limit sooner.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# A fault that is hardly more than the limit comes to it late or never, and is none to judge an alert by.
_LEAST = 0.25


@dataclass(frozen=True, slots=True)
class Made:
    """What a fault makes of a share: before it, since, and the rate of events since in parts of before's."""

    before: float
    since: float
    rate: float = 1.0


@dataclass(frozen=True, slots=True)
class Share:
    """Bad events of all in a window, and the limit; `bad` and `total` are sums of rates over `[<w>]`.

    fault: the share that the stated time is for. expected: an expression from which the share's distance
    counts; without one it is the share itself.
    """

    window: str
    limit: float
    fault: float
    bad: str
    total: str
    expected: str = ""

    @property
    def stated(self) -> Made:
        """Return the fault that the stated time is for."""
        return Made(0.0, self.fault)

    @property
    def least(self) -> float:
        """Return the share below which a fault is none to judge by."""
        return self.limit + _LEAST * (self.fault - self.limit)

    @property
    def expr(self) -> str:
        """Return the expression of the share over its window."""
        return f"{self.bad} / {self.total}".replace("<w>", f"<{self.window}>")


def reached_s(window_s: float, limit: float, made: Made) -> float:
    """Return when a window shows the limit, in seconds after a fault; infinite where it never does."""
    if made.since <= limit:
        return math.inf
    to_come = max(limit - made.before, 0.0)
    return window_s * to_come / (to_come + made.rate * (made.since - limit))
