"""What the board shows of the operating points: where they are on the plane, and what answers frames."""

from __future__ import annotations

from deploy.panel import Json, Panel, Query, Row, mean, rate

_POINTS = (
    Query("max by (operating_point, plan) (paretogate_operating_point_map)", instant=True),
    Query("1000 * max by (operating_point, plan) (paretogate_operating_point_mean_seconds)", instant=True),
)
_JOINED: tuple[Json, ...] = (
    {"id": "joinByField", "options": {"byField": "operating_point", "mode": "outer"}},
)
_PUBLISHED, _SERVED, _IN_FORCE = "as published, ms", "as served, ms", "in force, ms"
_PLANE_FIELDS: Json = {
    "id": "organize",
    "options": {
        "excludeByName": {
            **{f"Time {index}": True for index in range(1, 5)},
            **{f"plan {index}": True for index in range(1, 5)},
        },
        "renameByName": {
            "operating_point": "operating point",
            "Value #A": "mAP",
            "Value #B": _PUBLISHED,
            "Value #C": _SERVED,
            "Value #D": _IN_FORCE,
        },
    },
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
            "Value #D": "p99 ms, served",
            "Value #E": "answers/s",
        },
    },
}


def _on_the_plane(latency: str, name: str) -> Json:
    """Return a series of the plane: mAP against one of the latencies, of the one joined frame."""
    return {
        "name": {"fixed": name},
        "frame": {"matcher": {"id": "byIndex", "options": 0}},
        "x": {"matcher": {"id": "byName", "options": latency}},
        "y": {"matcher": {"id": "byName", "options": "mAP"}},
    }


OPERATING_POINTS = Row(
    "Operating points",
    (
        (
            Panel(
                "xychart",
                "Operating points on the accuracy-latency plane",
                "mAP against mean latency, as published and as served (with decoding and waiting): up and to"
                " the left is better. The point in force is marked.",
                (
                    *_POINTS,
                    Query(
                        f"1000 * {mean('paretogate_request_seconds', 'operating_point', '5m')}", instant=True
                    ),
                    Query(
                        "1000 * max by (operating_point) (paretogate_operating_point_mean_seconds)"
                        " and on (operating_point) (paretogate_operating_point == 1)",
                        instant=True,
                    ),
                ),
                10,
                9,
                transformations=(*_JOINED, _PLANE_FIELDS),
                options={
                    "mapping": "manual",
                    "series": [
                        _on_the_plane(_PUBLISHED, "as published"),
                        _on_the_plane(_SERVED, "as served"),
                        _on_the_plane(_IN_FORCE, "in force"),
                    ],
                    "legend": {
                        "showLegend": True,
                        "displayMode": "list",
                        "placement": "bottom",
                        "calcs": [],
                    },
                    "tooltip": {"mode": "single", "sort": "none"},
                },
            ),
            Panel(
                "table",
                "Operating points",
                "What was published beside what is served; served latency includes decoding and waiting.",
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
                        f"{rate('paretogate_answers_total', 'plan')}"
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
                    Query(
                        "max by (plan) (paretogate_escalation_share_expected)"
                        " and on (plan) paretogate:escalation:share5m",
                        "{{plan}}, expected",
                    ),
                ),
                12,
                8,
                "percentunit",
                maximum=1.0,
            ),
        ),
    ),
)
