"""The tables of `bench routing` can be read on a narrow terminal."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from search.rivals import BASELINES, RATES, Rival, RuleCurve
from search.routing_claims import Claim, Difference, Interval, PairResult, RoutingResult
from search.routing_table import print_claims, print_rules

FAST, LARGER = "r224-321m-ed6a-int8", "r352-639m-cf1c-int8"


def console(width: int) -> tuple[Console, StringIO]:
    text = StringIO()
    return Console(file=text, width=width), text


def found() -> RoutingResult:
    rules: tuple[Rival, ...] = ("gain", "oracle", *BASELINES)
    curves = tuple(
        RuleCurve(rule=rule, map=tuple(0.5 + rate / (10 + k) for rate in RATES))
        for k, rule in enumerate(rules)
    )
    ahead = tuple(
        Difference(rule, Interval(-10.25, -12.5, -7.75), Interval(+10.0, -0.5, 20.5)) for rule in BASELINES
    )
    pair = PairResult(FAST, LARGER, "wbf", 0.5, 0.6, curves, ahead)
    return RoutingResult(72, (pair,), pair, None, (), 0.5, 50.0, None)


@pytest.mark.parametrize("width", [80, 140])
def test_every_rule_is_a_whole_row(width: int) -> None:
    """No name or number is cut or folded, whatever the width."""
    shown, text = console(width)
    print_rules(found(), shown)
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert any(FAST in line for line in lines)
    assert any(LARGER in line and "wbf" in line for line in lines)
    for rule in BASELINES:
        row = next(line for line in lines if line.startswith(rule))
        assert "-10.25 (-12.50 to -7.75)" in row
        assert "+10.00 (-0.50 to +20.50)" in row
        assert "%" in row
    assert any(line.startswith("predicted gain") and "0.500" in line for line in lines)


def test_only_what_is_judged_is_said_to_hold() -> None:
    """For data of which nothing is claimed the figures stand there without a verdict."""
    claims = (Claim("more than chance", "+0.1 points", True), Claim("at most 0.02", "0.03", False))
    for judge in (True, False):
        shown, text = console(80)
        print_claims(claims, shown, judge=judge)
        assert ("DOES NOT HOLD" in text.getvalue()) is judge
        assert ("holds" in text.getvalue()) is judge
        assert "+0.1 points" in text.getvalue()
