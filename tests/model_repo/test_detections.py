"""Detections are valid or are not made; suppression and overlap follow their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model_repo.detections import Detections, iou_matrix, nms

relaxed = settings(deadline=None, max_examples=60)


@st.composite
def detections(draw: st.DrawFn, classes: int = 3) -> Detections:
    """Draw up to 20 detections on a small grid, so that boxes do overlap and scores do tie."""
    corner, side = st.integers(0, 20), st.integers(0, 12)
    score = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
    drawn = draw(
        st.lists(st.tuples(corner, corner, side, side, score, st.integers(0, classes - 1)), max_size=20)
    )
    rows = [(x, y, x + w, y + h, score, label) for x, y, w, h, score, label in drawn]
    table = np.array(rows, dtype=np.float32).reshape(-1, 6)
    return Detections.make(table[:, :4], table[:, 4], table[:, 5])


def _iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return float(width * height / union) if union > 0 else 0.0


@relaxed
@given(detections(), detections())
def test_iou_matrix_is_the_definition(a: Detections, b: Detections) -> None:
    """Every entry is intersection over union of its two boxes, and 0 for empty boxes."""
    matrix = iou_matrix(a.xyxy, b.xyxy)
    assert matrix.shape == (len(a), len(b))
    assert matrix.dtype == np.float32
    expected = [[_iou(x, y) for y in b.xyxy] for x in a.xyxy]
    np.testing.assert_allclose(matrix, np.reshape(expected, matrix.shape), atol=1e-6)


def _greedy(given: Detections, iou: float) -> list[int]:
    kept: list[int] = []
    for i in np.argsort(-given.score, kind="stable"):
        if all(given.label[i] != given.label[j] or _iou(given.xyxy[i], given.xyxy[j]) <= iou for j in kept):
            kept.append(int(i))
    return kept


@relaxed
@given(detections(), st.sampled_from([0.3, 0.5, 0.7, 1.0]))
def test_nms_is_the_greedy_definition(given: Detections, iou: float) -> None:
    """Kept are, best first, the boxes that overlap no kept better one of their class by more than iou."""
    # Overlaps of exactly the threshold round either way in float32.
    pairs = [_iou(a, b) for a in given.xyxy for b in given.xyxy]
    if any(abs(value - iou) < 1e-6 and iou < 1.0 for value in pairs):
        return
    kept = nms(given, iou)
    expected = given.select(np.array(_greedy(given, iou), dtype=np.intp))
    np.testing.assert_array_equal(kept.xyxy, expected.xyxy)
    np.testing.assert_array_equal(kept.score, expected.score)
    np.testing.assert_array_equal(kept.label, expected.label)


@relaxed
@given(detections())
def test_nms_twice_is_nms_once(given: Detections) -> None:
    """What has been suppressed once has nothing left to suppress."""
    once = nms(given, 0.5)
    assert len(nms(once, 0.5)) == len(once)


@relaxed
@given(detections(), st.integers(1, 30))
def test_top_is_sorted_and_the_best(given: Detections, count: int) -> None:
    """The top n are the n highest scores, best first."""
    top = given.top(count)
    np.testing.assert_array_equal(top.score, np.sort(given.score)[::-1][:count])


@pytest.mark.parametrize(
    ("xyxy", "score", "label", "named"),
    [
        (np.zeros((2, 3)), [0.1, 0.2], [0, 0], "xyxy"),
        (np.zeros((1, 4)), [0.1, 0.2], [0, 0], "xyxy"),
        (np.zeros((2, 4)), [0.1, 0.2], [0], "label"),
        (np.full((1, 4), np.nan), [0.1], [0], "xyxy"),
        (np.full((1, 4), np.inf), [0.1], [0], "xyxy"),
        (np.zeros((1, 4)), [1.1], [0], "score"),
        (np.zeros((1, 4)), [np.nan], [0], "score"),
        (np.zeros((1, 4)), [0.5], [-1], "label"),
    ],
)
def test_refuses_what_is_wrong(
    xyxy: NDArray[np.float64], score: list[float], label: list[int], named: str
) -> None:
    """A wrong shape, range or number is a ValueError that names the array."""
    with pytest.raises(ValueError, match=named):
        Detections(np.asarray(xyxy, np.float32), np.asarray(score, np.float32), np.asarray(label, np.int64))


def test_rows_without_padding() -> None:
    """Rows of class -1 or score 0 are padding; a score a rounding step above 1 is 1."""
    rows = np.array(
        [[0, 0, 4, 4, 1.004, 2], [0, 0, 2, 2, 0.5, 0], [0, 0, 0, 0, 0, -1], [1, 1, 2, 2, 0, 1]], np.float32
    )
    found = Detections.from_rows(rows)
    assert found.score.tolist() == [1.0, 0.5]
    assert found.label.tolist() == [2, 0]
    with pytest.raises(ValueError, match="rows"):
        Detections.from_rows(rows[:, :5])


def test_values_do_not_change() -> None:
    """The arrays of a value are read-only."""
    made = Detections.make([[0, 0, 1, 1]], [0.5], [0])
    with pytest.raises(ValueError, match="read-only"):
        made.score[0] = 1.0
    assert len(Detections.empty()) == 0
