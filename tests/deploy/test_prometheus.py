"""Prometheus' configuration, recording rules and alerts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from deploy.rules import RULES, Alert, Scale, alerts, render, seconds, stated, written
from deploy.slo import BURNS, PROMISE_S, WINDOWS, Burn
from router.metrics import BUCKETS_S
from tests.deploy.promtool import DEPLOY, promtool
from tests.deploy.rule_cases import BURNING, FAULTS, HEALTHY, Counter, Fault, Gauge, Series

FOLDER = DEPLOY / "prometheus"
PRODUCTION = alerts(Scale())
Rule = dict[str, Any]  # Any: documents of Prometheus' formats, as their parser gives them


def test_the_committed_rules_are_what_the_code_writes() -> None:
    """`python -m deploy.rules` would change nothing."""
    assert RULES.read_text(encoding="utf-8") == render(Scale())


@pytest.mark.parametrize(
    "arguments", [("check", "config", "prometheus.yml"), ("check", "rules", "rules.yml")], ids=" ".join
)
def test_promtool_is_content(arguments: tuple[str, ...]) -> None:
    """promtool accepts the configuration and the rules."""
    assert "SUCCESS" in promtool(*arguments, folder=FOLDER)


@pytest.mark.parametrize("factor", [1 / 60, 1 / 120])
def test_shortened_rules_differ_in_durations_alone(factor: float, tmp_path: Path) -> None:
    """Under a factor there are the same alerts and series, over shorter ranges, and promtool accepts them."""
    short = render(Scale(factor, 0.5))
    (tmp_path / "rules.yml").write_text(short)
    assert "SUCCESS" in promtool("check", "rules", "rules.yml", folder=tmp_path)
    names = re.compile(r"(?:record|alert): (\S+)")
    assert names.findall(short) == names.findall(render(Scale()))
    ranges = re.compile(r"\[(.*?)\]")
    for here, there in zip(ranges.findall(render(Scale())), ranges.findall(short), strict=True):
        assert there == written(seconds(here) * factor)


@given(st.integers(1, 40 * 86_400_000))
def test_durations_are_written_and_read_alike(milliseconds: int) -> None:
    """What is written in Prometheus' notation adds up to what was meant."""
    sizes = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
    parts = re.findall(r"(\d+)(ms|[dhms])", written(milliseconds / 1e3))
    assert sum(int(number) * sizes[unit] for number, unit in parts) == milliseconds
    assert all(written(seconds(window)) == window for window in WINDOWS)


def test_the_promise_is_the_edge_of_a_bucket() -> None:
    """The share of requests under the promise can be read from the histogram."""
    assert PROMISE_S in BUCKETS_S


def test_every_alert_has_a_fault() -> None:
    """No alert is defined that is not seen firing."""
    seen = {
        (alert, windows)
        for fault in (*BURNING, *FAULTS)
        for alert in fault.alerts
        for windows in fault.windows
    }
    assert seen == {(alert.name, alert.windows) for alert in PRODUCTION}


def test_alerts_fire_within_their_stated_time_and_on_their_fault_alone(tmp_path: Path) -> None:
    """With production's windows nothing fires before a fault, and what is stated for it fires in time."""
    rules = _rules(lambda rule: "bad_" not in str(rule) and "slo:" not in str(rule))
    _run(tmp_path, rules, "30s", [_case(fault, "", healthy="40m", every="30s") for fault in FAULTS])


@pytest.mark.parametrize(("burn", "every"), list(zip(BURNS, ("1m", "5m", "15m", "15m"), strict=True)))
def test_budgets_burn_within_their_stated_time(burn: Burn, every: str, tmp_path: Path) -> None:
    """After a long window of health, a share just below what may be, each pair of windows fires in time."""
    windows = f"{burn.long}/{burn.short}"
    needed = re.compile(rf"bad_\w+:({burn.long}|{burn.short})\b")
    rules = _rules(
        lambda rule: (
            needed.search(str(rule)) is not None and rule["labels"].get("windows", windows) == windows
        )
    )
    cases = [_case(fault, windows, healthy=burn.long, every=every) for fault in BURNING]
    _run(tmp_path, rules, every, cases)


