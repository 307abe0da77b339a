"""What the predicted gain is compared with: other ways to choose the frames that go on, and an upper bound.

Every rule gives each image a priority; at a rate, that share of the images, those of highest priority, goes
on. The label oracle ranks by the labels that gain models learn from; no rule that sees only the fast answer
can be expected to reach it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from model_repo.escalation import FEATURES
from model_repo.scoring import Ranking
from model_repo.value import Value
from search.answers import Answered

Rival = Literal["gain", "oracle", "random", "max score", "mean score", "mid-score count"]
BASELINES: tuple[Rival, ...] = ("random", "max score", "mean score", "mid-score count")
RATES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
REPORTED_RATE = 0.2
RANDOM_DRAWS = 5
LEAST_GAP = 0.005
_STRONG = 0.1
_MID = ("above_0.30", "above_0.70")


class RuleCurve(Value):
    """A pair's mAP under one rule at each of RATES."""

    rule: Rival
    map: tuple[float, ...]

    @property
    def average(self) -> float:
        """The mean of mAP over all rates."""
        return float(np.trapezoid(self.map, RATES))

    @property
    def area(self) -> float | None:
        """The mean over all rates of the share of the gap that is recovered: 0.5 is what chance gives. None
        where the gap is too small to speak of shares."""
        return self._of_gap(self.average)

    def recovered(self, rate: float) -> float | None:
        """Return the share of the gap, from nothing escalated to all, recovered at one of RATES."""
        return self._of_gap(self.map[RATES.index(rate)])

    def _of_gap(self, value: float) -> float | None:
        none, every = self.map[0], self.map[-1]
        return (value - none) / (every - none) if every - none >= LEAST_GAP else None


def priorities(
    fast: Answered, gains: NDArray[np.float32], labels: NDArray[np.float64], *, seed: int
) -> dict[Rival, list[NDArray[np.float64]]]:
    """Return each rule's priorities [n], several draws for chance; a stable order breaks ties.

    gains, labels: predicted and true gains [n] of the images that `fast` answered.
    """
    rng = np.random.default_rng([seed, 0x41])
    strong = [answer.score[answer.score >= _STRONG] for answer in fast.detections]
    above, far_above = (fast.features[:, FEATURES.index(name)].astype(np.float64) for name in _MID)
    return {
        "gain": [gains.astype(np.float64)],
        "oracle": [labels],
        "random": [rng.permutation(len(gains)).astype(np.float64) for _ in range(RANDOM_DRAWS)],
        "max score": [-fast.features[:, FEATURES.index("score_0")].astype(np.float64)],
        "mean score": [np.array([-float(score.mean()) if len(score) else 0.0 for score in strong])],
        "mid-score count": [above - far_above],
    }


def rule_curves(
    in_hand: Ranking,
    ranked: dict[Rival, list[NDArray[np.float64]]],
    weights: NDArray[np.int64] | None = None,
) -> tuple[RuleCurve, ...]:
    """Score every rule at every rate.

    in_hand: what is answered without and after the larger model. weights: how often each image stands in a
    resample [n]; a rate then counts the images of the resample.
    """
    stands = np.ones(len(in_hand.positives), dtype=np.int64) if weights is None else weights
    ends = [in_hand.map(in_hand.once(end) * stands) for end in (np.zeros_like(stands), np.ones_like(stands))]
    curves = []
    for rule, draws in ranked.items():
        inner = [
            float(np.mean([_at(in_hand, priority, rate, stands) for priority in draws]))
            for rate in RATES[1:-1]
        ]
        curves.append(RuleCurve(rule=rule, map=(ends[0], *inner, ends[1])))
    return tuple(curves)


def curve_of(curves: Sequence[RuleCurve], rule: Rival) -> RuleCurve:
    """Return a rule's curve; raises StopIteration when it is not there."""
    return next(curve for curve in curves if curve.rule == rule)


def _at(in_hand: Ranking, priority: NDArray[np.float64], rate: float, stands: NDArray[np.int64]) -> float:
    order = np.argsort(-priority, kind="stable")
    going = np.zeros_like(stands)
    going[order[np.cumsum(stands[order]) <= rate * stands.sum() + 1e-9]] = 1
    return in_hand.map(in_hand.once(going) * stands)
