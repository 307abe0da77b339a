"""Plots as inline SVG: a pair of axes, points, lines and steps. Colours come from the page's style sheet.

Here because search and loadtest both draw and neither may import the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]

_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 14.0, 12.0, 42.0

# Labels closer than this run into each other.
_LABEL_WIDTH = 40.0


def ticks(low: float, high: float, count: int = 6) -> tuple[float, ...]:
    """Return round numbers (1, 2 or 5 times a power of ten apart) inside [low, high], about `count`."""
    if not high > low:
        return (low,)
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return tuple(index * step for index in range(first, last + 1))


@dataclass(frozen=True, slots=True)
class Axes:
    """A plot area in pixels over ranges of x and y; `log_x` puts x on a logarithmic scale.

    x_marks: where x is labelled and with what, in place of round numbers.
    """

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    x_label: str
    y_label: str
    log_x: bool = False
    width: float = 720.0
    height: float = 300.0
    x_marks: tuple[tuple[float, str], ...] = ()

    def x(self, value: float) -> float:
        """Return the pixel column of a value."""
        low, high = self.x_range
        if self.log_x:
            low, high, value = math.log(low), math.log(high), math.log(max(value, low))
        return _LEFT + (value - low) / (high - low) * (self.width - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        """Return the pixel row of a value."""
        low, high = self.y_range
        return self.height - _BOTTOM - (value - low) / (high - low) * (self.height - _TOP - _BOTTOM)

    def _x_labels(self) -> tuple[tuple[float, str], ...]:
        low, high = self.x_range
        if self.x_marks:
            return tuple((value, label) for value, label in self.x_marks if low <= value <= high)
        return tuple((value, f"{value:g}") for value in self._x_ticks())

    def _x_ticks(self) -> tuple[float, ...]:
        low, high = self.x_range
        if not self.log_x:
            return ticks(low, high)
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        marks = [factor * 10.0**decade for decade in decades for factor in (1, 2, 5)]
        inside = tuple(mark for mark in marks if low <= mark <= high)
        if len(inside) * _LABEL_WIDTH <= self.width:
            return inside
        return tuple(10.0**decade for decade in decades if low <= 10.0**decade <= high) or inside[:1]

    def draw(self, title: str, *marks: str) -> str:
        """Return the SVG element with grid, labels and the marks on top."""
        right, bottom = self.width - _RIGHT, self.height - _BOTTOM
        parts = [
            f'<svg viewBox="0 0 {self.width:g} {self.height:g}" role="img" aria-label="{escape(title)}">',
            f"<title>{escape(title)}</title>",
        ]
        for value, label in self._x_labels():
            x = self.x(value)
            parts.append(f'<line class="grid" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{bottom}"/>')
            parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{escape(label)}</text>')
        for value in ticks(*self.y_range, count=5):
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
        middle_x, middle_y = (_LEFT + right) / 2, (_TOP + bottom) / 2
        parts.append(
            f'<text class="axis" x="{middle_x}" y="{self.height - 6}" text-anchor="middle">'
            f"{escape(self.x_label)}</text>"
        )
        parts.append(
            f'<text class="axis" transform="translate(14 {middle_y}) rotate(-90)" text-anchor="middle">'
            f"{escape(self.y_label)}</text>"
        )
        return "".join((*parts, *marks, "</svg>"))

    def dots(self, points: Sequence[Point], css: str) -> str:
        """Return a dot per point, clipped to the top of the y range."""
        top = self.y_range[1]
        return "".join(
            f'<circle class="{css}" cx="{self.x(x):.1f}" cy="{self.y(min(y, top)):.1f}" r="2.6"/>'
            for x, y in points
        )

    def line(self, points: Sequence[Point], css: str) -> str:
        """Return straight lines through points in their order."""
        path = "L".join(f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in points)
        return f'<path class="{css}" d="M{path}"/>' if points else ""

    def steps(self, points: Sequence[Point], css: str) -> str:
        """Return a staircase through points of growing x."""
        path: list[str] = []
        for x, y in points:
            path.append(f"H{self.x(x):.1f}V{self.y(y):.1f}" if path else f"M{self.x(x):.1f} {self.y(y):.1f}")
        return f'<path class="{css}" d="{"".join(path)}"/>'

    def box(self, x_range: tuple[float, float], y_range: tuple[float, float], css: str, label: str) -> str:
        """Return a filled rectangle over ranges of x and y, named where the pointer rests on it."""
        left, right = (self.x(x) for x in x_range)
        bottom, top = (self.y(y) for y in y_range)
        return (
            f'<rect class="{css}" x="{left:.1f}" y="{top:.1f}" width="{max(right - left, 0.3):.1f}"'
            f' height="{max(bottom - top, 0.0):.1f}"><title>{escape(label)}</title></rect>'
        )

    def tag(self, point: Point, label: str, css: str, *, below: bool = False) -> str:
        """Return a word beside a point, on whichever side has room; neighbours keep apart by `below`."""
        x, y = self.x(point[0]), self.y(point[1])
        left = x > self.width * 0.7
        at, anchor = (x - 7, "end") if left else (x + 7, "start")
        place = f'x="{at:.1f}" y="{y + (15 if below else -6):.1f}" text-anchor="{anchor}"'
        return f'<text class="{css}" {place}>{escape(label)}</text>'

    def level(self, y: float, label: str, css: str) -> str:
        """Return a labelled horizontal line, or nothing when it lies outside the range."""
        if not self.y_range[0] <= y <= self.y_range[1]:
            return ""
        row, right = self.y(y), self.width - _RIGHT
        return (
            f'<line class="{css}" x1="{_LEFT}" y1="{row:.1f}" x2="{right}" y2="{row:.1f}"/>'
            f'<text class="{css}" x="{right - 4}" y="{row - 5:.1f}" text-anchor="end">{escape(label)}</text>'
        )

    def mark(self, x: float, label: str, css: str) -> str:
        """Return a labelled vertical line, or nothing when it lies outside the range."""
        if not self.x_range[0] <= x <= self.x_range[1]:
            return ""
        column = self.x(x)
        bottom = self.height - _BOTTOM
        # The label stays inside, on whichever side has room.
        left = column > self.width / 2
        at, anchor = (column - 5, "end") if left else (column + 5, "start")
        return (
            f'<line class="{css}" x1="{column:.1f}" y1="{_TOP}" x2="{column:.1f}" y2="{bottom}"/>'
            f'<text class="{css}" x="{at:.1f}" y="{bottom - 6}" text-anchor="{anchor}">{escape(label)}</text>'
        )


def share_bar(shares: Sequence[tuple[str, float, str]], width: float = 720.0) -> str:
    """Return one stacked bar of (label, share, css class); shares add up to 1."""
    parts = [
        f'<svg class="bar" viewBox="0 0 {width:g} 26" preserveAspectRatio="none"'
        ' role="img" aria-label="shares">'
    ]
    left = 0.0
    for label, share, css in shares:
        span = share * width
        parts.append(
            f'<rect class="{css}" x="{left:.1f}" y="0" width="{max(span - 1, 0.5):.1f}" height="26">'
            f"<title>{escape(label)}: {share:.1%}</title></rect>"
        )
        left += span
    return "".join((*parts, "</svg>"))
