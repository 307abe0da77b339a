"""Two models that may be asked one after the other: what the second would add, and how both answers join."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from model_repo.frontier import Plan
from model_repo.fusion import Fusion
from model_repo.plans import escalate, score_stages, threshold_for_share
from model_repo.scoring import Ranking
from model_repo.value import Value
from search.answers import AnswerSet
from search.gain import FittedGain, GainFits, swap_influences
from search.rivals import RuleCurve, priorities, rule_curves

FUSIONS: tuple[Fusion, ...] = ("replace", "wbf")


class PairReport(Value):
    """What was found out about a pair, on images that the gain model did not see: the fusion that was better,
    by how much mAP, and what other rules would make of it (nothing where no plan asks the pair)."""

    fast: str
    larger: str
    gain: str
    rank_correlation: float
    fusion: Fusion
    replace_map: float
    wbf_map: float
    rules: tuple[RuleCurve, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Two variants by name: the gain model between them, the better fusion, and the ranking of its answers in
    hand."""

    fast: str
    larger: str
    gain: FittedGain
    fusion: Fusion
    in_hand: Ranking
    report: PairReport


@dataclass(frozen=True, slots=True, eq=False)
class PairFit:
    """A pair whose gain models are being fitted, one for each fusion, to what that fusion's answer adds."""

    fast: str
    larger: str
    in_hand: dict[Fusion, Ranking]
    gains: dict[Fusion, Callable[[], FittedGain]]

    @classmethod
    def begin(cls, fast: str, larger: str, answers: AnswerSet, fits: GainFits, seed: int) -> PairFit:
        """Begin to fit a pair; raises ValueError with too few images, here or at the end."""
        features = answers.sides[fast].features
        in_hand = {fusion: answers.ranking((fast, larger), fusion) for fusion in FUSIONS}
        gains = {
            fusion: fits.submit(features, swap_influences(ranking), seed=seed)
            for fusion, ranking in in_hand.items()
        }
        return cls(fast, larger, in_hand, gains)

    def end(self) -> Pair:
        """Wait for both gain models, and keep the fusion that is better when half of the frames go on."""
        gains = {fusion: wait() for fusion, wait in self.gains.items()}
        maps: dict[Fusion, float] = {}
        for fusion, gain in gains.items():
            half = escalate(gain.held_out, threshold_for_share(gain.held_out, 0.5)).astype(np.int64)
            maps[fusion] = score_stages(self.in_hand[fusion], half).map
        better: Fusion = "wbf" if maps["wbf"] > maps["replace"] else "replace"
        report = PairReport(
            fast=self.fast,
            larger=self.larger,
            gain=gains[better].kind,
            rank_correlation=gains[better].rank_correlation,
            fusion=better,
            replace_map=maps["replace"],
            wbf_map=maps["wbf"],
            rules=(),
        )
        return Pair(self.fast, self.larger, gains[better], better, self.in_hand[better], report)


def fit_pairs(
    wanted: Sequence[tuple[str, str]], answers: AnswerSet, seed: int, *, workers: int = 1
) -> Iterator[Pair]:
    """Yield the pairs (fast, larger) in the order asked, fitted here or in worker processes: the same pairs,
    however many there are.

    Answers are fused and matched here meanwhile, for few pairs ahead: each holds two rankings of all answers.
    Raises ValueError with too few images, RunError when a worker died.
    """
    waiting: deque[PairFit] = deque()
    with GainFits(workers) as fits:
        for fast, larger in wanted:
            waiting.append(PairFit.begin(fast, larger, answers, fits, seed))
            if len(waiting) >= workers:
                yield _ended(waiting.popleft(), answers)
        while waiting:
            yield _ended(waiting.popleft(), answers)


def _ended(fit: PairFit, answers: AnswerSet) -> Pair:
    pair = fit.end()
    if pair.fusion == "replace":
        answers.forget((pair.fast, pair.larger))
    return pair


def report_pair(pair: Pair, plans: Sequence[Plan], fits: AnswerSet, seed: int) -> PairReport:
    """Return what was found out about a pair; other rules are tried where a plan asks one after the other."""
    asked = (pairwise([stage.variant for stage in plan.stages]) for plan in plans)
    if not any((pair.fast, pair.larger) in steps for steps in asked):
        return pair.report
    labels = swap_influences(pair.in_hand)
    ranked = priorities(fits.sides[pair.fast], pair.gain.held_out, labels, seed=seed)
    return pair.report.model_copy(update={"rules": rule_curves(pair.in_hand, ranked)})
