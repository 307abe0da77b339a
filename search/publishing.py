"""The steps after the models exist: measure them, route between them, publish them, report."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from model_repo import publish as repository
from model_repo.detections import Detections
from model_repo.frontier import (
    Accuracy,
    DatasetInfo,
    Frontier,
    Measurement,
    Plan,
    SplitName,
    Variant,
)
from model_repo.latency import LatencyProfile, RuntimeName
from model_repo.runtime.engine import Engine
from model_repo.runtime.select import environment
from model_repo.scoring import MatchTable, subset
from search.align import fit_alignment
from search.answers import AnswerSet, answered
from search.artifacts import Artifact, cores, read_artifacts
from search.asking import ask, look
from search.choose import choose_published
from search.gain import MIN_IMAGES
from search.measure import (
    COST_FRAMES,
    LoadedSplit,
    Screened,
    accuracy_of,
    best_precision,
    decode_cost,
    latency_samples_ms,
    load_all,
    load_predictions,
    loaded,
    matched,
    median_ms,
    profiles_of,
    save_predictions,
)
from search.results import Fitted, Measured, MeasuredAll, Routed, ScreenRow, read_measured, read_routed
from search.routing import Artifact as RoutingArtifact
from search.routing import Costs, fit_images, score_plan
from search.routing import route as make_routing
from search.run_folder import RunError, write_text
from search.targets import targets_of

if TYPE_CHECKING:
    from search.pipeline import Context

SCREEN_SAMPLES = 40


def measure(context: Context) -> list[Path]:
    """Screen every artifact, choose precisions and what to publish, and measure that in full."""
    settings, root = context.settings, context.folder.root / "export"
    first, targets = settings.runtimes[0], targets_of(context)
    valid = load_split(context, "valid")
    runnable = [each for each in read_artifacts(context) if targets.supports(first, each.precision)]
    artifacts = {artifact.name: artifact for artifact in runnable}
    variants = [artifact.variant(root) for artifact in runnable]
    with targets.engine(first) as engine:
        context.progress.start("load", len(variants))
        for variant in variants:
            engine.load(root, variant)
            context.progress.advance(1)
        ask_missing(context, engine, variants, valid, "measure")
        context.progress.start("accuracy on valid", len(variants))
        tables: dict[str, MatchTable] = {}
        for variant in variants:
            answers = cached(context, "measure", first, "valid", variant.name)
            tables[variant.name] = matched(valid, answers, _classes(context))
            context.progress.advance(1, variant.name)
        context.progress.start("latency of all", SCREEN_SAMPLES * len(variants))
        medians = median_ms(
            latency_samples_ms(
                engine, variants, valid.images, samples=SCREEN_SAMPLES, concurrency=1, seed=settings.seed,
                progress=context.progress,
            )
        )  # fmt: skip
    screened = []
    for variant in variants:
        accuracy = accuracy_of(tables[variant.name], "valid", seed=settings.seed, resamples=0)
        screened.append(
            Screened(
                variant,
                first,
                map=accuracy.map,
                map50=accuracy.map50,
                f1=accuracy.f1,
                p50_ms=medians[variant.name],
                objective=settings.objective,
            )
        )
    best = best_precision(screened, settings.tolerance)
    chosen = choose_published(
        best, settings.publish, max_bytes=1e6 * settings.max_mb, max_trail=settings.max_trail
    )
    context.say(
        f"  {len(screened)} artifacts of {len(best)} architectures screened, {len(chosen)} to publish"
    )
    published: list[Measured] = []
    for runtime in settings.runtimes:
        published += _in_full(context, runtime, [entry.variant for entry in chosen], valid, artifacts)
    records = context.dataset().splits["calibration"].images[:COST_FRAMES]
    encoded = [record.path.read_bytes() for record in records]
    result = MeasuredAll(
        environment=environment(),
        decode=decode_cost(encoded, rule=False),
        rule=decode_cost(encoded, rule=True),
        screened=tuple(
            ScreenRow(
                artifact=artifacts[entry.variant.name],
                runtime=entry.runtime,
                map=entry.map,
                map50=entry.map50,
                f1=entry.f1,
                p50_ms=entry.p50_ms,
            )
            for entry in screened
        ),
        best=tuple(entry.variant.name for entry in best),
        published=tuple(published),
    )
    path = context.folder.path("measure", "measured.json")
    write_text(path, result.model_dump_json(indent=1) + "\n")
    return [path]


def route(context: Context) -> list[Path]:
    """Fit alignments and gain models on calibration and decide on plans."""
    settings, measured = context.settings, read_measured(context)
    split = load_split(context, "calibration")
    fitted, _ = fit_images(len(split), settings.seed)
    classes = _classes(context)
    context.progress.start("look at calibration", len(split))
    views = look(split.images, threads=cores(), progress=context.progress)
    rows: list[Fitted] = []
    routed: list[RoutingArtifact] = []
    context.progress.start("match and align", len(measured.published))
    for row in measured.published:
        answers = cached(context, "measure", row.runtime, "calibration", row.artifact.name)
        table = matched(split, answers, classes)
        seen = subset(table, fitted)
        rows.append(
            Fitted(
                name=row.artifact.name,
                runtime=row.runtime,
                alignment=fit_alignment(seen, classes),
                accuracy=accuracy_of(seen, "calibration", seed=settings.seed),
            )
        )
        if row.runtime == settings.runtimes[0]:
            routed.append(
                RoutingArtifact(
                    name=row.artifact.name,
                    answers=tuple(answers),
                    table=table,
                    stage=_alone(row).histogram,
                    runtimes=tuple(other.runtime for other in measured.of(row.artifact.name)),
                )
            )
        context.progress.advance(1, row.artifact.name)
    routing = make_routing(
        routed,
        views,
        split.truths,
        classes=classes,
        costs=Costs(settings.runtimes[0], measured.decode, measured.rule),
        seed=settings.seed,
        progress=context.progress,
    )
    if not routing.pairs:
        context.say(
            f"  no cascades: none of the {len(routed)} models pays after another, or the {len(fitted)}"
            f" calibration images to fit on are fewer than {MIN_IMAGES}"
        )
    result = Routed(
        fitted=tuple(rows),
        plans=routing.plans,
        operating_points=routing.operating_points,
        references=routing.references,
        pairs=routing.pairs,
        alignment=routing.alignment,
    )
    path = context.folder.path("route", "routed.json")
    write_text(path, result.model_dump_json() + "\n")
    return [path]


def publish(context: Context) -> list[Path]:
    """Score what will be published on test, once, and publish it."""
    from model_repo.triton import model_config, write_description

    if context.repository is None:
        raise RunError("publishing needs a repository: give --repo DIR")
    measured, routed = read_measured(context), read_routed(context)
    root, classes = context.folder.root / "export", _classes(context)
    test = load_split(context, "test")
    accuracy: dict[tuple[str, RuntimeName], Accuracy] = {}
    answers: dict[tuple[str, RuntimeName], tuple[list[Detections], MatchTable]] = {}
    for runtime in context.settings.runtimes:
        rows = [row for row in measured.published if row.runtime == runtime]
        variants = [row.artifact.variant(root) for row in rows]
        with targets_of(context).engine(runtime) as engine:
            load_all(engine, root, variants)
            ask_missing(context, engine, variants, test, "publish")
            context.progress.start(f"test on {runtime}", len(variants))
            for variant in variants:
                found = cached(context, "publish", runtime, "test", variant.name)
                table = matched(test, found, classes)
                answers[variant.name, runtime] = (found, table)
                accuracy[variant.name, runtime] = accuracy_of(table, "test", seed=context.settings.seed)
                context.progress.advance(1, variant.name)
    variants = [_with_measurements(measured.of(name), routed, accuracy, root) for name in measured.names()]
    plans = _plans_on_test(routed, answers, test, classes)
    folders: dict[str, Path] = {}
    staged = context.folder.root / "publish" / "models"
    shutil.rmtree(staged, ignore_errors=True)
    for variant in variants:
        folder = staged / variant.folder
        shutil.copytree(root / "models" / variant.folder, folder)
        write_description(folder, model_config(variant, "onnxruntime"), context.dataset().classes)
        folders[variant.folder] = folder
    frontier = Frontier(
        dataset=DatasetInfo.model_validate_json((context.folder.root / "data" / "dataset.json").read_text()),
        environment=measured.environment,
        decode=measured.decode,
        variants=tuple(variants),
        plans=tuple(plans),
        operating_points=routed.operating_points,
        references=routed.references,
    )
    repository.publish(context.repository, frontier, folders)
    context.say(f"  {len(variants)} variants and {len(plans)} plans published in {context.repository}")
    return [context.repository.resolve() / repository.MANIFEST]


def report(context: Context) -> list[Path]:
    """Draw what the run found, as one HTML page and one picture."""
    from search.report import write_report

    return write_report(context, read_measured(context), read_routed(context))


def load_split(context: Context, split: SplitName) -> LoadedSplit:
    """Return a split's frames and labels."""
    return loaded(context.dataset(), split)


