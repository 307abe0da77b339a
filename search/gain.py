"""What a larger model would add to a frame: the labels, and the small model that learns to predict them.

The label is ORIC's reward ("offloading with rewards in context"): the change of the data set's mAP when the
larger model answers this image. Scoring the whole set again for every image and pair of models is too slow,
so the change is taken to first order: AP is a function of the ranked list, and its derivative with respect to
adding a hit or a miss at a score (its influence function) is computed once for the ranking in which both
models answer with weight one half, the middle between escalating nothing and everything. An image's label
is the sum over the boxes that its larger answer adds minus those that its fast answer takes away.
`model_repo.scoring.swap_gains` is the exact form; a test holds the two together.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Ridge
from sklearn.neural_network import MLPRegressor

from model_repo.escalation import GainModel, Layer
from model_repo.scoring import MatchTable

FOLDS = 5
MIN_IMAGES = 2 * FOLDS
RIDGE_ALPHAS = (30.0, 300.0, 3000.0)
HIDDEN = 16
# An MLP has some 800 numbers: on fewer frames it learns them by heart.
MLP_MIN_IMAGES = 300
# What the MLP must add in rank correlation before its size and its doubt are worth it.
MLP_MARGIN = 0.01


@dataclass(frozen=True, slots=True)
class FittedGain:
    """A gain model, its predictions [n] for images it was not fitted on, and how well they rank labels."""

    model: GainModel
    held_out: NDArray[np.float32]
    kind: str
    rank_correlation: float


def swap_influences(fast: MatchTable, larger: MatchTable) -> NDArray[np.float64]:
    """Return, per image [n], the first-order change of mAP, times n, when `larger` answers it and not `fast`.

    Both tables hold aligned scores and are over the same images.
    """
    total = fast.positives.sum(axis=0)
    classes = np.flatnonzero(total)
    gains = np.zeros(fast.images)
    for c in classes:
        own, other = fast.label == c, larger.label == c
        score = np.concatenate((fast.score[own], larger.score[other]))
        order = np.argsort(-score, kind="stable")
        hit = np.concatenate((fast.hit[own], larger.hit[other]))[order].astype(np.float64)
        miss = np.concatenate(
            (~fast.hit[own] & ~fast.ignore[own], ~larger.hit[other] & ~larger.ignore[other])
        )[order].astype(np.float64)
        sign = np.concatenate((-np.ones(own.sum()), np.ones(other.sum())))[order]
        image = np.concatenate((fast.image[own], larger.image[other]))[order]
        hits, misses = np.cumsum(hit, axis=0) / 2, np.cumsum(miss, axis=0) / 2
        seen = np.maximum(hits + misses, 0.5)
        # Later hits' precision falls with every miss before them and rises with every hit.
        after_hit = _sum_after(hit / 2 * misses / seen**2)
        after_miss = _sum_after(hit / 2 * hits / seen**2)
        value = hit * (hits / seen + after_hit) - miss * after_miss
        gains += np.bincount(image, weights=sign * value.mean(axis=1) / total[c], minlength=len(gains))
    return gains / max(len(classes), 1) * len(gains)


def _sum_after(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return, for each row, the sum over the rows below it."""
    return np.asarray(np.cumsum(values[::-1], axis=0)[::-1] - values)


class _Affine(Protocol):
    """A fitted regressor as layers over standardized features."""

    def __call__(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[Layer, ...]:
        """Fit standardized features [n, f] to labels [n] and return the layers."""


def fit_gain(features: NDArray[np.float32], labels: NDArray[np.float64], *, seed: int) -> FittedGain:
    """Fit the gain model that ranks best in cross-validation: ridge regression, or a small MLP.

    features [n, f] of the fast answers, labels [n]. Labels are cut at their 1st and 99th percentile: a few
    images on which AP jumps would otherwise own the fit. Raises ValueError with fewer images than folds.
    """
    count = len(labels)
    if count < MIN_IMAGES:
        raise ValueError(f"{count} images are too few to fit a gain model on, {MIN_IMAGES} are needed")
    cut = np.clip(labels, *np.quantile(labels, (0.01, 0.99)))
    fold = np.random.default_rng([seed, 0x6A1]).permutation(count) % FOLDS
    fits: dict[str, _Affine] = {f"ridge {alpha:g}": _ridge(alpha) for alpha in RIDGE_ALPHAS}
    if count >= MLP_MIN_IMAGES:
        fits["mlp"] = _mlp(seed)
    held_out = {kind: _held_out(fit, features, cut, fold) for kind, fit in fits.items()}
    correlation = {kind: _rank_correlation(predicted, labels) for kind, predicted in held_out.items()}
    best = max(fits, key=lambda kind: correlation[kind] - (MLP_MARGIN if kind == "mlp" else 0.0))
    return FittedGain(
        _model(fits[best], features, cut), held_out[best].astype(np.float32), best, correlation[best]
    )


def _held_out(
    fit: _Affine, features: NDArray[np.float32], labels: NDArray[np.float64], fold: NDArray[np.int64]
) -> NDArray[np.float32]:
    out = np.empty(len(labels), dtype=np.float32)
    for k in range(FOLDS):
        model = _model(fit, features[fold != k], labels[fold != k])
        out[fold == k] = model.compiled().predict(features[fold == k])
    return out


def _model(fit: _Affine, features: NDArray[np.float32], labels: NDArray[np.float64]) -> GainModel:
    """Standardize, fit, and write down; six digits are far below what a fold changes."""
    mean = _rounded(features.mean(axis=0))
    scale = _rounded(np.maximum(features.std(axis=0), 1e-3))
    x = np.clip((features - np.asarray(mean)) / np.asarray(scale), -6.0, 6.0)
    return GainModel(mean=mean, scale=scale, layers=fit(x, labels))


def _ridge(alpha: float) -> _Affine:
    def fit(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[Layer, ...]:
        model = Ridge(alpha=alpha).fit(x, y)
        return (_layer(np.asarray(model.coef_)[:, None], np.asarray([model.intercept_])),)

    return fit


def _mlp(seed: int) -> _Affine:
    def fit(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[Layer, ...]:
        spread = float(y.std()) or 1.0
        model = MLPRegressor(
            hidden_layer_sizes=(HIDDEN,),
            alpha=3.0,
            learning_rate_init=3e-3,
            max_iter=60,
            random_state=seed,
        )
        with warnings.catch_warnings():
            # Few epochs are its regularization.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x, y / spread)
        first, last = (_layer(w, b) for w, b in zip(model.coefs_, model.intercepts_, strict=True))
        last = Layer(
            weight=tuple(_rounded(np.asarray(row) * spread) for row in last.weight),
            bias=_rounded(np.asarray(last.bias) * spread),
        )
        return first, last

    return fit


def _layer(weight_in_out: NDArray[np.float64], bias: NDArray[np.float64]) -> Layer:
    return Layer(weight=tuple(_rounded(row) for row in weight_in_out.T), bias=_rounded(bias))


def _rounded(values: NDArray[np.floating]) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values)


def _rank_correlation(predicted: NDArray[np.float32], labels: NDArray[np.float64]) -> float:
    if np.ptp(predicted) == 0 or np.ptp(labels) == 0:
        return 0.0
    return float(spearmanr(predicted, labels).statistic)
