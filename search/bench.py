"""Claims about a published repository, measured anew through the embedded engine in one run.

Every frame of the test split is decoded and answered by every single model and every plan of more stages, in
a shuffled order, before the next frame is touched: what the machine does meanwhile falls on all alike.
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

_WARM_UP_FRAMES = 5
_COST_MARGIN = 0.97
"""Of what a claim allows, what a plan may cost by its published profiles: stages measured alone do not add up
to a frame exactly."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a cascade should keep of the largest model's mAP, at which share of its mean latency."""

    accuracy: float
    latency: float


CLAIMS = (Claim(0.99, 0.50), Claim(0.995, 0.65))


@dataclass(frozen=True, slots=True)
class Row:
    """One way to answer a frame, as it did on the test split: a model alone or a plan of more stages.

    asked: models asked for a frame on average beyond the first.
    """

    name: str
    stages: int
    map: float
    map50: float
    mean_ms: float
    p99_ms: float
    asked: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """The plan that calibration chose for a claim, and what came out on test."""

    claim: Claim
    chosen: str
    accuracy_kept: float
    latency_share: float
    matched_by: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether the plan keeps the accuracy at the latency and no single model matches it in both."""
        kept = self.accuracy_kept >= self.claim.accuracy and self.latency_share <= self.claim.latency
        return kept and not self.matched_by


@dataclass(frozen=True, slots=True)
class CascadeResult:
    """All rows, cheapest first, the largest model's name, and what became of each claim."""

    rows: tuple[Row, ...]
    largest: str
    verdicts: tuple[Verdict, ...]

    @property
    def holds(self) -> bool:
        """Whether every claim holds."""
        return all(verdict.holds for verdict in self.verdicts)


def cascade(
    repository: Repository, dataset: Dataset, progress: Progress, *, frames: int | None = None, seed: int = 0
) -> CascadeResult:
    """Measure every single model and every plan of more stages on the test split.

    frames: only the first so many, None for all. Raises RunError when the repository has no plan of more than
    one stage for this processor's runtime, or other classes than the data set.
    """
    frontier, runtime = repository.frontier, default_runtime()
    plans = [plan for plan in frontier.plans if runtime in plan.engines]
    cascades = [plan for plan in plans if len(plan.stages) > 1]
    if not cascades:
        raise RunError(f"{repository.root} publishes no plan of several stages for {runtime}")
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
        for plan in cascades
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
    _, largest = smallest_and_largest(frontier, runtime)
    return _judged([way.row(truths) for way in ways], largest.name, plans)


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
        rules = [] if plan is None else [stage.rule for stage in plan.stages if stage.rule is not None]
        self._rules: list[tuple[CompiledGain, float]] = [
            (rule.gain.compiled(), rule.threshold) for rule in rules
        ]
        self.forget()

    def forget(self) -> None:
        """Drop what was answered so far."""
        self._answers: list[Detections] = []
        self._ms: list[float] = []
        self._asked = 0

    def answer(self, data: bytes) -> None:
        """Answer an encoded frame, from bytes to detections."""
        start_ns = time.perf_counter_ns()
        image = decode(data)
        own = found = self._stage(0, image)
        for k, (gain, threshold) in enumerate(self._rules, start=1):
            if gain.predict(features(own, image)[None])[0] < threshold:
                break
            assert self._plan is not None  # rules are a plan's
            own = self._stage(k, image)
            found = fuse(found, own, self._plan.fusion)
            self._asked += 1
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
            self._asked / max(len(self._answers), 1),
        )

    def _stage(self, index: int, image: NDArray[np.uint8]) -> Detections:
        answer = answer_frame(self._engine, self._variants[index], image)
        return self._alignments[index].apply(answer.detections)


def _on_calibration(plan: Plan) -> float:
    return plan.accuracy_on("calibration").map


def choose(plans: Sequence[Plan], largest: str, claim: Claim) -> Plan:
    """Return the plan of several stages for a claim: the most accurate on calibration of those that cost what
    the claim allows, the cheapest where none does.

    plans: all for one runtime, the largest model's own among them.
    """
    alone = next(plan for plan in plans if len(plan.stages) == 1 and plan.stages[0].variant == largest)
    cascades = [plan for plan in plans if len(plan.stages) > 1]
    allowed_ms = _COST_MARGIN * claim.latency * alone.mean_ms
    able = [plan for plan in cascades if plan.mean_ms <= allowed_ms]
    return max(able, key=_on_calibration) if able else min(cascades, key=lambda plan: plan.mean_ms)


def _judged(rows: Sequence[Row], largest: str, plans: Sequence[Plan]) -> CascadeResult:
    """Judge the plan that calibration chose for each claim by what was measured here."""
    by_name = {row.name: row for row in rows}
    top = by_name[largest]
    verdicts = []
    for claim in CLAIMS:
        row = by_name[choose(plans, largest, claim).name]
        matched = tuple(
            other.name
            for other in rows
            if other.stages == 1 and other.map >= row.map and other.mean_ms <= row.mean_ms
        )
        verdicts.append(
            Verdict(
                claim, row.name, row.map / top.map if top.map else 0.0, row.mean_ms / top.mean_ms, matched
            )
        )
    return CascadeResult(tuple(sorted(rows, key=lambda row: row.mean_ms)), largest, tuple(verdicts))
