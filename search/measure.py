"""Accuracy and latency of artifacts on the runtimes that will serve them, by the code that will serve them.

Every number comes from `model_repo.runtime.engine.answer_frame`: resize, inference and suppression of a
decoded frame. Latency is measured in interleaved rounds, a few frames of each model in turn, so that the
drift of a shared machine falls on all of them alike and not on the one that was measured last.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from model_repo.detections import Detections
from model_repo.escalation import FEATURES, GainModel, Layer, features
from model_repo.frame import decode
from model_repo.frontier import Accuracy, Segment, SplitName, Tensor, Variant
from model_repo.latency import Histogram, LatencyProfile, Precision, RuntimeName
from model_repo.publish import file_digest
from model_repo.runtime.engine import Engine, answer_frame
from model_repo.runtime.select import environment
from model_repo.scoring import MatchTable, Truth, bootstrap_map, match, score_table
from search.asking import FrameFiles, ask
from search.candidates import Objective
from search.data.coco import Dataset
from search.run_folder import Progress, Silent, write_bytes

FRAMES_PER_VISIT = 10
_WARM_UP = 3
_POLISHINGS = 10


@dataclass(frozen=True, slots=True, eq=False)
class LoadedSplit:
    """A split's frames, RGB uint8 [h, w, 3], and their labels, in one order."""

    name: SplitName
    images: Sequence[NDArray[np.uint8]]
    truths: tuple[Truth, ...]

    def __len__(self) -> int:
        return len(self.images)


def loaded(dataset: Dataset, split: SplitName) -> LoadedSplit:
    """Gather a split's labels, and its frames, which are decoded whenever they are read.

    Raises KeyError when there is no such split.
    """
    return LoadedSplit(split, FrameFiles(dataset.splits[split].images), truths_of(dataset, split))


def truths_of(dataset: Dataset, split: SplitName) -> tuple[Truth, ...]:
    """Return a split's labels; raises KeyError when there is no such split."""
    return tuple(Truth(image.boxes_xyxy, image.labels, image.crowd) for image in dataset.splits[split].images)


def unmeasured(
    *,
    name: str,
    architecture: str,
    resolution_wh: tuple[int, int],
    precision: Precision,
    parameters: int,
    macs: int,
    nms_iou: float | None,
    model: Path,
) -> Variant:
    """Describe a model file as a variant that can be loaded but has no measurement yet.

    Its folder and file are named as they will be published: models/<name>-<digest8>/1/model.onnx.
    """
    digest = file_digest(model)
    width, height = resolution_wh
    folder = f"{name}-{digest[:8]}"
    segment = Segment(
        file=f"models/{folder}/1/model.onnx",
        sha256=digest,
        bytes=model.stat().st_size,
        inputs=(Tensor(name="frames", dtype="uint8", shape=(1, height, width, 3)),),
        outputs=(Tensor(name="detections", dtype="float32", shape=(1, 100, 6)),),
    )
    # A manifest's variant has measurements; this one goes no further than an engine until it has some.
    return Variant.model_construct(
        name=name,
        folder=folder,
        architecture=architecture,
        resolution_wh=resolution_wh,
        precision=precision,
        parameters=parameters,
        macs=macs,
        nms_iou=nms_iou,
        segments=(segment,),
        measurements=(),
    )


def place(variant: Variant, model: Path, root: Path) -> None:
    """Link a file to where an engine that loads the variant from `root` looks for it."""
    target = root / variant.segments[0].file
    target.parent.mkdir(parents=True)
    os.link(model, target)


def predictions(
    engine: Engine, variant: Variant, images: Sequence[NDArray[np.uint8]], progress: Progress | None = None
) -> list[Detections]:
    """Answer every frame with a loaded variant, as many at once as the engine usefully takes."""
    return ask(engine, [variant], images, progress).detections[variant.name]


