"""What a board is made of: queries, panels and rows, as values."""

from __future__ import annotations

from dataclasses import dataclass

# A piece of Grafana's own document.
Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class Query:
    """A PromQL expression and how its series are called; `instant` asks for one value, as a table."""

    expr: str
    legend: str = ""
    instant: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel: Grafana's type, what it shows, what it says of itself, its size on a grid 24 wide.

    thresholds: values from which on another colour holds, with that colour; below them it is green.
    """

    kind: str
    title: str
    description: str
    queries: tuple[Query, ...]
    width: int
    height: int
    unit: str = "short"
    stacked: bool = False
    maximum: float | None = None
    transformations: tuple[Json, ...] = ()
    options: Json | None = None
    mappings: tuple[Json, ...] = ()
    thresholds: tuple[tuple[float, str], ...] = ()
    signed: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A titled part of the board: lines of panels that fill the grid's width.

    feature: what has to be turned on for its panels to have data; such a row is folded at first.
    """

    title: str
    lines: tuple[tuple[Panel, ...], ...]
    feature: str = ""


def named(*values: tuple[str, str, str]) -> Json:
    """Return a mapping of values to words and colours."""
    return {
        "type": "value",
        "options": {
            value: {"text": text, "color": colour, "index": index}
            for index, (value, text, colour) in enumerate(values)
        },
    }


UP = (named(("0", "down", "red"), ("1", "up", "green")),)


def rate(metric: str, by: str, where: str = "") -> str:
    """Return the rate of a counter, summed by labels; `where` selects series, as `label="value"`."""
    return f"sum by ({by}) (rate({metric}{{{where}}}[$__rate_interval]))" if where else _rate(metric, by)


def _rate(metric: str, by: str) -> str:
    return f"sum by ({by}) (rate({metric}[$__rate_interval]))"


def quantile(q: float, metric: str, by: str = "") -> str:
    """Return a quantile of a histogram, by a label or of everything."""
    return f"histogram_quantile({q:g}, {_rate(f'{metric}_bucket', f'le, {by}' if by else 'le')})"


def mean(metric: str, by: str, over: str = "$__rate_interval") -> str:
    """Return the mean of a histogram by a label; nothing where nothing was observed."""
    total, count = (f"sum by ({by}) (rate({metric}_{part}[{over}]))" for part in ("sum", "count"))
    return f"{total} / ({count} > 0)"
