"""One run as one HTML page that needs nothing else, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from string import Template

from loadtest.baseline import Machine
from loadtest.latencies import Latencies
from loadtest.sample import Sample
from loadtest.verdict import Verdict
from model_repo.svg import Axes, Point, share_bar

# Past this many dots a scatter only grows the file; every k-th ordinary request is drawn, every miss is.
_MAX_DOTS = 4_000
_SLOTS = 8


@dataclass(frozen=True, slots=True)
class Load:
    """What was asked of the gateway, for the head of a report."""

    url: str
    protocol: str
    frames: str
    schedule: str
    rate_hz: float
    seed: int
    operating_point: str | None
    request_budget_ms: float | None
    senders: int
    machine: Machine


def to_json(load: Load, verdict: Verdict) -> str:
    """Return load and verdict as an indented JSON document."""
    said = {
        "load": {**asdict(load), "machine": load.machine.model_dump()},
        "verdict": {"valid": verdict.valid, "reasons": verdict.reasons, **asdict(verdict)},
    }
    return json.dumps(said, indent=2) + "\n"


def to_html(load: Load, verdict: Verdict, samples: Sequence[Sample]) -> str:
    """Return the page: verdict, figures, latency over time and its distribution, outcomes, plans."""
    budget_ms = verdict.conditions.budget_ms
    state = "VALID" if verdict.valid else "INVALID"
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in verdict.reasons)
    return _PAGE.substitute(
        title=escape(f"{state}: {load.rate_hz:g} requests/s at {load.url}"),
        state=state,
        css_state=state.lower(),
        claim=escape(
            f"{verdict.conditions.percentile} within {budget_ms:g} ms at {load.rate_hz:g} requests/s"
        ),
        reasons=f"<ul>{reasons}</ul>" if reasons else "",
        tiles=_tiles(verdict),
        conditions=_conditions(load, verdict),
        percentiles=_percentiles(verdict),
        over_time=_over_time(samples, budget_ms),
        distribution=_distribution(samples, budget_ms),
        outcomes=_shares([(name, count / verdict.requests) for name, count in verdict.outcomes], "outcome"),
        ways=_shares([(_way(group.plan, group.stages), group.share) for group in verdict.groups], "way"),
        groups=_groups(verdict),
        details=_details(verdict),
    )


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    heads = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def _tiles(verdict: Verdict) -> str:
    tiles = [
        ("SLO attainment", f"{verdict.attainment:.2%}", f"{verdict.conditions.quantile:.0%} is asked for"),
        ("p99", f"{_ms(verdict.latency.p99_ms)} ms" if verdict.latency else "–", "of the answers"),
        ("answered", f"{verdict.answered_hz:.1f} /s", f"{verdict.offered_hz:.1f} /s offered"),
        ("escalated", f"{verdict.escalated:.1%}", "of the answers"),
    ]
    if verdict.accuracy is not None and verdict.effective is not None:
        tiles.append(("mAP", f"{verdict.accuracy.map:.3f}", f"mAP@.5 {verdict.accuracy.map50:.3f}"))
        tiles.append(("effective mAP", f"{verdict.effective.map:.3f}", "late and missing count as empty"))
    return "".join(
        f'<div class="tile"><span>{escape(name)}</span><b>{escape(value)}</b>'
        f"<small>{escape(note)}</small></div>"
        for name, value, note in tiles
    )


def _conditions(load: Load, verdict: Verdict) -> str:
    budget = load.request_budget_ms
    rows = (
        ("gateway", f"{load.url} over {load.protocol}"),
        ("frames", load.frames),
        ("schedule", f"{load.schedule}, {load.rate_hz:g} /s, {verdict.planned} requests, seed {load.seed}"),
        ("operating point", load.operating_point or "the gateway's choice"),
        ("budget sent along", f"{budget:g} ms" if budget is not None else "none"),
        ("bound on p99 issue delay", f"{verdict.conditions.issue_delay_ms:g} ms"),
        ("samples needed", f"{verdict.conditions.minimum_samples}, there are {verdict.requests}"),
    )
    return "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows)


def _percentiles(verdict: Verdict) -> str:
    named: tuple[tuple[str, Latencies | None], ...] = (
        ("latency (from the scheduled time)", verdict.latency),
        ("service (from the sent time)", verdict.service),
        ("issue delay (the generator's own)", verdict.issue_delay),
    )
    rows = [
        (
            name,
            str(t.count),
            *(_ms(v) for v in (t.mean_ms, t.p50_ms, t.p90_ms, t.p99_ms, t.p999_ms, t.max_ms)),
        )
        for name, t in named
        if t is not None
    ]
    return _table(("ms", "requests", "mean", "p50", "p90", "p99", "p99.9", "max"), rows)


def _over_time(samples: Sequence[Sample], budget_ms: float) -> str:
    met: list[Point] = []
    late: list[Point] = []
    lost: list[Point] = []
    for sample in samples:
        point = (sample.scheduled_ns / 1e9, sample.latency_ms)
        (met if sample.met(budget_ms) else late if sample.answered else lost).append(point)
    met = met[:: len(met) // _MAX_DOTS + 1]
    times = [y for _, y in (*met, *late, *lost)]
    top = max(budget_ms * 1.15, *times) if times else budget_ms * 1.15
    # One stall of seconds would press everything else flat: beyond four budgets dots stick to the top edge.
    axes = Axes(
        (0.0, max(0.001, *(sample.scheduled_ns / 1e9 for sample in samples))),
        (0.0, min(top * 1.05, budget_ms * 4)),
        "scheduled, s from the start",
        "latency, ms",
    )
    return axes.draw(
        "latency over time",
        axes.level(budget_ms, f"budget {budget_ms:g} ms", "budget"),
        axes.dots(met, "met"),
        axes.dots(late, "late"),
        axes.dots(lost, "lost"),
    )


def _distribution(samples: Sequence[Sample], budget_ms: float) -> str:
    times = sorted(max(sample.latency_ms, 0.01) for sample in samples if sample.answered)
    if not times:
        return "<p>No request was answered.</p>"
    axes = Axes(
        (min(times[0], budget_ms) * 0.9, max(times[-1], budget_ms) * 1.1),
        (0.0, 1.0),
        "latency, ms (logarithmic)",
        "share of all requests answered by then",
        log_x=True,
    )
    step = len(times) // _MAX_DOTS + 1
    curve = [(time, (rank + 1) / len(samples)) for rank, time in enumerate(times)]
    shown = [(axes.x_range[0], 0.0), *curve[::step], curve[-1], (axes.x_range[1], curve[-1][1])]
    return axes.draw(
        "distribution of latency",
        axes.level(0.99, "99 %", "goal"),
        axes.mark(budget_ms, f"budget {budget_ms:g} ms", "budget"),
        axes.steps(shown, "curve"),
    )


def _way(plan: str, stages: Sequence[str]) -> str:
    return f"{plan}: {' → '.join(stages)}" if stages else plan


def _shares(shares: Sequence[tuple[str, float]], kind: str) -> str:
    if not shares:
        return ""
    classes = [
        f"{kind}-{name}" if kind == "outcome" else f"slot{i % _SLOTS}" for i, (name, _) in enumerate(shares)
    ]
    legend = "".join(
        f'<li><svg class="key" viewBox="0 0 10 10"><rect class="{css}" width="10" height="10"/></svg>'
        f"{escape(name)} {share:.1%}</li>"
        for (name, share), css in zip(shares, classes, strict=True)
    )
    bar = share_bar([(name, share, css) for (name, share), css in zip(shares, classes, strict=True)])
    return f'{bar}<ul class="legend">{legend}</ul>'


def _groups(verdict: Verdict) -> str:
    rows = [
        (
            group.plan,
            " → ".join(group.stages),
            str(group.latency.count),
            f"{group.share:.1%}",
            _ms(group.latency.p50_ms),
            _ms(group.latency.p99_ms),
        )
        for group in verdict.groups
    ]
    return _table(("plan", "stages run", "requests", "share", "p50 ms", "p99 ms"), rows) if rows else ""


def _details(verdict: Verdict) -> str:
    parts = []
    if verdict.cuts:
        rows = [(reason, str(count)) for reason, count in verdict.cuts]
        parts.append("<h2>Answers cut short</h2>" + _table(("why", "requests"), rows))
    if verdict.details:
        rows = [(reason, str(count)) for reason, count in verdict.details]
        parts.append("<h2>Requests without an answer</h2>" + _table(("why", "requests"), rows))
    return "".join(parts)


_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { --ink: #1c2430; --soft: #5b6675; --line: #dfe4ea; --page: #f6f7f9; --card: #fff;
  --good: #16794c; --bad: #b3261e; --met: #2a6fdb; --late: #d9730d; --lost: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #9aa6b5; --line: #2d3642;
  --page: #12161c; --card: #1a2028; --good: #3fbf84; --bad: #f2776e; --met: #6ea3f5; --late: #f0a04b;
  --lost: #f2776e; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 28px 16px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 800px; margin: 0 auto; }
h1 { font-size: 24px; margin: 0; } h2 { font-size: 16px; margin: 30px 0 8px; }
.badge { display: inline-block; padding: 2px 12px; border-radius: 4px; color: #fff; font-weight: 700;
  letter-spacing: .04em; }
.valid { background: #16794c; } .invalid { background: #b3261e; }
header ul { margin: 10px 0 0; padding-left: 20px; color: var(--bad); }
.tiles { display: flex; flex-wrap: wrap; gap: 10px; margin: 20px 0; }
.tile { flex: 1 1 115px; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 10px 12px; }
.tile span, .tile small { display: block; color: var(--soft); font-size: 12px; }
.tile b { font-size: 21px; font-variant-numeric: tabular-nums; white-space: nowrap; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 18px; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 4px 10px; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; } th:first-child, td:first-child { text-align: left; }
svg { display: block; width: 100%; } figure { margin: 0; background: var(--card);
  border: 1px solid var(--line); border-radius: 8px; padding: 10px; }
figcaption { color: var(--soft); font-size: 13px; padding: 4px 6px 0; }
svg text { font-size: 12px; fill: var(--soft); } svg text.axis { fill: var(--ink); }
.grid { stroke: var(--line); } .met { fill: var(--met); fill-opacity: .65; } .late { fill: var(--late); }
.lost { fill: var(--lost); } .curve { fill: none; stroke: var(--met); stroke-width: 2; }
line.budget { stroke: var(--bad); stroke-dasharray: 5 4; } text.budget { fill: var(--bad); }
line.goal { stroke: var(--soft); stroke-dasharray: 2 4; }
svg.bar { border-radius: 4px; height: 26px; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 18px; padding: 0; margin: 8px 0; }
.legend li { display: flex; align-items: center; gap: 6px; } svg.key { width: 10px; height: 10px; }
.outcome-answered { fill: #2a6fdb; } .outcome-shed { fill: #8a94a3; } .outcome-rejected { fill: #8e5bd0; }
.outcome-failed { fill: #b3261e; } .outcome-timed_out { fill: #d9730d; } .outcome-unsent { fill: #555; }
.slot0 { fill: #2a6fdb; } .slot1 { fill: #17a08a; } .slot2 { fill: #d9730d; } .slot3 { fill: #8e5bd0; }
.slot4 { fill: #c2447e; } .slot5 { fill: #6b8f23; } .slot6 { fill: #8a94a3; } .slot7 { fill: #b08900; }
</style>
</head>
<body>
<main>
<header>
<h1><span class="badge $css_state">$state</span> $claim</h1>
$reasons
</header>
<div class="tiles">$tiles</div>
<dl>$conditions</dl>
<h2>Percentiles</h2>
<div class="wide">$percentiles</div>
<h2>Latency over time</h2>
<figure>$over_time<figcaption>Blue: answered within the budget; orange: answered late; red: no answer.
Dots beyond the top edge lie on it.</figcaption></figure>
<h2>Distribution</h2>
<figure>$distribution<figcaption>The curve ends below 1 by the share that got no answer.</figcaption></figure>
<h2>Outcomes</h2>
$outcomes
<h2>Plans and the stages that ran</h2>
$ways
<div class="wide">$groups</div>
$details
</main>
</body>
</html>
""")
