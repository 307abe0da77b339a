"""The values of the manifest: what was published, how well it does, what it costs, and the plans over it.

Reading order: a `Variant` is a chain of `Segment`s (files); on each runtime it has one `Measurement`
(accuracy, latency, alignment belong to one artifact on one runtime in one precision); a `Plan` is a sequence
of variants with rules; an operating point is a name for a plan; the `Frontier` is all of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, StringConstraints, model_validator

from model_repo.alignment import Alignment, Unit
from model_repo.escalation import GainModel
from model_repo.fusion import Fusion
from model_repo.latency import Environment, Histogram, LatencyProfile, Precision, RuntimeName
from model_repo.reference import TRACKED, Reference
from model_repo.value import Value

SCHEMA_VERSION: Literal[1] = 1
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
SplitName = Literal["train", "calibration", "valid", "test"]
# Inside the repository, forward slashes; no part begins with a dot, so there is no way out of it.
RelativePath = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*$")
]


class Tensor(Value):
    """A named input or output with a static shape."""

    name: str
    dtype: Literal["uint8", "float32"]
    shape: tuple[PositiveInt, ...]


class Segment(Value):
    """One model file of a variant's chain; inputs that no earlier segment makes are the frames."""

    file: RelativePath
    sha256: Sha256
    bytes: PositiveInt
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class Accuracy(Value):
    """What a variant or plan reaches on one split, with what the artifact itself answered there."""

    split: SplitName
    images: PositiveInt
    map: Unit
    map50: Unit
    f1: Unit
    f1_threshold: Unit
    map_low: Unit
    map_high: Unit


class Measurement(Value):
    """One artifact on one runtime in one precision: accuracy, latency and alignment belong together.

    `latency` has a profile for every concurrency that was measured (1 and 2 at least on two cores).
    """

    runtime: RuntimeName
    precision: Precision
    accuracy: tuple[Accuracy, ...]
    latency: Annotated[tuple[LatencyProfile, ...], Field(min_length=1)]
    alignment: Alignment

    @model_validator(mode="after")
    def _is_of_one_runtime(self) -> Self:
        for profile in self.latency:
            if (profile.runtime, profile.precision) != (self.runtime, self.precision):
                raise ValueError(
                    f"a profile of {profile.runtime}/{profile.precision} in a measurement"
                    f" of {self.runtime}/{self.precision}"
                )
        return self

    def accuracy_on(self, split: SplitName) -> Accuracy:
        """Return the accuracy on a split; raises KeyError when it was not measured there."""
        for accuracy in self.accuracy:
            if accuracy.split == split:
                return accuracy
        raise KeyError(split)

    def profile(self, concurrency: int = 1) -> LatencyProfile:
        """Return the profile of the nearest measured concurrency that is not below, else the highest."""
        ordered = sorted(self.latency, key=lambda profile: profile.concurrency)
        return next((p for p in ordered if p.concurrency >= concurrency), ordered[-1])


