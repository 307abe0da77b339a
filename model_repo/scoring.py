"""COCO accuracy, the one scorer: of a model, of a plan, of the answers that a load test collected.

Boxes are matched to labels by hotcoco (a COCO evaluator in Rust, held to pycocotools by a test), once per
set of answers. What follows works on the table of matches: a plan's answers are rows of several tables, so
scoring thousands of plans, swapping one image's answer, or resampling images repeats no matching, and with a
`Ranking` of the tables no sorting either.

Metrics are COCO's: AP at 101 recall points, mean over classes and over IoU 0.50, 0.55 … 0.95, at most 100
boxes an image and class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from hotcoco import COCO, COCOeval
from numpy.typing import NDArray

from model_repo.detections import Detections, iou_matrix

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0.0, 1.0, 101)
_MAX_BOXES = 100
# Less than the least IoU that can match, by more than what another order of computing it rounds.
_MAY_MATCH_IOU = 0.499
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
    """Every detection of a set of images with what it met, one row each, by image, class, and falling score.

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
    """Match predictions to labels by COCO's rules; raises ValueError when the two are not of one length, or a
    prediction is of no class.

    1. Of each image and class the best 100 boxes stay. 2. Boxes that overlap no label of their class enough
    for any threshold miss, whatever the others meet; they are most boxes, and the evaluator is spared them.
    3. The evaluator matches the rest; it returns them in the same order.
    """
    if len(truths) != len(predictions):
        raise ValueError(f"{len(truths)} images with labels, {len(predictions)} with predictions")
    image = np.repeat(np.arange(len(predictions)), [len(each) for each in predictions])
    label = np.concatenate([np.empty(0, np.int64), *(each.label for each in predictions)])
    score = np.concatenate([np.empty(0, np.float32), *(each.score for each in predictions)])
    if len(label) and label.max() >= classes:
        raise ValueError(f"a prediction has label {label.max()}, there are {classes} classes")
    positives = np.zeros((len(truths), classes), dtype=np.int64)
    for i, truth in enumerate(truths):
        np.add.at(positives[i], truth.label[~truth.crowd], 1)
    pairs = zip(truths, predictions, strict=True)
    meets = np.concatenate([np.empty(0, np.bool_), *(_may_match(*pair) for pair in pairs)])
    order = np.lexsort((-score, label, image))
    order = order[_ranks(image[order] * classes + label[order]) < _MAX_BOXES]
    image, label, score, meets = image[order], label[order], score[order], meets[order]
    hit = np.zeros((len(order), len(IOU_THRESHOLDS)), dtype=np.bool_)
    ignore = np.zeros_like(hit)
    if meets.any():
        xyxy = np.concatenate([each.xyxy for each in predictions])[order]
        hit[meets], ignore[meets] = _evaluate(
            truths, image[meets], label[meets], score[meets], xyxy[meets], classes
        )
    return MatchTable(image, label, score, hit, ignore, positives)


def _may_match(truth: Truth, found: Detections) -> NDArray[np.bool_]:
    """Return which boxes can be more than misses: they overlap a label of their class enough to match it, or
    any crowd of it, or are ignored for having no area that COCO knows, as they are turned inside out."""
    inside_out = (found.xyxy[:, 2:] < found.xyxy[:, :2]).any(axis=1)
    if not len(truth.label):
        return np.asarray(inside_out)
    near = (iou_matrix(found.xyxy, truth.xyxy) >= _MAY_MATCH_IOU) | truth.crowd
    return np.asarray(inside_out | (near & (found.label[:, None] == truth.label)).any(axis=1))