def save_predictions(path: Path, answers: Sequence[Detections]) -> None:
    """Write answers as an npz that is whole or absent."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        counts=np.array([len(answer) for answer in answers], dtype=np.int64),
        xyxy=np.concatenate([answer.xyxy for answer in answers]),
        score=np.concatenate([answer.score for answer in answers]),
        label=np.concatenate([answer.label for answer in answers]).astype(np.int16),
    )
    write_bytes(path, buffer.getvalue())


def load_predictions(path: Path) -> list[Detections]:
    """Read what `save_predictions` wrote; raises OSError, KeyError or ValueError on another file."""
    with np.load(path, allow_pickle=False) as stored:
        ends = np.cumsum(stored["counts"])[:-1]
        parts = (np.split(stored[key], ends) for key in ("xyxy", "score", "label"))
        return [Detections.make(xyxy, score, label) for xyxy, score, label in zip(*parts, strict=True)]


def accuracy_of(table: MatchTable, split: SplitName, *, seed: int, resamples: int = 100) -> Accuracy:
    """Score a table of matches, with the bootstrap interval of its mAP (no interval without resamples)."""
    score = score_table(table)
    low = high = score.map
    if resamples:
        low, high = bootstrap_map(table, np.random.default_rng([seed, 0xB007]), resamples=resamples)
    return Accuracy(
        split=split,
        images=table.images,
        map=score.map,
        map50=score.map50,
        f1=score.f1,
        f1_threshold=score.f1_threshold,
        map_low=low,
        map_high=high,
    )


def matched(split: LoadedSplit, answers: Sequence[Detections], classes: int) -> MatchTable:
    """Match answers to a split's labels."""
    return match(split.truths, answers, classes)


