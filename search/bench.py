"""Claims about a published repository, measured anew through the embedded engine in one run.

Every frame of the test split is decoded and answered by every single model and every plan of two stages, in a
shuffled order, before the next frame is touched: what the machine does meanwhile falls on all of them alike.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from model_repo.detections import Detections
from model_repo.escalation import CompiledGain, features
from model_repo.frame import decode
from model_repo.frontier import Frontier, Plan, Variant
from model_repo.fusion import fuse
from model_repo.latency import RuntimeName
from model_repo.publish import Repository
from model_repo.runtime.engine import Engine, answer_frame
from model_repo.runtime.select import default_runtime, make_engine
from model_repo.scoring import Truth, score
from search.asking import FrameFiles
from search.calibrate import check_classes
from search.data.coco import Dataset
from search.difficulty import map_by_tenth, smallest_and_largest
from search.measure import predictions, truths_of
from search.run_folder import Progress, RunError

KEPT_ACCURACY = 0.98
KEPT_LATENCY = 0.60
_WARM_UP_FRAMES = 5


@dataclass(frozen=True, slots=True)
class Row:
    """One way to answer a frame, as it did on the test split: a model alone or a plan of two stages."""

    name: str
    stages: int
    map: float
    map50: float
    mean_ms: float
    p99_ms: float
    escalated: float


@dataclass(frozen=True, slots=True)
class CascadeResult:
    """All rows, the largest model's name, the plan that calibration chose, and what came out."""

    rows: tuple[Row, ...]
    largest: str
    chosen: str
    accuracy_kept: float
    latency_share: float
    matched_by: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether the plan keeps the accuracy at the latency and no single model matches it in both."""
        return (
            self.accuracy_kept >= KEPT_ACCURACY and self.latency_share <= KEPT_LATENCY and not self.matched_by
        )


def cascade(
    repository: Repository, dataset: Dataset, progress: Progress, *, frames: int | None = None, seed: int = 0
) -> CascadeResult:
    """Measure every single model and every plan of two stages on the test split.

    frames: only the first so many, None for all. Raises RunError when the repository has no plan of two
    stages for this processor's runtime, or other classes than the data set.
    """
    frontier, runtime = repository.frontier, default_runtime()
    doubles = [plan for plan in frontier.plans if len(plan.stages) == 2 and runtime in plan.engines]
    if not doubles:
        raise RunError(f"{repository.root} publishes no plan of two stages for {runtime}")
    check_classes(repository, dataset)
    singles = [variant for variant in frontier.variants if runtime in variant.runtimes]
    records = dataset.splits["test"].images[:frames]
    encoded = [record.path.read_bytes() for record in records]
    truths = truths_of(dataset, "test")[:frames]
    cv2.setNumThreads(1)  # as in the router
    engine = make_engine(runtime, threads=1, parallelism=1)
    for variant in singles:
        engine.load(repository.root, variant)
    ways = [_Way(frontier, engine, runtime, (variant,), None) for variant in singles]
    ways += [
        _Way(frontier, engine, runtime, tuple(frontier.variant(stage.variant) for stage in plan.stages), plan)
        for plan in doubles
    ]
    for data in encoded[:_WARM_UP_FRAMES]:
        for way in ways:
            way.answer(data)
    for way in ways:
        way.forget()
    rng = np.random.default_rng(seed)
    progress.start("cascade", len(encoded))
    for data in encoded:
        for k in rng.permutation(len(ways)):
            ways[int(k)].answer(data)
        progress.advance(1)
    engine.close()
    return _judged([way.row(truths) for way in ways], frontier, doubles, runtime)


def difficulty(
    repository: Repository, dataset: Dataset, progress: Progress
) -> list[tuple[str, list[float], float]]:
    """Return name, mAP by tenth of difficulty, and mAP over all, of smallest and largest on test.

    Raises RunError when the data set has other classes or does not say how difficult its frames are.
    """
    check_classes(repository, dataset)
    records = dataset.splits["test"].images
    known = [record.difficulty for record in records if record.difficulty is not None]
    if len(known) < len(records):
        raise RunError("the data set's test split does not say how difficult its frames are")
    runtime = default_runtime()
    images, truths = FrameFiles(records), truths_of(dataset, "test")
    classes = len(repository.frontier.dataset.classes)
    engine = make_engine(runtime, threads=1, parallelism=2)
    out = []
    for variant in smallest_and_largest(repository.frontier, runtime):
        engine.load(repository.root, variant)
        progress.start(variant.name, len(images))
        answers = predictions(engine, variant, images, progress)
        tenths = map_by_tenth(answers, truths, known, classes)
        out.append((variant.name, tenths, score(truths, answers, classes).map))
    engine.close()
    return out


class _Way:
    """One way to answer frames, with what it answered and how long it took."""

    def __init__(
        self,
        frontier: Frontier,
        engine: Engine,
        runtime: RuntimeName,
        variants: tuple[Variant, ...],
        plan: Plan | None,
    ) -> None:
        self.name = variants[0].name if plan is None else plan.name
        self._classes = len(frontier.dataset.classes)
        self._engine, self._variants, self._plan = engine, variants, plan
        self._alignments = [variant.on(runtime).alignment for variant in variants]
        rule = None if plan is None else plan.stages[0].rule
        self._gain: CompiledGain | None = None if rule is None else rule.gain.compiled()
        self._threshold = 0.0 if rule is None else rule.threshold
        self.forget()

    def forget(self) -> None:
        """Drop what was answered so far."""
        self._answers: list[Detections] = []
        self._ms: list[float] = []
        self._escalated = 0

    def answer(self, data: bytes) -> None:
        """Answer an encoded frame, from bytes to detections."""
        start_ns = time.perf_counter_ns()
        image = decode(data)
        found = self._stage(0, image)
        if self._gain is not None and self._plan is not None:
            gain = self._gain.predict(features(found, image)[None])[0]
            if gain >= self._threshold:
                self._escalated += 1
                found = fuse(found, self._stage(1, image), self._plan.fusion)
        self._ms.append((time.perf_counter_ns() - start_ns) / 1e6)
        self._answers.append(found)

    def row(self, truths: Sequence[Truth]) -> Row:
        """Score what was answered."""
        scored = score(truths, self._answers, self._classes)
        return Row(
            self.name,
            len(self._variants),
            scored.map,
            scored.map50,
            float(np.mean(self._ms)),
            float(np.quantile(self._ms, 0.99)),
            self._escalated / max(len(self._answers), 1),
        )

    def _stage(self, index: int, image: NDArray[np.uint8]) -> Detections:
        answer = answer_frame(self._engine, self._variants[index], image)
        return self._alignments[index].apply(answer.detections)


def _on_calibration(plan: Plan) -> float:
    return plan.accuracy_on("calibration").map


def _judged(
    rows: Sequence[Row], frontier: Frontier, doubles: Sequence[Plan], runtime: RuntimeName
) -> CascadeResult:
    """Choose the cheapest plan of two stages that keeps on calibration what it should keep on test; judge it
    by what was measured here."""
    by_name = {row.name: row for row in rows}
    _, largest = smallest_and_largest(frontier, runtime)
    least = KEPT_ACCURACY * largest.on(runtime).accuracy_on("calibration").map
    able = [plan for plan in doubles if _on_calibration(plan) >= least]
    chosen = min(able, key=lambda plan: plan.mean_ms) if able else max(doubles, key=_on_calibration)
    plan, top = by_name[chosen.name], by_name[largest.name]
    matched = tuple(
        row.name for row in rows if row.stages == 1 and row.map >= plan.map and row.mean_ms <= plan.mean_ms
    )
    return CascadeResult(
        tuple(sorted(rows, key=lambda row: row.mean_ms)),
        largest.name,
        chosen.name,
        plan.map / top.map if top.map else 0.0,
        plan.mean_ms / top.mean_ms,
        matched,
    )
