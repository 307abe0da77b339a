"""Scoring: COCO's numbers, and the algebra on tables of matches that plans rest on."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from model_repo.detections import Detections
from model_repo.scoring import (
    MatchTable,
    Ranking,
    Truth,
    best_f1,
    bootstrap_map,
    image_loss,
    match,
    mean_precision,
    mix,
    score,
    score_table,
    subset,
    swap_gains,
)

CLASSES = 4


def _boxes(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    corner = rng.uniform(0, 400, (count, 2))
    return np.hstack([corner, corner + rng.uniform(8, 120, (count, 2))]).astype(np.float32)


def _scene(seed: int, images: int, jitter: float) -> tuple[list[Truth], list[Detections]]:
    """Make labels and answers near them, some missed, some false, some crowds."""
    rng = np.random.default_rng(seed)
    truths, predictions = [], []
    for _ in range(images):
        count = int(rng.integers(0, 10))
        xyxy, label = _boxes(rng, count), rng.integers(0, CLASSES, count)
        truths.append(Truth(xyxy, label, rng.random(count) < 0.1))
        seen = rng.random(count) < 0.8
        false = int(rng.integers(0, 5))
        predictions.append(
            Detections.make(
                np.vstack([xyxy[seen] + rng.normal(0, jitter, (int(seen.sum()), 4)), _boxes(rng, false)]),
                rng.random(int(seen.sum()) + false),
                np.concatenate([label[seen], rng.integers(0, CLASSES, false)]),
            )
        )
    return truths, predictions


def _reference(truths: list[Truth], predictions: list[Detections]) -> tuple[float, float]:
    """Score with pycocotools."""

    def xywh(box: NDArray[np.float32]) -> list[float]:
        x1, y1, x2, y2 = box.astype(np.float64)
        return [x1, y1, x2 - x1, y2 - y1]

    labels = [
        (i, xywh(b), int(c), int(k))
        for i, t in enumerate(truths)
        for b, c, k in zip(t.xyxy, t.label, t.crowd, strict=True)
    ]
    annotations = [
        {
            "id": number + 1,
            "image_id": i + 1,
            "category_id": c + 1,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": k,
        }
        for number, (i, box, c, k) in enumerate(labels)
    ]
    found = [
        {"image_id": i + 1, "category_id": int(c) + 1, "bbox": xywh(b), "score": float(s)}
        for i, p in enumerate(predictions)
        for b, s, c in zip(p.xyxy, p.score, p.label, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        ground = COCO()
        ground.dataset = {
            "images": [{"id": i + 1} for i in range(len(truths))],
            "categories": [{"id": c + 1, "name": str(c)} for c in range(CLASSES)],
            "annotations": annotations,
        }
        ground.createIndex()
        evaluation = COCOeval(ground, ground.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0]), float(evaluation.stats[1])


@pytest.mark.parametrize("seed", range(4))
def test_map_is_the_one_of_pycocotools(seed: int) -> None:
    """The scorer gives pycocotools' mAP and mAP@.5 to six digits, crowds included."""
    truths, predictions = _scene(seed, 40, jitter=3.0 + seed)
    ours = score(truths, predictions, CLASSES)
    assert (ours.map, ours.map50) == pytest.approx(_reference(truths, predictions), abs=1e-6)


def test_perfect_and_silent_answers() -> None:
    """Labels given back score 1 and lose nothing; silence scores 0 and loses all but on empty images."""
    truths, _ = _scene(3, 20, 1.0)
    truths = [Truth(t.xyxy, t.label, np.zeros(len(t.label), np.bool_)) for t in truths]
    perfect = [Detections.make(t.xyxy, np.full(len(t.label), 0.9), t.label) for t in truths]
    table = match(truths, perfect, CLASSES)
    assert score_table(table).map == pytest.approx(1.0)
    assert best_f1(table) == pytest.approx((1.0, 0.9))
    assert image_loss(table, 0.5).max() == 0.0
    silent = match(truths, [Detections.empty()] * 20, CLASSES)
    assert score_table(silent).map == 0.0
    assert image_loss(silent, 0.5).tolist() == [float(len(t.label) > 0) for t in truths]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), share=st.floats(0, 1))
def test_a_mixture_scores_as_its_answers_do(seed: int, share: float) -> None:
    """Scoring rows picked from two tables equals matching and scoring the picked answers."""
    truths, first = _scene(seed, 12, 2.0)
    _, second = _scene(seed, 12, 9.0)
    choice = (np.random.default_rng(seed).random(12) < share).astype(np.int64)
    mixed = mix([match(truths, first, CLASSES), match(truths, second, CLASSES)], choice)
    picked = [(first, second)[k][i] for i, k in enumerate(choice)]
    assert score_table(mixed) == score_table(match(truths, picked, CLASSES))


