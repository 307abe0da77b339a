"""The parts of which all pages of the load test are made: one file, nothing loaded, light and dark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from string import Template

# Plots are drawn twice, for desks and for phones: text that shrinks with the picture cannot be read.
WIDE_WH, NARROW_WH = (720.0, 300.0), (360.0, 250.0)
SLOTS = 8


def page(title: str, body: str) -> str:
    """Return a whole page; title: plain text, body: HTML."""
    return _PAGE.substitute(title=escape(title), body=body)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of plain texts, the first column to the left."""
    headings = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="wide"><table><thead><tr>{headings}</tr></thead><tbody>{body}</tbody></table></div>'
        if rows
        else ""
    )


def tiles(of: Sequence[tuple[str, str, str]]) -> str:
    """Return figures to see at once: name, value, note."""
    return (
        '<div class="tiles">'
        + "".join(
            f'<div class="tile"><span>{escape(name)}</span><b>{escape(value)}</b>'
            f"<small>{escape(note)}</small></div>"
            for name, value, note in of
        )
        + "</div>"
    )


def facts(of: Sequence[tuple[str, str]]) -> str:
    """Return names with their values."""
    return (
        "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in of) + "</dl>"
    )


def figure(draw: Callable[[float, float], str], caption: str, keys: str = "") -> str:
    """Return a plot at both sizes; draw: makes the SVG of a width and height. keys: HTML of its legend."""
    return (
        f'<figure><div class="desk">{draw(*WIDE_WH)}</div><div class="phone">{draw(*NARROW_WH)}</div>{keys}'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def legend(of: Sequence[tuple[str, str]]) -> str:
    """Return what colours mean: plain text and the class of each."""
    return (
        '<ul class="legend">'
        + "".join(
            f'<li><svg class="key" viewBox="0 0 10 10"><rect class="{css}" width="10" height="10"/></svg>'
            f"{escape(name)}</li>"
            for name, css in of
        )
        + "</ul>"
    )


def milliseconds(value: float) -> str:
    """Return milliseconds with as many digits as mean something."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --line: #dfe4ea; --page: #f6f7f9;
  --card: #fff; --good: #16794c; --bad: #b3261e; --met: #2a6fdb; --late: #d9730d; --lost: #b3261e;
  --gray: #8a94a3; --s0: #2a6fdb; --s1: #17a08a; --s2: #d9730d; --s3: #8e5bd0; --s4: #c2447e;
  --s5: #6b8f23; --s6: #8a94a3; --s7: #b08900; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #9aa6b5; --line: #2d3642;
  --page: #12161c; --card: #1a2028; --good: #3fbf84; --bad: #f2776e; --met: #6ea3f5; --late: #f0a04b;
  --lost: #f2776e; --gray: #788392; --s0: #6ea3f5; --s1: #3fc4ae; --s2: #f0a04b; --s3: #b48cf0;
  --s4: #e67aa9; --s5: #9cc04a; --s6: #788392; --s7: #d8b23c; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 28px 16px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 800px; margin: 0 auto; }
h1 { font-size: 24px; line-height: 1.3; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 16px; margin: 30px 0 8px; } p { margin: 8px 0; }
.badge { display: inline-block; padding: 2px 12px; border-radius: 4px; color: #fff; font-weight: 700;
  letter-spacing: .04em; }
.valid { background: #16794c; } .invalid { background: #b3261e; }
.checks { list-style: none; margin: 12px 0 0; padding: 0; }
.checks li { padding: 3px 0 3px 24px; position: relative; overflow-wrap: anywhere; }
.checks li::before { position: absolute; left: 0; font-weight: 700; }
.checks .kept::before { content: "✓"; color: var(--good); } .checks .kept { color: var(--soft); }
.checks .missed::before { content: "✗"; color: var(--bad); } .checks .missed { color: var(--bad); }
.tiles { display: flex; flex-wrap: wrap; gap: 10px; margin: 20px 0; }
.tile { flex: 1 1 130px; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 10px 12px; }
.tile span, .tile small { display: block; color: var(--soft); font-size: 12px; }
.tile b { font-size: 21px; font-variant-numeric: tabular-nums; white-space: nowrap; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 18px; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin-top: 10px; } svg rect { shape-rendering: crispEdges; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; white-space: nowrap; padding: 4px 8px; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 500; } th:first-child, td:first-child { text-align: left; }
svg { display: block; width: 100%; } figure { margin: 0; background: var(--card);
  border: 1px solid var(--line); border-radius: 8px; padding: 10px; }
.phone { display: none; }
figcaption { color: var(--soft); font-size: 13px; padding: 4px 6px 0; }
svg text { font-size: 12px; fill: var(--soft); } svg text.axis { fill: var(--ink); }
.grid { stroke: var(--line); } .met { fill: var(--met); fill-opacity: .65; } .late { fill: var(--late); }
.lost { fill: var(--lost); } .curve { fill: none; stroke: var(--met); stroke-width: 2; }
.own { fill: none; stroke: var(--late); stroke-width: 2; }
line.budget { stroke: var(--bad); stroke-dasharray: 5 4; } text.budget { fill: var(--bad); }
line.goal { stroke: var(--soft); stroke-dasharray: 2 4; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 18px; padding: 0; margin: 8px 6px; }
.legend li { display: flex; align-items: center; gap: 6px; overflow-wrap: anywhere; font-size: 13px; }
svg.key { width: 10px; height: 10px; flex: none; }
.outcome-answered { fill: var(--met);} .outcome-late { fill: var(--late);}
.outcome-shed { fill: var(--gray);} .outcome-dropped { fill: var(--s1);}
.outcome-rejected { fill: var(--s3);} .outcome-failed { fill: var(--lost);}
.outcome-timed_out { fill: var(--s7);} .outcome-unsent { fill: var(--ink);}
.slot0 { fill: var(--s0);} .slot1 { fill: var(--s1);}
.slot2 { fill: var(--s2);} .slot3 { fill: var(--s3);}
.slot4 { fill: var(--s4);} .slot5 { fill: var(--s5);}
.slot6 { fill: var(--s6);} .slot7 { fill: var(--s7);}
path.slot0, path.slot1, path.slot2, path.slot3, path.slot4, path.slot5, path.slot6, path.slot7 { fill: none;
  stroke-width: 2; }
path.slot0 { stroke: var(--s0); } path.slot1 { stroke: var(--s1); } path.slot2 { stroke: var(--s2); }
path.slot3 { stroke: var(--s3); } path.slot4 { stroke: var(--s4); } path.slot5 { stroke: var(--s5); }
path.slot6 { stroke: var(--s6); } path.slot7 { stroke: var(--s7); }
path.offline { fill: none; stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 4 3; }
circle.offline, rect.offline { fill: var(--soft); }
text.name { fill: var(--ink); } path.move { stroke: var(--line); }
@media (max-width: 560px) { body { padding: 18px 10px; } h1 { font-size: 20px; } .tile { flex-basis: 42%; }
  .desk { display: none; } .phone { display: block; } figure { padding: 6px; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: 6px; } th, td { padding: 4px 7px; } }
@media print { body { background: #fff; } figure, .tile { break-inside: avoid; } }
</style>
</head>
<body>
<main>
$body
</main>
</body>
</html>
""")
