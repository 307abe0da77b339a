"""What calibration looked like, and the test of whether frames still do."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from model_repo.detections import Detections
from model_repo.escalation import features
from model_repo.reference import CLIP, RINGS_AT, SLACK, TRACKED, Cusum, Reference, observation
from tests.fakes import Square, squares_frame

ZERO, ONE = np.zeros(1), np.ones(1)


def test_an_observation_has_the_named_features_and_a_mass_per_class() -> None:
    """Features stand in the order of TRACKED; after them the sum of scores of each class."""
    answer = Detections.make([(0, 0, 9, 9), (20, 20, 29, 29), (5, 5, 9, 9)], [0.9, 0.4, 0.25], [2, 0, 2])
    image = squares_frame([Square(0, 0, 0)])
    found = observation(features(answer, image), answer, 4)
    assert found.shape == (len(TRACKED) + 4,)
    assert found[TRACKED.index("score_0")] == pytest.approx(0.9)
    assert found[TRACKED.index("above_0.30")] == 2
    assert found[-4:] == pytest.approx([0.4, 0, 1.15, 0])


def test_a_reference_is_mean_and_spread() -> None:
    """Constant columns keep a spread above zero; lengths must agree."""
    rows = np.random.default_rng(0).normal(5, 2, (4000, len(TRACKED) + 2))
    rows[:, 3] = 1.5
    reference = Reference.of("v", rows)
    assert reference.images == 4000
    assert reference.mean == pytest.approx(rows.mean(axis=0), rel=1e-5)
    assert reference.spread[3] == 1e-3
    with pytest.raises(ValidationError, match="one per class"):
        Reference(variant="v", images=1, mean=(0.0,), spread=(1.0,))


def test_frames_like_those_of_calibration_do_not_ring() -> None:
    """Two hundred streams of 20,000 independent frames stay silent, skewed and slightly shifted ones too."""
    rng = np.random.default_rng(1)
    normal, skewed = (Cusum(ZERO, ONE, (100,)) for _ in range(2))
    for _ in range(20_000):
        normal.observe(rng.normal(0.05, 1.0, (100, 1)))
        skewed.observe(rng.exponential(1.0, (100, 1)) - 1.0)
        assert not normal.ringing.any()
        assert not skewed.ringing.any()


@pytest.mark.parametrize("shift", [0.6, 1.0, -1.0, -3.0])
def test_a_lasting_shift_rings_when_the_formula_says(shift: float) -> None:
    """A shift of d spreads rings after about RINGS_AT / (|d| - SLACK) frames, up or down."""
    rng = np.random.default_rng(2)
    cusum = Cusum(ZERO, ONE, (50,))
    first = np.zeros(50)
    for frame in range(1, 1001):
        cusum.observe(rng.normal(shift, 1.0, (50, 1)))
        first[(first == 0) & cusum.ringing[:, 0]] = frame
    assert (first > 0).all()
    assert np.median(first) == pytest.approx(RINGS_AT / (abs(shift) - SLACK), rel=0.35)


def test_it_clears_when_the_shift_is_over() -> None:
    """An alarm ends some hundred frames after frames are as they were."""
    rng = np.random.default_rng(3)
    cusum = Cusum(ZERO, ONE)
    for _ in range(5000):
        cusum.observe(rng.normal(2.0, 1.0, 1))
    assert cusum.ringing.all()
    assert cusum.height[0] > 1
    for _ in range(400):
        cusum.observe(rng.normal(0.0, 1.0, 1))
    assert not cusum.ringing.any()


def test_one_wild_frame_is_no_drift() -> None:
    """A single frame counts for at most CLIP spreads."""
    cusum = Cusum(ZERO, ONE)
    cusum.observe(np.array([1e9]))
    assert cusum.height[0] == pytest.approx((CLIP - SLACK) / RINGS_AT)