def test_swap_gain_is_the_change_of_map() -> None:
    """An image's gain is the mAP with its answer swapped less the mAP without."""
    truths, first = _scene(5, 15, 6.0)
    _, second = _scene(5, 15, 1.0)
    base, other = match(truths, first, CLASSES), match(truths, second, CLASSES)
    gains = swap_gains(base, other)
    before = score_table(base).map
    for i in range(15):
        swapped = mix([base, other], (np.arange(15) == i).astype(np.int64))
        assert gains[i] == pytest.approx(score_table(swapped).map - before, abs=1e-9)


def test_weights_count_images() -> None:
    """Weighing every image once changes nothing; weighing some with zero is leaving them out."""
    truths, predictions = _scene(8, 20, 3.0)
    table = match(truths, predictions, CLASSES)
    ranking = Ranking([table])
    assert ranking.map(np.ones((1, 20), np.int64)) == mean_precision(table)
    some = np.arange(0, 20, 2)
    weights = np.isin(np.arange(20), some).astype(np.int64)
    assert ranking.map(weights[None]) == pytest.approx(mean_precision(subset(table, some)))


def _plain_precision(table: MatchTable, weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """AP by its definition: sort, cumulate every row, read the envelope at each recall."""
    order = np.argsort(-table.score, kind="stable")
    rows = []
    for c in np.flatnonzero(weights @ table.positives):
        own = order[table.label[order] == c]
        weight = weights[table.image[own]][:, None]
        hits = np.cumsum(table.hit[own] * weight, axis=0)
        misses = np.cumsum((~table.hit[own] & ~table.ignore[own]) * weight, axis=0)
        recall, precision = hits / (weights @ table.positives)[c], hits / np.maximum(hits + misses, 1)
        rows.append(
            [
                np.mean([precision[recall[:, t] >= r, t].max(initial=0.0) for r in np.linspace(0, 1, 101)])
                for t in range(10)
            ]
        )
    return np.array(rows).reshape(-1, 10)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1000), levels=st.sampled_from([3, 1000]))
def test_a_ranking_scores_any_choice_as_sorting_it_anew_would(seed: int, levels: int) -> None:
    """Answers picked from three tables and resampled have the APs of the table that holds just those, with
    crowds and with many equal scores."""
    rng = np.random.default_rng(seed)
    tables = []
    for jitter in (1.0, 4.0, 12.0):
        truths, answers = _scene(seed, 12, jitter)
        steps = np.float32(levels)
        coarse = [each.with_score(np.ceil(each.score * steps) / steps) for each in answers]
        tables.append(match(truths, coarse, CLASSES))
    choice, weights = rng.integers(0, 3, 12), rng.integers(0, 3, 12)
    ranking = Ranking(tables)
    found = ranking.per_class_precision(ranking.once(choice) * weights)
    np.testing.assert_allclose(found, _plain_precision(mix(tables, choice), weights), atol=1e-12)


def test_only_the_best_hundred_of_a_class_count() -> None:
    """Of an image's boxes of one class COCO takes 100; a box that hits with less score than those is lost."""
    rng = np.random.default_rng(4)
    truth = Truth(_boxes(rng, 1), np.zeros(1, np.int64), np.zeros(1, np.bool_))
    clutter = _boxes(rng, 150) + np.float32(1000)
    crowded = Detections.make(
        np.vstack([clutter, truth.xyxy]), [*rng.uniform(0.5, 1, 150), 0.1], np.zeros(151)
    )
    assert len(match([truth], [crowded], CLASSES).label) == 100
    assert score([truth], [crowded], CLASSES).map == _reference([truth], [crowded])[0] == 0.0


def test_a_prediction_of_no_class_is_refused() -> None:
    """A label beyond the classes is an error, not a box that counts nowhere."""
    nothing = Truth(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.bool_))
    with pytest.raises(ValueError, match="label 2, there are 2 classes"):
        match([nothing], [Detections.make([[0, 0, 9, 9]], [0.5], [2])], 2)


def test_bootstrap_interval_holds_the_estimate() -> None:
    """The bootstrap interval surrounds the mAP and is repeated by the same seed."""
    truths, predictions = _scene(2, 60, 3.0)
    table = match(truths, predictions, CLASSES)
    low, high = bootstrap_map(table, np.random.default_rng(0))
    assert low < score_table(table).map < high
    assert bootstrap_map(table, np.random.default_rng(0)) == (low, high)


def test_lengths_must_agree() -> None:
    """Labels and predictions of different numbers of images are refused."""
    with pytest.raises(ValueError, match="1 images with labels, 0 with predictions"):
        match([Truth(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.bool_))], [], 1)
