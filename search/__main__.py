"""The command line of the search: `python -m search --help`.

Everything heavy is imported inside the command that needs it, so that rendering the demo data, rendering a
Triton repository or measuring a published one never imports torch.

An option that is not given keeps what the run has, or the default when the run begins.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, get_args

import typer

from model_repo.latency import RuntimeName
from search import bench_commands, tools, triton_commands
from search.candidates import Objective
from search.run_folder import RunError
from search.settings import STEPS
from search.strategies import Algorithm

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Turn a labelled data set into a published set of detection models on a Pareto front."
    f" The steps of a run: {' → '.join(STEPS)}.",
)

_ALL, _ONE, _PUBLISHED = "The whole run", "The steps, one by one", "A published repository"
# torchrun takes "--run" for an abbreviation of its own options, so there is another name.
Run = Annotated[
    Path, typer.Option("--run", "--out", help="the run's folder; what is finished in it is not repeated")
]
Out = Annotated[Path, typer.Option("--out", help="the run's folder; what is finished in it is not repeated")]
Repo = Annotated[Path, typer.Option("--repo", help="the model repository to publish into")]
Data = Annotated[Path, typer.Option("--data", help="a folder of COCO-format splits")]
Again = Annotated[bool, typer.Option("--again", help="do it once more, even when it is finished")]
Seed = Annotated[int | None, typer.Option(help="of everything random [0]")]
Steps = Annotated[int | None, typer.Option(help="training budget in steps: such a run repeats exactly")]
Minutes = Annotated[float | None, typer.Option(help="training budget in minutes")]
Weights = Annotated[Path | None, typer.Option(help="a trained supernet, instead of training one")]
Init = Annotated[Path | None, typer.Option(help="a trained supernet to begin with (fine-tuning)")]
BatchSize = Annotated[int | None, typer.Option(help="frames per training step [16]")]
Rate = Annotated[float | None, typer.Option(help="the highest learning rate [0.002]")]
RandomSubnets = Annotated[int | None, typer.Option(help="random subnets per training step [1]")]
SoloShare = Annotated[
    float | None, typer.Option(help="first share of training, for the largest subnet alone [0.4]")
]
CalmShare = Annotated[
    float | None, typer.Option(help="last share of training, without mosaics and near true size [0.15]")
]
Paste = Annotated[
    float | None,
    typer.Option(help="Chance of a frame to get objects of another one pasted; for small data sets, 0.5"),
]
Favour = Annotated[
    Path | None, typer.Option(help="RUN/explore/candidates.jsonl: train more on what that search would keep")
]
Polish = Annotated[
    bool | None, typer.Option(help="train only what --favour says, each at its own resolution [no]")
]
AnyWayUp = Annotated[bool | None, typer.Option(help="frames have no up: train on turned ones as well [no]")]
CheckpointS = Annotated[float | None, typer.Option(help="seconds between checkpoints of training [60]")]
CalibrationShare = Annotated[
    float | None, typer.Option(help="of train, where the data has no calibration split of its own [0.2]")
]
SpaceText = Annotated[
    str | None,
    typer.Option(
        "--space",
        metavar="JSON",
        help="the search space, as JSON or a file that holds it: resolutions, depths, widths, neck_widths,"
        " head_depths, stem_width; the default for what is left out",
    ),
]
AlgorithmName = Annotated[
    Algorithm | None,
    typer.Option(help="how subnets are drawn: by two objectives, by one score, or blindly [nsga2]"),
]
LatencyWeight = Annotated[
    float | None, typer.Option(help="for evolution: score = accuracy − this · milliseconds")
]
ObjectiveName = Annotated[
    Objective | None,
    typer.Option("--objective", help="what accuracy means: mAP@[.5:.95], or best F1 at IoU 0.5 [map]"),
]
Candidates = Annotated[int | None, typer.Option(help="subnets to evaluate [240]")]
Named = Annotated[
    list[str] | None,
    typer.Option("--subnet", help="evaluate and keep just these, by name, instead of searching; repeat it"),
]
Population = Annotated[int | None, typer.Option(help="subnets per generation [24]")]
ExploreMinutes = Annotated[float | None, typer.Option(help="start no candidate after this time [no limit]")]
SearchImages = Annotated[int | None, typer.Option(help="validation images to judge candidates on [128]")]
Table = Annotated[Path | None, typer.Option("--latency-table", help="measured latencies of an earlier run")]
Subnets = Annotated[int | None, typer.Option(help="subnets to measure for latency estimates [48]")]
Workers = Annotated[int | None, typer.Option(help="processes that evaluate candidates, one thread each [2]")]
FinishMinutes = Annotated[
    float | None, typer.Option(help="train the kept subnets alone, all together this long [not at all]")
]
FinishSteps = Annotated[int | None, typer.Option(help="or each of them for so many steps: repeats exactly")]
TuneAbove = Annotated[
    float | None, typer.Option(help="what int8 may lose before a subnet is tuned for it [0.005]")
]
TuneSteps = Annotated[int | None, typer.Option(help="steps of that tuning, 0 for none [150]")]
Keep = Annotated[int | None, typer.Option(help="subnets to export and measure [24]")]
Publish = Annotated[int | None, typer.Option("--publish", help="models to publish [8]")]
MaxMb = Annotated[float | None, typer.Option(help="size of all published files together, MB [16]")]
MaxTrail = Annotated[float | None, typer.Option(help="mAP by which the fastest may trail the best [0.2]")]
Tolerance = Annotated[float | None, typer.Option(help="mAP that a faster precision may lose [0.005]")]
Samples = Annotated[int | None, typer.Option(help="latency samples per model and concurrency [200]")]
Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        help="measure on this runtime; repeat for several: the first one decides what is kept, the others are"
        f" measured as well: {', '.join(get_args(RuntimeName))} (default: openvino, then onnxruntime)",
    ),
]
LatencyPrecision = Annotated[
    str | None, typer.Option(help="of the subnets that latency estimates are fitted to (default: int8)")
]
Precisions = Annotated[
    list[str] | None,
    typer.Option(
        "--precision",
        help="export this; repeat for several; the best on the first target is published: f32, bf16, fp16,"
        " int8 (default: all but fp16, which is for GPUs)",
    ),
]


@app.command(rich_help_panel=_ALL)
def run(
    data: Data,
    out: Out,
    repo: Repo,
    calibration_share: CalibrationShare = None,
    seed: Seed = None,
    steps: Steps = None,
    minutes: Minutes = None,
    weights: Weights = None,
    init: Init = None,
    batch_size: BatchSize = None,
    learning_rate: Rate = None,
    random_subnets: RandomSubnets = None,
    solo_share: SoloShare = None,
    calm_share: CalmShare = None,
    paste: Paste = None,
    favour: Favour = None,
    polish: Polish = None,
    any_way_up: AnyWayUp = None,
    space: SpaceText = None,
    checkpoint_s: CheckpointS = None,
    algorithm: AlgorithmName = None,
    latency_weight: LatencyWeight = None,
    objective: ObjectiveName = None,
    subnets: Named = None,
    candidates: Candidates = None,
    population: Population = None,
    explore_minutes: ExploreMinutes = None,
    search_images: SearchImages = None,
    latency_table: Table = None,
    latency_subnets: Subnets = None,
    workers: Workers = None,
    keep: Keep = None,
    finish_minutes: FinishMinutes = None,
    finish_steps: FinishSteps = None,
    tune_above: TuneAbove = None,
    tune_steps: TuneSteps = None,
    publish: Publish = None,
    max_mb: MaxMb = None,
    max_trail: MaxTrail = None,
    tolerance: Tolerance = None,
    samples: Samples = None,
    runtimes: Targets = None,
    precisions: Precisions = None,
    latency_precision: LatencyPrecision = None,
    triton_url: tools.TritonUrlOption = None,
    triton_platform: tools.TritonPlatformOption = None,
    engine_cache: tools.EngineCacheOption = None,
    again: Annotated[str | None, typer.Option(help="do this step and all that follow once more")] = None,
    until: Annotated[str, typer.Option(help="stop after this step")] = STEPS[-1],
) -> None:
    """Do all steps. Stop it at any moment, give the same command, and it goes on where it was."""
    given = {name: value for name, value in locals().items() if name not in ("out", "repo", "again", "until")}
    if until not in STEPS:
        raise RunError(f"until: {until!r} is none of {', '.join(STEPS)}")
    _do(out, STEPS[: STEPS.index(until) + 1], given, repo=repo, again=again)


@app.command(rich_help_panel=_ONE)
def data(run: Run, data: Data, calibration_share: CalibrationShare = None, again: Again = False) -> None:
    """Begin a run: read and check the data set."""
    given = {"data": data, "calibration_share": calibration_share}
    _do(run, ("data",), given, again="data" if again else None)


@app.command(rich_help_panel=_ONE)
def train(
    run: Run,
    seed: Seed = None,
    steps: Steps = None,
    minutes: Minutes = None,
    weights: Weights = None,
    init: Init = None,
    batch_size: BatchSize = None,
    learning_rate: Rate = None,
    random_subnets: RandomSubnets = None,
    solo_share: SoloShare = None,
    calm_share: CalmShare = None,
    paste: Paste = None,
    favour: Favour = None,
    polish: Polish = None,
    any_way_up: AnyWayUp = None,
    space: SpaceText = None,
    checkpoint_s: CheckpointS = None,
    again: Again = False,
) -> None:
    """Train the supernet; several processes: `torchrun --nproc-per-node N -m search train --out RUN …`."""
    given = {name: value for name, value in locals().items() if name not in ("run", "again")}
    _do(run, ("train",), given, again="train" if again else None)


@app.command(rich_help_panel=_ONE)
def explore(
    run: Run,
    algorithm: AlgorithmName = None,
    latency_weight: LatencyWeight = None,
    objective: ObjectiveName = None,
    subnets: Named = None,
    candidates: Candidates = None,
    population: Population = None,
    explore_minutes: ExploreMinutes = None,
    search_images: SearchImages = None,
    latency_table: Table = None,
    latency_subnets: Subnets = None,
    workers: Workers = None,
    runtimes: Targets = None,
    latency_precision: LatencyPrecision = None,
    triton_url: tools.TritonUrlOption = None,
    triton_platform: tools.TritonPlatformOption = None,
    engine_cache: tools.EngineCacheOption = None,
    again: Again = False,
) -> None:
    """Search for subnets worth keeping."""
    given = {name: value for name, value in locals().items() if name not in ("run", "again")}
    _do(run, ("explore",), given, again="explore" if again else None)


@app.command(rich_help_panel=_ONE)
def finish(
    run: Run,
    keep: Keep = None,
    max_trail: MaxTrail = None,
    finish_minutes: FinishMinutes = None,
    finish_steps: FinishSteps = None,
    again: Again = False,
) -> None:
    """Train every kept subnet alone for a while, from the shared weights."""
    given = {name: value for name, value in locals().items() if name not in ("run", "again")}
    _do(run, ("finish",), given, again="finish" if again else None)


@app.command(rich_help_panel=_ONE)
def export(
    run: Run,
    tune_above: TuneAbove = None,
    tune_steps: TuneSteps = None,
    runtimes: Targets = None,
    precisions: Precisions = None,
    triton_url: tools.TritonUrlOption = None,
    triton_platform: tools.TritonPlatformOption = None,
    engine_cache: tools.EngineCacheOption = None,
    again: Again = False,
) -> None:
    """Export the kept subnets, fused, in every precision; tune those for int8 that lose too much by it."""
    given = {name: value for name, value in locals().items() if name not in ("run", "again")}
    _do(run, ("export",), given, again="export" if again else None)


@app.command(rich_help_panel=_ONE)
def measure(
    run: Run,
    publish: Publish = None,
    max_mb: MaxMb = None,
    max_trail: MaxTrail = None,
    tolerance: Tolerance = None,
    samples: Samples = None,
    runtimes: Targets = None,
    triton_url: tools.TritonUrlOption = None,
    triton_platform: tools.TritonPlatformOption = None,
    engine_cache: tools.EngineCacheOption = None,
    again: Again = False,
) -> None:
    """Measure every exported file on the targets and choose what to publish."""
    given = {name: value for name, value in locals().items() if name not in ("run", "again")}
    _do(run, ("measure",), given, again="measure" if again else None)


@app.command(rich_help_panel=_ONE)
def route(run: Run, again: Again = False) -> None:
    """Fit alignments and gain models on calibration and decide on plans."""
    _do(run, ("route",), {}, again="route" if again else None)


@app.command("publish", rich_help_panel=_ONE)
def publish_(run: Run, repo: Repo, triton_url: tools.TritonUrlOption = None, again: Again = False) -> None:
    """Score on the test split, once, and publish."""
    _do(run, ("publish",), {"triton_url": triton_url}, repo=repo, again="publish" if again else None)


@app.command(rich_help_panel=_ONE)
def report(run: Run, repo: Repo, again: Again = False) -> None:
    """Draw what the run found: one HTML page and one picture."""
    _do(run, ("report",), {}, repo=repo, again="report" if again else None)


app.add_typer(bench_commands.bench, name="bench", rich_help_panel="Tools")
app.command(rich_help_panel="Tools")(tools.render)
app.command(rich_help_panel="Tools")(triton_commands.triton)
app.command(rich_help_panel="Tools")(triton_commands.build_engines)
app.command(rich_help_panel=_PUBLISHED)(tools.copy)
app.command(rich_help_panel=_PUBLISHED)(tools.plans)
app.command(rich_help_panel=_PUBLISHED)(tools.calibrate)
app.command(rich_help_panel=_PUBLISHED)(tools.remeasure)
app.command(rich_help_panel=_PUBLISHED)(tools.recover)


def _do(
    root: Path,
    names: Sequence[str],
    given: Mapping[str, object],
    *,
    repo: Path | None = None,
    again: str | None = None,
) -> None:
    from rich.console import Console

    from search.console import ConsoleProgress
    from search.pipeline import Context, open_run, run_steps

    together = "WORLD_SIZE" in os.environ  # as torchrun says it
    if together and (tuple(names) != ("train",) or again is not None):
        raise RunError("torchrun: it is for `search train` alone, without --again; begin with `search data`")
    first = os.environ.get("RANK", "0") == "0"
    folder, settings = open_run(root, {k: v for k, v in given.items() if v is not None}, again=again)
    with ConsoleProgress(Console(quiet=not first)) as progress:
        run_steps(Context(folder, settings, repo, progress, progress.say), names, record=first)


def main() -> int:
    """Run the command line; what the user can mend is one line on stderr and exit status 2."""
    try:
        app(standalone_mode=True)
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(
            f"error: {error}: free some space and give the same command again; finished work is kept",
            file=sys.stderr,
        )
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
