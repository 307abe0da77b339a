"""A bound on what a plan may lose against always running its last stage, with stated confidence.

Learn-then-Test (Angelopoulos et al., 2021): the plans are fixed first, on other images; each one's mean
excess loss is then tested with the Hoeffding–Bentkus p-value, at the level delta divided by the number of
plans. Inverting the test gives the smallest excess that is excluded from above.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from model_repo.frontier import Certificate, NoCertificate, Plan
from model_repo.scoring import best_f1, image_loss
from search.answers import AnswerSet

DELTA = 0.1
CERTIFY_MIN_IMAGES = 400
"""Calibration sets of fewer images are used for fitting as a whole, and nothing is certified."""
_STEP = 0.001


def certified(plans: Sequence[Plan], fits: AnswerSet, held: AnswerSet, calibration_images: int) -> list[Plan]:
    """Return the plans with a certificate each, from images on which nothing was fitted, or with the reason
    for having none."""
    tested = sum(len(plan.stages) > 1 for plan in plans)
    out: list[Plan] = []
    for plan in plans:
        if len(plan.stages) == 1:
            out.append(plan)
        elif not held.truths:
            reason = (
                f"calibration has {calibration_images} images and all were fitted on;"
                f" from {CERTIFY_MIN_IMAGES} on a part is held back to certify"
            )
            out.append(plan.model_copy(update={"certificate": NoCertificate(reason=reason)}))
        else:
            certificate = _certificate(plan, fits, held, DELTA / tested)
            out.append(plan.model_copy(update={"certificate": certificate}))
    return out


def _certificate(plan: Plan, fits: AnswerSet, held: AnswerSet, delta: float) -> Certificate:
    """Bound the plan's mean excess loss over its last stage, each at the score that suits it best.

    Those two scores are fixed on the fitted images: a plan's answers have other aligned scores than its last
    stage's, and whoever uses it sets the threshold for it.
    """
    last = plan.stages[-1].variant
    _, own = best_f1(fits.of_plan(plan))
    _, lasts = best_f1(fits.sides[last].table)
    loss = image_loss(held.of_plan(plan), own)
    excess = np.maximum(loss - image_loss(held.sides[last].table, lasts), 0.0)
    bound = excess_bound(excess, delta)
    return Certificate(
        loss=(
            "1 - F1, mean over IoU 0.50:0.95, of the plan's boxes with aligned score"
            f" >= {own:.4f} over that of its last stage's with >= {lasts:.4f}"
        ),
        images=len(held.truths),
        epsilon=bound,
        delta=DELTA,
        bound=bound,
        empirical=float(excess.mean()),
    )


def excess_bound(excess: NDArray[np.float64], delta: float) -> float:
    """Return the smallest multiple of 0.001 above the mean excess loss, with confidence 1 − delta.

    excess: one value in [0, 1] per image, images drawn independently. Raises ValueError outside [0, 1].
    """
    if not len(excess) or excess.min() < 0 or excess.max() > 1:
        raise ValueError("the excess must be at least one number, all in [0, 1]")
    low, high = math.floor(float(excess.mean()) / _STEP), round(1 / _STEP)
    while high - low > 1:
        middle = (low + high) // 2
        if hoeffding_bentkus_p(float(excess.mean()), len(excess), middle * _STEP) <= delta:
            high = middle
        else:
            low = middle
    return round(high * _STEP, 3)


def hoeffding_bentkus_p(mean: float, count: int, risk: float) -> float:
    """Return the p-value of "the true mean is at least `risk`" for `count` losses in [0, 1]."""
    if risk <= mean:
        return 1.0
    if risk >= 1.0:
        return 0.0
    hoeffding = math.exp(-count * _divergence(mean, risk))
    bentkus = math.e * float(binom.cdf(math.ceil(count * mean), count, risk))
    return min(hoeffding, bentkus, 1.0)


def _divergence(a: float, b: float) -> float:
    """Return the Kullback–Leibler divergence between Bernoulli(a) and Bernoulli(b), 0 ≤ a < b < 1."""
    first = a * math.log(a / b) if a > 0 else 0.0
    return first + (1 - a) * math.log((1 - a) / (1 - b))
