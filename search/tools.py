"""Commands beside a run: render the demo data, render a Triton repository, measure what is published.

None of them imports torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from search.run_folder import Progress, RunError

bench = typer.Typer(no_args_is_help=True, help="Measure what is claimed about a published repository.")
_Repo = Annotated[Path, typer.Option("--repo", help="a published model repository")]
_Data = Annotated[Path, typer.Option("--data", help="the data set it was made on")]


def render(
    out: Annotated[Path, typer.Option(help="where to render; a render that was stopped goes on there")],
    frames: Annotated[
        str, typer.Option(help="frames per split, as split=count,…; a sequence has one split")
    ] = "train=2400,calib=800,valid=400,test=800",
    seed: Annotated[int, typer.Option(help="frames are a function of it, the split and their number")] = 7,
    shift: Annotated[str | None, typer.Option(help="dark, blurred, noisy or other_scale")] = None,
    sequence: Annotated[
        bool, typer.Option("--sequence", help="consecutive frames of one running belt")
    ] = False,
    workers: Annotated[int, typer.Option(help="processes")] = 2,
    sheet: Annotated[Path | None, typer.Option(help="also write a PNG of frames from easy to hard")] = None,
) -> None:
    """Render the conveyor set: fasteners on a moving belt, with COCO labels."""
    from rich.console import Console

    from search.console import ConsoleProgress
    from search.data.conveyor.dataset import RenderError, render_dataset, render_sequence
    from search.data.conveyor.sheet import contact_sheet

    counts = _counts(frames)
    if sequence and len(counts) != 1:
        raise RunError(f"frames: a sequence has one split, got {frames!r}")
    with ConsoleProgress(Console()) as progress:
        phases = Phases(progress)
        try:
            if sequence:
                ((split, count),) = counts.items()
                render_sequence(out, frames=count, seed=seed, split=split, shift=shift, progress=phases)
            else:
                render_dataset(out, frames=counts, seed=seed, workers=workers, shift=shift, progress=phases)
            if sheet is not None:
                contact_sheet(out / next(iter(counts)), sheet)
        except RenderError as error:
            raise RunError(str(error)) from error
    typer.echo(f"{out}: {', '.join(f'{count} {split}' for split, count in counts.items())}")


def _counts(text: str) -> dict[str, int]:
    """Read "train=10,test=5"; raises RunError naming the part that is not of that form."""
    counts: dict[str, int] = {}
    for part in text.split(","):
        split, _, count = part.partition("=")
        if not split or not count.isdecimal() or split in counts:
            raise RunError(f"frames: expected split=count, each split once, got {part!r}")
        counts[split] = int(count)
    return counts


class Phases:
    """Turn (split, done, total) reports into a bar per split."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._split, self._done = "", 0

    def __call__(self, split: str, done: int, total: int) -> None:
        """Report that `done` of `total` frames of a split are there."""
        if split != self._split:
            self._progress.start(f"render {split}", total)
            self._split, self._done = split, 0
        self._progress.advance(done - self._done)
        self._done = done


def triton(
    platform: Annotated[str, typer.Option(help="onnxruntime, tensorrt, openvino or python")],
    repo: _Repo,
    out: Annotated[Path, typer.Option(help="where to write the repository: a folder that is not there yet")],
    threads: Annotated[int, typer.Option(help="cores per inference")] = 1,
    instances: Annotated[int, typer.Option(help="inferences at once")] = 1,
) -> None:
    """Render a Triton model repository from a published one."""
    from model_repo.codec import ManifestError
    from model_repo.publish import RepositoryError, read
    from model_repo.triton import PLATFORMS, PlatformError, render_repository

    chosen = next((known for known in PLATFORMS if known == platform), None)
    if chosen is None:
        raise RunError(f"platform: {platform!r} is none of {', '.join(PLATFORMS)}")
    try:
        render_repository(read(repo), chosen, out, threads=threads, instances=instances)
    except (ManifestError, RepositoryError, PlatformError) as error:
        raise RunError(str(error)) from error
    typer.echo(f"{out}: {len(list(out.iterdir()))} entries")


@bench.command()
def cascade(
    repo: _Repo,
    data: _Data,
    frames: Annotated[int | None, typer.Option(help="only the first so many test frames")] = None,
) -> None:
    """Measure every model and every plan of two stages on the test split, in one run.

    Exit status 1 when the plan that calibration chose keeps less than 98 % of the largest model's mAP, takes
    more than 60 % of its mean latency, or is matched in both by a single model.
    """
    from rich.console import Console
    from rich.table import Table

    from model_repo.publish import read
    from search.bench import KEPT_ACCURACY, KEPT_LATENCY
    from search.bench import cascade as measure
    from search.console import ConsoleProgress
    from search.data.coco import read_dataset

    console = Console()
    with ConsoleProgress(console) as progress:
        result = measure(read(repo), read_dataset(data), progress, frames=frames)
    table = Table("", "mAP", "mAP@.5", "mean ms", "p99 ms", "escalated")
    table.columns[0].overflow = "fold"
    for row in result.rows:
        mark = (
            " (largest)" if row.name == result.largest else " (chosen)" if row.name == result.chosen else ""
        )
        table.add_row(
            row.name + mark, f"{row.map:.4f}", f"{row.map50:.4f}", f"{row.mean_ms:.2f}", f"{row.p99_ms:.2f}",
            f"{100 * row.escalated:.0f} %" if row.stages > 1 else "",
        )  # fmt: skip
    console.print(table)
    console.print(
        f"{result.chosen} keeps {100 * result.accuracy_kept:.1f} % of {result.largest}'s mAP"
        f" (needed: {100 * KEPT_ACCURACY:.0f} %) at {100 * result.latency_share:.1f} % of its mean latency"
        f" (allowed: {100 * KEPT_LATENCY:.0f} %). Single models that match it in both:"
        f" {', '.join(result.matched_by) or 'none'}. {'Holds.' if result.holds else 'DOES NOT HOLD.'}",
        highlight=False,
    )
    if not result.holds:
        raise typer.Exit(1)


@bench.command()
def difficulty(repo: _Repo, data: _Data) -> None:
    """Print mAP by tenth of difficulty on the test split, for the smallest and the largest model."""
    from rich.console import Console
    from rich.table import Table

    from model_repo.publish import read
    from search.bench import difficulty as measure
    from search.console import ConsoleProgress
    from search.data.coco import read_dataset

    console = Console()
    with ConsoleProgress(console) as progress:
        rows = measure(read(repo), read_dataset(data), progress)
    table = Table("tenth, easiest first", *(name for name, _, _ in rows))
    for k, values in enumerate(zip(*(tenths for _, tenths, _ in rows), strict=True), start=1):
        table.add_row(str(k), *(f"{value:.3f}" for value in values))
    table.add_row("all", *(f"{over_all:.3f}" for _, _, over_all in rows))
    console.print(table)
