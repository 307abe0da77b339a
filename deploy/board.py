"""The Grafana board of the operating points, made by code: `python -m deploy.board` writes it anew.

Written by hand a board is a thousand lines that nobody reads; here a panel is its title, its place and its
queries. A test holds the committed file to what this writes, and every metric in it to the gateway's own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

BOARD = Path(__file__).parent / "grafana" / "dashboards" / "operating_points.json"
_SOURCE = {"type": "prometheus", "uid": "prometheus"}
_GRID_WIDTH = 24

# A piece of Grafana's own document.
Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class Query:
    """A PromQL expression and how its series are called; `instant` asks for one value, as a table."""

    expr: str
    legend: str = ""
    instant: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel: Grafana's type, what it shows, what it says of itself, its size on a grid 24 wide."""

    kind: str
    title: str
    description: str
    queries: tuple[Query, ...]
    width: int
    height: int
    unit: str = "short"
    stacked: bool = False
    maximum: float | None = None
    transformations: tuple[Json, ...] = ()
    options: Json | None = None
    mappings: tuple[Json, ...] = ()


def _named(*values: tuple[str, str, str]) -> Json:
    """Return a mapping of values to words and colours."""
    return {
        "type": "value",
        "options": {
            value: {"text": text, "color": colour, "index": index}
            for index, (value, text, colour) in enumerate(values)
        },
    }


def _quantile(q: float, metric: str, by: str) -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q:g}, sum by ({labels}) (rate({metric}_bucket[$__rate_interval])))"


_UP = (_named(("0", "down", "red"), ("1", "up", "green")),)
_POINTS = (
    Query("max by (operating_point, plan) (paretogate_operating_point_map)", instant=True),
    Query("1000 * max by (operating_point, plan) (paretogate_operating_point_mean_seconds)", instant=True),
)
_JOINED: tuple[Json, ...] = (
    {"id": "joinByField", "options": {"byField": "operating_point", "mode": "outer"}},
)
_PLANE_FIELDS: Json = {
    "id": "organize",
    "options": {
        # The first number is x, the second y.
        "indexByName": {"operating_point": 0, "Value #B": 1, "Value #A": 2},
        "excludeByName": {"Time": True, "Time 1": True, "Time 2": True, "plan 1": True, "plan 2": True},
        "renameByName": {"Value #A": "mAP", "Value #B": "mean latency, ms"},
    },
}
_EACH_POINT: Json = {
    "id": "partitionByValues",
    "options": {"fields": ["operating_point"], "keepFields": False, "naming": {"asLabels": False}},
}
_TABLE_FIELDS: Json = {
    "id": "organize",
    "options": {
        "excludeByName": {
            **{f"Time {index}": True for index in range(1, 7)},
            **{f"plan {index}": True for index in range(2, 7)},
        },
        "renameByName": {
            "operating_point": "operating point",
            "plan 1": "plan",
            "Value #A": "mAP",
            "Value #B": "mean ms, published",
            "Value #C": "p99 ms, published",
            "Value #D": "p99 ms, observed",
            "Value #E": "answers/s",
        },
    },
}

