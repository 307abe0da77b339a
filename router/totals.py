"""What has been counted since the gateway began, read from its metrics for who computes rates of them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import cast, get_args

from prometheus_client import CollectorRegistry

from router.metrics import BUCKETS_S, OutcomeName

_REQUESTS, _ANSWERS = "paretogate_requests_total", "paretogate_answers_total"
_BUDGETED, _MISSED = "paretogate_slack_seconds_count", "paretogate_budget_missed_total"
_DECIDED, _ESCALATED = "paretogate_escalation_decisions_total", "paretogate_escalations_total"
_CUT, _WITHIN = "paretogate_cut_stages_total", "paretogate_request_seconds_bucket"
_NAMES = (_REQUESTS, _ANSWERS, _BUDGETED, _MISSED, _DECIDED, _ESCALATED, _CUT, _WITHIN)


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts of frames since the gateway began.

    outcomes: by how they ended, in the order of `OutcomeName`; answers: by plan. budgeted: answers that had a
    budget, missed: those of them that came after it. decided: first rules that were asked, escalated: those
    that said go on. cut: stages that were not run. within: answered requests that took at most so long, by
    the bounds of `BUCKETS_S` and then all of them.
    """

    outcomes: tuple[tuple[OutcomeName, int], ...]
    answers: tuple[tuple[str, int], ...]
    budgeted: int
    missed: int
    decided: int
    escalated: int
    cut: int
    within: tuple[int, ...]


def read_totals(registry: CollectorRegistry) -> Totals:
    """Read the totals from the registry of a gateway's metrics; may be called in any thread."""
    sums: dict[tuple[str, str], float] = defaultdict(float)
    for metric in registry.restricted_registry(_NAMES).collect():
        for sample in metric.samples:
            labels = sample.labels
            by = labels.get("outcome") or labels.get("le") or ""
            if sample.name == _ANSWERS:
                by = labels["plan"]
            sums[sample.name, by] += sample.value

    def total(name: str, by: str = "") -> int:
        return round(sums.get((name, by), 0.0))

    bounds = {float(by): value for (name, by), value in sums.items() if name == _WITHIN}
    return Totals(
        outcomes=tuple((cast("OutcomeName", name), total(_REQUESTS, name)) for name in get_args(OutcomeName)),
        answers=tuple((by, round(value)) for (name, by), value in sums.items() if name == _ANSWERS),
        budgeted=total(_BUDGETED),
        missed=total(_MISSED),
        decided=total(_DECIDED),
        escalated=total(_ESCALATED),
        cut=total(_CUT),
        within=tuple(round(bounds.get(bound, 0.0)) for bound in (*BUCKETS_S, float("inf"))),
    )
