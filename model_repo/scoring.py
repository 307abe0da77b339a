"""COCO accuracy, the one scorer: of a model, of a plan, of the answers that a load test collected.

Boxes are matched to labels by hotcoco (a COCO evaluator in Rust, held to pycocotools by a test), once per
set of answers. What follows works on the table of matches: a plan's answers are rows of several tables, so
scoring thousands of plans, swapping one image's answer, or resampling images repeats no matching.

Metrics are COCO's: AP at 101 recall points, mean over classes and over IoU 0.50, 0.55 … 0.95, at most 100
boxes an image and class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from hotcoco import COCO, COCOeval
from numpy.typing import NDArray

from model_repo.detections import Detections

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0.0, 1.0, 101)
_TINY = float(np.spacing(1))


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """The labels of one image: xyxy float32 [n, 4] in pixels, label int64 [n], crowd bool [n]."""

    xyxy: NDArray[np.float32]
    label: NDArray[np.int64]
    crowd: NDArray[np.bool_]

    def __post_init__(self) -> None:
        count = len(self.label)
        if self.xyxy.shape != (count, 4) or self.crowd.shape != (count,):
            raise ValueError(f"xyxy {self.xyxy.shape}, crowd {self.crowd.shape} do not fit {count} labels")


@dataclass(frozen=True, slots=True)
class Score:
    """mAP@[.5:.95], mAP@.5, and the best micro F1 at IoU 0.5 with the score threshold that gives it."""

    map: float
    map50: float
    f1: float
    f1_threshold: float


@dataclass(frozen=True, slots=True, eq=False)
class MatchTable:
    """Every detection of a set of images with what it met, one row each, grouped by image in order.

    image int64 [d], label int64 [d], score float32 [d]; hit bool [d, 10] and ignore bool [d, 10] per IoU
    threshold; positives int64 [images, classes] counts the labels that are no crowd.
    """

    image: NDArray[np.int64]
    label: NDArray[np.int64]
    score: NDArray[np.float32]
    hit: NDArray[np.bool_]
    ignore: NDArray[np.bool_]
    positives: NDArray[np.int64]

    @property
    def images(self) -> int:
        """Return the number of images, those without a detection included."""
        return len(self.positives)


def match(truths: Sequence[Truth], predictions: Sequence[Detections], classes: int) -> MatchTable:
    """Match predictions to labels by COCO's rules; raises ValueError when the two are not of one length."""
    if len(truths) != len(predictions):
        raise ValueError(f"{len(truths)} images with labels, {len(predictions)} with predictions")
    positives = np.zeros((len(truths), classes), dtype=np.int64)
    for i, truth in enumerate(truths):
        np.add.at(positives[i], truth.label[~truth.crowd], 1)
    if not any(len(p) for p in predictions):
        return MatchTable(
            np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32),
            np.empty((0, 10), np.bool_), np.empty((0, 10), np.bool_), positives,
        )  # fmt: skip
    evaluated = _evaluate(truths, predictions, classes)
    parts = sorted(
        (entry for entry in evaluated.eval_imgs if entry is not None),
        key=lambda entry: (entry["image_id"], entry["category_id"]),
    )
    image, label, score, hit, ignore = [], [], [], [], []
    for entry in parts:
        scores = np.asarray(entry["dtScores"], dtype=np.float32)
        if not len(scores):
            continue
        image.append(np.full(len(scores), entry["image_id"] - 1, dtype=np.int64))
        label.append(np.full(len(scores), entry["category_id"] - 1, dtype=np.int64))
        score.append(scores)
        ignored = np.asarray(entry["dtIgnore"], dtype=np.bool_).T
        ignore.append(ignored)
        hit.append((np.asarray(entry["dtMatches"]).T > 0) & ~ignored)
    return MatchTable(
        np.concatenate(image), np.concatenate(label), np.concatenate(score),
        np.concatenate(hit), np.concatenate(ignore), positives,
    )  # fmt: skip


