"""Prometheus' recording rules and alerts, made by code: `python -m deploy.rules` writes them anew.

A `Scale` of one gives the file that production loads. A smaller factor shortens every range, every `for` and
every interval alike, under the same names, so that a test can see in a minute what takes hours otherwise.
Each alert states in `fires_within` how soon it fires on the fault that it is for.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from deploy import slo
from deploy.alerts import CONDITIONS, Condition
from deploy.shares import Made, Share, reached_s

RULES = Path(__file__).parent / "prometheus" / "rules.yml"
RUNBOOK_URL = "deploy/RUNBOOK.md"
# Between two scrapes, and between two evaluations: as in prometheus.yml.
INTERVAL_S = 5.0
# Of evaluations in the shortest `for` of production.
_LEAST_TURNS = 3
_UNITS_MS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1))
_RANGE = re.compile(r"<(\d+[smhd])>")
# Windows of days are long to sum up and move slowly.
_SELDOM_S, _RARELY_S = 60.0, 300.0
_HEADER = "# Written by `python -m deploy.rules` from deploy/slo.py and deploy/alerts.py.\n"

# A piece of Prometheus' own document.
Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert as Prometheus evaluates it; fires_within_s: on the fault `fault`, the stated time.

    share: what it watches, where that is a share in a window; window_s: that window, as long as it is here.
    """

    name: str
    severity: str
    expr: str
    for_s: float
    summary: str
    description: str
    fault: str
    fires_within_s: float
    windows: str = ""
    share: Share | None = None
    window_s: float = 0.0

    def within_s(self, made: Made) -> float:
        """Return the stated time of a fault that makes this of the share, see `deploy.shares`."""
        if self.share is None:
            return self.fires_within_s
        stated_s, real_s = (
            reached_s(self.window_s, self.share.limit, one) for one in (self.share.stated, made)
        )
        return self.fires_within_s + real_s - stated_s


@dataclass(frozen=True, slots=True)
class Recording:
    """An expression whose value is kept under a name; slo: the objective that it is of, if any."""

    name: str
    expr: str
    slo: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """Rules evaluated one after another, every `interval_s`; None for as often as all."""

    name: str
    rules: tuple[Alert | Recording, ...]
    interval_s: float | None = None


@dataclass(frozen=True, slots=True)
class Scale:
    """How production's times become those of a test.

    factor: of every range, `for` and interval. interval_s: between scrapes, and between evaluations. A `for`
    stays as long as `_LEAST_TURNS` evaluations: it says that one scrape that fails is no fault, and a shorter
    one would say so no more.
    """

    factor: float = 1.0
    interval_s: float = INTERVAL_S

    def duration(self, text: str) -> str:
        """Return a duration of production as it is here, in Prometheus' notation."""
        return written(seconds(text) * self.factor)

    def held_s(self, for_s: float) -> float:
        """Return how long a condition that holds for so long in production has to hold here."""
        return max(for_s * self.factor, min(for_s / INTERVAL_S, _LEAST_TURNS) * self.interval_s)

    def expression(self, template: str, window: str = "") -> str:
        """Return a template's expression with its ranges; `<w>` is `window`."""
        return _RANGE.sub(lambda found: self.duration(found[1]), template.replace("<w>", f"<{window}>"))


def seconds(duration: str) -> float:
    """Return what a duration such as 30m is in seconds."""
    number, unit = int(duration[:-1]), duration[-1]
    return number * dict(_UNITS_MS)[unit] / 1e3


def written(duration_s: float) -> str:
    """Return a duration in Prometheus' notation, its parts in units that divide it: 8m30s."""
    left, text = max(round(duration_s * 1e3), 1), ""
    for unit, size in _UNITS_MS:
        if left >= size:
            text += f"{left // size}{unit}"
            left %= size
    return text


