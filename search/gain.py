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

import signal
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Ridge
from sklearn.neural_network import MLPRegressor
from threadpoolctl import threadpool_limits

from model_repo.escalation import GainModel, Layer
from model_repo.scoring import Ranking
from search.process import end_with_parent
from search.run_folder import RunError

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


def swap_influences(both: Ranking) -> NDArray[np.float64]:
    """Return, per image [n], the first-order change of mAP, times n, when the second table answers it and not
    the first.

    both: the ranking of the two tables, which hold aligned scores.
    """
    total = both.positives.sum(axis=0)
    labelled = np.flatnonzero(total)
    value = np.zeros(len(both.image))
    for c in labelled:
        begin, end = both.starts[c : c + 2]
        value[begin:end] = _influences(both, begin, end) / total[c]
    signed = np.where(both.table == 1, value, -value)
    count = len(both.positives)
    gains = np.bincount(both.image, weights=signed, minlength=count)
    return np.asarray(gains / max(len(labelled), 1) * count)


def _influences(both: Ranking, begin: int, end: int) -> NDArray[np.float64]:
    """Return what each row of one class, from `begin` to `end`, adds to AP times the labels, mean over IoU
    thresholds, where every row of both tables weighs one half.

    A hit adds its own precision. Every later hit's precision rises with a hit and falls with a miss, so what
    a row does to them is a sum over the hits below it. Most rows miss at every threshold: all are taken to do
    so, at once, and where a row hits or is ignored that is taken back.
    """
    value, per_miss = np.zeros(end - begin), np.zeros(end - begin)
    for hits, ignored in zip(both.hits, both.ignored, strict=True):
        hit = hits[slice(*np.searchsorted(hits, (begin, end)))] - begin
        aside = ignored[slice(*np.searchsorted(ignored, (begin, end)))] - begin
        found = np.arange(1, len(hit) + 1) / 2
        seen = np.maximum((hit + 1 - np.searchsorted(aside, hit)) / 2, 0.5)
        by_miss = found / 2 / seen**2
        value[hit] += found / seen + _sum_after((seen - found) / 2 / seen**2) + _sum_after(by_miss)
        value[aside] += np.append(np.cumsum(by_miss[::-1])[::-1], 0.0)[np.searchsorted(hit, aside)]
        per_miss[hit] += by_miss
    return (value - _sum_after(per_miss)) / len(both.hits)


def _sum_after(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return, for each row, the sum over the rows below it."""
    return np.asarray(np.cumsum(values[::-1])[::-1] - values)


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
    with threadpool_limits(1):  # matrices are small, and the number of threads decides about the last bits
        held_out = {kind: np.empty(count, dtype=np.float32) for kind in fits}
        for k in range(FOLDS):
            rest, own = fold != k, fold == k
            for kind, model in _models(fits, features[rest], cut[rest]).items():
                held_out[kind][own] = model.compiled().predict(features[own])
        correlation = {kind: _rank_correlation(predicted, labels) for kind, predicted in held_out.items()}
        best = max(fits, key=lambda kind: correlation[kind] - (MLP_MARGIN if kind == "mlp" else 0.0))
        model = _models({best: fits[best]}, features, cut)[best]
    return FittedGain(model, held_out[best], best, correlation[best])


def _models(
    fits: Mapping[str, _Affine], features: NDArray[np.float32], labels: NDArray[np.float64]
) -> dict[str, GainModel]:
    """Standardize, fit, and write down; six digits are far below what a fold changes."""
    mean = _rounded(features.mean(axis=0))
    scale = _rounded(np.maximum(features.std(axis=0), 1e-3))
    x = np.clip((features - np.asarray(mean)) / np.asarray(scale), -6.0, 6.0)
    return {kind: GainModel(mean=mean, scale=scale, layers=fit(x, labels)) for kind, fit in fits.items()}


class GainFits:
    """Fit gain models here, or in worker processes of one thread each; the models are the same.

    Workers are worth their start when there is much to fit. They end at once on Ctrl-C and with this process.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool = (
            ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin_worker)
            if workers > 1
            else None
        )

    def __enter__(self) -> GainFits:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def submit(
        self, features: NDArray[np.float32], labels: NDArray[np.float64], *, seed: int
    ) -> Callable[[], FittedGain]:
        """Begin a `fit_gain`, and return what waits for it.

        That raises what `fit_gain` does, and RunError when a worker died.
        """
        fit = partial(fit_gain, features, labels, seed=seed)
        if self._pool is None:
            return fit
        return partial(_result_of, self._pool.submit(fit))


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own handler would print where it stood
    end_with_parent()


def _result_of(fit: Future[FittedGain]) -> FittedGain:
    try:
        return fit.result()
    except BrokenProcessPool:
        raise RunError("a process that fits gain models died (out of memory?)") from None


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
