"""Two answers become one: replaced, or fused box by box."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from model_repo.detections import MAX_ROWS, Detections
from model_repo.fusion import Fusion, fuse
from tests.model_repo.test_detections import detections

relaxed = settings(deadline=None, max_examples=60)
FUSIONS: tuple[Fusion, ...] = ("replace", "wbf")


@relaxed
@given(detections(), detections())
def test_replace_is_the_larger_models_answer(fast: Detections, escalated: Detections) -> None:
    """Replacing keeps nothing of the fast answer."""
    fused = fuse(fast, escalated, "replace")
    np.testing.assert_array_equal(fused.score, np.sort(escalated.score)[::-1])


@relaxed
@given(detections(), detections())
def test_fused_is_sorted_and_of_plausible_size(fast: Detections, escalated: Detections) -> None:
    """Fusing gives at least the larger answer's boxes, at most both, best first."""
    fused = fuse(fast, escalated, "wbf")
    assert max(len(fast), len(escalated)) <= len(fused) <= len(fast) + len(escalated)
    assert (np.diff(fused.score) <= 0).all()


def test_same_object_is_averaged() -> None:
    """A pair becomes the box weighted by score, with the mean score."""
    fast = Detections.make([[0, 0, 10, 10]], [0.3], [1])
    escalated = Detections.make([[1, 0, 11, 10]], [0.9], [1])
    fused = fuse(fast, escalated, "wbf")
    np.testing.assert_allclose(fused.xyxy, [[0.75, 0, 10.75, 10]], rtol=1e-5)
    np.testing.assert_allclose(fused.score, [0.6], rtol=1e-6)


def test_other_class_and_other_place_stay_apart() -> None:
    """Boxes of another class or with little overlap are kept alone, at half their score."""
    fast = Detections.make([[0, 0, 10, 10], [50, 50, 60, 60]], [0.8, 0.4], [0, 1])
    escalated = Detections.make([[0, 0, 10, 10], [54, 50, 64, 60]], [0.6, 0.2], [1, 1])
    fused = fuse(fast, escalated, "wbf")
    np.testing.assert_allclose(fused.score, [0.4, 0.3, 0.2, 0.1], rtol=1e-6)


def test_a_box_is_in_one_pair_at_most() -> None:
    """Two larger-model boxes over one fast box: the better one is paired, the other stays alone."""
    fast = Detections.make([[0, 0, 10, 10]], [0.8], [0])
    escalated = Detections.make([[0, 0, 10, 9], [0, 0, 10, 10]], [0.4, 0.6], [0, 0])
    np.testing.assert_allclose(fuse(fast, escalated, "wbf").score, [0.7, 0.2], rtol=1e-6)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_empty_answers(fusion: Fusion) -> None:
    """Nothing fused with nothing is nothing; an empty answer does not hurt the other."""
    one = Detections.make([[0, 0, 1, 1]], [0.5], [0])
    assert len(fuse(Detections.empty(), Detections.empty(), fusion)) == 0
    assert len(fuse(Detections.empty(), one, fusion)) == 1
    assert len(fuse(one, Detections.empty(), "wbf")) == 1


def test_at_most_a_hundred() -> None:
    """The answer holds the best hundred."""
    many = Detections.make(
        np.tile([0, 0, 1, 1], (90, 1)) + np.arange(90)[:, None] * 5, np.linspace(0.1, 1, 90), np.zeros(90)
    )
    assert len(fuse(many, many.with_xyxy(many.xyxy + 1000), "wbf")) == MAX_ROWS