def groups(scale: Scale) -> tuple[Group, ...]:
    """Return all rules under a scale."""
    often = tuple(window for window in slo.WINDOWS if not _seldom(window))
    seldom = tuple(window for window in slo.WINDOWS if _seldom(window))
    return (
        Group("paretogate.recording", _recordings(scale)),
        Group("paretogate.slo", (*_targets(), *_shares(scale, often))),
        Group("paretogate.slo.long", _shares(scale, seldom), _SELDOM_S * scale.factor),
        Group("paretogate.slo.period", _left(scale), _RARELY_S * scale.factor),
        Group("paretogate.burn", _burns(scale)),
        Group("paretogate.alerts", _conditions(scale)),
    )


def _seldom(window: str) -> bool:
    return seconds(window) > seconds("2h")


def alerts(scale: Scale) -> tuple[Alert, ...]:
    """Return all alerts under a scale; those of one objective share a name."""
    return tuple(rule for group in groups(scale) for rule in group.rules if isinstance(rule, Alert))


def render(scale: Scale) -> str:
    """Return the text of a rules file."""
    document = {"groups": [_group(group) for group in groups(scale)]}
    return _HEADER + yaml.safe_dump(document, sort_keys=False, width=110)


def _recordings(scale: Scale) -> tuple[Recording, ...]:
    templates = (
        ("paretogate:requests:rate1m", "sum by (outcome) (rate(paretogate_requests_total[<1m>]))"),
        (
            "paretogate:answers:rate5m",
            "sum by (operating_point, plan) (rate(paretogate_answers_total[<5m>]))",
        ),
        *(
            (
                f"paretogate:{name}:p{q}_5m",
                f"histogram_quantile(0.{q}, sum by (le, {by}) (rate(paretogate_{name}_bucket[<5m>])))",
            )
            for name, by, q in (
                ("request_seconds", "operating_point", 50),
                ("request_seconds", "operating_point", 99),
                ("stage_seconds", "variant", 99),
            )
        ),
        *(
            (
                f"paretogate:escalation:share{window}",
                f"sum by (plan) (rate(paretogate_escalations_total[<{window}>]))"
                f" / (sum by (plan) (rate(paretogate_escalation_decisions_total[<{window}>])) > 0)",
            )
            for window in ("5m", "30m")
        ),
    )
    return tuple(Recording(name, scale.expression(template)) for name, template in templates)


def _targets() -> tuple[Recording, ...]:
    return (
        Recording("paretogate:slo:promise_seconds", f"vector({slo.PROMISE_S:g})"),
        *(Recording("paretogate:slo:target", f"vector({one.target:g})", one.name) for one in slo.OBJECTIVES),
    )


def _share(scale: Scale, objective: slo.Objective, window: str) -> str:
    bad, total = (scale.expression(each, window) for each in (objective.bad, objective.total))
    return f"({bad}) / {total}"


def _shares(scale: Scale, windows: tuple[str, ...]) -> tuple[Recording, ...]:
    """Of each objective, the share of bad events of each window; of long windows, their number too."""
    long = {burn.long for burn in slo.BURNS}
    shares = tuple(
        Recording(slo.SHARE.format(window), _share(scale, one, window), one.name)
        for one in slo.OBJECTIVES
        for window in windows
    )
    numbers = tuple(
        Recording(
            slo.NUMBER.format(window),
            f"({scale.expression(one.bad, window)}) * {seconds(window) * scale.factor:g}",
            one.name,
        )
        for one in slo.OBJECTIVES
        for window in windows
        if window in long
    )
    return shares + numbers


def _left(scale: Scale) -> tuple[Recording, ...]:
    """Of each objective's budget, the share that is not spent; below 0 the promise is broken."""
    return tuple(
        Recording(
            "paretogate:slo:budget_left",
            f"1 - ({_share(scale, one, slo.PERIOD)}) / {one.allowed:g}",
            one.name,
        )
        for one in slo.OBJECTIVES
    )


