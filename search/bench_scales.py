"""Does a cascade suffer when its models score on different scales?

The larger model's raw scores are squared, which changes no order within a class and every comparison with
the fast model's. Frames are sent on at random, half of them, so that nothing but the scales decides. Under
raw scores the mixture's ranking breaks; under alignments fitted to each model's own scores it must stay what
it was.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model_repo.scoring import MatchTable, Ranking
from search.align import aligned_table, fit_alignment

DRAWS = 20
MOST_LOST = 0.001


@dataclass(frozen=True, slots=True)
class ScaleResult:
    """mAP of a random half sent on, under raw and under aligned scores, as they are and with the larger's
    squared."""

    raw: float
    raw_squared: float
    aligned: float
    aligned_squared: float

    @property
    def holds(self) -> bool:
        """Return whether squared scores cost an aligned cascade next to nothing."""
        return self.aligned_squared >= self.aligned - MOST_LOST


def scales(
    fitted: tuple[MatchTable, MatchTable],
    tested: tuple[MatchTable, MatchTable],
    classes: int,
    rng: np.random.Generator,
) -> ScaleResult:
    """Compare on `tested` what alignments fitted on `fitted` make of it: each the fast and the larger model's
    matches under raw scores."""
    count = tested[0].images
    halves = [(rng.permutation(count) < count // 2).astype(np.int64) for _ in range(DRAWS)]
    squared = fitted[0], _squared(fitted[1])
    squared_test = tested[0], _squared(tested[1])
    return ScaleResult(
        raw=_mixed(tested, halves),
        raw_squared=_mixed(squared_test, halves),
        aligned=_mixed(_aligned(fitted, tested, classes), halves),
        aligned_squared=_mixed(_aligned(squared, squared_test, classes), halves),
    )


def _squared(table: MatchTable) -> MatchTable:
    return replace(table, score=table.score**2)


def _aligned(
    fitted: tuple[MatchTable, MatchTable], tested: tuple[MatchTable, MatchTable], classes: int
) -> tuple[MatchTable, MatchTable]:
    fast, larger = (
        aligned_table(table, fit_alignment(own, classes)) for own, table in zip(fitted, tested, strict=True)
    )
    return fast, larger


def _mixed(tables: tuple[MatchTable, MatchTable], halves: list[NDArray[np.int64]]) -> float:
    ranking = Ranking(tables)
    return float(np.mean([ranking.map(ranking.once(half)) for half in halves]))
