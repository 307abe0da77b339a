"""The steps that need torch: train a supernet, explore its subnets.

`data` stands here too, because it says what everything after it was made from.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from model_repo.frontier import DatasetInfo, SplitInfo, SplitName, Variant
from model_repo.publish import file_digest
from model_repo.runtime.select import environment
from search.artifacts import cores, model_files, some_frames
from search.candidates import FIRST_SLICE, Candidate, finished, kept
from search.data.coco import DataError, Dataset, ImageRecord, read_dataset
from search.explore import explore as run_explore
from search.measure import latency_samples_ms, levelled, place, unmeasured
from search.predict import (
    LatencyModel,
    LatencyTable,
    MeasuredLatency,
    held_out_error,
    read_table,
    subnets_to_measure,
)
from search.run_folder import Journal, RunError, write_text
from search.space import Architecture, Space
from search.strategies import Latency, Strategy, strategy
from search.targets import targets_of

if TYPE_CHECKING:
    from search.augment import AugmentConfig
    from search.judging import Judge
    from search.pipeline import Context
    from search.settings import Settings
    from search.train import StepReport

_TABLE_FRAMES = 24
_TABLE_ROUNDS = 15
_TABLE_VISIT = 4
_BROKEN_SHOWN = 10
_FAVOURED = 32
"""How many subnets of an earlier exploration training leans toward, spread over its curve."""
_ROLES: tuple[SplitName, ...] = ("train", "calibration", "valid", "test")


def read_checked(context: Context) -> Dataset:
    """Read the run's data set; raises RunError when it is not the one that step `data` saw."""
    dataset = read_dataset(
        Path(context.settings.data),
        calibration_share=context.settings.calibration_share,
        needed=("train", "valid", "test"),
    )
    info = context.folder.root / "data" / "dataset.json"
    if info.exists() and context.folder.record("data") is not None:
        before = DatasetInfo.model_validate_json(info.read_text())
        if before.fingerprint != dataset.fingerprint:
            raise RunError(
                f"{context.settings.data}: its fingerprint was {before.fingerprint},"
                f" is now {dataset.fingerprint}"
            )
    return dataset


def data(context: Context) -> list[Path]:
    """Read and check the data set, every image included, and write down what it is."""
    dataset = context.dataset()
    _decode_all(context, dataset)
    info = info_of(dataset)
    path = context.folder.path("data", "dataset.json")
    write_text(path, info.model_dump_json(indent=2) + "\n")
    for note in dataset.notes:
        context.say(f"  {note}")
    for split in info.splits:
        context.say(f"  {split.name}: {split.images} images, {split.boxes} boxes")
    return [path]


def info_of(dataset: Dataset) -> DatasetInfo:
    """Return what a manifest says of a data set."""
    return DatasetInfo(
        name=dataset.name,
        fingerprint=dataset.fingerprint,
        classes=dataset.classes,
        splits=tuple(
            SplitInfo(
                name=role,
                images=len(dataset.splits[role].images),
                boxes=sum(len(image.labels) for image in dataset.splits[role].images),
            )
            for role in _ROLES
            if role in dataset.splits
        ),
    )


def _decode_all(context: Context, dataset: Dataset) -> None:
    """Decode every image once: a broken file stops a run here and not hours later."""
    records = [record for split in dataset.splits.values() for record in split.images]
    context.progress.start("decode", len(records))
    broken: list[str] = []

    def check(record: ImageRecord) -> str | None:
        try:
            record.frame()
        except DataError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(cores()) as threads:
        for problem in threads.map(check, records):
            broken += [] if problem is None else [problem]
            context.progress.advance(1)
    if broken:
        shown = "\n  ".join(broken[:_BROKEN_SHOWN])
        more = f"\n  and {len(broken) - _BROKEN_SHOWN} more" if len(broken) > _BROKEN_SHOWN else ""
        raise RunError(f"{dataset.root}: {len(broken)} images cannot be decoded:\n  {shown}{more}")


def space_of(context: Context) -> Space:
    """Return the search space of a run: the settings' choices, for the data set's classes and frames."""
    dataset = context.dataset()
    sizes = np.array([(image.width, image.height) for image in dataset.splits["train"].images])
    return context.settings.space.space(len(dataset.classes), sizes)


def weights_of(context: Context) -> Path:
    """Return the trained supernet's file."""
    given = context.settings.weights
    if given is not None:
        return Path(given)
    from search.weights import WEIGHTS_FILE

    return context.folder.root / "train" / WEIGHTS_FILE


