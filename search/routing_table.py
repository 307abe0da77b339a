"""What a bench found of escalation, for people: a table for each pair of models, and the claims."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from search.rivals import REPORTED_RATE, RuleCurve
from search.routing_claims import Claim, Interval, PairResult, RoutingResult

_NAMES = {"gain": "predicted gain", "oracle": "label oracle"}


def print_rules(result: RoutingResult, console: Console) -> None:
    """Print every rule of every pair, and how far the predicted gain is ahead of it."""
    console.print(
        f"{result.frames} test frames. Area: the share of the gap that a rule recovers, mean over all rates;"
        f" beside it that share with {REPORTED_RATE:.0%} escalated. Gain ahead: by how many points of mAP the"
        " predicted gain is ahead of the rule, with 95 % intervals, averaged over all rates and with"
        f" {REPORTED_RATE:.0%} escalated.",
        highlight=False,
    )
    for pair in result.pairs:
        console.print()
        console.print(Text(f"{pair.fast} (mAP {pair.fast_map:.3f})"), highlight=False)
        console.print(Text(f"→ {pair.larger} (mAP {pair.larger_map:.3f}), {pair.fusion}"), highlight=False)
        console.print(_rules(pair))
    console.print()


def print_claims(claims: Sequence[Claim], console: Console, *, judge: bool) -> None:
    """Print what is claimed, what was found and, with `judge`, whether it holds."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("claim" if judge else "claimed of the demo frontier")
    table.add_column("found")
    if judge:
        table.add_column("", no_wrap=True)
    for claim in claims:
        verdict = ("holds" if claim.holds else "DOES NOT HOLD",) if judge else ()
        table.add_row(claim.text, claim.found, *verdict)
    console.print()
    console.print(table)


def _rules(pair: PairResult) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("rule", no_wrap=True)
    for head in ("area", f"at\n{REPORTED_RATE:.0%}", "gain ahead, all", f"gain ahead, {REPORTED_RATE:.0%}"):
        table.add_column(head, justify="right", no_wrap=True)
    ahead = {row.rule: (_points(row.average), _points(row.reported)) for row in pair.ahead}
    for curve in pair.curves:
        table.add_row(
            _NAMES.get(curve.rule, curve.rule), *_recovered(curve), *ahead.get(curve.rule, ("", ""))
        )
    return table


def _recovered(curve: RuleCurve) -> tuple[str, str]:
    area, share = curve.area, curve.recovered(REPORTED_RATE)
    return "–" if area is None else f"{area:.3f}", "–" if share is None else f"{share:.0%}"


def _points(by: Interval) -> str:
    return f"{by.value:+.2f} ({by.low:+.2f} to {by.high:+.2f})"
