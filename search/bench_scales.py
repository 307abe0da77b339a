"""Does a cascade suffer when its models score on different scales?

Two detectors trained apart are published and calibrated as they are, and with the larger's scores squared.
On test each set's own rule sends the same share of the frames on: what squaring costs then is what alignment
leaves of the difference. Beside it stands what raw scores would give: the frames that the first set sends on,
answered and fused under the scores that the models gave.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_repo.fusion import Fusion
from model_repo.publish import Repository
from model_repo.runtime.select import default_runtime
from model_repo.scoring import Ranking, mean_precision
from search.answers import AnswerSet
from search.artifacts import cores
from search.bench_routing import Asked, PairKey, ask_split, gain_models
from search.data.coco import Dataset
from search.routing_claims import Interval
from search.run_folder import Progress, RunError
from search.targets import Targets

SHARES = (0.2, 0.4, 0.6)
MOST_LOST = 0.002
LEAST_GAP = 0.05
"""By how much mAP the larger net must lead: where there is nothing to gain there is nothing to lose."""
RESAMPLES = 100


@dataclass(frozen=True, slots=True)
class ScaleRow:
    """mAP with a share of the frames sent on, by raw and by aligned scores, as they are and with the larger's
    squared; lost: what squaring costs the aligned cascade, with its interval over resampled frames."""

    share: float
    raw: float
    raw_squared: float
    aligned: float
    aligned_squared: float
    lost: Interval


@dataclass(frozen=True, slots=True)
class ScaleResult:
    """What was found on `frames` test frames: the mAP of each net alone, and of both together by share.

    fusion: of the two sets' plans.
    """

    frames: int
    small_map: float
    large_map: float
    fusion: tuple[Fusion, Fusion]
    rows: tuple[ScaleRow, ...]

    @property
    def holds(self) -> bool:
        """Return whether squared scores cost an aligned cascade next to nothing at every share."""
        return all(row.lost.value <= MOST_LOST for row in self.rows)


@dataclass(frozen=True, slots=True, eq=False)
class _Set:
    """A published set on test: what its nets answered, the pair that its plans ask, the gains [n] that its
    rule predicts."""

    asked: Asked
    key: PairKey
    gains: NDArray[np.float32]

    def sent_on(self, share: float) -> NDArray[np.int64]:
        """Return at which stage each frame ends, [n], when exactly a share goes on; the first of equals."""
        ends = np.zeros(len(self.gains), np.int64)
        ends[np.argsort(-self.gains, kind="stable")[: round(share * len(ends))]] = 1
        return ends


def scales(
    plain: Repository,
    squared: Repository,
    dataset: Dataset,
    progress: Progress,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> ScaleResult:
    """Compare on test the cascades of two nets as they are and with the larger's scores squared.

    plain, squared: as `search.two_nets.published_twice` returns them. Raises RunError where the two nets make
    no plan of two stages, or the larger one leads by less than LEAST_GAP.
    """
    sets = _asked(plain, dataset, progress), _asked(squared, dataset, progress)
    small_map, large_map = (
        mean_precision(sets[0].asked.answers.sides[name].table) for name in sets[0].key[:2]
    )
    if large_map - small_map < LEAST_GAP:
        raise RunError(
            f"{plain.root}: alone the nets reach {small_map:.3f} and {large_map:.3f} mAP, and the larger one"
            f" must lead by {LEAST_GAP}; train both for longer"
        )
    count = len(sets[0].gains)
    rng = np.random.default_rng([seed, 0x5C])
    weights = [np.bincount(rng.integers(0, count, count), minlength=count) for _ in range(resamples)]
    progress.start("compare", len(SHARES))
    rows = []
    for share in SHARES:
        rows.append(_row(*sets, share, weights))
        progress.advance(1)
    return ScaleResult(
        frames=count,
        small_map=small_map,
        large_map=large_map,
        fusion=(sets[0].key[2], sets[1].key[2]),
        rows=tuple(rows),
    )


def _asked(repository: Repository, dataset: Dataset, progress: Progress) -> _Set:
    frontier, runtime = repository.frontier, default_runtime()
    found = next(iter(gain_models(frontier, runtime).items()), None)
    if found is None:
        raise RunError(f"{repository.root}: no plan asks one net after the other; train both for longer")
    key, gain = found
    with Targets(repository.root).engine(runtime, parallelism=cores()) as engine:
        for variant in frontier.variants:
            engine.load(repository.root, variant)
        asked = ask_split(engine, frontier.variants, dataset, runtime, progress)
    return _Set(asked, key, gain.compiled().predict(asked.answers.sides[key[0]].features))


def _row(plain: _Set, squared: _Set, share: float, weights: Sequence[NDArray[np.int64]]) -> ScaleRow:
    ends = plain.sent_on(share)
    before, after = _ranking(plain.asked.answers, plain.key), _ranking(squared.asked.answers, squared.key)
    once, once_squared = before.once(ends), after.once(squared.sent_on(share))
    raw = _ranking(plain.asked.raw, plain.key)
    raw_squared = _ranking(squared.asked.raw, (*squared.key[:2], plain.key[2]))
    aligned, aligned_squared = before.map(once), after.map(once_squared)
    return ScaleRow(
        share=share,
        raw=raw.map(raw.once(ends)),
        raw_squared=raw_squared.map(raw_squared.once(ends)),
        aligned=aligned,
        aligned_squared=aligned_squared,
        lost=Interval.of(
            aligned - aligned_squared,
            [before.map(once * drawn) - after.map(once_squared * drawn) for drawn in weights],
        ),
    )


def _ranking(answers: AnswerSet, key: PairKey) -> Ranking:
    return answers.ranking(key[:2], key[2])
