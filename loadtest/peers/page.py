"""The comparison as one page of HTML that needs nothing else: bars, table, settings."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from string import Template

from loadtest.peers.campaign import GATEWAY
from loadtest.peers.summary import Row, Summary
from loadtest.peers.tables import HEAD, cells, notes_of, settings_of, state
from model_repo.svg import ticks

_WIDTH, _LABEL, _RIGHT = 760.0, 250.0, 64.0
_STEP, _THICK, _FOOT = 26.0, 15.0, 24.0


def to_html(summary: Summary, command: str) -> str:
    """Return the page."""
    rows = [row for row in summary.rows if row.skipped is None]
    bars = "".join(
        f'<li><span class="badge {state(bar.holds).split()[0].lower()}">{state(bar.holds)}</span>'
        f" {escape(bar.claim)}: {escape(bar.found)}</li>"
        for bar in summary.bars
    )
    settings = "".join(settings_of(summary, lambda t, s: f"<dt>{escape(t)}</dt><dd>{escape(s)}</dd>"))
    return _PAGE.substitute(
        machine=escape(summary.conditions.machine),
        command=escape(command),
        versions=escape(", ".join(summary.conditions.versions)),
        bars=bars,
        held=_chart(rows, "Goodput at the p99 budget", lambda row: row.held_goodput, None),
        rush=_chart(rows, "Goodput over the trace", lambda row: row.rush_goodput, None),
        latency=_chart(
            rows,
            "One client, p50 and p99, ms",
            lambda row: row.overhead_p50_ms,
            lambda row: row.overhead_p99_ms,
        ),
        table=_table(summary),
        notes="".join(f"<li>{escape(note)}</li>" for note in notes_of(summary)),
        settings=settings,
    )


def _chart(
    rows: list[Row],
    title: str,
    of: Callable[[Row], float | None],
    also: Callable[[Row], float | None] | None,
) -> str:
    """Return horizontal bars of one figure; `also` marks a second one by a tick on the same scale."""
    drawn = [(row, value) for row in rows if (value := of(row)) is not None]
    if not drawn:
        return "<p>Not measured.</p>"
    seconds = [found for row, _ in drawn if also is not None and (found := also(row)) is not None]
    top = max((*(value for _, value in drawn), *seconds, 1e-9)) * 1.02
    bottom = _STEP * len(drawn)
    scale = (_WIDTH - _LABEL - _RIGHT) / top
    parts = [
        f'<svg viewBox="0 0 {_WIDTH:g} {bottom + _FOOT:g}" role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
    ]
    for mark in ticks(0.0, top, count=5):
        x = _LABEL + mark * scale
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="0" x2="{x:.1f}" y2="{bottom:.1f}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 17:.1f}" text-anchor="middle">{mark:g}</text>')
    for number, (row, value) in enumerate(drawn):
        y = number * _STEP + (_STEP - _THICK) / 2
        css = "ours" if row.contender.startswith(GATEWAY) else "peer"
        middle = y + _THICK / 2
        end, label = _LABEL + value * scale, f"{value:.1f}"
        name = escape(row.title)
        parts.append(
            f'<text class="name" x="{_LABEL - 8}" y="{middle + 4:.1f}" text-anchor="end">{name}</text>'
        )
        parts.append(
            f'<rect class="{css}" x="{_LABEL}" y="{y:.1f}" width="{max(value * scale, 1):.1f}"'
            f' height="{_THICK}" rx="2"><title>{name}: {value:.2f}</title></rect>'
        )
        second = also(row) if also is not None else None
        if second is not None:
            x, label = _LABEL + second * scale, f"{label} / {second:.1f}"
            parts.append(
                f'<path class="second" d="M{end:.1f} {middle:.1f}H{x:.1f}M{x:.1f} {y:.1f}V{y + _THICK:.1f}"/>'
            )
            end = max(end, x)
        parts.append(f'<text class="value" x="{end + 6:.1f}" y="{middle + 4:.1f}">{label}</text>')
    return "".join((*parts, "</svg>"))


def _table(summary: Summary) -> str:
    heads = "".join(f"<th>{escape(cell)}</th>" for cell in HEAD)
    body = []
    for row in summary.rows:
        if row.skipped is None:
            body.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells(row)) + "</tr>")
        else:
            left_out = f'<td class="out" colspan="{len(HEAD) - 1}">left out: {escape(row.skipped)}</td>'
            body.append(f"<tr><td>{escape(row.title)}</td>{left_out}</tr>")
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table>"


_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Paretogate and its peers</title>
<style>
:root { --ink: #1c2430; --soft: #5b6675; --line: #dfe4ea; --page: #f6f7f9; --card: #fff;
  --ours: #2a6fdb; --peer: #9aa6b5; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #9aa6b5; --line: #2d3642;
  --page: #12161c; --card: #1a2028; --ours: #6ea3f5; --peer: #5b6675; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 28px 16px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1060px; margin: 0 auto; }
h1 { font-size: 24px; margin: 0 0 6px; } h2 { font-size: 16px; margin: 30px 0 8px; }
p, .bars, .notes { margin: 6px 0; } .soft { color: var(--soft); overflow-wrap: anywhere; }
.bars { list-style: none; padding: 0; } .bars li { margin: 8px 0; }
.badge { padding: 1px 9px; border-radius: 4px; color: #fff; font-weight: 700; font-size: 13px; }
.holds { background: #16794c; } .misses { background: #b3261e; } .not { background: #6b7280; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 12px; overflow-x: auto; } svg { display: block; width: 100%; min-width: 540px; }
svg text { font-size: 12px; fill: var(--soft); } svg text.name, svg text.value { fill: var(--ink); }
.grid { stroke: var(--line); } .ours { fill: var(--ours); } .peer { fill: var(--peer); }
.second { stroke: var(--ink); stroke-width: 1.5; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 4px 8px; border-bottom: 1px solid var(--line); font-size: 13px; }
th { color: var(--soft); font-weight: 500; vertical-align: bottom; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
td:first-child, td:nth-child(2) { white-space: nowrap; } td.out { white-space: normal; }
dl { display: grid; grid-template-columns: minmax(120px, max-content) 1fr; gap: 4px 18px; margin: 0;
  font-size: 13px; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 600px) { dl { display: block; } dt { margin-top: 8px; } }
</style>
</head>
<body>
<main>
<h1>Paretogate and its peers</h1>
<p class="soft">$machine; $versions<br><code>$command</code></p>
<ul class="bars">$bars</ul>
<h2>Goodput at the best steady rate that keeps the p99 budget</h2>
<figure>$held</figure>
<h2>Goodput over a trace with a rush</h2>
<figure>$rush</figure>
<h2>One client, the same single model behind everybody: p50, and p99 as a tick, ms</h2>
<figure>$latency</figure>
<h2>All figures</h2>
<div class="wide">$table</div>
<ul class="notes soft">$notes</ul>
<h2>Settings</h2>
<dl>$settings</dl>
</main>
</body>
</html>
""")
