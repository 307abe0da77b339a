"""How far two answers differ."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_repo.agreement import disagreement
from model_repo.detections import Detections
from model_repo.scoring import Truth, image_loss, match

NONE = Detections.make([], [], [])
boxes = st.lists(
    st.tuples(st.integers(0, 90), st.integers(0, 90), st.integers(4, 40), st.integers(4, 40),
              st.floats(0.3125, 1.0, width=32), st.integers(0, 1)),
    max_size=6,
    unique_by=lambda box: box[4],
)  # fmt: skip


def answer(found: list[tuple[int, int, int, int, float, int]]) -> Detections:
    corners = [(x, y, x + w, y + h) for x, y, w, h, _, _ in found]
    return Detections.make(corners, [f[4] for f in found], [f[5] for f in found])


def test_equal_answers_agree_and_empty_ones_too() -> None:
    """No difference is 0; one box against none is 1."""
    one = answer([(0, 0, 10, 10, 0.9, 0)])
    assert disagreement(one, one) == 0.0
    assert disagreement(NONE, NONE) == 0.0
    assert disagreement(one, NONE) == disagreement(NONE, one) == 1.0


def test_another_class_and_weak_boxes() -> None:
    """The same box under another class is a miss and a false alarm; weak boxes do not count."""
    assert disagreement(answer([(0, 0, 10, 10, 0.9, 0)]), answer([(0, 0, 10, 10, 0.9, 1)])) == 1.0
    assert disagreement(answer([(0, 0, 10, 10, 0.29, 0)]), NONE) == 0.0


@given(boxes, boxes)
def test_it_is_the_certificates_loss_with_the_other_answer_as_labels(
    early: list[tuple[int, int, int, int, float, int]], reference: list[tuple[int, int, int, int, float, int]]
) -> None:
    """Against labels made of the other answer, the loss is the one that certificates bound."""
    own, other = answer(early), answer(reference)
    truth = Truth(other.xyxy, other.label, np.zeros(len(other), dtype=np.bool_))
    expected = image_loss(match([truth], [own], 2), 0.3)[0]
    assert disagreement(own, other) == pytest.approx(expected, abs=0.051)
