"""Commands that measure what is claimed about a published repository or a search.

Only what measures a search imports torch, inside its command.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from search.tools import DataOption, RepositoryOption, opened

bench = typer.Typer(
    no_args_is_help=True, help="Measure what is claimed about a published repository or a search."
)


@bench.command()
def cascade(
    repo: RepositoryOption,
    data: DataOption,
    frames: Annotated[int | None, typer.Option(help="only the first so many test frames")] = None,
) -> None:
    """Measure every model and every plan of several stages on the test split, in one run.

    Two claims: a plan that calibration chose keeps 99 % of the largest model's mAP at half of its mean
    latency, another 99.5 % at 65 %, and no single model matches either in both. Exit status 1 when one does
    not hold.
    """
    from rich.console import Console
    from rich.table import Table

    from search.bench import cascade as measure
    from search.console import ConsoleProgress
    from search.data.coco import read_dataset

    console = Console()
    with ConsoleProgress(console) as progress:
        result = measure(opened(repo), read_dataset(data, needed=("test",)), progress, frames=frames)
    table = Table("", "mAP", "mAP@.5", "mean ms", "of the largest", "p99 ms", "asked again")
    table.columns[0].overflow = "fold"
    chosen = {verdict.chosen for verdict in result.verdicts}
    top = next(row for row in result.rows if row.name == result.largest)
    for row in result.rows:
        mark = " (largest)" if row is top else " (chosen)" if row.name in chosen else ""
        table.add_row(
            row.name + mark, f"{row.map:.4f}", f"{row.map50:.4f}", f"{row.mean_ms:.2f}",
            f"{100 * row.mean_ms / top.mean_ms:.0f} %", f"{row.p99_ms:.2f}",
            f"{100 * row.asked:.0f} %" if row.stages > 1 else "",
        )  # fmt: skip
    console.print(table)
    for verdict in result.verdicts:
        console.print(
            f"{verdict.chosen} keeps {100 * verdict.accuracy_kept:.1f} % of {result.largest}'s mAP"
            f" (needed: {100 * verdict.claim.accuracy:g} %) at {100 * verdict.latency_share:.1f} % of its"
            f" mean latency (allowed: {100 * verdict.claim.latency:g} %). Single models that match it in"
            f" both: {', '.join(verdict.matched_by) or 'none'}. {'HOLDS' if verdict.holds else 'MISSES'}",
            highlight=False,
        )
    if not result.holds:
        raise typer.Exit(1)


@bench.command()
def difficulty(repo: RepositoryOption, data: DataOption) -> None:
    """Print mAP by tenth of difficulty on the test split, for the smallest and the largest model."""
    from rich.console import Console
    from rich.table import Table

    from search.bench import difficulty as measure
    from search.console import ConsoleProgress
    from search.data.coco import read_dataset

    console = Console()
    with ConsoleProgress(console) as progress:
        rows = measure(opened(repo), read_dataset(data, needed=("test",)), progress)
    table = Table("tenth, easiest first", *(name for name, _, _ in rows))
    for k, values in enumerate(zip(*(tenths for _, tenths, _ in rows), strict=True), start=1):
        table.add_row(str(k), *(f"{value:.3f}" for value in values))
    table.add_row("all", *(f"{over_all:.3f}" for _, _, over_all in rows))
    console.print(table)


@bench.command()
def routing(
    repo: RepositoryOption,
    data: DataOption,
    pool: Annotated[
        Path | None, typer.Option(help="a set of at least 20,000 test frames to try the certificate on")
    ] = None,
    calibration_share: Annotated[
        float, typer.Option(help="as the set's run had it, for data without a calib split")
    ] = 0.2,
    seed: Annotated[int, typer.Option(help="of resamples and draws")] = 0,
    judge: Annotated[
        bool, typer.Option(help="say which claims hold, and exit with status 1 when one does not")
    ] = True,
) -> None:
    """Compare predicted gains with other rules on the test split; check alignment and certificate.

    Claims about gains are judged from the fastest to the largest model.
    """
    from rich.console import Console

    from search.bench_certificate import DRAW_FRAMES
    from search.bench_routing import routing as measure
    from search.console import ConsoleProgress
    from search.data.coco import read_dataset
    from search.routing_table import print_claims, print_rules

    console = Console()
    with ConsoleProgress(console) as progress:
        result = measure(
            opened(repo),
            read_dataset(data, calibration_share=calibration_share, needed=("test",)),
            progress,
            pool=None if pool is None else read_dataset(pool, needed=("test",)),
            seed=seed,
        )
    print_rules(result, console)
    if result.widest is None:
        console.print("The fastest and the largest were not compared: the data has no calibration frames.")
    if result.certificate is None:
        console.print("The certificate was not tried: give --pool.")
    else:
        console.print(
            f"The certificate was tried on {' → '.join(result.certificate.pair)}, with"
            f" {DRAW_FRAMES} of {result.certificate.pool} frames each time.",
            highlight=False,
        )
    claims = result.claims()
    print_claims(claims, console, judge=judge)
    if judge and not all(claim.holds for claim in claims):
        raise typer.Exit(1)


@bench.command()
def scales(
    data: DataOption,
    out: Annotated[
        Path, typer.Option("--out", help="where both nets are trained; a training that was stopped goes on")
    ],
    minutes: Annotated[float, typer.Option(help="training of each of the two nets")] = 3.0,
    seed: Annotated[int, typer.Option(help="of weights, batches and resamples")] = 0,
) -> None:
    """Train two nets apart, square the larger one's scores, and compare their cascades on the test split.

    Exit status 1 when squaring costs the calibrated cascade more than 0.002 mAP at one of the shares.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from search.bench_scales import MOST_LOST
    from search.bench_scales import scales as measure
    from search.console import ConsoleProgress
    from search.data.coco import read_dataset
    from search.two_nets import TwoNets, published_twice

    console = Console()
    with ConsoleProgress(console) as progress:
        dataset = read_dataset(data, needed=("train", "test"))
        sets = published_twice(TwoNets(minutes=minutes, seed=seed), dataset, out, progress)
        result = measure(*sets, dataset, progress, seed=seed)
    console.print(
        f"{result.frames} test frames; mAP {result.small_map:.4f} and {result.large_map:.4f} alone,"
        f" fusion {result.fusion[0]}, with squared scores {result.fusion[1]}.",
        highlight=False,
    )
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for head in ("sent on", "raw", "squared", "aligned", "squared", "lost (95 %)"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in result.rows:
        table.add_row(
            f"{row.share:.0%}", f"{row.raw:.4f}", f"{row.raw_squared:.4f}",
            f"{row.aligned:.4f}", f"{row.aligned_squared:.4f}",
            f"{row.lost.value:+.4f} ({row.lost.low:+.4f} to {row.lost.high:+.4f})",
        )  # fmt: skip
    console.print(table)
    console.print(
        f"Squared scores may cost an aligned cascade {MOST_LOST} mAP."
        f" {'Holds.' if result.holds else 'DOES NOT HOLD.'}",
        highlight=False,
    )
    if not result.holds:
        raise typer.Exit(1)


@bench.command()
def drift(
    repo: RepositoryOption,
    data: DataOption,
    seed: Annotated[int, typer.Option(help="of the streams that are drawn")] = 0,
) -> None:
    """Replay recorded answers to the drift test: false alarms, and how soon named shifts are noticed.

    Exit status 1 when more than one of 200 stationary runs of 20,000 frames rings, or when a shift that costs
    the largest model 5 points of mAP takes the median run more than 1,000 frames.
    """
    from rich.console import Console
    from rich.table import Table

    from search.bench_drift import MOST_FALSE_ALARMS, RUNS, STATIONARY_FRAMES
    from search.bench_drift import drift as measure
    from search.console import ConsoleProgress
    from search.data.coco import read_dataset

    console = Console()
    with ConsoleProgress(console) as progress:
        result = measure(opened(repo), read_dataset(data, needed=("test",)), progress, seed=seed)
    table = Table("shift", "largest's mAP", "points lost", "frames until it rings, median")
    for row in result.shifts:
        noticed = "never" if row.median_frames is None else f"{row.median_frames:.0f}"
        table.add_row(row.name, f"{row.map:.3f}", f"{100 * row.lost:.1f}", noticed)
    console.print(table)
    console.print(
        f"Watching {result.variant}: {result.false_alarms} of {RUNS} stationary runs of"
        f" {STATIONARY_FRAMES} frames rang (allowed: {MOST_FALSE_ALARMS})."
        f" {'Holds.' if result.holds else 'DOES NOT HOLD.'}",
        highlight=False,
    )
    if not result.holds:
        raise typer.Exit(1)


@bench.command()
def predictor(
    run: Annotated[Path, typer.Option("--run", help="a run whose supernet is trained")],
    held_out: Annotated[int, typer.Option(min=2, help="subnets to estimate, beside those fitted to")] = 50,
) -> None:
    """Measure how far latency estimates are off on subnets that they were not fitted to.

    Exit status 1 when they are off by more than 5 % on average or rank worse than 0.98.
    """
    from rich.console import Console

    from search.bench_search import MEAN_ERROR, RANK_CORRELATION
    from search.bench_search import predictor as measure
    from search.console import ConsoleProgress
    from search.pipeline import Context, open_run

    console = Console()
    folder, settings = open_run(run, {})
    with ConsoleProgress(console) as progress:
        error = measure(Context(folder, settings, None, progress, progress.say), held_out)
    holds = error.mean_relative <= MEAN_ERROR and error.rank_correlation >= RANK_CORRELATION
    console.print(
        f"{error.subnets} held-out subnets, fitted to {settings.latency_subnets}:"
        f" {100 * error.mean_relative:.1f} % off on average (allowed: {100 * MEAN_ERROR:.0f} %),"
        f" {100 * error.worst_relative:.1f} % at worst; rank correlation {error.rank_correlation:.4f}"
        f" (needed: {RANK_CORRELATION}). {'Holds.' if holds else 'DOES NOT HOLD.'}",
        highlight=False,
    )
    if not holds:
        raise typer.Exit(1)


@bench.command()
def precision(
    run: Annotated[Path, typer.Option("--run", help="a run whose subnets are exported")],
    samples: Annotated[int, typer.Option(min=8, help="latencies per model")] = 96,
) -> None:
    """Compare int8 with f32 for every kept subnet, on OpenVINO and ONNX Runtime.

    Exit status 1 when int8 loses more than half a point of mAP on average, or is less than twice as fast on
    the larger half.
    """
    from rich.console import Console
    from rich.table import Table

    from search.bench_search import LEAST_FASTER, MOST_LOST
    from search.bench_search import precision as measure
    from search.console import ConsoleProgress
    from search.pipeline import Context, open_run

    console = Console()
    folder, settings = open_run(run, {})
    with ConsoleProgress(console) as progress:
        context = Context(folder, settings, None, progress, progress.say)
        results = [measure(context, runtime, samples=samples) for runtime in ("openvino", "onnxruntime")]
    table = Table("runtime", "subnets", "mAP lost, mean", "at most", "times faster, larger half", "at least")
    for result in results:
        worst = max(row.f32_map - row.int8_map for row in result.rows)
        slowest = min(row.faster for row in result.rows[len(result.rows) // 2 :])
        table.add_row(
            result.runtime, f"{len(result.rows)}", f"{result.lost:.4f}", f"{worst:.4f}",
            f"{result.faster:.2f}", f"{slowest:.2f}",
        )  # fmt: skip
    console.print(table)
    holds = all(result.holds for result in results)
    console.print(
        f"Allowed: {MOST_LOST} lost; needed: {LEAST_FASTER} times as fast."
        f" {'Holds.' if holds else 'DOES NOT HOLD.'}",
        highlight=False,
    )
    if not holds:
        raise typer.Exit(1)


@bench.command()
def study(
    data: Annotated[Path | None, typer.Option(help="a folder of COCO-format splits")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="the study's folder; what is finished in it is not repeated")
    ] = None,
    show: Annotated[Path | None, typer.Option(help="print this finished study and do nothing")] = None,
    minutes_each: Annotated[float, typer.Option(help="training of each member of the family")] = 4.0,
    others: Annotated[int, typer.Option(min=0, help="random subnets trained alone beside the family")] = 6,
    frontier: Annotated[int, typer.Option(min=2, help="models of the search's frontier")] = 6,
    candidates: Annotated[int, typer.Option(min=2, help="subnets that the search evaluates")] = 480,
    finish_share: Annotated[
        float, typer.Option(help="last share of the search's training: its frontier's models, each alone")
    ] = 0.25,
    space: Annotated[str, typer.Option(metavar="JSON", help="the search space, as `run` takes it")] = "{}",
    calm_share: Annotated[float, typer.Option(help="as `run` takes it")] = 0.15,
    paste: Annotated[float, typer.Option(help="as `run` takes it")] = 0.0,
    any_way_up: Annotated[bool, typer.Option(help="as `run` takes it")] = False,
    seed: Annotated[int, typer.Option(min=0, help="of everything random")] = 0,
    save: Annotated[Path | None, typer.Option(help="write the study's JSON here as well")] = None,
) -> None:
    """Does the search pay? Its frontier against n, s, m and l trained alone, at equal cost of training.

    Exit status 1 when the search's curve lies more than one point of mAP below the family's.
    """
    from rich.console import Console

    from search.console import ConsoleProgress
    from search.run_folder import RunError, write_text
    from search.study import study as carry_out
    from search.study_plan import Wishes
    from search.study_table import MOST_BEHIND, print_study
    from search.study_values import read_study

    console = Console()
    if show is not None:
        result = read_study(show)
    elif data is None or out is None:
        raise RunError("give --data and --out, or --show FILE")
    else:
        settings = {
            "data": data, "space": space, "calm_share": calm_share, "paste": paste, "any_way_up": any_way_up,
        }  # fmt: skip
        wishes = Wishes(minutes_each, others, frontier, candidates, finish_share, seed, settings)
        with ConsoleProgress(console) as progress:
            result = carry_out(out, wishes, progress)
        if save is not None:
            write_text(save, result.model_dump_json(indent=1) + "\n")
    print_study(result, console)
    if result.arm("search").area_ahead.value < -MOST_BEHIND:
        raise typer.Exit(1)