def _ranks(group: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return each row's position within its group; the rows of a group stand together."""
    first = np.flatnonzero(np.append(True, group[1:] != group[:-1])[: len(group)])
    return np.arange(len(group)) - np.repeat(first, np.diff(np.append(first, len(group))))


def _evaluate(
    truths: Sequence[Truth],
    image: NDArray[np.int64],
    label: NDArray[np.int64],
    score: NDArray[np.float32],
    xyxy: NDArray[np.float32],
    classes: int,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return hit and ignore [d, 10] of boxes given by image, class, and falling score."""
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
    found = xyxy.astype(np.float64)
    found[:, 2:] -= found[:, :2]
    rows = np.column_stack((image + 1, found, score, label + 1))
    evaluation = COCOeval(ground, ground.load_res(rows), "bbox")
    parameters = evaluation.params
    parameters.area_rng = [[0.0, 1e10]]
    parameters.area_rng_lbl = ["all"]
    parameters.max_dets = [_MAX_BOXES]
    evaluation.params = parameters
    evaluation.evaluate()
    entries = sorted(
        (entry for entry in evaluation.eval_imgs if entry is not None and entry["dtScores"]),
        key=lambda entry: (entry["image_id"], entry["category_id"]),
    )
    ignore = np.concatenate([np.asarray(entry["dtIgnore"], dtype=np.bool_) for entry in entries], axis=1).T
    matches = np.concatenate([np.asarray(entry["dtMatches"]) for entry in entries], axis=1).T
    return (matches > 0) & ~ignore, ignore


def score(truths: Sequence[Truth], predictions: Sequence[Detections], classes: int) -> Score:
    """Score predictions, one per image, by COCO's rules."""
    return score_table(match(truths, predictions, classes))


def score_table(table: MatchTable) -> Score:
    """Score a table of matches."""
    ranking = Ranking([table])
    precision = ranking.per_class_precision(ranking.once())
    f1, threshold = best_f1(table)
    return Score(mean_of(precision), mean_of(precision[:, :1]), f1, threshold)


def mean_precision(table: MatchTable) -> float:
    """Return mAP@[.5:.95]."""
    ranking = Ranking([table])
    return ranking.map(ranking.once())


def mean_of(precision: NDArray[np.float64]) -> float:
    """Return the mean of APs, 0 where there are none: no class has labels."""
    return float(precision.mean()) if precision.size else 0.0


class Ranking:
    """The rows of several tables over the same images in one order: by class, best score first.

    `tables[k]` holds each image's k-th possible answer. Which answers stand, and how often, is said by counts
    [tables, images]: a plan takes each image from the table of the stage where it ends, a resample takes
    images several times or not at all. Whatever is counted, the rows need no sorting again.

    Precision and recall turn only at hits, and few rows hit: scoring is one cumulative sum over all rows and
    little work on those. Rows after the last hit of their class cannot matter and are left out.

    Attributes:
        table, image: int64 [rows], which table a row is from and which image.
        positives: int64 [images, classes], as in the tables.
        starts: int64 [classes + 1], where each class' rows begin.
        hits, ignored: for each IoU threshold, ascending, the rows that hit, and those that neither hit nor
            miss.
    """

    def __init__(self, tables: Sequence[MatchTable]) -> None:
        self.positives = tables[0].positives
        images, classes = self.positives.shape
        label = np.concatenate([each.label for each in tables])
        score = np.concatenate([each.score for each in tables])
        hit = np.concatenate([each.hit for each in tables])
        hitting = np.flatnonzero(hit.any(axis=1))
        last = np.full(classes, np.inf, dtype=np.float32)
        np.minimum.at(last, label[hitting], score[hitting])
        kept = np.flatnonzero(score >= last[label])
        image = np.concatenate([each.image for each in tables])[kept]
        table = np.repeat(np.arange(len(tables)), [len(each.label) for each in tables])[kept]
        # Equal scores stand in the order of the images, as a table's own do.
        order = np.lexsort((image, -score[kept], label[kept]))
        kept = kept[order]
        self.table, self.image = table[order], image[order]
        self.starts = np.searchsorted(label[kept], np.arange(classes + 1))
        self.hits = _by_column(hit[kept])
        self.ignored = _by_column(np.concatenate([each.ignore for each in tables])[kept])
        self._tables = len(tables)
        self._cell = self.table * images + self.image
        self._hit_starts = [np.searchsorted(rows, self.starts) for rows in self.hits]

    def once(self, choice: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """Return the counts of answering every image once: image i with table choice[i], or all with the
        first."""
        images = len(self.positives)
        chosen = np.zeros(images, dtype=np.int64) if choice is None else choice
        return (chosen == np.arange(self._tables)[:, None]).astype(np.int64)

    def map(self, counts: NDArray[np.int64]) -> float:
        """Return mAP@[.5:.95] of what counts [tables, images] say."""
        return mean_of(self.per_class_precision(counts))

    def per_class_precision(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return AP [classes that have labels, 10 IoU thresholds]; the classes keep their order.

        counts: int64 [tables, images], how often an image stands there with a table's answer.

        1. Cumulate hits and all that counts. 2. Make precision at the hits fall monotonically from the right.
        3. Read it at 101 recalls; a recall that is never reached counts 0.
        """
        total = counts.sum(axis=0) @ self.positives
        labelled = np.flatnonzero(total)
        weight = counts.ravel()[self._cell]
        without_ignored = np.cumsum(weight)
        out = np.zeros((len(labelled), len(IOU_THRESHOLDS)))
        for t, (rows, starts) in enumerate(zip(self.hits, self._hit_starts, strict=True)):
            seen = without_ignored
            if len(self.ignored[t]):
                counted = weight.copy()
                counted[self.ignored[t]] = 0
                seen = np.cumsum(counted)
            ranks, found = seen[rows], np.cumsum(weight[rows])
            for row, c in enumerate(labelled):
                own, first = slice(starts[c], starts[c + 1]), self.starts[c]
                if starts[c] == starts[c + 1]:
                    continue
                rank = ranks[own] - (seen[first - 1] if first else 0)
                got = found[own] - (found[starts[c] - 1] if starts[c] else 0)
                out[row, t] = _average_precision(got, rank, int(total[c]))
        return out


def _by_column(marks: NDArray[np.bool_]) -> list[NDArray[np.intp]]:
    """Return for each column of marks [rows, columns] the rows that it marks, ascending."""
    marked = np.flatnonzero(marks.any(axis=1))
    return [marked[column] for column in marks[marked].T]


def _average_precision(found: NDArray[np.int64], rank: NDArray[np.int64], positives: int) -> float:
    """Return AP from the rows that hit: hits so far, and rows so far, each with the row itself."""
    precision = np.maximum.accumulate((found / (rank + _TINY))[::-1])[::-1]
    at = np.searchsorted(found / positives, _RECALLS, side="left")
    return float(precision[at[at < len(precision)]].sum()) / len(_RECALLS)


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

    The label of ORIC's reward. Times the number of images it is of the order of a per-image AP difference.
    """
    ranking = Ranking([base, other])
    before = ranking.map(ranking.once())
    alone = np.eye(base.images, dtype=np.int64)
    return np.array([ranking.map(ranking.once(swapped)) - before for swapped in alone])


def image_loss(table: MatchTable, threshold: float) -> NDArray[np.float64]:
    """Return each image's loss in [0, 1]: 1 − F1 of its boxes above `threshold`, mean over IoU thresholds.

    An image with neither labels nor boxes loses nothing.
    """
    kept = np.flatnonzero(table.score >= threshold)
    found = np.zeros((table.images, len(IOU_THRESHOLDS)))
    hits = np.zeros_like(found)
    np.add.at(found, table.image[kept], ~table.ignore[kept])
    np.add.at(hits, table.image[kept], table.hit[kept])
    total = found + table.positives.sum(axis=1)[:, None]
    f1 = np.divide(2 * hits, total, out=np.ones_like(total), where=total > 0)
    return np.asarray(1.0 - f1.mean(axis=1))


def bootstrap_map(
    table: MatchTable, rng: np.random.Generator, *, resamples: int = 200, level: float = 0.95
) -> tuple[float, float]:
    """Return the percentile interval of mAP over images resampled with replacement."""
    ranking = Ranking([table])
    values = [
        ranking.map(np.bincount(rng.integers(0, table.images, table.images), minlength=table.images)[None])
        for _ in range(resamples)
    ]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
