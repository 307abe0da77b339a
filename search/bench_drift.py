"""Is drift noticed, and only where there is some? Recorded answers, replayed as fast as they can be read.

Stationary runs draw frames of the test split with replacement, as a stream of independent frames would bring
them; a shifted run does so for a while and then draws from the same split rendered under a named shift.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
from numpy.typing import NDArray

from model_repo.frontier import Frontier, Plan
from model_repo.latency import RuntimeName
from model_repo.publish import Repository
from model_repo.reference import Cusum, Reference, observation
from model_repo.runtime.select import default_runtime, make_engine
from model_repo.scoring import mean_precision
from search.artifacts import cores
from search.bench_routing import ask_split
from search.calibrate import check_classes
from search.data.coco import Dataset, read_dataset
from search.difficulty import smallest_and_largest
from search.run_folder import Progress, RunError

RUNS = 200
STATIONARY_FRAMES = 20_000
MOST_FALSE_ALARMS = 1
DETECTED_WITHIN = 1_000
COSTLY_POINTS = 0.05
_BEFORE_SHIFT = 1_000
_SHIFTED_FRAMES = 400
_SET_FILE = "conveyor.json"


@dataclass(frozen=True, slots=True)
class ShiftRow:
    """A named shift: the largest model's mAP under it and what that is less than on test, and after how many
    shifted frames the median run rings; None when half of them never did."""

    name: str
    map: float
    lost: float
    median_frames: float | None


@dataclass(frozen=True, slots=True)
class DriftResult:
    """How many stationary runs rang at least once, and the shifts."""

    variant: str
    false_alarms: int
    shifts: tuple[ShiftRow, ...]

    @property
    def holds(self) -> bool:
        """Whether false alarms are rare and every costly shift is noticed in time."""
        return self.false_alarms <= MOST_FALSE_ALARMS and all(
            row.median_frames is not None and row.median_frames <= DETECTED_WITHIN
            for row in self.shifts
            if row.lost >= COSTLY_POINTS
        )


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the watched variant showed on a set [n, watched], and the largest model's mAP there."""

    observed: NDArray[np.float64]
    largest_map: float


def drift(repository: Repository, dataset: Dataset, progress: Progress, *, seed: int = 0) -> DriftResult:
    """Replay the test split, as it is and under every named shift, to the test that the router runs.

    Watched is the variant that the operating point `balanced` asks first. Raises RunError when the data set
    is no rendered one (shifts have to be rendered), has other classes, or the manifest has no reference.
    """
    from search.data.conveyor.dataset import render_dataset
    from search.data.conveyor.factors import SHIFTS

    check_classes(repository, dataset)
    frontier, runtime = repository.frontier, default_runtime()
    plan = _watched(frontier)
    reference = next((r for r in frontier.references if r.variant == plan.stages[0].variant), None)
    if reference is None:
        raise RunError(f"{repository.root}: no reference of {plan.stages[0].variant}: calibrate it anew")
    try:
        rendered_with = json.loads((dataset.root / _SET_FILE).read_text())["seed"]
    except (OSError, KeyError, ValueError) as error:
        raise RunError(f"{dataset.root}: no rendered conveyor set, shifts of it cannot be made") from error
    cv2.setNumThreads(1)
    normal = _seen(repository, reference, dataset, runtime, progress)
    rng = np.random.default_rng([seed, 0xD1F])
    false_alarms = int(_first_rings(reference, normal.observed, STATIONARY_FRAMES, rng, progress).sum())
    rows: list[ShiftRow] = []
    with TemporaryDirectory(prefix="paretogate-shifts-") as temporary:
        for name in SHIFTS:
            root = Path(temporary) / name
            render_dataset(
                root, frames={"test": _SHIFTED_FRAMES}, seed=rendered_with, workers=cores(), shift=name
            )
            shifted = _seen(repository, reference, read_dataset(root, needed=("test",)), runtime, progress)
            rows.append(
                ShiftRow(
                    name,
                    shifted.largest_map,
                    normal.largest_map - shifted.largest_map,
                    _median_detection(reference, normal.observed, shifted.observed, rng),
                )
            )
    return DriftResult(reference.variant, false_alarms, tuple(rows))


def _watched(frontier: Frontier) -> Plan:
    try:
        return frontier.plan_of("balanced")
    except KeyError as error:
        raise RunError("no operating point 'balanced' is published") from error


def _seen(
    repository: Repository,
    reference: Reference,
    dataset: Dataset,
    runtime: RuntimeName,
    progress: Progress,
) -> _Seen:
    frontier = repository.frontier
    _, largest = smallest_and_largest(frontier, runtime)
    variants = list(
        {variant.name: variant for variant in (frontier.variant(reference.variant), largest)}.values()
    )
    engine = make_engine(runtime, threads=1, parallelism=cores())
    for variant in variants:
        engine.load(repository.root, variant)
    answers = ask_split(engine, variants, dataset, runtime, progress).answers
    engine.close()
    watched = answers.sides[reference.variant]
    pairs = zip(watched.features, watched.detections, strict=True)
    classes = len(frontier.dataset.classes)
    return _Seen(
        np.array([observation(row, answer, classes) for row, answer in pairs]),
        mean_precision(answers.sides[largest.name].table),
    )


def _cusum(reference: Reference) -> Cusum:
    return Cusum(np.asarray(reference.mean), np.asarray(reference.spread), (RUNS,))


def _first_rings(
    reference: Reference,
    observed: NDArray[np.float64],
    frames: int,
    rng: np.random.Generator,
    progress: Progress,
) -> NDArray[np.bool_]:
    """Return which of RUNS streams of frames drawn with replacement ring at least once, [RUNS]."""
    cusum = _cusum(reference)
    rang = np.zeros(RUNS, dtype=np.bool_)
    progress.start(f"{RUNS} stationary runs", frames)
    for _ in range(frames):
        rang |= cusum.observe(observed[rng.integers(len(observed), size=RUNS)]).any(axis=1)
        progress.advance(1)
    return rang


def _median_detection(
    reference: Reference,
    normal: NDArray[np.float64],
    shifted: NDArray[np.float64],
    rng: np.random.Generator,
) -> float | None:
    """Return the median number of shifted frames until a stream rings, None when half never do."""
    cusum = _cusum(reference)
    for _ in range(_BEFORE_SHIFT):
        cusum.observe(normal[rng.integers(len(normal), size=RUNS)])
    first = np.full(RUNS, np.inf)
    for frame in range(1, 3 * DETECTED_WITHIN + 1):
        rings = cusum.observe(shifted[rng.integers(len(shifted), size=RUNS)]).any(axis=1)
        first[rings & np.isinf(first)] = frame
    median = float(np.median(first))
    return median if np.isfinite(median) else None