def train(context: Context) -> list[Path]:
    """Train the supernet, or check the one that was given."""
    from search import distributed
    from search.recipe import TrainConfig
    from search.train import TrainError
    from search.train import train as run_train
    from search.weights import read_supernet

    settings, space = context.settings, space_of(context)
    _named(settings, space)  # what cannot be explored is said before an hour of training
    if settings.weights is not None:
        found = read_supernet(Path(settings.weights)).space
        if found != space:
            raise RunError(f"{settings.weights} holds a supernet of another space: {found}, expected {space}")
        return [Path(settings.weights)]
    if settings.steps is None and settings.minutes is None:
        raise RunError("steps, minutes: training needs a budget in one of them, or weights")
    config = TrainConfig(
        steps=settings.steps,
        minutes=settings.minutes,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        random_subnets=settings.random_subnets,
        solo_share=settings.solo_share,
        calm_share=settings.calm_share,
        polish=settings.polish,
        favoured=_favoured(settings, space),
        augment=augment_of(settings),
        seed=settings.seed,
        init=None if settings.init is None else _digest_given("init", Path(settings.init)),
        threads=max(cores() // distributed.size(), 1),
        checkpoint_every_s=settings.checkpoint_s,
    )
    context.progress.start("train", 1.0)
    shown = 0.0

    def progress(report: StepReport) -> None:
        nonlocal shown
        note = f"step {report.step}, loss {report.classes + report.boxes:.3f}, others {report.others:.3f}"
        context.progress.advance(report.share - shown, note)
        shown = report.share

    try:
        result = run_train(
            config,
            space,
            context.dataset(),
            context.folder.root / "train",
            progress,
            init=None if settings.init is None else Path(settings.init),
        )
    except TrainError as error:
        raise RunError(str(error)) from error
    return [result.weights, result.history]


def _favoured(settings: Settings, space: Space) -> tuple[str, ...]:
    """Return the best subnets of another run's journal of candidates, those that this space holds."""
    if settings.favour is None:
        return ()
    journal = Path(settings.favour)
    try:
        candidates = [Candidate.model_validate_json(line) for line in journal.read_text().splitlines()]
        archs = [Architecture.parse(candidate.architecture) for candidate in kept(candidates, _FAVOURED)]
    except OSError as error:
        raise RunError(f"favour: {journal}: {error.strerror}") from error
    except ValueError as error:
        raise RunError(f"favour: {journal}: {error}") from error
    here = tuple(arch.name for arch in archs if arch in space)
    if not here:
        raise RunError(f"favour: {journal} keeps no subnet that this run's space holds")
    return here


def _digest_given(field: str, path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise RunError(f"{field}: {path}: {error.strerror}") from error


def explore(context: Context) -> list[Path]:
    """Measure a few subnets' latency, then search for subnets worth keeping."""
    from search.judging import Evaluation

    settings, folder, space = context.settings, context.folder, space_of(context)
    table = _latency_table(context, space)
    latency_ms = LatencyModel(space, table)
    error = held_out_error(space, table)
    context.say(
        f"  latency estimates, held out on {error.subnets} subnets: {100 * error.mean_relative:.1f} % off on"
        f" average, {100 * error.worst_relative:.1f} % at worst, rank correlation"
        f" {error.rank_correlation:.3f}"
    )
    predictor = folder.path("explore", "predictor.json")
    write_text(predictor, error.model_dump_json(indent=2) + "\n")
    images, named = judged_images(context), _named(settings, space)
    journal = Journal(folder.path("explore", "candidates.jsonl"))
    with Evaluation(judge_of(context, images), settings.workers) as evaluate:
        done = run_explore(
            space,
            _strategy(settings, space, latency_ms),
            evaluate,
            latency_ms,
            journal,
            budget=len(named) or settings.candidates,
            images=len(images),
            seed=settings.seed,
            population=max(settings.population, len(named)),
            known_good=named or [Architecture.parse(name) for name in _favoured(settings, space)],
            minutes=settings.explore_minutes,
            progress=context.progress,
        )
    context.say(f"  {evaluated_summary(done)}")
    return [folder.root / "explore" / "latency_table.json", predictor, journal.path]


def _named(settings: Settings, space: Space) -> list[Architecture]:
    """Return the subnets that are evaluated in place of a search, none for a search."""
    try:
        archs = [Architecture.parse(name) for name in dict.fromkeys(settings.subnets or ())]
    except ValueError as error:
        raise RunError(f"subnets: {error}") from error
    for arch in archs:
        if arch not in space:
            raise RunError(f"subnets: {arch.name} is not in the search space")
    return archs


def _strategy(settings: Settings, space: Space, latency_ms: Latency) -> Strategy:
    try:
        return strategy(
            settings.algorithm,
            space,
            latency_ms,
            population=settings.population,
            latency_weight=settings.latency_weight,
        )
    except ValueError as error:
        raise RunError(str(error)) from error


def evaluated_summary(candidates: Sequence[Candidate]) -> str:
    """Say how many candidates ran, and how many of them to the end."""
    whole = finished(candidates)
    given_up = len(candidates) - len(whole)
    return (
        f"{len(candidates)} subnets evaluated with batch norms of their own, {len(whole)} on all"
        f" {whole[0].images} images, {given_up} ({100 * given_up / len(candidates):.0f} %) given up after"
        f" {FIRST_SLICE} or more; none judged by an estimate of its accuracy"
    )


def read_candidates(context: Context) -> list[Candidate]:
    """Return every candidate that step `explore` evaluated."""
    lines = (context.folder.root / "explore" / "candidates.jsonl").read_text().splitlines()
    return [Candidate.model_validate_json(line) for line in lines]


def kept_candidates(context: Context) -> list[Candidate]:
    """Return the candidates that go on, cheapest first: those named, or the best that were found."""
    settings, candidates = context.settings, read_candidates(context)
    if settings.subnets is not None:
        return sorted(candidates, key=lambda one: (one.latency_ms, one.architecture))
    return kept(candidates, settings.keep, max_trail=settings.max_trail)


def judged_images(context: Context) -> tuple[int, ...]:
    """Return the images of valid that candidates are judged on, by position.

    In random order: the first of them are the slice that everything is judged on.
    """
    images = len(context.dataset().splits["valid"].images)
    count = min(context.settings.search_images, images)
    rng = np.random.default_rng([context.settings.seed, 0x5EA])
    return tuple(rng.choice(images, count, replace=False).tolist())


def augment_of(settings: Settings) -> AugmentConfig:
    """Return how training frames vary before the training's last part."""
    from search.augment import AugmentConfig

    turns = 0.5 if settings.any_way_up else 0.0
    return AugmentConfig(paste=settings.paste, vertical_flip=turns, transpose=turns)


def _latency_table(context: Context, space: Space) -> LatencyTable:
    """Return the run's latency table: the one given or measured before, else measured now."""
    settings = context.settings
    path = context.folder.path("explore", "latency_table.json")
    if path.exists():
        return read_table(path)
    if settings.latency_table is not None:
        table = read_table(context.folder.root / "tables" / f"{settings.latency_table}.json")
    else:
        wanted = subnets_to_measure(space, settings.latency_subnets, settings.seed)
        table = measured_table(context, space, wanted)
    write_text(path, table.model_dump_json(indent=2) + "\n")
    return table


def measured_table(context: Context, space: Space, architectures: Sequence[Architecture]) -> LatencyTable:
    """Export subnets and measure them on the first target, one at a time, in interleaved rounds."""
    settings = context.settings
    evaluator = judge_of(context).evaluator(exact=False, threads=cores())
    frames = some_frames(context.dataset().splits["train"].images, _TABLE_FRAMES, settings.seed)
    variants: list[Variant] = []
    context.progress.start("latency of some subnets: export", len(architectures))
    with (
        TemporaryDirectory(dir=context.folder.path("explore"), prefix=".latency-") as temporary,
        targets_of(context).engine(settings.runtimes[0], parallelism=1) as engine,
    ):
        for architecture in architectures:
            folder = Path(temporary) / architecture.name
            folder.mkdir()
            files = model_files(
                evaluator.detector(architecture), frames[:4], (settings.latency_precision,), "minmax", folder
            )
            cost = space.cost(architecture)
            variant = unmeasured(
                name=architecture.name,
                architecture=architecture.name,
                resolution_wh=space.resolution_wh(architecture),
                precision=settings.latency_precision,
                parameters=cost.parameters,
                macs=cost.macs,
                nms_iou=settings.nms_iou,
                model=files[settings.latency_precision],
            )
            place(variant, files[settings.latency_precision], Path(temporary))
            engine.load(Path(temporary), variant)
            variants.append(variant)
            context.progress.advance(1)
        count = _TABLE_ROUNDS * _TABLE_VISIT
        context.progress.start("latency of some subnets: measure", count * len(variants))
        samples = latency_samples_ms(
            engine, variants, frames, samples=count, concurrency=1, seed=settings.seed,
            per_visit=_TABLE_VISIT, progress=context.progress,
        )  # fmt: skip
        here = environment(engine.device)
    by_visit = [samples[variant.name].reshape(_TABLE_ROUNDS, _TABLE_VISIT) for variant in variants]
    return LatencyTable(
        runtime=settings.runtimes[0],
        precision=settings.latency_precision,
        threads=1,
        aspect=space.aspect,
        environment=here,
        measured=tuple(
            MeasuredLatency(architecture=variant.name, p50_ms=float(ms))
            for variant, ms in zip(variants, levelled(np.median(by_visit, axis=2)), strict=True)
        ),
    )


def judge_of(context: Context, images: tuple[int, ...] = ()) -> Judge:
    """Return what judges subnets of the run's supernet, on these images of valid."""
    from search.judging import Judge

    settings = context.settings
    return Judge(
        data=settings.data,
        calibration_share=settings.calibration_share,
        weights=str(weights_of(context)),
        images=images,
        seed=settings.seed,
        nms_iou=settings.nms_iou,
        objective=settings.objective,
    )