def latency_samples_ms(
    engine: Engine,
    variants: Sequence[Variant],
    images: Sequence[NDArray[np.uint8]],
    *,
    samples: int,
    concurrency: int,
    seed: int = 0,
    per_visit: int = FRAMES_PER_VISIT,
    progress: Progress | None = None,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
) -> dict[str, NDArray[np.float64]]:
    """Return at least `samples` latencies in milliseconds of every loaded variant, by name, round by round.

    Rounds: in each, every variant in a shuffled order is warmed up and then answers `per_visit` frames from
    each of `concurrency` threads at once. The frames differ from round to round and are the same for all
    variants.
    """
    progress = progress or Silent()
    cv2.setNumThreads(1)  # as in the router, whose threads are taken by other frames
    per_round = per_visit * concurrency
    rounds = -(-samples // per_round)
    taken: dict[str, list[float]] = {variant.name: [] for variant in variants}
    rng = np.random.default_rng([seed, concurrency])

    def visit(variant: Variant, frames: Sequence[NDArray[np.uint8]]) -> list[float]:
        out: list[float] = []
        for position, frame in enumerate((*frames[:_WARM_UP], *frames)):
            start_ns = clock_ns()
            answer_frame(engine, variant, frame)
            if position >= min(_WARM_UP, len(frames)):
                out.append((clock_ns() - start_ns) / 1e6)
        return out

    with ThreadPoolExecutor(concurrency) as pool:
        for _ in range(rounds):
            frames = [images[i] for i in rng.integers(len(images), size=per_visit)]
            for k in rng.permutation(len(variants)):
                variant = variants[int(k)]
                for part in pool.map(visit, [variant] * concurrency, [frames] * concurrency):
                    taken[variant.name] += part
                progress.advance(per_round)
    return {name: np.asarray(values) for name, values in taken.items()}


def levelled(visits_ms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the typical latency [variants] of medians by variant and round [variants, rounds].

    A round in which the machine was slow says nothing about a variant, and neither does a single bad visit:
    Tukey's median polish of the logarithms takes both out.
    """
    log = np.log(visits_ms)
    typical, slow = np.median(log, axis=1), np.zeros(log.shape[1])
    for _ in range(_POLISHINGS):
        slow = np.median(log - typical[:, None], axis=0)
        typical = np.median(log - slow, axis=1)
    return np.asarray(np.exp(typical + np.median(slow)))


def profiles_of(
    engine: Engine,
    variants: Sequence[Variant],
    images: Sequence[NDArray[np.uint8]],
    *,
    samples: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, tuple[LatencyProfile, ...]]:
    """Measure loaded variants in full: a profile for one frame at a time and one for two, by name."""
    progress = progress or Silent()
    profiles: dict[str, tuple[LatencyProfile, ...]] = {variant.name: () for variant in variants}
    for concurrency in (1, 2):
        progress.start(f"latency on {engine.runtime}, {concurrency} at once", samples * len(variants))
        taken = latency_samples_ms(
            engine, variants, images, samples=samples, concurrency=concurrency, seed=seed, progress=progress
        )
        for variant in variants:
            profile = profile_of(
                taken[variant.name],
                engine=engine,
                precision=variant.precision,
                concurrency=concurrency,
            )
            profiles[variant.name] = (*profiles[variant.name], profile)
    return profiles


def profile_of(
    samples_ms: NDArray[np.float64],
    *,
    engine: Engine,
    precision: Precision,
    concurrency: int,
    threads: int = 1,
) -> LatencyProfile:
    """Turn latency samples into a profile, stamped with where the engine computes."""
    return LatencyProfile(
        runtime=engine.runtime,
        runtime_version=engine.version,
        precision=precision,
        threads=threads,
        batch=1,
        concurrency=concurrency,
        histogram=Histogram.of(samples_ms),
        environment=environment(engine.device),
    )


COST_FRAMES = 100
"""How many frames are enough to measure decoding on."""


def decode_cost(encoded: Sequence[bytes], *, rule: bool, seed: int = 0xDEC) -> Histogram:
    """Measure decoding a frame and, with `rule`, describing it and predicting a gain; ValueError without
    frames."""
    if not encoded:
        raise ValueError("no frames to measure decoding on")
    rng = np.random.default_rng(seed)
    answers = [_typical_answer(rng) for _ in encoded]
    gain = GainModel(
        mean=(0.0,) * len(FEATURES),
        scale=(1.0,) * len(FEATURES),
        layers=(
            Layer(weight=((0.01,) * len(FEATURES),) * 16, bias=(0.0,) * 16),
            Layer(weight=((0.01,) * 16,), bias=(0.0,)),
        ),
    ).compiled()
    samples: list[float] = []
    for i in range(2 * COST_FRAMES + 10):
        data, answer = encoded[i % len(encoded)], answers[i % len(encoded)]
        start_ns = time.perf_counter_ns()
        image = decode(data)
        if rule:
            gain.predict(features(answer, image)[None])
        if i >= 10:
            samples.append((time.perf_counter_ns() - start_ns) / 1e6)
    return Histogram.of(samples)


def _typical_answer(rng: np.random.Generator) -> Detections:
    """Draw an answer of 60 boxes: the cost of describing one depends on their number alone."""
    xy = rng.uniform(0, 400, (60, 2))
    return Detections.make(
        np.concatenate((xy, xy + rng.uniform(5, 100, (60, 2))), axis=1),
        rng.random(60),
        rng.integers(3, size=60),
    )


@dataclass(frozen=True, slots=True)
class Screened:
    """What decides between precisions and between variants: scores on valid, median latency alone.

    `accuracy` is the one of them that the run's objective names.
    """

    variant: Variant
    runtime: RuntimeName
    map: float
    map50: float
    f1: float
    p50_ms: float
    objective: Objective = "map"

    @property
    def accuracy(self) -> float:
        """Return the score to choose by."""
        return self.map if self.objective == "map" else self.f1


def best_precision(screened: Sequence[Screened], tolerance: float) -> list[Screened]:
    """Return, per architecture, the fastest precision among those within `tolerance` mAP of its best one."""
    by_architecture: dict[str, list[Screened]] = {}
    for entry in screened:
        by_architecture.setdefault(entry.variant.architecture, []).append(entry)
    chosen = []
    for entries in by_architecture.values():
        best = max(entry.accuracy for entry in entries)
        near = [entry for entry in entries if entry.accuracy >= best - tolerance]
        chosen.append(min(near, key=lambda entry: (entry.p50_ms, entry.variant.name)))
    return chosen


def load_all(engine: Engine, root: Path, variants: Sequence[Variant]) -> None:
    """Load variants into an engine; raises EngineUnavailable naming the first that it refuses."""
    for variant in variants:
        engine.load(root, variant)


def median_ms(samples: Mapping[str, NDArray[np.float64]]) -> dict[str, float]:
    """Return the median of each variant's samples."""
    return {name: float(np.median(values)) for name, values in samples.items()}
