"""The Grafana board, and the metrics that it and the rules ask for."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from deploy.board import BOARD, ROWS, expressions, render
from tests.deploy.promtool import DEPLOY, promtool

_METRIC = re.compile(r"\bparetogate_[a-z0-9_]+")
_RECORDED = re.compile(r"\bparetogate(?::[a-z0-9_]+)+")


def _rules() -> Iterator[dict[str, str]]:
    document = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())
    for group in document["groups"]:
        yield from group["rules"]


def test_the_committed_board_is_what_the_code_writes() -> None:
    """`python -m deploy.board` would change nothing."""
    assert BOARD.read_text(encoding="utf-8") == render()


def test_panels_lie_on_the_grid_without_overlap() -> None:
    """Every cell of the 24 columns is taken once at most, in folded rows too, and ids are unique."""
    shown = json.loads(render())["panels"]
    ids = [panel["id"] for panel in shown]
    for panels in (shown, *(row["panels"] for row in shown if row["type"] == "row")):
        taken: set[tuple[int, int]] = set()
        for panel in panels:
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not cells & taken, panel["title"]
            assert max(x for x, _ in cells) < 24
            taken |= cells
    ids += [panel["id"] for row in shown if row["type"] == "row" for panel in row["panels"]]
    assert len(set(ids)) == len(ids)


def test_features_rows_are_folded_and_the_others_are_not() -> None:
    """A row whose panels need something turned on holds them itself, as Grafana wants of a collapsed row."""
    rows = {panel["title"]: panel for panel in json.loads(render())["panels"] if panel["type"] == "row"}
    for row in ROWS:
        inside = sum(len(line) for line in row.lines)
        assert rows[row.title]["collapsed"] == bool(row.feature)
        assert len(rows[row.title]["panels"]) == (inside if row.feature else 0)


def test_every_metric_that_board_and_rules_ask_for_exists(exposed_metrics: frozenset[str]) -> None:
    """The gateway's /metrics has every series by name that any expression here reads."""
    asked = {
        name
        for text in (*expressions(), *(rule["expr"] for rule in _rules()))
        for name in _METRIC.findall(text)
    }
    assert asked
    assert asked <= exposed_metrics, sorted(asked - exposed_metrics)


def test_every_recorded_series_that_is_asked_for_is_recorded() -> None:
    """Board and alerts read no recording rule that is not defined."""
    recorded = {rule["record"] for rule in _rules() if "record" in rule}
    asked = {
        name
        for text in (*expressions(), *(rule["expr"] for rule in _rules()))
        for name in _RECORDED.findall(text)
    }
    assert asked <= recorded, sorted(asked - recorded)


def test_prometheus_can_parse_every_expression_of_the_board(tmp_path: Path) -> None:
    """promtool accepts each query, Grafana's variables put in, as a recording rule."""
    rules = [
        {"record": f"board:query_{index}", "expr": text.replace("$__rate_interval", "1m")}
        for index, text in enumerate(expressions())
    ]
    (tmp_path / "board.yml").write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", "board.yml", folder=tmp_path)


@pytest.mark.skipif(
    not (DEPLOY / "grafana" / "check" / "node_modules").exists() or shutil.which("node") is None,
    reason="Grafana's types are not installed: npm install --no-package-lock in deploy/grafana/check",
)
def test_panels_are_as_grafanas_types_want_them() -> None:
    """The compiler accepts the board as constants of the types that Grafana publishes for its version."""
    done = subprocess.run(
        ["node", "check.mjs"],
        cwd=DEPLOY / "grafana" / "check",
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_grafanas_types_are_of_the_version_that_compose_runs() -> None:
    """The board is held to the types of the Grafana that shows it."""
    package = json.loads((DEPLOY / "grafana" / "check" / "package.json").read_text())
    image = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["grafana"]["image"]
    assert image.rpartition(":")[2].split("@")[0] == package["dependencies"]["@grafana/schema"]
