"""The interactive curve of a report: every point can be asked what it is, every group can be hidden.

One SVG with a few lines of script, nothing from elsewhere: a report is one file that opens without a network.
Without a script the points are still there, each with its title.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from model_repo.frontier import non_dominated

_WIDTH, _HEIGHT = 960.0, 540.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 62.0, 18.0, 16.0, 46.0

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
    scale = _Scale.around(dots)
    layers = "".join(_layer(k, group, scale) for k, group in enumerate(groups))
    legend = "".join(
        f'<label><input type="checkbox" checked value="layer{k}">'
        f'<svg viewBox="0 0 2 2" style="width:11px"><circle cx="1" cy="1" r="1" fill="{group.colour}"/></svg>'
        f"{escape(group.name)} ({len(group.dots)})</label>"
        for k, group in enumerate(groups)
    )
    return (
        f'<div class="curve"><svg viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img"'
        f' aria-label="accuracy against latency">{_axes(scale, y_label)}{layers}</svg>'
        f'<div class="legend">{legend}</div><div class="tip"></div></div><script>{_SCRIPT}</script>'
    )


@dataclass(frozen=True, slots=True)
class _Scale:
    """From latency and accuracy to the drawing's units."""

    low_ms: float
    high_ms: float
    low: float
    high: float

    @classmethod
    def around(cls, dots: Sequence[Dot]) -> _Scale:
        ms = [dot.ms for dot in dots]
        accuracy = [value for dot in dots for value in (dot.accuracy, dot.low, dot.high) if value is not None]
        room = max(0.04 * (max(accuracy) - min(accuracy)), 0.005)
        return cls(min(ms) / 1.12, max(ms) * 1.12, max(min(accuracy) - room, 0.0), max(accuracy) + room)

    def x(self, ms: float) -> float:
        share = math.log(ms / self.low_ms) / math.log(self.high_ms / self.low_ms)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(self, accuracy: float) -> float:
        share = (accuracy - self.low) / (self.high - self.low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _layer(number: int, group: Group, scale: _Scale) -> str:
    parts: list[str] = []
    if group.joined:
        front = [group.dots[i] for i in non_dominated([(dot.ms, dot.accuracy) for dot in group.dots])]
        path = " ".join(f"{scale.x(dot.ms):.1f},{scale.y(dot.accuracy):.1f}" for dot in front)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{group.colour}" stroke-width="1.5"/>')
    for dot in group.dots:
        x, y = scale.x(dot.ms), scale.y(dot.accuracy)
        if dot.low is not None and dot.high is not None:
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{scale.y(dot.low):.1f}" y2="{scale.y(dot.high):.1f}"'
                f' stroke="{group.colour}" stroke-width="1.3" opacity=".55"/>'
            )
        text = escape(dot.text, quote=True)
        parts.append(
            f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="{group.radius:g}" fill="{group.colour}"'
            f' data-tip="{text}"><title>{text}</title></circle>'
        )
    return f'<g id="layer{number}">{"".join(parts)}</g>'


def _axes(scale: _Scale, y_label: str) -> str:
    parts: list[str] = []
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for ms in _log_ticks(scale.low_ms, scale.high_ms):
        x = scale.x(ms)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP:g}" y2="{bottom:g}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18:g}" text-anchor="middle">{ms:g}</text>')
    for value in _ticks(scale.low, scale.high):
        y = scale.y(value)
        parts.append(f'<line class="grid" x1="{_LEFT:g}" x2="{right:g}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8:g}" y="{y + 4:.1f}" text-anchor="end">{value:.2f}</text>')
    middle_x, middle_y = (_LEFT + right) / 2, (_TOP + bottom) / 2
    parts.append(
        f'<text x="{middle_x:g}" y="{_HEIGHT - 8:g}" text-anchor="middle">latency, ms (log scale)</text>'
        f'<text transform="translate(14 {middle_y:g}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    return "".join(parts)


def _log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2, 5 times the powers of ten between the two; more between them where these are few."""
    for steps in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8), tuple(k / 10 for k in range(10, 100))):
        ticks = [
            step * 10.0**power
            for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            for step in steps
            if low <= step * 10.0**power <= high
        ]
        if len(ticks) >= 4:
            break
    return [float(f"{tick:.3g}") for tick in ticks]


def _ticks(low: float, high: float) -> list[float]:
    """Return at most ten round numbers between the two."""
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2) if (high - low) / s <= 10)
    return [round(k * step, 2) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
