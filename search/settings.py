"""What a run is asked to do, and which of it each step depends on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError, model_validator

from model_repo.latency import Precision, RuntimeName
from model_repo.value import Value
from search.candidates import Objective
from search.run_folder import RunError, RunFolder, Setting, write_text
from search.space import Space, aspect_of, resolutions_for
from search.strategies import Algorithm

STEPS = ("data", "train", "explore", "finish", "export", "measure", "route", "publish", "report")
SETTINGS_FILE = "settings.json"
PRECISIONS: tuple[Precision, ...] = ("f32", "bf16", "int8")
Calibration = Literal["minmax", "entropy", "percentile"]
TritonPlatform = Literal["onnxruntime", "openvino", "python"]
"""Triton's backends that a search can measure on; plans of TensorRT are built on the GPU, by other hands."""


class SpaceChoices(Value):
    """A search space as it is asked for; what is left out is the default, and follows the data's frames."""

    resolutions: tuple[PositiveInt, ...] | None = None
    depths: tuple[tuple[PositiveInt, ...], ...] | None = None
    widths: tuple[tuple[PositiveInt, ...], ...] | None = None
    neck_widths: tuple[PositiveInt, ...] | None = None
    head_depths: tuple[PositiveInt, ...] | None = None
    stem_width: PositiveInt | None = None

    def space(self, classes: int, sizes_wh: NDArray[np.int64]) -> Space:
        """Return the space for frames of these widths and heights [n, 2]; raises RunError naming what no
        detector can have."""
        choices = {"resolutions": resolutions_for(sizes_wh), **self.model_dump(exclude_none=True)}
        try:
            return Space(classes=classes, aspect=aspect_of(sizes_wh), **choices)
        except ValueError as error:
            raise RunError(f"the search space: {error}") from error


