"""Grafana's provisioning fits what compose mounts."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from tests.deploy.documents import Yaml, read_yaml
from tests.deploy.promtool import DEPLOY


def services() -> Yaml:
    """Return the services of the compose file by name."""
    (document,) = read_yaml(DEPLOY / "compose.yaml")
    found: Yaml = document["services"]
    return found


def test_grafana_is_provisioned_with_the_board() -> None:
    """The provisioned folder is where compose mounts the boards, and the source has the board's id."""
    provisioning = DEPLOY / "grafana" / "provisioning"
    boards = yaml.safe_load((provisioning / "dashboards" / "boards.yaml").read_text())
    path = boards["providers"][0]["options"]["path"]
    assert f"./grafana/dashboards:{path}:ro" in services()["grafana"]["volumes"]
    home = services()["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    board = DEPLOY / "grafana" / "dashboards" / Path(home).name
    assert Path(home).parent == Path(path)
    source = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"][0]
    used = set(re.findall(r'"uid": "([^"]+)"', board.read_text())) - {"paretogate-operating-points"}
    assert used == {source["uid"]}
