"""The promises to callers as data, and the burn-rate alerts that follow from them.

An objective is a share of events that have to be good over `PERIOD`. What may be bad is its error budget; the
burn rate is how many times faster than allowed it is being spent. An alert looks at a long window, which says
that much has been spent, and at a short one, which says that it is still being spent, so that it ends soon
after the fault does (the multiwindow, multi-burn-rate alert of the SRE Workbook, chapter 5):

    burn = share of bad events in a window / (1 - target)
    fires where burn > factor in the long and in the short window

A fault that makes the share e of all events bad, after a long time without one, fires after
long · factor · (1 - target) / e, see `deploy.shares`. Where next to nobody asks, one bad event would be a
large share: fewer than `LEAST_BAD` in the long window say nothing.

Ranges stand in angle brackets, `<1h>`, so that `deploy.rules` can shorten them all by one factor.
"""

from __future__ import annotations

from dataclasses import dataclass

from deploy.shares import Share

PROMISE_S = 0.05
"""The budget of requests that bring none; an edge of `router.metrics.BUCKETS_S`."""
PERIOD = "30d"
LEAST_BAD = 5
SHARE = "paretogate:bad_share:{}"
"""The recorded share of bad events of a window, with the label `slo`."""
NUMBER = "paretogate:bad_events:{}"
"""Their recorded number, of long windows."""


@dataclass(frozen=True, slots=True)
class Objective:
    """A promise: `target` of `total` is not `bad`, both PromQL sums of rates over the range `<w>`.

    name: the label `slo` of its series. alert: its alerts' name. says: what is bad, after a share of it.
    """

    name: str
    alert: str
    target: float
    bad: str
    total: str
    says: str
    meaning: str

    @property
    def allowed(self) -> float:
        """Return the share that may be bad."""
        return round(1.0 - self.target, 12)


@dataclass(frozen=True, slots=True)
class Burn:
    """A pair of windows, and the burn rate at which both of them make an alert."""

    factor: float
    long: str
    short: str
    severity: str


# Two, five, ten and ten percent of thirty days' budget.
BURNS = (
    Burn(14.4, "1h", "5m", "critical"),
    Burn(6.0, "6h", "30m", "critical"),
    Burn(3.0, "1d", "2h", "warning"),
    Burn(1.0, "3d", "6h", "warning"),
)
WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")

# Who leaves a single request has mostly waited for too long: over gRPC a call is cancelled at its deadline.
# The frames that are open when a stream ends say nothing of that kind.
_LEFT = 'sum(rate(paretogate_requests_total{outcome="cancelled", protocol=~"http|grpc"}[<w>]))'
_ENDED = 'sum(rate(paretogate_requests_total{outcome=~"answered|shed|failed"}[<w>]))'
_SHED = 'sum(rate(paretogate_requests_total{outcome="shed"}[<w>]))'
_MISSED = "sum(rate(paretogate_budget_missed_total[<w>]))"

OBJECTIVES = (
    Objective(
        "latency",
        "ParetogateLatencyBurn",
        0.99,
        'sum(rate(paretogate_requests_total{outcome=~"shed|failed"}[<w>]))'
        f" + {_LEFT} + {_MISSED}"
        " + sum(rate(paretogate_unbudgeted_seconds_count[<w>]))"
        f' - sum(rate(paretogate_unbudgeted_seconds_bucket{{le="{PROMISE_S:g}"}}[<w>]))',
        f"({_ENDED} + {_LEFT})",
        f"of the requests had no answer within their budget ({1e3 * PROMISE_S:g} ms where they have none)",
        "Late, shed, failed and abandoned requests count alike: whoever asked had no answer in time.",
    ),
    Objective(
        "budget",
        "ParetogateBudgetMisses",
        0.99,
        _MISSED,
        "sum(rate(paretogate_slack_seconds_count[<w>]))",
        "of the answers with a budget came after it",
        "The planner starts a stage only where its p99 fits what is left, so one in a hundred is its promise:"
        " the latencies that it decides on do not hold.",
    ),
    Objective(
        "shed",
        "ParetogateShedding",
        0.99,
        _SHED,
        _ENDED,
        "of the requests are shed",
        "The gateway turns away what it could not answer in time; even its cheapest plan is too dear for the"
        " load.",
    ),
)


def limit(objective: Objective, burn: Burn) -> float:
    """Return the share of bad events at which a pair of windows makes an alert."""
    return round(burn.factor * objective.allowed, 12)


def share(objective: Objective, burn: Burn) -> Share:
    """Return what a burn-rate alert watches in its long window; the fault is that no event is good."""
    return Share(burn.long, limit(objective, burn), 1.0, f"({objective.bad})", f"({objective.total})")
