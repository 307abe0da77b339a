"""Alignment maps scores to qualities without changing one model's own ranking."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from model_repo.alignment import Alignment, Curve
from model_repo.detections import Detections

relaxed = settings(deadline=None, max_examples=60)


@st.composite
def curves(draw: st.DrawFn) -> Curve:
    """Draw a strictly increasing curve; steps are wide enough for float32 to tell scores apart."""
    inner = sorted(draw(st.sets(st.integers(1, 99), max_size=8)))
    steps = draw(st.lists(st.integers(1, 50), min_size=len(inner) + 2, max_size=len(inner) + 2))
    quality = np.cumsum(steps) / (sum(steps) + draw(st.integers(0, 100)))
    score = (0.0, *(value / 100 for value in inner), 1.0)
    return Curve(score=score, quality=tuple(float(value) for value in quality))


@relaxed
@given(curves(), st.lists(st.integers(0, 500), unique=True, min_size=2, max_size=30))
def test_keeps_the_ranking(curve: Curve, raw: list[int]) -> None:
    """A higher score stays the higher quality, strictly."""
    score = np.sort(np.array(raw, dtype=np.float32)) / np.float32(500)
    assert (np.diff(curve.apply(score)) > 0).all()


@relaxed
@given(st.lists(curves(), min_size=1, max_size=3), st.floats(0.0, 1.0), st.data())
def test_what_lies_below_the_raw_score_of_a_quality_does_not_reach_it(
    of_classes: list[Curve], quality: float, data: st.DataObject
) -> None:
    """Leaving it out first or filtering afterwards is the same; and not everything has to be kept for it."""
    alignment = Alignment(curves=tuple(of_classes), images=1)
    label = data.draw(st.lists(st.integers(0, len(of_classes) - 1), min_size=1, max_size=20))
    score = [data.draw(st.floats(0.0, 1.0, width=32)) for _ in label]
    raw = Detections.make(np.zeros((len(label), 4)), score, label)
    least = alignment.raw_at_least(quality)
    below = raw.score < least[raw.label]
    assert not (alignment.apply(raw).score[below] >= np.float32(quality)).any()
    middle = np.array([curve.apply(np.array([0.5], dtype=np.float32))[0] for curve in of_classes])
    assert (alignment.raw_at_least(float(middle.min()))[middle.argmin()]) == pytest.approx(0.5, abs=1e-3)


def test_each_class_has_its_own_curve() -> None:
    """Scores go through the curve of their label; boxes and labels stay."""
    double = Curve(score=(0.0, 0.5, 1.0), quality=(0.0, 0.9, 1.0))
    half = Curve(score=(0.0, 1.0), quality=(0.0, 0.5))
    raw = Detections.make([[0, 0, 1, 1], [1, 1, 2, 2]], [0.5, 0.5], [1, 0])
    aligned = Alignment(curves=(double, half), images=3).apply(raw)
    np.testing.assert_allclose(aligned.score, [0.25, 0.9])
    np.testing.assert_array_equal(aligned.xyxy, raw.xyxy)
    np.testing.assert_array_equal(aligned.label, raw.label)


def test_identity_changes_nothing() -> None:
    """Without calibration a score stands for itself; no detection is nothing to align."""
    raw = Detections.make([[0, 0, 1, 1]], [0.3], [1])
    np.testing.assert_allclose(Alignment.identity(2).apply(raw).score, raw.score)
    assert len(Alignment.identity(2).apply(Detections.empty())) == 0


def test_label_without_curve() -> None:
    """A label beyond the classes is an IndexError, not another class's curve."""
    with pytest.raises(IndexError):
        Alignment.identity(1).apply(Detections.make([[0, 0, 1, 1]], [0.3], [1]))


@pytest.mark.parametrize(
    ("score", "quality"),
    [
        ((0.0, 1.0), (0.5, 0.5)),
        ((0.0, 0.5, 0.5, 1.0), (0.0, 0.1, 0.2, 0.3)),
        ((0.0, 0.9), (0.0, 1.0)),
        ((0.1, 1.0), (0.0, 1.0)),
        ((0.0, 1.0), (0.0, 0.5, 1.0)),
        ((0.0,), (0.0,)),
        ((0.0, 1.0), (0.0, 1.5)),
        ((0.0, 1.0), (float("nan"), 1.0)),
    ],
)
def test_refuses_what_does_not_increase(score: tuple[float, ...], quality: tuple[float, ...]) -> None:
    """A curve that is flat, folds back, is cut short or leaves [0, 1] is refused."""
    with pytest.raises(ValidationError):
        Curve(score=score, quality=quality)
