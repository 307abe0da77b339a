"""Claims about a search, measured on its run: latency estimates, and what int8 loses and saves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model_repo.detections import Detections
from model_repo.latency import Precision, RuntimeName
from search.artifacts import read_artifacts
from search.asking import ask
from search.measure import LoadedSplit, accuracy_of, latency_samples_ms, load_all, matched
from search.pipeline import Context
from search.predict import LatencyModel, PredictorError, error_of, subnets_to_measure
from search.publishing import load_split
from search.run_folder import RunError
from search.steps import measured_table, space_of
from search.targets import targets_of

MEAN_ERROR = 0.05
RANK_CORRELATION = 0.98
MOST_LOST = 0.005
LEAST_FASTER = 2.0


def predictor(context: Context, held_out: int) -> PredictorError:
    """Return the error on subnets that the model was not fitted to, all measured in the same rounds.

    The model is fitted to as many subnets as a search measures, drawn as it draws them. Raises RunError when
    the run has no trained supernet or its space too few subnets.
    """
    settings, space = context.settings, space_of(context)
    if context.folder.record("train") is None:
        raise RunError(f"{context.folder.root}: the bench needs step 'train' to be done first")
    fitted = subnets_to_measure(space, settings.latency_subnets, settings.seed)
    drawn = subnets_to_measure(space, held_out + len(fitted) + 2, settings.seed + 1)
    others = [architecture for architecture in drawn if architecture not in fitted][:held_out]
    if len(others) < held_out:
        raise RunError(f"--held-out: the space has no {held_out} subnets beside the {len(fitted)} fitted")
    table = measured_table(context, space, (*fitted, *others))
    rows = table.measured
    model = LatencyModel(space, table.model_copy(update={"measured": rows[: len(fitted)]}))
    estimates = np.array([model.estimate(architecture) for architecture in others])
    return error_of(estimates, np.array([row.p50_ms for row in rows[len(fitted) :]]))


@dataclass(frozen=True, slots=True)
class PrecisionRow:
    """A kept subnet in f32 and in int8: mAP on validation and median latency in milliseconds."""

    architecture: str
    f32_map: float
    int8_map: float
    f32_ms: float
    int8_ms: float

    @property
    def faster(self) -> float:
        """Return how many times faster int8 is."""
        return self.f32_ms / self.int8_ms


@dataclass(frozen=True, slots=True)
class PrecisionResult:
    """All kept subnets on one runtime, the cheapest first."""

    runtime: RuntimeName
    rows: tuple[PrecisionRow, ...]

    @property
    def lost(self) -> float:
        """Return the mAP that int8 loses, mean over all subnets."""
        return float(np.mean([row.f32_map - row.int8_map for row in self.rows]))

    @property
    def faster(self) -> float:
        """Return how many times faster int8 is, mean over the larger half of the subnets."""
        return float(np.mean([row.faster for row in self.rows[len(self.rows) // 2 :]]))

    @property
    def holds(self) -> bool:
        """Whether int8 loses as little and saves as much as is claimed."""
        return self.lost <= MOST_LOST and self.faster >= LEAST_FASTER


def precision(context: Context, runtime: RuntimeName, *, samples: int) -> PrecisionResult:
    """Measure every kept subnet in f32 and int8 on a runtime, all in the same rounds, one thread each.

    Raises RunError when the run has not exported both.
    """
    if context.folder.record("export") is None:
        raise RunError(f"{context.folder.root}: the bench needs step 'export' to be done first")
    root, classes = context.folder.root / "export", len(context.dataset().classes)
    artifacts = [each for each in read_artifacts(context) if each.precision in ("f32", "int8")]
    if {each.precision for each in artifacts} != {"f32", "int8"}:
        raise RunError(f"{context.folder.root}: the bench needs subnets exported in f32 and int8")
    split = load_split(context, "valid")
    variants = [artifact.variant(root) for artifact in artifacts]
    with targets_of(context).engine(runtime, parallelism=1) as engine:
        load_all(engine, root, variants)
        context.progress.start(f"accuracy on {runtime}", len(split))
        replies = ask(engine, variants, split.images, context.progress)
        maps = [_map(replies.detections[each.name], split, classes) for each in variants]
        context.progress.start(f"latency on {runtime}", samples * len(variants))
        taken = latency_samples_ms(
            engine, variants, split.images, samples=samples, concurrency=1, progress=context.progress
        )
    found = {
        (artifact.architecture, artifact.precision): (score, float(np.median(taken[variant.name])))
        for artifact, variant, score in zip(artifacts, variants, maps, strict=True)
    }
    return PrecisionResult(runtime, _rows(sorted({artifact.architecture for artifact in artifacts}), found))


def _rows(
    architectures: Sequence[str], found: dict[tuple[str, Precision], tuple[float, float]]
) -> tuple[PrecisionRow, ...]:
    rows = []
    for name in architectures:
        (f32_map, f32_ms), (int8_map, int8_ms) = found[name, "f32"], found[name, "int8"]
        rows.append(PrecisionRow(name, f32_map, int8_map, f32_ms, int8_ms))
    return tuple(sorted(rows, key=lambda row: row.f32_ms))


def _map(answers: Sequence[Detections], split: LoadedSplit, classes: int) -> float:
    return accuracy_of(matched(split, answers, classes), split.name, seed=0, resamples=0).map
