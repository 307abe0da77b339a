"""The comparison as text: a table for the terminal, the same one in Markdown, and what is claimed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.table import Table

from loadtest.peers.summary import Row, Summary

Cells = tuple[str, ...]
HEAD: Cells = (
    "server",
    "model",
    "p50 ms",
    "p99 ms",
    "saturated /s",
    "rate at the budget /s",
    "goodput at it",
    "in time, trace",
    "effective mAP, trace",
    "goodput, trace",
    "memory MB",
)


def cells(row: Row) -> Cells:
    """Return a row's cells under HEAD; what was not measured is a dash."""
    return (
        row.title + ("†" if row.late_generator else ""),
        row.model or "–",
        _number(row.overhead_p50_ms, "{:.2f}"),
        _number(row.overhead_p99_ms, "{:.1f}"),
        _number(row.overhead_hz, "{:.0f}"),
        _number(row.throughput_hz, "{:.0f}"),
        _number(row.held_goodput, "{:.1f}"),
        _number(row.rush_attainment, "{:.1%}"),
        _number(row.rush_effective_map, "{:.3f}"),
        _number(row.rush_goodput, "{:.1f}"),
        _number(row.rss_mb, "{:.0f}"),
    )


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def to_terminal(summary: Summary) -> Table:
    """Return the table for a terminal; peers that were left out stand in it with the reason."""
    table = Table(*HEAD)
    for column in table.columns[2:]:
        column.justify = "right"
    for row in summary.rows:
        if row.skipped is None:
            table.add_row(*cells(row))
        else:
            table.add_row(row.title, f"left out: {row.skipped}")
    return table


def to_markdown(summary: Summary, command: str) -> str:
    """Return the table with machine, versions and command, for a README."""
    lines = [_line(HEAD), _line(("---",) * len(HEAD))]
    lines += [_line(cells(row)) for row in summary.rows if row.skipped is None]
    notes = [f"- {text}" for text in notes_of(summary)]
    bars = [f"- {bar.claim}: {state(bar.holds)}, {bar.found}." for bar in summary.bars]
    head = f"`{command}`, on {summary.conditions.machine} ({', '.join(summary.conditions.versions)}):"
    return "\n".join((head, "", *lines, "", *notes, "", *bars, ""))


def state(holds: bool | None) -> str:
    """Return a claim's state in a word."""
    return "not shown" if holds is None else "HOLDS" if holds else "MISSES"


def notes_of(summary: Summary) -> Sequence[str]:
    """Return what a reader must know of the table."""
    found = summary.conditions
    rounds = sorted({row.rounds for row in summary.rows if row.skipped is None})
    notes = [
        f"Medians over {' or '.join(map(str, rounds))} rounds; p99 budget {found.budget_ms:g} ms;"
        " servers on core 0, load on core 1.",
        "p50, p99 and saturated: the same single model behind everybody. Goodput: requests per second times"
        " effective mAP, where late and missing answers are empty.",
    ]
    if summary.unit is not None:
        notes.append(
            f"The trace's unit is {summary.unit.saturated_hz:.0f} requests per second, what a socket server"
            f" without HTTP answers here; its p50 is {summary.unit.p50_ms:.2f} ms."
        )
    if any(row.late_generator for row in summary.rows):
        notes.append("† The load fell behind its schedule in some round; the figures are of little worth.")
    if not summary.complete:
        notes.append("The time was up before every round was done.")
    notes += [f"{row.title} was left out: {row.skipped}" for row in summary.rows if row.skipped]
    return notes


def settings_of(summary: Summary, per_row: Callable[[str, str], str]) -> list[str]:
    """Return each server's settings, once for all rows of the gateway."""
    seen: dict[str, str] = {}
    for row in summary.rows:
        seen.setdefault(row.settings, row.title.split(",")[0] if "Paretogate" in row.title else row.title)
    return [per_row(title, settings) for settings, title in seen.items()]


def _line(row: Cells) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
