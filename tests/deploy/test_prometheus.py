"""Prometheus' configuration, recording rules and alerts."""

from __future__ import annotations

import re

import pytest
import yaml

from tests.deploy.promtool import DEPLOY, promtool

FOLDER = DEPLOY / "prometheus"


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "rules.yml"),
        ("test", "rules", "rules_test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_is_content(arguments: tuple[str, ...]) -> None:
    """promtool accepts the configuration and the rules, and the rules' own tests pass."""
    assert "SUCCESS" in promtool(*arguments, folder=FOLDER)


def test_every_alert_has_a_test() -> None:
    """No alert is defined that rules_test.yml does not see both silent and firing."""
    rules = yaml.safe_load((FOLDER / "rules.yml").read_text())
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule}
    silent, firing = (
        {case["alertname"] for case in test["alert_rule_test"] if bool(case["exp_alerts"]) == expected}
        for test, expected in zip(
            yaml.safe_load((FOLDER / "rules_test.yml").read_text())["tests"], (False, True)
        )
    )
    assert silent == alerts
    assert firing == alerts


def test_promtool_checks_what_compose_mounts() -> None:
    """The rules file is named as it is mounted, beside prometheus.yml."""
    mounts = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["prometheus"]["volumes"]
    mounted = [re.split(":", mount)[1] for mount in mounts if mount.startswith("./")]
    assert mounted == ["/etc/prometheus/prometheus.yml", "/etc/prometheus/rules.yml"]
    configuration = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    assert configuration["rule_files"] == ["rules.yml"]
