"""The interactive curve of a report: every point can be asked what it is, every group can be hidden.

One SVG with a few lines of script, nothing from elsewhere: a report is one file that opens without a network.
Without a script the points are still there, each with its title.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from model_repo.frontier import non_dominated
from model_repo.svg import Axes

STYLE = """
.curve{position:relative}.curve svg{width:100%;height:auto;font:12px system-ui,sans-serif}
.curve .grid{stroke:#e4e8ec}.curve text{fill:#5b6672}.curve .point:hover{stroke:#1d2733;stroke-width:2}
.curve .legend{display:flex;flex-wrap:wrap;gap:.3rem 1rem;font-size:13px;margin:.2rem 0 0 3.6rem}
.curve label{cursor:pointer;display:inline-flex;align-items:center;gap:.35rem}
.curve .tip{position:absolute;pointer-events:none;background:#1d2733;color:#fff;font-size:12.5px;
padding:.3rem .55rem;border-radius:4px;white-space:pre;transform:translate(-50%,-115%);display:none;z-index:1}
"""

_SCRIPT = """
for (const box of document.querySelectorAll('.curve')) {
  const tip = box.querySelector('.tip');
  for (const input of box.querySelectorAll('input'))
    input.addEventListener('change', () => {
      box.querySelector('#' + input.value).style.display = input.checked ? '' : 'none';
    });
  box.addEventListener('pointerover', event => {
    const text = event.target.dataset && event.target.dataset.tip;
    tip.style.display = text ? 'block' : 'none';
    if (!text) return;
    const frame = box.getBoundingClientRect(), point = event.target.getBoundingClientRect();
    const half = (tip.textContent = text, tip.offsetWidth / 2);
    const x = point.x + point.width / 2 - frame.x;
    tip.style.left = Math.min(Math.max(x, half), frame.width - half) + 'px';
    tip.style.top = point.y - frame.y + 'px';
  });
}
"""


@dataclass(frozen=True, slots=True)
class Dot:
    """A point of the curve: latency in milliseconds, accuracy, its interval if it has one, what it says."""

    ms: float
    accuracy: float
    text: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """Points that are drawn, named and hidden together; `joined` draws a line through the non-dominated."""

    name: str
    colour: str
    radius: float
    dots: Sequence[Dot]
    joined: bool = False


def curve(groups: Sequence[Group], *, y_label: str) -> str:
    """Return HTML for accuracy against latency (log scale), one layer per group, later ones on top.

    Raises ValueError without a single dot.
    """
    dots = [dot for group in groups for dot in group.dots]
    if not dots:
        raise ValueError("a curve needs at least one point")
    axes = _axes_around(dots, y_label)
    layers = [_layer(k, group, axes) for k, group in enumerate(groups)]
    legend = "".join(
        f'<label><input type="checkbox" checked value="layer{k}">'
        f'<svg viewBox="0 0 2 2" style="width:11px"><circle cx="1" cy="1" r="1" fill="{group.colour}"/></svg>'
        f"{escape(group.name)} ({len(group.dots)})</label>"
        for k, group in enumerate(groups)
    )
    return (
        f'<div class="curve">{axes.draw("accuracy against latency", *layers)}'
        f'<div class="legend">{legend}</div><div class="tip"></div></div><script>{_SCRIPT}</script>'
    )


def _axes_around(dots: Sequence[Dot], y_label: str) -> Axes:
    ms = [dot.ms for dot in dots]
    accuracy = [value for dot in dots for value in (dot.accuracy, dot.low, dot.high) if value is not None]
    room = max(0.04 * (max(accuracy) - min(accuracy)), 0.005)
    return Axes(
        x_range=(min(ms) / 1.12, max(ms) * 1.12),
        y_range=(max(min(accuracy) - room, 0.0), max(accuracy) + room),
        x_label="latency, ms (log scale)",
        y_label=y_label,
        log_x=True,
        width=960.0,
        height=540.0,
    )


def _layer(number: int, group: Group, axes: Axes) -> str:
    parts: list[str] = []
    if group.joined:
        front = [group.dots[i] for i in non_dominated([(dot.ms, dot.accuracy) for dot in group.dots])]
        path = " ".join(f"{axes.x(dot.ms):.1f},{axes.y(dot.accuracy):.1f}" for dot in front)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{group.colour}" stroke-width="1.5"/>')
    for dot in group.dots:
        x, y = axes.x(dot.ms), axes.y(dot.accuracy)
        if dot.low is not None and dot.high is not None:
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{axes.y(dot.low):.1f}" y2="{axes.y(dot.high):.1f}"'
                f' stroke="{group.colour}" stroke-width="1.3" opacity=".55"/>'
            )
        text = escape(dot.text, quote=True)
        parts.append(
            f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="{group.radius:g}" fill="{group.colour}"'
            f' data-tip="{text}"><title>{text}</title></circle>'
        )
    return f'<g id="layer{number}">{"".join(parts)}</g>'