ROWS: tuple[tuple[Panel, ...], ...] = (
    (
        Panel(
            "stat",
            "Gateway",
            "Whether it takes requests.",
            (Query("min(paretogate_ready)"),),
            4,
            4,
            mappings=_UP,
        ),
        Panel(
            "stat", "Engine", "Whether it answers.", (Query("min(paretogate_engine_up)"),), 4, 4, mappings=_UP
        ),
        Panel(
            "stat",
            "Point in force",
            "Answers requests that name none; the controller moves it with load.",
            (Query("max by (operating_point) (paretogate_operating_point) == 1", "{{operating_point}}"),),
            4,
            4,
            options={"textMode": "name", "colorMode": "none"},
        ),
        Panel(
            "stat",
            "Requests",
            "Arrivals per second.",
            (Query("sum(rate(paretogate_arrivals_total[$__rate_interval]))"),),
            4,
            4,
            "reqps",
        ),
        Panel(
            "stat",
            "Budgets missed",
            "Of the answers with a budget, those after it.",
            (Query("paretogate:budget_missed:share5m"),),
            4,
            4,
            "percentunit",
        ),
        Panel("stat", "Shed", "Of all requests.", (Query("paretogate:shed:share5m"),), 4, 4, "percentunit"),
    ),
    (
        Panel(
            "xychart",
            "Operating points on the accuracy-latency plane",
            "mAP against mean latency as published: up and to the left is better.",
            _POINTS,
            10,
            9,
            transformations=(*_JOINED, _PLANE_FIELDS, _EACH_POINT),
            options={"mapping": "auto", "legend": {"showLegend": True, "placement": "bottom"}},
        ),
        Panel(
            "table",
            "Operating points",
            "What was published beside what is observed; observed latency includes decoding and waiting.",
            (
                *_POINTS,
                Query(
                    "1000 * max by (operating_point, plan) (paretogate_operating_point_p99_seconds)",
                    instant=True,
                ),
                Query("1000 * paretogate:request_seconds:p99_5m", instant=True),
                Query("sum by (operating_point) (paretogate:answers:rate5m)", instant=True),
            ),
            14,
            9,
            transformations=(*_JOINED, _TABLE_FIELDS),
        ),
    ),
    (
        Panel(
            "timeseries",
            "Answers by plan",
            "Which plans make the answers.",
            (
                Query(
                    "sum by (plan) (rate(paretogate_answers_total[$__rate_interval]))"
                    " / on () group_left () sum(rate(paretogate_answers_total[$__rate_interval]))",
                    "{{plan}}",
                ),
            ),
            12,
            8,
            "percentunit",
            stacked=True,
            maximum=1.0,
        ),
        Panel(
            "timeseries",
            "Share escalated",
            "Against what calibration expects. A lasting gap means other frames.",
            (
                Query("paretogate:escalation:share5m", "{{plan}}"),
                Query("max by (plan) (paretogate_escalation_share_expected)", "{{plan}}, expected"),
            ),
            12,
            8,
            "percentunit",
            maximum=1.0,
        ),
    ),
    (
        Panel(
            "timeseries",
            "Latency by operating point",
            "From arrival to answer.",
            (
                Query(
                    _quantile(0.5, "paretogate_request_seconds", "operating_point"), "{{operating_point}} p50"
                ),
                Query(
                    _quantile(0.99, "paretogate_request_seconds", "operating_point"),
                    "{{operating_point}} p99",
                ),
                Query("paretogate:slo:p99_seconds", "p99 promised"),
            ),
            12,
            8,
            "s",
        ),
        Panel(
            "timeseries",
            "Stages",
            "Resize, inference and suppression of one variant; decoding and waiting apart.",
            (
                Query(_quantile(0.5, "paretogate_stage_seconds", "variant"), "{{variant}} p50"),
                Query(_quantile(0.99, "paretogate_stage_seconds", "variant"), "{{variant}} p99"),
                Query(_quantile(0.99, "paretogate_decode_seconds", ""), "decoding p99"),
                Query(_quantile(0.99, "paretogate_queue_seconds", ""), "waiting p99"),
            ),
            12,
            8,
            "s",
        ),
    ),
    (
        Panel(
            "timeseries",
            "Slack",
            "Budget left when the answer was ready; p1 near zero means that budgets are just met.",
            (
                Query(_quantile(0.01, "paretogate_slack_seconds", ""), "p1"),
                Query(_quantile(0.5, "paretogate_slack_seconds", ""), "p50"),
            ),
            8,
            8,
            "s",
        ),
        Panel(
            "timeseries",
            "Outcomes",
            "Every request ends in one of them.",
            (
                Query(
                    "sum by (outcome) (rate(paretogate_requests_total[$__rate_interval]))",
                    "{{outcome}}",
                ),
            ),
            8,
            8,
            "reqps",
            stacked=True,
        ),
        Panel(
            "timeseries",
            "No answer, or not the whole one",
            "Problems by kind, and stages that were not run.",
            (
                Query("sum by (problem) (rate(paretogate_problems_total[$__rate_interval]))", "{{problem}}"),
                Query(
                    "sum by (variant, reason) (rate(paretogate_cut_stages_total[$__rate_interval]))",
                    "{{variant}} cut: {{reason}}",
                ),
            ),
            8,
            8,
            "reqps",
        ),
    ),
    (
        Panel(
            "timeseries",
            "Admission",
            "Requests inside against their limit, waiting, and workers.",
            (
                Query("sum(paretogate_inside)", "inside"),
                Query("sum(paretogate_limit)", "limit"),
                Query("sum(paretogate_queue_length)", "waiting"),
                Query("sum(paretogate_workers_busy)", "busy workers"),
                Query("sum(paretogate_workers)", "workers"),
            ),
            8,
            8,
        ),
        Panel(
            "timeseries",
            "Slow-down",
            "How many times longer than its profile a step takes now; decisions use it.",
            (Query("max by (step) (paretogate_slow_down)", "{{step}}"),),
            8,
            8,
        ),
        Panel(
            "state-timeline",
            "Latency drift",
            "Red where a variant's published profile does not hold any more.",
            (Query("max by (variant) (paretogate_latency_drift)", "{{variant}}"),),
            8,
            8,
            mappings=(_named(("0", "holds", "green"), ("1", "drifted", "red")),),
        ),
    ),
    (
        Panel(
            "timeseries",
            "Drift of frames and answers",
            "How far the most unlike signal is from calibration; at 1 it is an alarm.",
            (Query("max by (subject) (paretogate_drift_height)", "{{subject}}"),),
            8,
            8,
        ),
        Panel(
            "state-timeline",
            "Certificates",
            "Red while drift voids a plan's certificate.",
            (Query("min by (plan) (paretogate_certificate_valid)", "{{plan}}"),),
            8,
            8,
            mappings=(_named(("0", "void", "red"), ("1", "holds", "green")),),
        ),
        Panel(
            "timeseries",
            "What early answers lose",
            "1 - F1 of early answers against their plan's last stage, on the share that idle workers check.",
            (
                Query(
                    "sum by (plan) (rate(paretogate_shadow_disagreement_sum[5m]))"
                    " / sum by (plan) (rate(paretogate_shadow_disagreement_count[5m]))",
                    "{{plan}}",
                ),
            ),
            8,
            8,
        ),
    ),
)


