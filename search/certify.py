"""A bound on what a plan may lose against always running its last stage, with stated confidence.

Learn-then-Test (Angelopoulos et al., 2021): the plans are fixed first, on other images; each one's mean
excess loss is then tested with the Hoeffding–Bentkus p-value, at the level delta divided by the number of
plans. Inverting the test gives the smallest excess that is excluded from above.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

DELTA = 0.1
_STEP = 0.001


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