def ask_missing(
    context: Context, engine: Engine, variants: Sequence[Variant], split: LoadedSplit, step: str
) -> None:
    """Leave loaded variants' answers on a split on the disk, for `cached`, where no earlier attempt has."""
    paths = {
        each.name: _answers_path(context, step, engine.runtime, split.name, each.name) for each in variants
    }
    missing = [variant for variant in variants if not paths[variant.name].exists()]
    if not missing:
        return
    context.progress.start(f"{len(missing)} models on {engine.runtime}, {split.name}", len(split))
    for name, answers in ask(engine, missing, split.images, context.progress).detections.items():
        save_predictions(paths[name], answers)


def cached(
    context: Context, step: str, runtime: RuntimeName, split: SplitName, name: str
) -> list[Detections]:
    """Return answers that a step has left; raises OSError when it has not."""
    return load_predictions(_answers_path(context, step, runtime, split, name))


def _answers_path(context: Context, step: str, runtime: RuntimeName, split: SplitName, name: str) -> Path:
    return context.folder.path(step, "answers", runtime, split, f"{name}.npz")


def _in_full(
    context: Context,
    runtime: RuntimeName,
    variants: Sequence[Variant],
    valid: LoadedSplit,
    artifacts: dict[str, Artifact],
) -> list[Measured]:
    """Measure what will be published on one runtime: answers on valid and calibration, latency profiles."""
    settings, root, targets = context.settings, context.folder.root / "export", targets_of(context)
    variants = [variant for variant in variants if targets.supports(runtime, variant.precision)]
    calibration = load_split(context, "calibration")
    accuracy: dict[str, Accuracy] = {}
    with targets.engine(runtime) as engine:
        load_all(engine, root, variants)
        for split in (valid, calibration):
            ask_missing(context, engine, variants, split, "measure")
        context.progress.start("accuracy on valid", len(variants))
        for variant in variants:
            answers = cached(context, "measure", runtime, "valid", variant.name)
            accuracy[variant.name] = accuracy_of(
                matched(valid, answers, _classes(context)), "valid", seed=settings.seed
            )
            context.progress.advance(1, variant.name)
        profiles = profiles_of(
            engine, variants, valid.images, samples=settings.samples, seed=settings.seed,
            progress=context.progress,
        )  # fmt: skip
    return [
        Measured(
            artifact=artifacts[variant.name],
            runtime=runtime,
            accuracy=accuracy[variant.name],
            latency=profiles[variant.name],
        )
        for variant in variants
    ]


