"""What the commands write on the screen: tables, verdicts, and errors in words."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loadtest.frames import FramesError
from loadtest.latencies import Latencies
from loadtest.process import ServerError
from loadtest.target import TargetError
from loadtest.verdict import Verdict

INVALID, USAGE = 1, 2


def console() -> Console:
    # Into a file or a pipe rich would write 80 columns, which is too narrow for the tables.
    return Console(width=None if sys.stdout.isatty() else 110)


@contextmanager
def errors_in_words(*more: type[Exception]) -> Iterator[None]:
    """End with status 2 and one line on the standard error where a command cannot be carried out."""
    expected: tuple[type[Exception], ...] = (
        *(ServerError, FramesError, TargetError, ValueError, OSError),
        *more,
    )
    try:
        yield
    except expected as error:
        Console(stderr=True).print(
            f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        raise typer.Exit(USAGE) from error


def print_verdict(console: Console, verdict: Verdict) -> None:
    """Write a run's figures and its verdict."""
    table = Table("ms", "requests", "p50", "p90", "p99", "p99.9", "max")
    for column in table.columns[1:]:
        column.justify = "right"
    named: tuple[tuple[str, Latencies | None], ...] = (
        ("latency, from the scheduled time", verdict.latency),
        ("service, from the sent time", verdict.service),
        ("issue delay of the generator", verdict.issue_delay),
    )
    for name, times in named:
        if times is not None:
            values = (times.p50_ms, times.p90_ms, times.p99_ms, times.p999_ms, times.max_ms)
            table.add_row(name, str(times.count), *(f"{value:.1f}" for value in values))
    console.print(table)
    console.print("outcomes: " + ", ".join(f"{name} {count}" for name, count in verdict.outcomes))
    for group in verdict.groups:
        stages = " → ".join(group.stages) or "(not said)"
        console.print(f"  {group.share:6.1%}  {group.plan}: {stages}, p99 {group.latency.p99_ms:.1f} ms")
    for reason, count in verdict.cuts:
        console.print(f"  cut: {reason}: {count}")
    for reason, count in verdict.details:
        console.print(f"  no answer: {reason}: {count}", markup=False)
    if verdict.accuracy is not None and verdict.effective is not None:
        console.print(
            f"mAP {verdict.accuracy.map:.3f} (@.5 {verdict.accuracy.map50:.3f}) of the answers,"
            f" {verdict.effective.map:.3f} with late and missing ones empty"
        )
    console.print(f"attainment {verdict.attainment:.2%} within {verdict.conditions.budget_ms:g} ms")
    if verdict.estimate_ms is not None:
        asked = verdict.conditions
        console.print(
            f"{asked.percentile} of all requests at most {verdict.estimate_ms:.1f} ms,"
            f" {asked.confidence:.2%} sure"
        )
    if verdict.requests < verdict.planned:
        console.print(f"decided after {verdict.requests} of {verdict.planned} requests")
    console.print("[bold green]VALID[/]" if verdict.valid else "[bold red]INVALID[/]")
    for check in sorted(verdict.checks, key=lambda check: check.passed):
        mark = "[green]✓[/]" if check.passed else "[red]✗[/]"
        console.print(f"  {mark} {escape(check.says)}", soft_wrap=True, highlight=False)