def _evaluate(truths: Sequence[Truth], predictions: Sequence[Detections], classes: int) -> COCOeval:
    counts = [len(truth.label) for truth in truths]
    boxes = np.concatenate([truth.xyxy for truth in truths]).astype(np.float64).reshape(-1, 4)
    boxes[:, 2:] -= boxes[:, :2]
    ground = COCO.from_arrays(
        [{"id": i + 1, "width": 1, "height": 1} for i in range(len(truths))],
        [{"id": c + 1, "name": str(c)} for c in range(classes)],
        np.repeat(np.arange(len(truths)) + 1, counts),
        np.concatenate([truth.label for truth in truths]) + 1,
        boxes,
        iscrowd=np.concatenate([truth.crowd for truth in truths]),
    )
    found = np.concatenate([p.xyxy for p in predictions]).astype(np.float64)
    found[:, 2:] -= found[:, :2]
    rows = np.column_stack(
        (
            np.repeat(np.arange(len(predictions)) + 1, [len(p) for p in predictions]),
            found,
            np.concatenate([p.score for p in predictions]),
            np.concatenate([p.label for p in predictions]) + 1,
        )
    )
    evaluation = COCOeval(ground, ground.load_res(rows), "bbox")
    parameters = evaluation.params
    parameters.area_rng = [[0.0, 1e10]]
    parameters.area_rng_lbl = ["all"]
    parameters.max_dets = [100]
    evaluation.params = parameters
    evaluation.evaluate()
    return evaluation


def score(truths: Sequence[Truth], predictions: Sequence[Detections], classes: int) -> Score:
    """Score predictions, one per image, by COCO's rules."""
    return score_table(match(truths, predictions, classes))


def score_table(table: MatchTable) -> Score:
    """Score a table of matches."""
    precision = per_class_precision(table)
    f1, threshold = best_f1(table)
    return Score(
        float(np.nan_to_num(np.nanmean(precision))) if precision.size else 0.0,
        float(np.nan_to_num(np.nanmean(precision[:, 0]))) if precision.size else 0.0,
        f1,
        threshold,
    )


def mean_precision(table: MatchTable, weights: NDArray[np.int64] | None = None) -> float:
    """Return mAP@[.5:.95]; `weights` [images] counts how often each image stands in a resample."""
    precision = per_class_precision(table, weights)
    return float(np.mean(precision)) if len(precision) else 0.0


def per_class_precision(table: MatchTable, weights: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
    """Return AP [classes that have labels, 10 IoU thresholds]; the classes keep their order."""
    total = table.positives.sum(axis=0) if weights is None else weights @ table.positives
    order = np.argsort(-table.score, kind="stable")
    label = table.label[order]
    rows = []
    for c in np.flatnonzero(total):
        index = order[label == c]
        weight = None if weights is None else weights[table.image[index]]
        rows.append(_average_precision(table.hit[index], table.ignore[index], int(total[c]), weight))
    return np.array(rows).reshape(-1, len(IOU_THRESHOLDS))


def _average_precision(
    hit: NDArray[np.bool_], ignore: NDArray[np.bool_], positives: int, weight: NDArray[np.int64] | None
) -> NDArray[np.float64]:
    """Return AP [10] of one class from its rows, best score first.

    1. Cumulate hits and misses. 2. Make precision fall monotonically from the right. 3. Read it at 101
    recalls; a recall that is never reached counts 0.
    """
    if not len(hit):
        return np.zeros(len(IOU_THRESHOLDS))
    miss = ~hit & ~ignore
    if weight is None:
        hits, misses = np.cumsum(hit, axis=0, dtype=np.float64), np.cumsum(miss, axis=0, dtype=np.float64)
    else:
        hits, misses = np.cumsum(hit * weight[:, None], axis=0), np.cumsum(miss * weight[:, None], axis=0)
    recall = hits / positives
    precision = hits / (hits + misses + _TINY)
    precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    out = np.zeros(len(IOU_THRESHOLDS))
    for t in range(len(IOU_THRESHOLDS)):
        at = np.searchsorted(recall[:, t], _RECALLS, side="left")
        out[t] = precision[at[at < len(precision)], t].sum() / len(_RECALLS)
    return out


def best_f1(table: MatchTable) -> tuple[float, float]:
    """Return the best micro F1 at IoU 0.5 over score thresholds, and that threshold (0, 1 without a hit)."""
    counted = ~table.ignore[:, 0]
    order = np.argsort(-table.score[counted], kind="stable")
    if not len(order):
        return 0.0, 1.0
    scores = table.score[counted][order]
    hits = np.cumsum(table.hit[counted, 0][order])
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + table.positives.sum())
    # A threshold keeps all boxes of its score: only the last of equal scores is a choice.
    choices = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))
    best = choices[int(np.argmax(f1[choices]))]
    return float(f1[best]), float(scores[best])


