"""What the steps after exporting found, as they hand it on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import PositiveFloat

from model_repo.alignment import Alignment, Unit
from model_repo.frontier import Accuracy, OperatingPoint, Plan
from model_repo.latency import Environment, Histogram, LatencyProfile, RuntimeName
from model_repo.reference import Reference
from model_repo.value import Value
from search.artifacts import Artifact
from search.pairs import PairReport
from search.routing import AlignmentReport

if TYPE_CHECKING:
    from search.pipeline import Context


class ScreenRow(Value):
    """One artifact as it was screened: scores on valid and median latency alone, on the first runtime."""

    artifact: Artifact
    runtime: RuntimeName
    map: Unit
    map50: Unit
    f1: Unit
    p50_ms: PositiveFloat


class Measured(Value):
    """One artifact to be published: on one runtime, its accuracy on valid and its latency profiles."""

    artifact: Artifact
    runtime: RuntimeName
    accuracy: Accuracy
    latency: tuple[LatencyProfile, ...]


class MeasuredAll(Value):
    """What step `measure` found: all artifacts screened, those to publish, and what surrounds an inference.

    decode: decoding a frame; rule: decoding it and deciding, which every plan of two stages pays.
    """

    environment: Environment
    decode: Histogram
    rule: Histogram
    screened: tuple[ScreenRow, ...]
    best: tuple[str, ...]
    published: tuple[Measured, ...]

    def names(self) -> list[str]:
        """Return the names of the variants to publish, in order."""
        return list(dict.fromkeys(row.artifact.name for row in self.published))

    def of(self, name: str) -> list[Measured]:
        """Return a variant's rows, one per runtime."""
        return [row for row in self.published if row.artifact.name == name]


class Fitted(Value):
    """A variant on one runtime: its alignment, and its accuracy on the calibration images fitted on."""

    name: str
    runtime: RuntimeName
    alignment: Alignment
    accuracy: Accuracy


class Routed(Value):
    """What step `route` found: alignments by variant and runtime, plans, their names, and how well pairs and
    alignments do."""

    fitted: tuple[Fitted, ...]
    plans: tuple[Plan, ...]
    operating_points: tuple[OperatingPoint, ...]
    references: tuple[Reference, ...]
    pairs: tuple[PairReport, ...]
    alignment: tuple[AlignmentReport, ...]

    def of(self, name: str, runtime: RuntimeName) -> Fitted:
        """Return what was fitted for a variant on a runtime."""
        return next(row for row in self.fitted if (row.name, row.runtime) == (name, runtime))


def read_measured(context: Context) -> MeasuredAll:
    """Return what step `measure` wrote."""
    return MeasuredAll.model_validate_json((context.folder.root / "measure" / "measured.json").read_text())


def read_routed(context: Context) -> Routed:
    """Return what step `route` wrote."""
    return Routed.model_validate_json((context.folder.root / "route" / "routed.json").read_text())