class Variant(Value):
    """A published model: a chain of segments that takes uint8 frames and returns rows of detections.

    The first segment takes `frames` uint8 [1, h, w, 3] (RGB, letterboxed to `resolution_wh`); the last gives
    `detections` float32 [1, 100, 6]. `nms_iou` is None when the rows need no suppression.
    """

    name: Name
    folder: Name
    architecture: str
    resolution_wh: tuple[PositiveInt, PositiveInt]
    precision: Precision
    parameters: PositiveInt
    macs: PositiveInt
    nms_iou: Annotated[float, Field(gt=0.0, le=1.0)] | None
    segments: Annotated[tuple[Segment, ...], Field(min_length=1)]
    measurements: Annotated[tuple[Measurement, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if not re.fullmatch(re.escape(self.name) + r"-[0-9a-f]{8}", self.folder):
            raise ValueError(f"folder {self.folder!r} is not {self.name!r}-<digest8>")
        runtimes = [measurement.runtime for measurement in self.measurements]
        if len(set(runtimes)) != len(runtimes):
            raise ValueError(f"two measurements on one runtime: {runtimes}")
        for measurement in self.measurements:
            if measurement.precision != self.precision:
                raise ValueError(f"measured in {measurement.precision}, published in {self.precision}")
        width, height = self.resolution_wh
        made: set[str] = set()
        for segment in self.segments:
            for tensor in segment.inputs:
                if tensor.name not in made and tensor.shape != (1, height, width, 3):
                    raise ValueError(f"input {tensor.name!r} of {segment.file} comes from no earlier segment")
            made.update(tensor.name for tensor in segment.outputs)
        return self

    @property
    def runtimes(self) -> tuple[RuntimeName, ...]:
        """Return the runtimes it was measured on."""
        return tuple(measurement.runtime for measurement in self.measurements)

    def on(self, runtime: RuntimeName) -> Measurement:
        """Return the measurement on a runtime; raises KeyError when there is none."""
        for measurement in self.measurements:
            if measurement.runtime == runtime:
                return measurement
        raise KeyError(runtime)


class Rule(Value):
    """Go on to the next stage when the predicted gain reaches the threshold."""

    gain: GainModel
    threshold: float


class Stage(Value):
    """A step of a plan; the last has no rule, every other says when to go on."""

    variant: Name
    rule: Rule | None = None


class Certificate(Value):
    """E[max(0, L_plan − L_last)] ≤ epsilon with confidence 1 − delta, over uncut answers.

    `epsilon` holds for all plans certified for as much, together; `bound` for this plan by itself.
    """

    loss: str
    images: PositiveInt
    epsilon: PositiveFloat
    delta: Annotated[float, Field(gt=0.0, lt=1.0)]
    bound: NonNegativeFloat
    empirical: NonNegativeFloat


class NoCertificate(Value):
    """Say why a plan has no certificate."""

    reason: str


class PlanAccuracy(Value):
    """A plan on one split: mAP of what it answers, and the share of frames that reached each later stage."""

    split: SplitName
    images: PositiveInt
    map: Unit
    map50: Unit
    escalated: tuple[Unit, ...]


class Plan(Value):
    """A way to answer a frame: stages in order, each asked only when the rule before it says so.

    Costs are of a whole frame, decoding included: `mean_ms`, and `p99_ms` from the stages' histograms and
    the escalation rate on calibration. `runtime` is the one it was scored on; `engines` may run it.
    """

    name: Name
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    fusion: Fusion
    runtime: RuntimeName
    engines: Annotated[tuple[RuntimeName, ...], Field(min_length=1)]
    accuracy: tuple[PlanAccuracy, ...]
    mean_ms: PositiveFloat
    p99_ms: PositiveFloat
    certificate: Certificate | NoCertificate

    @model_validator(mode="after")
    def _has_rules_between_stages(self) -> Self:
        for stage in self.stages[:-1]:
            if stage.rule is None:
                raise ValueError(f"stage {stage.variant!r} is not the last and has no rule")
        if self.stages[-1].rule is not None:
            raise ValueError(f"the last stage {self.stages[-1].variant!r} has a rule and nothing to go on to")
        if len({stage.variant for stage in self.stages}) != len(self.stages):
            raise ValueError("a variant stands twice in one plan")
        return self

    def accuracy_on(self, split: SplitName) -> PlanAccuracy:
        """Return the accuracy on a split; raises KeyError when it was not measured there."""
        for accuracy in self.accuracy:
            if accuracy.split == split:
                return accuracy
        raise KeyError(split)


class OperatingPoint(Value):
    """A name that a request may ask for, and the plan it stands for."""

    name: Name
    plan: Name


class SplitInfo(Value):
    """A split of the data set that the frontier was made on."""

    name: SplitName
    images: PositiveInt
    boxes: Annotated[int, Field(ge=0)]


class DatasetInfo(Value):
    """The data that everything here was trained, fitted and measured on."""

    name: str
    fingerprint: str
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    splits: tuple[SplitInfo, ...]


class Frontier(Value):
    """The manifest: everything that search publishes and the router serves.

    `decode` is the cost of decoding one of the data set's frames, measured where the variants were.
    `references` are of the variants that a plan asks first, on the plans' runtime.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    dataset: DatasetInfo
    environment: Environment
    decode: Histogram
    variants: Annotated[tuple[Variant, ...], Field(min_length=1)]
    plans: Annotated[tuple[Plan, ...], Field(min_length=1)]
    operating_points: Annotated[tuple[OperatingPoint, ...], Field(min_length=1)]
    references: tuple[Reference, ...] = ()

    @model_validator(mode="after")
    def _refers_to_what_it_has(self) -> Self:
        for kind, names in (
            ("variant", [variant.name for variant in self.variants]),
            ("plan", [plan.name for plan in self.plans]),
            ("operating point", [point.name for point in self.operating_points]),
            ("reference", [reference.variant for reference in self.references]),
        ):
            twice = {name for name in names if names.count(name) > 1}
            if twice:
                raise ValueError(f"{kind} named twice: {sorted(twice)}")
        variants = {variant.name: variant for variant in self.variants}
        for plan in self.plans:
            for stage in plan.stages:
                if stage.variant not in variants:
                    raise ValueError(f"plan {plan.name!r} asks for the unknown variant {stage.variant!r}")
                missing = set(plan.engines) - set(variants[stage.variant].runtimes)
                if missing:
                    raise ValueError(
                        f"plan {plan.name!r} claims {sorted(missing)}, {stage.variant!r} was not measured"
                    )
        plans = {plan.name for plan in self.plans}
        for point in self.operating_points:
            if point.plan not in plans:
                raise ValueError(f"operating point {point.name!r} asks for the unknown plan {point.plan!r}")
        for reference in self.references:
            if reference.variant not in variants:
                raise ValueError(f"reference of the unknown variant {reference.variant!r}")
            if len(reference.mean) != len(TRACKED) + len(self.dataset.classes):
                raise ValueError(f"reference of {reference.variant!r} has not one mean per class")
        for variant in self.variants:
            for measurement in variant.measurements:
                if len(measurement.alignment.curves) != len(self.dataset.classes):
                    raise ValueError(f"alignment of {variant.name!r} has not one curve per class")
        return self

    def variant(self, name: str) -> Variant:
        """Return a variant by name; raises KeyError."""
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise KeyError(name)

    def plan(self, name: str) -> Plan:
        """Return a plan by name; raises KeyError."""
        for plan in self.plans:
            if plan.name == name:
                return plan
        raise KeyError(name)

    def plan_of(self, operating_point: str) -> Plan:
        """Return the plan that an operating point stands for; raises KeyError."""
        for point in self.operating_points:
            if point.name == operating_point:
                return self.plan(point.plan)
        raise KeyError(operating_point)


def non_dominated(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the positions of points (cost, accuracy) that no other one matches in both, cheapest first.

    A point is dominated when another costs no more and is no worse, and is better in one; of equal points
    the first stays.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i))
    kept: list[int] = []
    best = float("-inf")
    for i in order:
        if points[i][1] > best:
            kept.append(i)
            best = points[i][1]
    return kept
