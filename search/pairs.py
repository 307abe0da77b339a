"""Two models that may be asked one after the other: what the second would add, and how both answers join."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from model_repo.frontier import Plan
from model_repo.fusion import Fusion
from model_repo.plans import escalate, score_stages, threshold_for_share
from model_repo.value import Value
from search.answers import AnswerSet
from search.gain import FittedGain, fit_gain, swap_influences
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
    """Two variants by name: the gain model between them, and the better fusion."""

    fast: str
    larger: str
    gain: FittedGain
    fusion: Fusion
    report: PairReport


def fit_pair(fast: str, larger: str, fits: AnswerSet, seed: int) -> Pair:
    """Fit a gain model for each fusion, to what that fusion's answer adds, and keep the fusion that is better
    when half of the frames go on. Raises ValueError with too few images."""
    first = fits.sides[fast]
    gains: dict[Fusion, FittedGain] = {}
    maps: dict[Fusion, float] = {}
    for fusion in FUSIONS:
        tables = fits.in_hand((fast, larger), fusion)
        gain = fit_gain(first.features, swap_influences(first.table, tables[1]), seed=seed)
        half = escalate(gain.held_out, threshold_for_share(gain.held_out, 0.5)).astype(np.int64)
        gains[fusion], maps[fusion] = gain, score_stages(tables, half).score.map
    better: Fusion = "wbf" if maps["wbf"] > maps["replace"] else "replace"
    report = PairReport(
        fast=fast,
        larger=larger,
        gain=gains[better].kind,
        rank_correlation=gains[better].rank_correlation,
        fusion=better,
        replace_map=maps["replace"],
        wbf_map=maps["wbf"],
        rules=(),
    )
    return Pair(fast, larger, gains[better], better, report)


def report_pair(pair: Pair, plans: Sequence[Plan], fits: AnswerSet, seed: int) -> PairReport:
    """Return what was found out about a pair; other rules are tried where a plan asks one after the other."""
    asked = (pairwise([stage.variant for stage in plan.stages]) for plan in plans)
    if not any((pair.fast, pair.larger) in steps for steps in asked):
        return pair.report
    first, in_hand = fits.sides[pair.fast], fits.in_hand((pair.fast, pair.larger), pair.fusion)[1]
    ranked = priorities(first, pair.gain.held_out, swap_influences(first.table, in_hand), seed=seed)
    return pair.report.model_copy(update={"rules": rule_curves(first.table, in_hand, ranked)})
