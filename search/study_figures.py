"""The figures of a study, from what its models answered: areas, mAP within latency budgets, rank agreement.

All intervals come from one set of resamples of the test images, the same for every model, so that the
difference of two arms is taken image by image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_repo import scoring
from model_repo.scoring import MatchTable, mean_precision
from search.study_values import Arm, Interval, Model, Ranking

_BUDGETS = 200
_RESAMPLES = 300

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """A model with its matches on valid and on test."""

    architecture: str
    p50_ms: float
    valid: MatchTable
    test: MatchTable


@dataclass(frozen=True, slots=True)
class ArmModels:
    """An arm's models and cost; `sets` are the choices of models over which its figures are averaged, each a
    tuple of positions (one with all of them, but for an arm of random draws)."""

    name: str
    minutes: float
    models: tuple[Judged, ...]
    sets: tuple[tuple[int, ...], ...]


def within(models: Sequence[int], p50_ms: Floats, valid: Floats, budgets_ms: Floats) -> NDArray[np.int64]:
    """Return for each budget [b] the model that valid chooses among those fast enough, -1 where none is."""
    order = sorted(models, key=lambda i: (p50_ms[i], -valid[i], i))
    chosen = np.full(len(budgets_ms), -1, dtype=np.int64)
    best = -1
    for i in order:
        if best < 0 or valid[i] > valid[best]:
            best = i
            chosen[budgets_ms >= p50_ms[i]] = i
    return chosen


def compared(arms: Sequence[ArmModels], budgets_ms: Sequence[float], *, seed: int) -> tuple[Arm, ...]:
    """Return every arm's figures; the first arm is the one that the others are held against.

    Its fastest and slowest model are the ends of the area.
    """
    ends = [model.p50_ms for model in arms[0].models]
    spread = np.geomspace(min(ends), max(ends), _BUDGETS)
    drawn = _resamples(arms[0].models[0].test.images, seed)
    budgets = np.asarray(budgets_ms)
    found: list[tuple[ArmModels, Floats, Floats, Floats]] = []
    for arm in arms:
        maps = np.array([_maps(model.test, drawn) for model in arm.models])
        p50_ms = np.array([model.p50_ms for model in arm.models])
        valid = np.array([mean_precision(model.valid) for model in arm.models])
        of = np.mean([_each(within(one, p50_ms, valid, spread), maps) for one in arm.sets], axis=(0, 1))
        at = np.mean([_each(within(one, p50_ms, valid, budgets), maps) for one in arm.sets], axis=0)
        found.append((arm, maps, of, at))
    _, _, area_before, at_before = found[0]
    return tuple(
        Arm(
            name=arm.name,
            minutes=arm.minutes,
            models=tuple(
                Model(
                    architecture=model.architecture,
                    valid_map=mean_precision(model.valid),
                    test_map=_interval(row),
                    p50_ms=model.p50_ms,
                )
                for model, row in zip(arm.models, maps, strict=True)
            ),
            area=_interval(area),
            at_budgets=tuple(_interval(row) for row in at),
            area_ahead=_interval(area - area_before),
            at_budgets_ahead=tuple(_interval(row) for row in at - at_before),
        )
        for arm, maps, area, at in found
    )


def ranking(
    architectures: Sequence[str], estimated: Sequence[MatchTable], alone: Sequence[MatchTable], *, seed: int
) -> Ranking:
    """Return how the estimates [n] on valid rank against trainings of their own [n] on the same images."""
    from scipy.stats import kendalltau

    drawn = _resamples(estimated[0].images, seed)
    ours = np.array([_maps(table, drawn) for table in estimated])
    theirs = np.array([_maps(table, drawn) for table in alone])
    taus = np.array([kendalltau(ours[:, k], theirs[:, k]).statistic for k in range(ours.shape[1])])
    return Ranking(
        architectures=tuple(architectures),
        estimated=tuple(float(value) for value in ours[:, 0]),
        alone=tuple(float(value) for value in theirs[:, 0]),
        tau=_interval(taus),
        p_value=float(kendalltau(ours[:, 0], theirs[:, 0]).pvalue),
        worse=float(np.mean(theirs[:, 0] - ours[:, 0])),
    )


def _resamples(images: int, seed: int) -> NDArray[np.int64]:
    """Return how often each image stands in each sample, [1 + resamples, images]; first the sample itself."""
    rng = np.random.default_rng([seed, 0x57D])
    drawn = rng.multinomial(images, np.full(images, 1.0 / images), size=_RESAMPLES)
    return np.vstack((np.ones((1, images), np.int64), drawn))


def _maps(table: MatchTable, drawn: NDArray[np.int64]) -> Floats:
    """Return mAP on each of the samples."""
    rows = scoring.Ranking([table])
    return np.array([rows.map(weights[None]) for weights in drawn])


def _each(chosen: NDArray[np.int64], maps: Floats) -> Floats:
    """Return [budgets, samples] the chosen models' mAP, 0 where none was."""
    return np.where(chosen[:, None] >= 0, maps[chosen], 0.0)


def _interval(samples: Floats) -> Interval:
    """Return the first sample's value with the 95 % interval of the others."""
    low, high = np.quantile(samples[1:], (0.025, 0.975))
    return Interval(value=float(samples[0]), low=float(low), high=float(high))