def _burns(scale: Scale) -> tuple[Alert, ...]:
    return tuple(_burn(scale, objective, burn) for objective in slo.OBJECTIVES for burn in slo.BURNS)


def _burn(scale: Scale, objective: slo.Objective, burn: slo.Burn) -> Alert:
    limit = slo.limit(objective, burn)
    selector = f'{{slo="{objective.name}"}}'
    waits_s = _SELDOM_S if _seldom(burn.long) else 0.0
    share = slo.share(objective, burn)
    window_s = seconds(burn.long) * scale.factor
    return Alert(
        objective.alert,
        burn.severity,
        f"{slo.SHARE.format(burn.long)}{selector} > {limit:g}"
        f" and {slo.SHARE.format(burn.short)}{selector} > {limit:g}"
        f" and {slo.NUMBER.format(burn.long)}{selector} >= {slo.LEAST_BAD}",
        0.0,
        f"{{{{ $value | humanizePercentage }}}} {objective.says}.",
        f"Over {burn.long}, and over the last {burn.short} as well, it is more than {burn.factor:g} times the"
        f" {100 * objective.allowed:g} % that may be: the error budget of {slo.PERIOD} is gone within"
        f" {written(seconds(slo.PERIOD) / burn.factor)}. {objective.meaning}",
        "no request is good any more",
        _stated(scale, reached_s(window_s, limit, share.stated) + waits_s * scale.factor),
        f"{burn.long}/{burn.short}",
        share,
        window_s,
    )


def _conditions(scale: Scale) -> tuple[Alert, ...]:
    return tuple(_condition(scale, one) for one in CONDITIONS)


def _condition(scale: Scale, one: Condition) -> Alert:
    for_s, window_s, needs_s = scale.held_s(one.for_s), 0.0, 0.0
    if one.share is not None:
        window_s = seconds(one.share.window) * scale.factor
        needs_s = reached_s(window_s, one.share.limit, one.share.stated)
    return Alert(
        one.alert,
        one.severity,
        scale.expression(one.expr),
        for_s,
        one.summary,
        one.description,
        one.fault,
        _stated(scale, needs_s + for_s + one.settles_s),
        share=one.share,
        window_s=window_s,
    )


def _stated(scale: Scale, needs_s: float) -> float:
    """Return the stated time of a condition that needs so long from its fault on, `for` included.

    Each of these comes up to one interval after the one before it: the scrape that sees the fault, the rule
    that records it, the alert that reads what is recorded, and the evaluation at which `for`, or the limit of
    a share, turns out to have passed.
    """
    return needs_s + 4 * scale.interval_s


def _group(group: Group) -> Json:
    interval: Json = {} if group.interval_s is None else {"interval": written(group.interval_s)}
    return {"name": group.name, **interval, "rules": [_rule(rule) for rule in group.rules]}


def _rule(rule: Alert | Recording) -> Json:
    if isinstance(rule, Recording):
        labels: Json = {"labels": {"slo": rule.slo}} if rule.slo else {}
        return {"record": rule.name, "expr": rule.expr, **labels}
    return {
        "alert": rule.name,
        "expr": rule.expr,
        **({"for": written(rule.for_s)} if rule.for_s else {}),
        "labels": {"severity": rule.severity, **({"windows": rule.windows} if rule.windows else {})},
        "annotations": {
            "summary": rule.summary,
            "description": rule.description,
            "fires_within": f"{stated(rule)}, when {rule.fault}",
            "runbook_url": f"{RUNBOOK_URL}#{rule.name.lower()}",
        },
    }


def stated(alert: Alert) -> str:
    """Return an alert's stated time in words, rounded up to half a minute."""
    return written(30 * math.ceil(alert.fires_within_s / 30))


def main() -> None:
    """Write the rules where production reads them."""
    RULES.write_text(render(Scale()), encoding="utf-8")


if __name__ == "__main__":
    main()
