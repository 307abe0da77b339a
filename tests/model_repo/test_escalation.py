"""Features describe an answer and its frame; the gain model is plain affine layers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray
from pydantic import ValidationError

from model_repo.detections import Detections
from model_repo.escalation import FEATURES, TOP_BOXES, GainModel, Layer, features, image_statistics
from tests.model_repo.test_detections import detections

WIDTH = len(FEATURES)
relaxed = settings(deadline=None, max_examples=60)


def _grey(value: int, wh: tuple[int, int] = (64, 48)) -> NDArray[np.uint8]:
    return np.full((wh[1], wh[0], 3), value, dtype=np.uint8)


def _named(row: NDArray[np.float32]) -> dict[str, float]:
    return {name: float(value) for name, value in zip(FEATURES, row, strict=True)}


@relaxed
@given(detections())
def test_features_are_finite_and_named(answer: Detections) -> None:
    """Every answer, empty ones too, has as many finite numbers as there are names."""
    row = features(answer, _grey(100))
    assert row.shape == (WIDTH,)
    assert row.dtype == np.float32
    assert np.isfinite(row).all()
    named = _named(row)
    assert named["score_sum"] == pytest.approx(float(answer.score.sum()), abs=1e-4)
    assert named["doubt_sum"] == pytest.approx(float((answer.score * (1 - answer.score)).sum()), abs=1e-4)
    assert named["above_0.50"] == int((answer.score >= 0.5).sum())


@relaxed
@given(detections())
def test_order_of_boxes_does_not_matter(answer: Detections) -> None:
    """The same boxes in another order of distinct scores give the same features."""
    distinct = answer.with_score(np.linspace(0.01, 0.99, len(answer), dtype=np.float32))
    turned = distinct.select(np.arange(len(distinct))[::-1])
    np.testing.assert_allclose(
        features(distinct, _grey(10)), features(turned, _grey(10)), rtol=1e-4, atol=1e-4
    )


def test_what_features_say() -> None:
    """Sizes, crowding and entropy are those of the strong boxes."""
    answer = Detections.make(
        [[0, 0, 10, 10], [0, 0, 10, 5], [100, 100, 120, 120], [0, 0, 400, 400]],
        [0.9, 0.6, 0.3, 0.05],
        [0, 0, 1, 1],
    )
    named = _named(features(answer, _grey(51)))
    assert [named[f"score_{i}"] for i in range(5)] == pytest.approx([0.9, 0.6, 0.3, 0.05, 0.0])
    assert named["size_min"] == pytest.approx(np.log(50) / 2, rel=1e-5)
    assert named["size_mean"] == pytest.approx(np.log([100, 50, 400]).mean() / 2, rel=1e-5)
    assert named["crowding_max"] == pytest.approx(0.5)
    assert named["crowding_mean"] == pytest.approx(1 / 3, rel=1e-5)
    share = np.array([1.5, 0.3]) / 1.8
    assert named["class_entropy"] == pytest.approx(float(-(share * np.log(share)).sum()), rel=1e-4)
    assert named["brightness"] == pytest.approx(0.2, abs=1e-5)
    assert len([name for name in FEATURES if name.startswith("score_")]) == TOP_BOXES + 1


@relaxed
@given(detections())
def test_every_box_is_counted_once(answer: Detections) -> None:
    """Soft edges share a box out between knots, and no part of it is lost."""
    named = _named(features(answer, _grey(100)))
    sides = sum(value for name, value in named.items() if name.startswith("side_"))
    assert sides == pytest.approx(min(len(answer), TOP_BOXES), abs=1e-3)


def test_boxes_are_counted_by_what_they_are() -> None:
    """A box between two knots counts for both; one at the edge is cut; one over another overlaps it."""
    frame = _grey(100, (640, 480))
    side = float(np.sqrt(640 * 480) * np.exp(-2.2))
    square = [200.0, 200.0, 200 + side, 200 + side]
    alone = _named(features(Detections.make([square], [0.3], [0]), frame))
    assert alone["side_-2.2_at_0.20"] == pytest.approx(0.5, abs=1e-3)
    assert alone["side_-2.2_at_0.40"] == pytest.approx(0.5, abs=1e-3)
    assert alone["side_-1.7_at_0.20"] == pytest.approx(0.0, abs=1e-3)
    assert alone["cut_at_0.20"] == alone["elongation_0.50_at_0.20"] == alone["over_any_0.15_at_0.20"] == 0
    cut = _named(features(Detections.make([[0.0, 200.0, side, 200 + side]], [0.2], [0]), frame))
    assert cut["cut_at_0.20"] == pytest.approx(1.0, abs=1e-3)
    long = _named(features(Detections.make([[100.0, 100.0, 200.0, 120.0]], [0.2], [0]), frame))
    assert long["elongation_1.60_at_0.20"] == pytest.approx(1.0, abs=1e-3)
    both = _named(features(Detections.make([square, square], [0.9, 0.2], [0, 1]), frame))
    assert both["over_any_0.80_at_0.90"] == pytest.approx(1.0, abs=1e-3)
    assert both["over_any_0.80_at_0.20"] == pytest.approx(1.0, abs=1e-3)
    assert both["under_better_0.80_at_0.90"] == 0
    assert both["under_better_0.80_at_0.20"] == pytest.approx(1.0, abs=1e-3)


def test_image_statistics() -> None:
    """A flat frame has light alone; stripes have contrast and sharpness; a blur takes sharpness."""
    np.testing.assert_allclose(image_statistics(_grey(255)), [1, 0, 0, 0], atol=1e-6)
    stripes = _grey(0, (640, 480))
    stripes[:, ::2] = 255
    fine = image_statistics(stripes)
    assert fine[3] == pytest.approx(1.0)
    wide = _grey(0, (640, 480))
    wide[:, (np.arange(640) // 40) % 2 == 0] = 255
    assert image_statistics(wide)[3] < 0.1
    assert image_statistics(wide)[1] == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("wh", [(1, 1), (1, 300), (300, 1), (2, 2), (65, 49), (1920, 1080)])
def test_frames_of_any_size(wh: tuple[int, int]) -> None:
    """Frames of one pixel and of millions have finite statistics."""
    assert np.isfinite(image_statistics(_grey(9, wh))).all()


def test_a_crop_of_a_larger_frame() -> None:
    """A view that is not contiguous has the statistics of its copy."""
    image = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
    view = image[10:400, 30:600]
    np.testing.assert_array_equal(image_statistics(view), image_statistics(view.copy()))


def _model(layers: tuple[Layer, ...]) -> GainModel:
    return GainModel(mean=(1.0,) * WIDTH, scale=(2.0,) * WIDTH, layers=layers)


def test_gain_is_what_the_layers_compute() -> None:
    """Prediction is standardize, clip, affine, ReLU, affine."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(4, WIDTH)), rng.normal(size=(1, 4))
    model = _model(
        (
            Layer(weight=tuple(map(tuple, first.tolist())), bias=(0.1,) * 4),
            Layer(weight=tuple(map(tuple, second.tolist())), bias=(0.5,)),
        )
    )
    rows = rng.normal(0, 20, size=(7, WIDTH)).astype(np.float32)
    x = np.clip((rows - 1.0) / 2.0, -6, 6)
    expected = (np.maximum(x @ first.T + 0.1, 0) @ second.T + 0.5)[:, 0]
    np.testing.assert_allclose(model.compiled().predict(rows), expected, rtol=1e-4, atol=1e-4)


def test_refuses_layers_that_do_not_fit() -> None:
    """Shapes that do not chain to one output, and a scale of zero, are refused."""
    good = Layer(weight=((0.0,) * WIDTH,), bias=(0.0,))
    for layers in (
        (Layer(weight=((0.0,) * (WIDTH - 1),), bias=(0.0,)),),
        (Layer(weight=((0.0,) * WIDTH,), bias=(0.0, 1.0)),),
        (Layer(weight=((0.0,) * WIDTH,) * 2, bias=(0.0, 1.0)),),
        (good, good),
        (),
    ):
        with pytest.raises(ValidationError):
            _model(layers)
    with pytest.raises(ValidationError):
        GainModel(mean=(0.0,) * WIDTH, scale=(0.0,) * WIDTH, layers=(good,))
    with pytest.raises(ValidationError):
        GainModel(mean=(0.0,) * 3, scale=(1.0,) * 3, layers=(good,))
