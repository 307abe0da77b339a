"""Evaluated subnets: what is known about each, how they rank, and which are worth measuring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from model_repo.alignment import Unit
from model_repo.frontier import non_dominated
from model_repo.value import Value

Objective = Literal["map", "f1"]
"""What accuracy means in a search: mAP@[.5:.95], or the best micro F1 at IoU 0.5."""

FIRST_SLICE = 16
"""How many images a subnet must have answered to count as evaluated (all, where there are fewer)."""


# Quantization and more images move accuracies, and not all of them alike.
_TRAIL_MARGIN = 0.03


class Candidate(Value):
    """A subnet that ran with its own batch norms on validation images.

    `slices` holds the objective on the first 16, 32, 64 … images and on all, as far as the candidate was
    taken; `finished` says whether that was to the end.
    """

    architecture: str
    generation: NonNegativeInt
    slices: Annotated[tuple[Unit, ...], Field(min_length=1)]
    images: Annotated[PositiveInt, Field(description="on how many images it ran")]
    finished: bool
    latency_ms: PositiveFloat
    seconds: Annotated[NonNegativeFloat, Field(description="what its evaluation took")]

    @property
    def accuracy(self) -> float:
        """Return the objective on all images that it ran on."""
        return self.slices[-1]


def slice_sizes(images: int) -> tuple[int, ...]:
    """Return the growing numbers of images that a candidate is judged on: 16, doubled, and all of them."""
    if images < 1:
        raise ValueError(f"candidates need at least one image to be judged on, got {images}")
    sizes: list[int] = []
    size = FIRST_SLICE
    while 2 * size <= images:
        sizes.append(size)
        size *= 2
    return (*sizes, images)


def finished(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return those that ran on all images, in their order."""
    return [candidate for candidate in candidates if candidate.finished]


def ranks(candidates: Sequence[Candidate]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return each candidate's non-domination rank (0 is best) and its crowding distance in its front."""
    # pymoo takes half a second to import: only what explores pays for it.
    from pymoo.operators.survival.rank_and_crowding.metrics import get_crowding_function
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    points = np.array([[candidate.latency_ms, -candidate.accuracy] for candidate in candidates])
    # Crowding in log latency, or the cheap end of the curve would look crowded.
    points[:, 0] = np.log(points[:, 0])
    rank = np.zeros(len(points), dtype=np.int64)
    crowding = np.zeros(len(points))
    for k, front in enumerate(NonDominatedSorting().do(points)):
        rank[front] = k
        crowding[front] = get_crowding_function("cd").do(points[front])
    return rank, crowding


def kept(candidates: Sequence[Candidate], count: int, *, max_trail: float = 1.0) -> list[Candidate]:
    """Return at most `count` finished candidates to measure, cheapest first: the non-dominated, thinned or
    filled.

    max_trail: by how much the objective of a published one may trail the best one's. Those far below it are
    left out, unless nothing else is there.
    Too many: repeatedly drop the one whose neighbours in (log latency, accuracy) are nearest, never an end.
    Too few: fill up from the later fronts, since measured latency and quantization will reorder near ties.
    """
    if count < 2:
        raise ValueError(f"at least 2 must be kept, got {count}")
    whole = finished(candidates)
    floor = max((candidate.accuracy for candidate in whole), default=0.0) - max_trail - _TRAIL_MARGIN
    able = [candidate for candidate in whole if candidate.accuracy >= floor]
    whole = able if len(able) > 1 else whole
    points = [(candidate.latency_ms, candidate.accuracy) for candidate in whole]
    front = [whole[i] for i in non_dominated(points)]
    while len(front) > count:
        log_ms = np.log([candidate.latency_ms for candidate in front])
        accuracy = np.array([candidate.accuracy for candidate in front])
        spread_ms, spread = max(np.ptp(log_ms), 1e-9), max(np.ptp(accuracy), 1e-9)
        gap = (log_ms[2:] - log_ms[:-2]) / spread_ms + (accuracy[2:] - accuracy[:-2]) / spread
        del front[1 + int(np.argmin(gap))]
    rest = [candidate for candidate in whole if candidate not in front]
    while len(front) < count and rest:
        best = [rest[i] for i in non_dominated([(c.latency_ms, c.accuracy) for c in rest])]
        front += best[: count - len(front)]
        rest = [candidate for candidate in rest if candidate not in best]
    return sorted(front, key=lambda candidate: (candidate.latency_ms, candidate.architecture))
