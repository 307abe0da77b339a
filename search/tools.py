"""Commands beside a run: render the demo data; print, copy, measure, calibrate and recover what is published.

None but `recover` imports torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from model_repo.frontier import Frontier, SplitName
from search.run_folder import Progress, RunError
from search.settings import TritonPlatform

if TYPE_CHECKING:
    from rich.console import Console

    from model_repo.publish import Repository
    from search.targets import Targets

RepositoryOption = Annotated[Path, typer.Option("--repo", help="a published model repository")]
DataOption = Annotated[Path, typer.Option("--data", help="the data set it was made on")]
TritonUrlOption = Annotated[
    str | None, typer.Option("--triton-url", help="for the target triton: host:port of its gRPC endpoint")
]
TritonPlatformOption = Annotated[
    TritonPlatform | None,
    typer.Option("--triton-platform", help="its backend that models are sent for (default: onnxruntime)"),
]
EngineCacheOption = Annotated[
    Path | None,
    typer.Option("--engine-cache", help="where onnxruntime-tensorrt keeps the engines it builds"),
]


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


def copy(
    source: Annotated[Path, typer.Option("--from", help="a published model repository")],
    target: Annotated[Path, typer.Option("--to", help="the repository to publish its set into")],
) -> None:
    """Publish a repository's set into another one, whose gateways take it over.

    Models that are there already stay untouched; the manifest is replaced at once or not at all.
    """
    from model_repo.publish import RepositoryError
    from model_repo.publish import copy as publish_copy

    try:
        published = publish_copy(opened(source), target)
    except (RepositoryError, OSError) as error:
        raise RunError(str(error)) from error
    typer.echo(f"{target}: {len(published.frontier.variants)} models, {published.digest[:12]}")


def recover(
    model: Annotated[Path, typer.Option(help="a published model of a search: models/VARIANT/1/model.onnx")],
    data: DataOption,
    out: Annotated[Path, typer.Option(help="the file to write, for `search run --init`")],
    seed: Annotated[int, typer.Option(help="of the training frames that give the norms' statistics")] = 0,
) -> None:
    """Make a supernet's weights of a published model, to train on from it without the run that made it.

    The largest published model has the most of the supernet that it was cut from, and so most of its subnets.
    """
    from search.data.coco import DataError, read_dataset
    from search.recover import recover as read_back
    from search.weights import write_supernet

    try:
        stored = read_back(model, read_dataset(data), seed=seed)
    except DataError as error:
        raise RunError(str(error)) from error
    out.parent.mkdir(parents=True, exist_ok=True)
    write_supernet(out, stored)
    typer.echo(f"{out}: {stored.space.largest.name}")


def plans(
    repo: RepositoryOption,
    every: Annotated[bool, typer.Option("--every", help="dominated ones too")] = False,
) -> None:
    """Print the published plans: cost of a whole frame, mAP on calibration and test, the share of frames that
    goes on, and the certified excess loss over the last stage."""
    from rich.console import Console

    _print_plans(opened(repo).frontier, Console(), every=every)


def remeasure(
    repo: RepositoryOption,
    data: DataOption,
    samples: Annotated[int, typer.Option(min=20, help="per model, runtime and concurrency")] = 200,
    triton_url: TritonUrlOption = None,
    triton_platform: TritonPlatformOption = None,
    engine_cache: EngineCacheOption = None,
    out: Annotated[
        Path | None, typer.Option(help="publish into this repository [the one that is read]")
    ] = None,
) -> None:
    """Measure latencies and plan costs of a published repository again, on this machine.

    Models, plans and accuracies stay; the repository is replaced at once or not at all.
    """
    from rich.console import Console

    from search.console import ConsoleProgress
    from search.data.coco import read_dataset
    from search.remeasure import remeasure as measure

    repository = opened(repo)
    with ConsoleProgress(Console()) as progress:
        frontier = measure(
            repository,
            read_dataset(data, needed=("test",)),
            progress,
            _targets(repository, triton_url, triton_platform, engine_cache),
            samples=samples,
        )
    _publish_again(repository, frontier, out or repo)


def calibrate(
    repo: RepositoryOption,
    data: DataOption,
    split: Annotated[str, typer.Option(help="calibration, valid or train")] = "calibration",
    escalate: Annotated[
        str | None, typer.Option(help="the balanced point sends about this share on, as 20% or 0.2")
    ] = None,
    max_loss: Annotated[
        float | None, typer.Option(help="… is certified to lose no more than this against its last stage")
    ] = None,
    max_mean_ms: Annotated[
        float | None, typer.Option(help="… costs no more than this on average, decoding included")
    ] = None,
    seed: Annotated[int, typer.Option(help="of folds and of the images held back to certify")] = 0,
    triton_url: TritonUrlOption = None,
    triton_platform: TritonPlatformOption = None,
    engine_cache: EngineCacheOption = None,
    out: Annotated[
        Path | None, typer.Option(help="publish into this repository [the one that is read]")
    ] = None,
) -> None:
    """Refit alignment, gain, thresholds and certificates of a published repository on new labelled frames.

    The models stay; the repository is replaced at once or not at all, and a running router takes it over.
    """
    from rich.console import Console

    from search.calibrate import Wish
    from search.calibrate import calibrate as refit
    from search.console import ConsoleProgress
    from search.data.coco import read_dataset

    role = next((known for known in _FITTED_ON if known == split), None)
    if role is None:
        raise RunError(f"split: {split!r} is none of {', '.join(_FITTED_ON)}")
    wish = Wish(None if escalate is None else _share(escalate), max_loss, max_mean_ms)
    repository, console = opened(repo), Console()
    with ConsoleProgress(console) as progress:
        frontier = refit(
            repository,
            read_dataset(data, needed=()),
            progress,
            _targets(repository, triton_url, triton_platform, engine_cache),
            split=role,
            wish=wish,
            seed=seed,
        )
    published = _publish_again(repository, frontier, out or repo)
    _print_plans(published.frontier, console, every=False)


def _targets(
    repository: Repository, url: str | None, platform: TritonPlatform | None, engine_cache: Path | None
) -> Targets:
    """Return what a published repository can be measured on: this machine, and the Triton that is given."""
    from search.targets import Targets

    return Targets(repository.root, url, platform or "onnxruntime", engine_cache)


def _publish_again(repository: Repository, frontier: Frontier, out: Path) -> Repository:
    """Publish another manifest for models that are published already; raises RunError."""
    from model_repo.publish import RepositoryError, publish

    models = repository.root / "models"
    try:
        return publish(out, frontier, {v.folder: models / v.folder for v in frontier.variants})
    except RepositoryError as error:
        raise RunError(str(error)) from error


_FITTED_ON: tuple[SplitName, ...] = ("calibration", "valid", "train")


def _share(text: str) -> float:
    """Read "20%" or "0.2"; raises RunError."""
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise RunError(f"escalate: expected a share as 20% or 0.2, got {text!r}") from None


def opened(repo: Path) -> Repository:
    """Read a published repository; raises RunError."""
    from model_repo.codec import ManifestError
    from model_repo.publish import RepositoryError, read

    try:
        return read(repo)
    except (ManifestError, RepositoryError) as error:
        raise RunError(str(error)) from error


def _print_plans(frontier: Frontier, console: Console, *, every: bool) -> None:
    from rich import box
    from rich.table import Table

    from model_repo.frontier import Certificate, non_dominated

    shown = sorted(frontier.plans, key=lambda plan: plan.mean_ms)
    if not every:
        points = [(plan.mean_ms, plan.accuracy_on("calibration").map) for plan in shown]
        named = {point.plan for point in frontier.operating_points}
        front = set(non_dominated(points))
        shown = [plan for k, plan in enumerate(shown) if k in front or plan.name in named]
    names: dict[str, list[str]] = {}
    for point in frontier.operating_points:
        names.setdefault(point.plan, []).append(point.name)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in ("plan", "point", "mean\nms", "p99\nms", "mAP", "mAP\ntest", "goes\non", "loss\n≤"):
        table.add_column(column, no_wrap=True, justify="left" if column in ("plan", "point") else "right")
    for plan in shown:
        fitted = plan.accuracy_on("calibration")
        tested = next((accuracy for accuracy in plan.accuracy if accuracy.split == "test"), None)
        certificate = plan.certificate
        table.add_row(
            "\n→ ".join(stage.variant for stage in plan.stages),
            "\n".join(names.get(plan.name, ())),
            f"{plan.mean_ms:.2f}",
            f"{plan.p99_ms:.2f}",
            f"{fitted.map:.3f}",
            "" if tested is None else f"{tested.map:.3f}",
            ", ".join(f"{100 * share:.0f} %" for share in fitted.escalated),
            f"{certificate.epsilon:.3f}" if isinstance(certificate, Certificate) else "",
        )
    console.print(table)