def board() -> Json:
    """Return the board as Grafana's dashboard document."""
    panels: list[Json] = []
    top = 0
    for row in ROWS:
        left = 0
        for panel in row:
            panels.append(_panel(panel, len(panels) + 1, left, top))
            left += panel.width
        if left != _GRID_WIDTH:
            raise ValueError(f"the row of {row[0].title!r} is {left} wide, the grid {_GRID_WIDTH}")
        top += max(panel.height for panel in row)
    return {
        "uid": "paretogate-operating-points",
        "title": "Paretogate: operating points",
        "tags": ["paretogate"],
        "schemaVersion": 41,
        "version": 1,
        "editable": False,
        "refresh": "5s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": []},
        "annotations": {"list": []},
        "panels": panels,
    }


def expressions() -> tuple[str, ...]:
    """Return every expression that the board asks Prometheus for."""
    return tuple(query.expr for row in ROWS for panel in row for query in panel.queries)


def render() -> str:
    """Return the text of the board's file."""
    return json.dumps(board(), indent=2) + "\n"


def _panel(panel: Panel, number: int, left: int, top: int) -> Json:
    defaults: Json = {"unit": panel.unit, "mappings": list(panel.mappings), "min": 0}
    if panel.kind in ("table", "xychart"):
        del defaults["min"]
    if panel.maximum is not None:
        defaults["max"] = panel.maximum
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "lineWidth": 2,
            "fillOpacity": 30 if panel.stacked else 0,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stacked else "none"},
        }
    if panel.kind == "xychart":
        defaults["custom"] = {"show": "points", "pointSize": {"fixed": 14}}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _SOURCE,
        "gridPos": {"x": left, "y": top, "w": panel.width, "h": panel.height},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": panel.options or {},
        "targets": _targets(panel.queries),
        "transformations": list(panel.transformations),
    }


def _targets(queries: Sequence[Query]) -> list[Json]:
    return [
        {
            "refId": chr(ord("A") + index),
            "datasource": _SOURCE,
            "expr": query.expr,
            "legendFormat": query.legend or "__auto",
            "instant": query.instant,
            "range": not query.instant,
            "format": "table" if query.instant else "time_series",
        }
        for index, query in enumerate(queries)
    ]


def main() -> None:
    """Write the board where Grafana is provisioned from."""
    BOARD.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
