"""Fitting alignments: what share of the IoU thresholds a box of a given raw score turns out to meet.

Isotonic regression of quality on score (Zadrozny and Elkan, 2002), per class, shrunk towards the map of all
classes together where a class was seen rarely. Isotonic maps have plateaus, on which different scores would
tie; a small slope breaks them, so that a model's own ranking within a class stays what it was.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression

from model_repo.alignment import Alignment, Curve
from model_repo.scoring import MatchTable
from model_repo.value import Value

# A class with this many boxes counts as much as all classes together.
SHRINKAGE_BOXES = 100.0
SLOPE = 0.01
RELIABILITY_BINS = 15
_KNOTS = np.unique(np.concatenate(([0.0, 0.005, 0.01, 0.02, 0.03], np.linspace(0.05, 1.0, 39)))).round(4)


def fit_alignment(table: MatchTable, classes: int) -> Alignment:
    """Fit one curve per class from the matches of raw answers; the identity when nothing was detected."""
    counted = ~table.ignore.any(axis=1)
    score, label = table.score[counted].astype(np.float64), table.label[counted]
    quality = table.hit[counted].mean(axis=1)
    if not len(score):
        return Alignment.identity(classes)
    pooled = _isotonic(score, quality)
    curves = []
    for c in range(classes):
        own = label == c
        values = pooled
        if own.any():
            # Boxes of next to no score say nothing about the curve where it matters.
            weight = float((score[own] >= 0.05).sum())
            share = weight / (weight + SHRINKAGE_BOXES)
            values = share * _isotonic(score[own], quality[own]) + (1 - share) * pooled
        sloped = (1 - SLOPE) * values + SLOPE * _KNOTS
        curves.append(Curve(score=tuple(_KNOTS.tolist()), quality=tuple(np.round(sloped, 6).tolist())))
    return Alignment(curves=tuple(curves), images=table.images)


def _isotonic(score: NDArray[np.float64], quality: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the isotonic fit at the knots."""
    fit = IsotonicRegression(y_min=0.0, y_max=1.0, increasing=True, out_of_bounds="clip")
    return np.asarray(fit.fit(score, quality).predict(_KNOTS), dtype=np.float64)


def aligned_table(table: MatchTable, alignment: Alignment) -> MatchTable:
    """Return the table under aligned scores; matches stay, since the order within a class does."""
    score = np.empty_like(table.score)
    for label in np.unique(table.label):
        own = table.label == label
        score[own] = alignment.curves[int(label)].apply(table.score[own])
    return MatchTable(table.image, table.label, score, table.hit, table.ignore, table.positives)


class Bin(Value):
    """Boxes of about the same score: how many, their mean score and the mean quality that they turned out to
    have."""

    boxes: int
    score: float
    quality: float


def reliability(table: MatchTable, bins: int = RELIABILITY_BINS) -> tuple[Bin, ...]:
    """Return up to `bins` groups of equally many boxes, least score first; none where nothing was detected.

    The quality of a box is the share of the IoU thresholds that it meets, which is what an aligned score
    claims.
    """
    counted = ~table.ignore.any(axis=1)
    score, quality = table.score[counted].astype(np.float64), table.hit[counted].mean(axis=1)
    order = np.argsort(score, kind="stable")
    groups = [group for group in np.array_split(order, bins) if len(group)]
    return tuple(
        Bin(boxes=len(group), score=float(score[group].mean()), quality=float(quality[group].mean()))
        for group in groups
    )


def calibration_error(bins: Sequence[Bin]) -> float:
    """Return the mean distance of score and quality over boxes in groups; 0 where nothing was detected."""
    boxes = sum(group.boxes for group in bins)
    return sum(group.boxes * abs(group.score - group.quality) for group in bins) / max(boxes, 1)