class Settings(Value):
    """Everything a run depends on. `steps` or `minutes` is the training budget; `weights` replaces training,
    `init` is where it begins, `favour` the journal of candidates whose best subnets it draws more often.
    `subnets`: the names of those that are evaluated and kept, all of them, instead of searching.

    Paths are absolute. calibration_share: of train, held out where the data set has no calibration
    split of its own. search_images: validation images that candidates are judged on.
    objective: what accuracy means. latency_weight: the score of evolution is accuracy − this · milliseconds.
    tune_above: what int8 may lose of the objective before the subnet is tuned for it, `tune_steps` long (0:
    never). tolerance: accuracy that a faster precision may lose. max_trail: by how much a published model's
    may trail the best one's. latency_table: the digest of the given table; the table itself is copied into
    the run. runtimes: the targets; candidates, precisions and models are chosen by the first one, and what is
    published is measured on all. triton_url: host:port of the target "triton", triton_platform: its backend;
    engine_cache: where TensorRT keeps its engines.
    """

    data: str
    calibration_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    seed: Annotated[int, Field(ge=0)] = 0
    steps: PositiveInt | None = None
    minutes: PositiveFloat | None = None
    weights: str | None = None
    init: str | None = None
    batch_size: PositiveInt = 16
    learning_rate: PositiveFloat = 2e-3
    random_subnets: Annotated[int, Field(ge=0)] = 1
    solo_share: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.4
    calm_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.15
    paste: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    favour: str | None = None
    polish: bool = False
    any_way_up: bool = False
    space: SpaceChoices = SpaceChoices()
    subnets: Annotated[tuple[str, ...], Field(min_length=2)] | None = None
    algorithm: Algorithm = "nsga2"
    latency_weight: PositiveFloat | None = None
    objective: Objective = "map"
    candidates: Annotated[int, Field(ge=2)] = 240
    population: Annotated[int, Field(ge=2)] = 24
    explore_minutes: PositiveFloat | None = None
    search_images: PositiveInt = 128
    latency_subnets: Annotated[int, Field(ge=4)] = 48
    latency_precision: Precision = "int8"
    latency_table: str | None = None
    workers: PositiveInt = 2
    checkpoint_s: NonNegativeFloat = 60.0
    keep: Annotated[int, Field(ge=2)] = 24
    finish_minutes: PositiveFloat | None = None
    finish_steps: PositiveInt | None = None
    precisions: Annotated[tuple[Precision, ...], Field(min_length=1)] = PRECISIONS
    quantization: Calibration = "minmax"
    nms_iou: Annotated[float, Field(gt=0.0, le=1.0)] = 0.6
    runtimes: Annotated[tuple[RuntimeName, ...], Field(min_length=1)] = ("openvino", "onnxruntime")
    triton_url: str | None = None
    triton_platform: TritonPlatform = "onnxruntime"
    engine_cache: str | None = None
    tune_above: NonNegativeFloat = 0.005
    tune_steps: Annotated[int, Field(ge=0)] = 150
    tolerance: NonNegativeFloat = 0.005
    publish: Annotated[int, Field(ge=2)] = 8
    max_mb: PositiveFloat = 16.0
    max_trail: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2
    samples: Annotated[int, Field(ge=20)] = 200

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        given = [name for name in ("steps", "minutes", "weights") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other")
        if self.finish_minutes is not None and self.finish_steps is not None:
            raise ValueError("finish_minutes and finish_steps exclude each other")
        if len(set(self.runtimes)) < len(self.runtimes):
            raise ValueError(f"runtimes: one stands twice in {', '.join(self.runtimes)}")
        if "triton" in self.runtimes and self.triton_url is None:
            raise ValueError("the target triton needs triton_url: host:port of its gRPC endpoint")
        if self.polish and self.favour is None:
            raise ValueError("polish needs favour: the subnets to polish")
        return self

    def of_step(self, step: str) -> dict[str, Setting]:
        """Return the settings that a step's result depends on."""
        values = {**json.loads(self.model_dump_json()), "target": self.runtimes[0]}
        return {field: _flat(values[field]) for field in _FIELDS[step]}

    @classmethod
    def defaults_of_step(cls, step: str) -> dict[str, Setting]:
        """Return a step's settings where nothing is said; a new one begins as what was done before."""
        values = cls(data="").of_step(step)
        return {field: value for field, value in values.items() if field != "data"}


_FIELDS: dict[str, tuple[str, ...]] = {
    "data": ("data", "calibration_share"),
    "train": (
        "seed", "steps", "minutes", "weights", "batch_size", "learning_rate", "random_subnets", "any_way_up",
        "space", "init", "solo_share", "calm_share", "paste", "favour", "polish",
    ),
    "explore": (
        "seed", "algorithm", "latency_weight", "objective", "candidates", "population", "explore_minutes",
        "search_images", "latency_subnets", "latency_precision", "latency_table", "nms_iou", "target",
        "triton_platform", "subnets",
    ),
    "finish": (
        "seed", "keep", "max_trail", "finish_minutes", "finish_steps", "batch_size", "learning_rate",
        "any_way_up", "paste", "subnets",
    ),
    "export": (
        "seed", "keep", "max_trail", "precisions", "quantization", "nms_iou", "objective", "runtimes",
        "search_images", "any_way_up", "paste", "tune_above", "tune_steps", "triton_platform", "subnets",
    ),
    "measure": (
        "seed", "objective", "runtimes", "triton_platform", "tolerance", "publish", "max_mb", "max_trail",
        "samples",
    ),
    "route": ("seed",),
    "publish": ("seed",),
    "report": (),
}  # fmt: skip


def _flat(value: object) -> Setting:
    if isinstance(value, str | int | float) or value is None:
        return value
    return json.dumps(value, sort_keys=True)


def read_settings(folder: RunFolder) -> Settings | None:
    """Read a run's settings, None when it has none yet; raises RunError when they are damaged."""
    path = folder.root / SETTINGS_FILE
    try:
        return Settings.model_validate_json(path.read_text())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise RunError(f"{path}: {error}") from error


def write_settings(folder: RunFolder, settings: Settings) -> None:
    """Write a run's settings."""
    write_text(folder.path(SETTINGS_FILE), settings.model_dump_json(indent=2) + "\n")


def merged_settings(before: Settings | None, given: Mapping[str, object]) -> Settings:
    """Return what a run has with what a command line gives over it; raises RunError naming the field."""
    fields = {} if before is None else dict(before)
    for field, value in given.items():
        if field == "space" and isinstance(value, str):
            fields[field] = read_space(value)
        elif isinstance(value, Path):
            fields[field] = str(value.resolve())
        elif isinstance(value, list):
            fields[field] = tuple(value)
        else:
            fields[field] = value
    try:
        return Settings.model_validate(fields)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'settings'}: {problem['msg']}"
            for problem in error.errors()
        )
        raise RunError(problems) from error


def read_space(given: str) -> SpaceChoices:
    """Read a search space's choices from JSON or a file that holds it; raises RunError naming the field."""
    where, text = ("--space", given) if given.lstrip().startswith("{") else (given, None)
    try:
        return SpaceChoices.model_validate_json(Path(given).read_text() if text is None else text)
    except OSError as error:
        raise RunError(f"{where}: {error.strerror}") from error
    except ValidationError as error:
        raise RunError(f"{where}: {error}") from error