def test_what_alerts_say_is_written_out(tmp_path: Path) -> None:
    """Summary and description name what is concerned, and the value."""
    fault = next(fault for fault in FAULTS if "ParetogateEscalationDrift" in fault.alerts)
    (alert,) = (one for one in PRODUCTION if one.name == "ParetogateEscalationDrift")
    case: Rule = {
        "interval": "1m",
        "input_series": list(_series(fault, seconds("1h"), seconds("1h"), 60)),
        "alert_rule_test": [
            {
                "eval_time": "2h",
                "alertname": alert.name,
                "exp_alerts": [
                    {
                        "exp_labels": {"severity": "warning", "plan": "cascade"},
                        "exp_annotations": {
                            "summary": "Plan cascade sends on a share of frames that is 40% away from"
                            " calibration's.",
                            "description": alert.description,
                            "fires_within": "20m30s, when a plan's share moves by 0.4",
                            "runbook_url": "deploy/RUNBOOK.md#paretogateescalationdrift",
                        },
                    }
                ],
            }
        ],
    }
    _run(tmp_path, _rules(lambda rule: "scalation" in str(rule)), "1m", [case])


def test_promtool_checks_what_compose_mounts() -> None:
    """The rules file is named as it is mounted, beside prometheus.yml."""
    mounts = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["prometheus"]["volumes"]
    mounted = [re.split(":", mount)[1] for mount in mounts if mount.startswith("./")]
    assert mounted == ["/etc/prometheus/prometheus.yml", "/etc/prometheus/rules.yml"]
    configuration = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    assert configuration["rule_files"] == ["rules.yml"]


def _rules(needed: Callable[[Rule], bool]) -> list[Rule]:
    """Return the committed rules that a case needs: all of them would take promtool minutes."""
    document = yaml.safe_load(RULES.read_text())
    return [rule for group in document["groups"] for rule in group["rules"] if needed(rule)]


def _run(folder: Path, rules: Sequence[Rule], every: str, cases: Sequence[Rule]) -> None:
    (folder / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": list(rules)}]}))
    tests = {"rule_files": ["rules.yml"], "evaluation_interval": every, "tests": list(cases)}
    (folder / "cases.yml").write_text(yaml.safe_dump(tests, sort_keys=False))
    assert "SUCCESS" in promtool("test", "rules", "cases.yml", folder=folder)


def _case(fault: Fault, windows: str, *, healthy: str, every: str) -> Rule:
    """Return a test of promtool: health, then a fault, and what has fired when."""
    interval_s, well_s = seconds(every), seconds(healthy)
    expected = [alert for alert in PRODUCTION if alert.name in fault.alerts and alert.windows == windows]
    # promtool sees a fault an interval later than production, whose intervals are five seconds.
    ends_s = [(alert, well_s + _stated_s(alert) + interval_s) for alert in expected]
    return {
        "name": fault.name,
        "interval": every,
        "input_series": list(_series(fault, well_s, max(end_s for _, end_s in ends_s) - well_s, interval_s)),
        "promql_expr_test": [
            {"expr": 'ALERTS{alertstate="firing"}', "eval_time": written(well_s), "exp_samples": []},
            *(
                {
                    "expr": "count by (alertname, windows)"
                    f' (ALERTS{{alertstate="firing", alertname="{alert.name}"}})',
                    "eval_time": written(end_s),
                    "exp_samples": [{"labels": _labels(alert), "value": 1}],
                }
                for alert, end_s in ends_s
            ),
        ],
    }


def _labels(alert: Alert) -> str:
    windows = f', windows="{alert.windows}"' if alert.windows else ""
    return f'{{alertname="{alert.name}"{windows}}}'


def _stated_s(alert: Alert) -> float:
    """Return an alert's stated time as people read it."""
    parts = re.findall(r"(\d+)([dhms])", stated(alert))
    return sum(seconds(number + unit) for number, unit in parts)


def _series(fault: Fault, well_s: float, ill_s: float, interval_s: float) -> Iterator[dict[str, str]]:
    """Yield the samples of a gateway that is well and then ill, for so long each."""
    before, after = round(well_s / interval_s), round(ill_s / interval_s) + 1
    ill: Series = {**HEALTHY, **fault.series}
    assert set(ill) == set(HEALTHY), "a fault changes series that there are"
    for name, well in HEALTHY.items():
        worse = ill[name]
        match well, worse:
            case Gauge(), Gauge():
                values = f"{well.value:g}x{before}"
                then = f"{worse.value:g}x{after}"
            case Counter(), Counter():
                step, more = (one.per_minute * interval_s / 60 for one in (well, worse))
                values = f"0+{step:.10g}x{before}"
                then = f"{step * before + more:.10g}+{more:.10g}x{after}"
            case _:
                raise TypeError(f"{name} changes its kind")
        yield {"series": name, "values": f"{values} {'stale' if name in fault.gone else then}"}
