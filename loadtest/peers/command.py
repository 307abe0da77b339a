"""`python -m loadtest peers`: the comparison from the command line."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from loadtest.frames import read_frames
from loadtest.peers.campaign import NAMES, Campaign, Settings
from loadtest.peers.page import to_html
from loadtest.peers.processes import termination_interrupts
from loadtest.peers.summary import summarise
from loadtest.peers.tables import notes_of, state, to_markdown, to_terminal
from loadtest.process import ServerError

MISSES, USAGE = 1, 2
_WIDTH = 200


def peers(
    repo: Annotated[Path, typer.Option(help="The published repository.")],
    frames: Annotated[Path, typer.Option(help="Folder of frames with _annotations.coco.json.")],
    only: Annotated[str, typer.Option(help="Who, comma-separated.")] = ",".join(NAMES),
    rounds: Annotated[int, typer.Option(min=1, help="How often everybody is measured.")] = 3,
    seconds: Annotated[
        float, typer.Option(help="Of each rate that is tried; the trace lasts 4.5 times as long.")
    ] = 2.5,
    budget_ms: Annotated[float, typer.Option(help="99 % must be answered in this time.")] = 50.0,
    threshold: Annotated[
        float, typer.Option(help="The usual cascade asks the larger model when no raw score reaches it.")
    ] = 0.925,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the arrivals.")] = 5,
    minutes: Annotated[float | None, typer.Option(help="Begin nothing new after so long.")] = None,
    cache: Annotated[
        Path, typer.Option(help="Where the peers' environments and what was measured so far are kept.")
    ] = Path("build/peers"),
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first frames of the folder.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the table in Markdown here.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write a page of HTML with charts here.")] = None,
) -> None:
    """Compare the gateway with the servers that people use instead: same model, runtime, core and arrivals.

    Needs two cores. Peers are installed into environments of their own where they are missing; one that
    cannot be is left out, with the reason in the table. What was measured is kept in CACHE/results.jsonl: the
    same command goes on where it was ended; remove the file to begin anew.
    Ends with 0 when the claims hold, 1 when one does not or was not shown, 2 when nothing could be compared.
    """
    progress = Console(stderr=True)
    began_s = time.monotonic()

    def say(text: str) -> None:
        elapsed_s = time.monotonic() - began_s
        progress.print(f"{elapsed_s / 60:5.1f} min  {text}", highlight=False, markup=False, soft_wrap=True)

    try:
        settings = Settings(
            repo=repo,
            frames=frames,
            only=tuple(only.split(",")),
            rounds=rounds,
            seconds=seconds,
            budget_ms=budget_ms,
            seed=seed,
            minutes=minutes,
            cache=cache,
            threshold=threshold,
        )
        with termination_interrupts():
            summary = summarise(Campaign(settings, read_frames(frames, limit), say).run())
    except (ServerError, ValueError, OSError) as error:
        progress.print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(USAGE) from error
    command = command_of(settings)
    if json is not None:
        json.write_text(summary.model_dump_json(indent=2) + "\n", encoding="utf-8")
    if markdown is not None:
        markdown.write_text(to_markdown(summary, command), encoding="utf-8")
    if report is not None:
        report.write_text(to_html(summary, command), encoding="utf-8")
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    console.print(to_terminal(summary))
    for note in notes_of(summary):
        console.print(note, markup=False, highlight=False)
    for bar in summary.bars:
        colour = {True: "green", False: "red", None: "yellow"}[bar.holds]
        console.print(f"[bold {colour}]{state(bar.holds)}[/] {bar.claim}: {bar.found}", highlight=False)
    raise typer.Exit(0 if summary.holds else MISSES)


def command_of(settings: Settings) -> str:
    """Return the command that gives these figures: what differs from the defaults, not where it is kept."""
    words = ["python", "-m", "loadtest", "peers"]
    words += ["--repo", str(settings.repo), "--frames", str(settings.frames)]
    plain = Settings(settings.repo, settings.frames)
    if settings.only != plain.only:
        words += ["--only", ",".join(settings.only)]
    for name in ("rounds", "seconds", "budget_ms", "threshold", "seed", "minutes"):
        if (given := getattr(settings, name)) != getattr(plain, name):
            words += [f"--{name.replace('_', '-')}", f"{given:g}"]
    return shlex.join(words)
