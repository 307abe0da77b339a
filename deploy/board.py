"""The Grafana board, made by code: `python -m deploy.board` writes it anew.

Written by hand a board is thousands of lines that nobody reads; here a panel is its title, its place and its
queries (`deploy.panels`, `deploy.feature_panels`). Tests hold the committed file to what this writes, every
metric in it to the gateway's own, and every query to a Prometheus under load.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from deploy import feature_panels, panels
from deploy.panel import Json, Panel, Query, Row

BOARD = Path(__file__).parent / "grafana" / "dashboards" / "operating_points.json"
_SOURCE = {"type": "prometheus", "uid": "prometheus"}
_GRID_WIDTH = 24

ROWS: tuple[Row, ...] = (*panels.ROWS, *feature_panels.ROWS)


def board() -> Json:
    """Return the board as Grafana's dashboard document."""
    numbers = iter(range(1, 1_000))
    documents: list[Json] = []
    top = 0
    for row in ROWS:
        header = _row(row, next(numbers), top)
        documents.append(header)
        inside, height = _panels(row, numbers, top + 1)
        if row.feature:
            # A folded row holds its panels and takes one line.
            header["panels"] = inside
            top += 1
        else:
            documents += inside
            top += 1 + height
    return {
        "uid": "paretogate-operating-points",
        "title": "Paretogate: operating points",
        "tags": ["paretogate"],
        "schemaVersion": 41,
        "version": 2,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "5s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": []},
        "annotations": {"list": []},
        "panels": documents,
    }


def every_panel() -> tuple[tuple[Row, Panel], ...]:
    """Return all panels with the row that each is in."""
    return tuple((row, panel) for row in ROWS for line in row.lines for panel in line)


def expressions() -> tuple[str, ...]:
    """Return every expression that the board asks Prometheus for."""
    return tuple(query.expr for _, panel in every_panel() for query in panel.queries)


def render() -> str:
    """Return the text of the board's file."""
    return json.dumps(board(), indent=2) + "\n"


def _row(row: Row, number: int, top: int) -> Json:
    return {
        "id": number,
        "type": "row",
        "title": row.title,
        "collapsed": bool(row.feature),
        "gridPos": {"x": 0, "y": top, "w": _GRID_WIDTH, "h": 1},
        "panels": [],
    }


def _panels(row: Row, numbers: Iterator[int], top: int) -> tuple[list[Json], int]:
    """Return a row's panels in their places, and how many lines of the grid they take."""
    documents: list[Json] = []
    height = 0
    for line in row.lines:
        left = 0
        for panel in line:
            documents.append(_panel(panel, next(numbers), left, top + height))
            left += panel.width
        if left != _GRID_WIDTH:
            raise ValueError(f"the line of {line[0].title!r} is {left} wide, the grid {_GRID_WIDTH}")
        height += max(panel.height for panel in line)
    return documents, height


def _panel(panel: Panel, number: int, left: int, top: int) -> Json:
    defaults: Json = {"unit": panel.unit, "mappings": list(panel.mappings)}
    if panel.kind not in ("table", "xychart") and not panel.signed:
        defaults["min"] = 0
    if panel.maximum is not None:
        defaults["max"] = panel.maximum
    if panel.thresholds:
        steps: list[Json] = [{"value": None, "color": "green"}]
        steps += [{"value": value, "color": colour} for value, colour in panel.thresholds]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    custom = _custom(panel)
    if custom:
        defaults["custom"] = custom
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


def _custom(panel: Panel) -> Json:
    """Return how a kind of panel draws."""
    if panel.kind == "timeseries":
        lines: Json = {
            "lineWidth": 2,
            "fillOpacity": 30 if panel.stacked else 0,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stacked else "none"},
        }
        return {**lines, "thresholdsStyle": {"mode": "line"}} if panel.thresholds else lines
    if panel.kind == "xychart":
        return {"show": "points", "pointSize": {"fixed": 14}}
    return {}


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
