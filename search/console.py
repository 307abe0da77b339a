"""Progress of long work on a terminal, or as lines of text where there is none."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_LINE_EVERY_S = 15.0


class ConsoleProgress:
    """Show one bar per phase; a phase that begins ends the one before.

    Without a terminal a line is printed when a phase begins and every 15 seconds, so that a log tells how far
    a run is and does not fill up with bars.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._description, self._total, self._done = "", 0.0, 0.0
        self._printed_s = 0.0

    def __enter__(self) -> ConsoleProgress:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._bars.stop()

    def start(self, description: str, total: float | None) -> None:
        """Begin a phase of `total` units; None when that is not known."""
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._description, self._total, self._done = description, total or 0.0, 0.0
        self._task = self._bars.add_task(description, total=total, note="")
        if not self._console.is_terminal:
            self._console.print(f"  {description} …", highlight=False)
            self._printed_s = time.monotonic()

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        """Report `amount` units done, and what came out last."""
        if self._task is None:
            return
        self._done += amount
        self._bars.update(self._task, advance=amount, note=note)
        if not self._console.is_terminal and time.monotonic() - self._printed_s >= _LINE_EVERY_S:
            share = f"{100 * self._done / self._total:.0f} %" if self._total else f"{self._done:g}"
            self._console.print(f"  {self._description}: {share}  {note}", highlight=False, soft_wrap=True)
            self._printed_s = time.monotonic()

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