def _alone(row: Measured) -> LatencyProfile:
    return next(profile for profile in row.latency if profile.concurrency == 1)


def _with_measurements(
    rows: Sequence[Measured],
    routed: Routed,
    test: dict[tuple[str, RuntimeName], Accuracy],
    root: Path,
) -> Variant:
    variant = rows[0].artifact.variant(root)
    measurements = tuple(
        Measurement(
            runtime=row.runtime,
            precision=variant.precision,
            accuracy=(
                row.accuracy,
                routed.of(variant.name, row.runtime).accuracy,
                test[variant.name, row.runtime],
            ),
            latency=row.latency,
            alignment=routed.of(variant.name, row.runtime).alignment,
        )
        for row in rows
    )
    return Variant.model_validate({**dict(variant), "measurements": measurements})


def _plans_on_test(
    routed: Routed,
    answers: dict[tuple[str, RuntimeName], tuple[list[Detections], MatchTable]],
    test: LoadedSplit,
    classes: int,
) -> list[Plan]:
    out: list[Plan] = []
    runtime = routed.plans[0].runtime
    used = {stage.variant for plan in routed.plans for stage in plan.stages}
    views = look(test.images, threads=cores())
    sides = {
        name: answered(
            answers[name, runtime][0],
            views,
            answers[name, runtime][1],
            routed.of(name, runtime).alignment,
        )
        for name in sorted(used)
    }
    answered_test = AnswerSet(sides, test.truths, classes)
    for plan in routed.plans:
        scored = score_plan(plan, answered_test, split="test")
        out.append(plan.model_copy(update={"accuracy": (*plan.accuracy, scored)}))
    return out


def _classes(context: Context) -> int:
    return len(context.dataset().classes)
