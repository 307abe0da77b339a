"""A bound on what a plan may lose against always running its last stage, with stated confidence.

Learn-then-Test with fixed-sequence testing (Angelopoulos et al., 2021, https://arxiv.org/abs/2110.01052): the
plans and the order in which they are tested are fixed first, on other images, the least risky first. Each
one's mean excess loss is then tested at the whole level delta, and the first that is not rejected ends the
sequence: whatever excess ε is asked for, the probability that any plan certified for it exceeds it is at
most delta, however many plans there are. Inverting the test gives the smallest ε that each plan can be
certified for: the greatest bound of all plans up to it.

The test bets against the claim that the loss is large, image by image (Waudby-Smith and Ramdas, 2021,
https://arxiv.org/abs/2010.09686). It learns how little the loss varies, where Hoeffding–Bentkus reckons with
the most that losses of this mean could vary; most images lose nothing, so its bounds are tighter. It reads
the images in their order, which therefore must be random.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from model_repo.frontier import Certificate, NoCertificate, Plan
from model_repo.scoring import MatchTable, best_f1, image_loss
from search.answers import AnswerSet
from search.run_folder import Progress, Silent

DELTA = 0.1
CERTIFY_MIN_IMAGES = 400
"""Calibration sets of fewer images are used for fitting as a whole, and nothing is certified."""
_STEP = 0.001
_MAX_STAKE = 0.75

Tables = tuple[MatchTable, MatchTable]
"""What a plan answered, and what its last stage alone did."""


def certified(
    plans: Sequence[Plan],
    fits: AnswerSet,
    held: AnswerSet,
    calibration_images: int,
    *,
    progress: Progress | None = None,
) -> list[Plan]:
    """Return the plans with a certificate each, from images on which nothing was fitted, or with the reason
    for having none."""
    certificates: dict[str, Certificate | NoCertificate] = {}
    cascades = [plan for plan in plans if len(plan.stages) > 1]
    if held.truths:
        progress = progress or Silent()
        progress.start("certify", len(cascades))
        tables: list[tuple[Tables, Tables]] = []
        for plan in cascades:
            tables.append((_tables(fits, plan), _tables(held, plan)))
            progress.advance(1)
        tried = in_turn(tables)
        certified_for = in_fixed_sequence([excess for _, _, excess in tried], DELTA)
        for (i, loss, excess), (bound, epsilon) in zip(tried, certified_for, strict=True):
            certificates[cascades[i].name] = Certificate(
                loss=loss.text,
                images=len(excess),
                epsilon=epsilon,
                delta=DELTA,
                bound=bound,
                empirical=float(excess.mean()),
            )
    else:
        reason = (
            f"calibration has {calibration_images} images and all were fitted on;"
            f" from {CERTIFY_MIN_IMAGES} on a part is held back to certify"
        )
        certificates = {plan.name: NoCertificate(reason=reason) for plan in cascades}
    return [
        plan.model_copy(update={"certificate": certificates.get(plan.name, plan.certificate)})
        for plan in plans
    ]


def _tables(answers: AnswerSet, plan: Plan) -> Tables:
    return answers.of_plan(plan), answers.sides[plan.stages[-1].variant].table


@dataclass(frozen=True, slots=True)
class ExcessLoss:
    """What a plan loses over its last stage on an image, each at the score that suits it best.

    Those two scores are fixed on the fitted images: a plan's answers have other aligned scores than its last
    stage's, and whoever uses it sets the threshold for it.
    """

    own: float
    lasts: float

    @classmethod
    def fixed_on(cls, plan: MatchTable, last: MatchTable) -> ExcessLoss:
        """Choose both scores on the images that the plan was fitted on."""
        return cls(best_f1(plan)[1], best_f1(last)[1])

    def of(self, plan: MatchTable, last: MatchTable) -> NDArray[np.float64]:
        """Return the excess loss of each image, [n] in [0, 1]."""
        return np.maximum(image_loss(plan, self.own) - image_loss(last, self.lasts), 0.0)

    @property
    def text(self) -> str:
        """Say what is bounded."""
        return (
            "1 - F1, mean over IoU 0.50:0.95, of the plan's boxes with aligned score"
            f" >= {self.own:.4f} over that of its last stage's with >= {self.lasts:.4f}"
        )


def in_turn(plans: Sequence[tuple[Tables, Tables]]) -> list[tuple[int, ExcessLoss, NDArray[np.float64]]]:
    """Return plans in the order in which they are tested: which it is, its loss, and each image's excess [n].

    plans: per plan the tables on images to fix loss and order on, and those on the images to test on.
    """
    losses = [ExcessLoss.fixed_on(*fixed) for fixed, _ in plans]
    risks = [float(loss.of(*fixed).mean()) for loss, (fixed, _) in zip(losses, plans, strict=True)]
    return [(i, losses[i], losses[i].of(*plans[i][1])) for i in np.argsort(risks, kind="stable").tolist()]


def in_fixed_sequence(excesses: Sequence[NDArray[np.float64]], delta: float) -> list[tuple[float, float]]:
    """Return each plan's own bound, and the smallest ε for which it and all plans before it pass.

    excesses: per plan one value in [0, 1] per image, the images in random order; the plans in an order that
    these images had no part in.
    """
    bounds = [excess_bound(excess, delta) for excess in excesses]
    return list(zip(bounds, accumulate(bounds, max), strict=True))


def excess_bound(excess: NDArray[np.float64], delta: float) -> float:
    """Return the smallest multiple of 0.001 above the mean excess loss, with confidence 1 − delta.

    excess: one value in [0, 1] per image, images drawn independently and in random order. Raises ValueError
    outside [0, 1].
    """
    if not len(excess) or excess.min() < 0 or excess.max() > 1:
        raise ValueError("the excess must be at least one number, all in [0, 1]")
    stakes = _stakes(excess, delta)
    low, high = math.floor(float(excess.mean()) / _STEP), round(1 / _STEP)
    while high - low > 1:
        middle = (low + high) // 2
        if _betting_p(excess, stakes, middle * _STEP) <= delta:
            high = middle
        else:
            low = middle
    return round(high * _STEP, 3)


def _stakes(excess: NDArray[np.float64], delta: float) -> NDArray[np.float64]:
    """Return how much of the capital is bet on each image, by what the images before it showed, [n]."""
    seen = np.arange(1, len(excess) + 1) + 1
    means = (0.5 + np.cumsum(excess)) / seen
    variances = (0.25 + np.cumsum((excess - means) ** 2)) / seen
    before = np.concatenate(([0.25], variances[:-1]))
    stakes = np.sqrt(2 * math.log(1 / delta) / (len(excess) * before))
    return np.asarray(np.minimum(stakes, _MAX_STAKE), dtype=np.float64)


def _betting_p(excess: NDArray[np.float64], stakes: NDArray[np.float64], risk: float) -> float:
    """Return the p-value of "the true mean is at least `risk`": a fair game's capital rarely grows much."""
    log_capital = np.cumsum(np.log1p(stakes * (risk - excess)))
    return math.exp(-max(float(log_capital.max()), 0.0))
