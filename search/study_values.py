"""What a study of the search found, as it is kept: small, readable, with seeds and environment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from model_repo.frontier import DatasetInfo
from model_repo.latency import Environment
from model_repo.value import Value
from search.run_folder import RunError

SIZES = ("n", "s", "m", "l")
"""The family's sizes, the smallest first."""


class Training(Value):
    """One training of the study: what it trained and what it was allowed.

    step_s: seconds per step, measured before the first training began, or for the frontier's models fitted
    to those; steps · step_s is its cost, the same on a machine that is busy meanwhile.
    """

    name: str
    architecture: Annotated[str | None, Field(description="None: a whole supernet")] = None
    steps: PositiveInt
    step_s: PositiveFloat

    @property
    def minutes(self) -> float:
        """Return what it costs."""
        return self.steps * self.step_s / 60.0


class Plan(Value):
    """Everything that a study does, settled before its first training."""

    dataset: DatasetInfo
    seed: NonNegativeInt
    minutes_each: PositiveFloat
    finish_share: Annotated[float, Field(gt=0.0, lt=1.0)]
    candidates: PositiveInt
    alone: tuple[Training, ...]
    supernet: Training
    finish_minutes: PositiveFloat


class Interval(Value):
    """A figure with the 95 % interval over resampled images."""

    value: float
    low: float
    high: float


class Model(Value):
    """One model: mAP on valid, by which it was chosen, and on test; median latency."""

    architecture: str
    valid_map: Annotated[float, Field(ge=0.0, le=1.0)]
    test_map: Interval
    p50_ms: PositiveFloat


class Arm(Value):
    """One way to come to a set of models.

    area: mean test mAP over latency budgets, log-uniform between the fastest and the slowest of the family,
    of the model that valid chooses within the budget (0 where none is fast enough): the hypervolume of the
    curve in log latency with reference mAP 0, as a share of its box. at_budgets: the same at the budgets.
    ahead: each of them less the family's, on the same resamples.
    """

    name: str
    minutes: Annotated[NonNegativeFloat, Field(description="of training")]
    models: tuple[Model, ...]
    area: Interval
    at_budgets: tuple[Interval, ...]
    area_ahead: Interval
    at_budgets_ahead: tuple[Interval, ...]


class Ranking(Value):
    """How well the supernet ranks subnets: its estimates against trainings of their own, both on valid.

    tau: Kendall's, with the interval over resampled images; p_value: of the hypothesis that the two rankings
    have nothing to do with each other. worse: mean mAP by which the estimates lie below (negative: above).
    """

    architectures: tuple[str, ...]
    estimated: tuple[float, ...]
    alone: tuple[float, ...]
    tau: Interval
    p_value: Annotated[float, Field(ge=0.0, le=1.0)]
    worse: float


class Study(Value):
    """A finished study."""

    plan: Plan
    environment: Environment
    budgets_ms: tuple[PositiveFloat, ...]
    explore_seconds: NonNegativeFloat
    finished: Annotated[tuple[Training, ...], Field(description="the frontier's models, trained on alone")]
    arms: tuple[Arm, ...]
    ranking: Ranking

    def arm(self, name: str) -> Arm:
        """Return an arm; raises KeyError when there is none of that name."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise KeyError(name)


def read_study(path: Path) -> Study:
    """Read a kept study; raises RunError naming the file and what is wrong with it."""
    try:
        return Study.model_validate_json(path.read_text())
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}") from error
    except ValidationError as error:
        raise RunError(f"{path}: not a study: {error}") from error