def best_f1_by_class(table: MatchTable) -> list[tuple[float, float]]:
    """Return each class's best F1 at IoU 0.5 with the score threshold that gives it, as `best_f1` does."""
    out = []
    for c in range(table.positives.shape[1]):
        own = table.label == c
        out.append(
            best_f1(
                MatchTable(
                    table.image[own], table.label[own], table.score[own], table.hit[own], table.ignore[own],
                    table.positives[:, c : c + 1],
                )
            )
        )  # fmt: skip
    return out


def mix(tables: Sequence[MatchTable], choice: NDArray[np.int64]) -> MatchTable:
    """Return the table in which image i is answered by tables[choice[i]]; all are over the same images."""
    parts = [(table, choice[table.image] == k) for k, table in enumerate(tables)]
    image = np.concatenate([table.image[kept] for table, kept in parts])
    order = np.argsort(image, kind="stable")
    return MatchTable(
        image[order],
        np.concatenate([table.label[kept] for table, kept in parts])[order],
        np.concatenate([table.score[kept] for table, kept in parts])[order],
        np.concatenate([table.hit[kept] for table, kept in parts])[order],
        np.concatenate([table.ignore[kept] for table, kept in parts])[order],
        tables[0].positives,
    )


def subset(table: MatchTable, images: NDArray[np.int64]) -> MatchTable:
    """Return the table of some images, renumbered in the order given; each may stand in it once."""
    position = np.full(table.images, -1, dtype=np.int64)
    position[images] = np.arange(len(images))
    kept = position[table.image] >= 0
    image = position[table.image[kept]]
    order = np.argsort(image, kind="stable")
    return MatchTable(
        image[order], table.label[kept][order], table.score[kept][order],
        table.hit[kept][order], table.ignore[kept][order], table.positives[images],
    )  # fmt: skip


def swap_gains(base: MatchTable, other: MatchTable) -> NDArray[np.float64]:
    """Return, for each image, the change of data-set mAP when `other` answers that image and `base` the rest.

    The label of ORIC's reward. Only the classes that stand in either answer can change, so only these are
    scored again. Times the number of images it is of the order of a per-image AP difference.
    """
    total = base.positives.sum(axis=0)
    classes = np.flatnonzero(total)
    gains = np.zeros(base.images)
    for c in classes:
        of_base, of_other = base.label == c, other.label == c
        image = np.concatenate((base.image[of_base], other.image[of_other]))
        from_other = np.concatenate((np.zeros(of_base.sum(), np.bool_), np.ones(of_other.sum(), np.bool_)))
        scores = np.concatenate((base.score[of_base], other.score[of_other]))
        order = np.argsort(-scores, kind="stable")
        image, from_other = image[order], from_other[order]
        hit = np.concatenate((base.hit[of_base], other.hit[of_other]))[order]
        ignore = np.concatenate((base.ignore[of_base], other.ignore[of_other]))[order]
        before = _average_precision(hit[~from_other], ignore[~from_other], int(total[c]), None).mean()
        for i in np.unique(image):
            kept = from_other == (image == i)
            after = _average_precision(hit[kept], ignore[kept], int(total[c]), None).mean()
            gains[i] += (after - before) / len(classes)
    return gains


def image_loss(table: MatchTable, threshold: float) -> NDArray[np.float64]:
    """Return each image's loss in [0, 1]: 1 − F1 of its boxes above `threshold`, mean over IoU thresholds.

    An image with neither labels nor boxes loses nothing.
    """
    kept = table.score >= threshold
    counted = (kept[:, None] & ~table.ignore).astype(np.float64)
    found = np.zeros((table.images, len(IOU_THRESHOLDS)))
    hits = np.zeros_like(found)
    np.add.at(found, table.image, counted)
    np.add.at(hits, table.image, (table.hit & kept[:, None]).astype(np.float64))
    total = found + table.positives.sum(axis=1)[:, None]
    f1 = np.divide(2 * hits, total, out=np.ones_like(total), where=total > 0)
    return np.asarray(1.0 - f1.mean(axis=1))


def bootstrap_map(
    table: MatchTable, rng: np.random.Generator, *, resamples: int = 200, level: float = 0.95
) -> tuple[float, float]:
    """Return the percentile interval of mAP over images resampled with replacement."""
    values = [
        mean_precision(
            table, np.bincount(rng.integers(0, table.images, table.images), minlength=table.images)
        )
        for _ in range(resamples)
    ]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
