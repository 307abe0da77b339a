"""The command line: `run` puts a gateway under load and judges it, `capacity` finds the rate that it holds,
`frontier` its accuracy against its latency under load, `demo` shows the published frontier."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from loadtest.bench_commands import bench
from loadtest.demo import DemoError, DemoSettings, show
from loadtest.edge_commands import capacity, frontier
from loadtest.peers.command import peers
from loadtest.run_command import run
from loadtest.screen import USAGE, console, errors_in_words

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(bench, name="bench")
app.command()(run)
app.command()(capacity)
app.command()(frontier)
app.command("peers")(peers)


@app.command()
def demo(
    exit_: Annotated[
        bool, typer.Option("--exit", help="Stop the gateway and end once the table is printed.")
    ] = False,
    repo: Annotated[Path, typer.Option(help="The published repository.")] = Path("model_repo"),
    frames: Annotated[
        Path | None, typer.Option(help="Use this folder of labelled frames instead of rendering the belt.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="How many frames.")] = 120,
    rate: Annotated[float, typer.Option(help="Requests per second.")] = 12.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of frames and arrivals.")] = 11,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The gateway's port; 0 takes a free one.")] = 0,
) -> None:
    """Render frames, start the gateway on a repository, send load, print what each operating point does."""
    with errors_in_words(DemoError):
        show(DemoSettings(repo, frames, count, rate, seed, port, leave_running=not exit_), console())


def main() -> None:
    """Run the command line; a fault of the load test itself ends with 2, for 1 is a verdict."""
    try:
        app()
    except Exception:  # noqa: BLE001 - the process's edge: Python's own status would read as INVALID
        traceback.print_exc()
        sys.exit(USAGE)


if __name__ == "__main__":
    main()
