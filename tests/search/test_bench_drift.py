"""The drift bench's replay: frames like the reference's stay silent, others ring; other sets are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model_repo.reference import TRACKED, Reference
from search.bench_drift import DriftResult, ShiftRow, _first_rings, _median_detection, drift
from search.data.coco import read_dataset
from search.run_folder import RunError, Silent
from tests.fakes import tiny_repository
from tests.search.test_calibrate import squares_data

WIDTH = len(TRACKED) + 2


@pytest.fixture
def seen() -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    return np.random.default_rng(0).normal(3.0, 2.0, (800, WIDTH))


def test_replay_of_the_same_frames_is_silent_and_of_others_is_not(
    seen: np.ndarray[tuple[int, int], np.dtype[np.float64]],
) -> None:
    """Streams of reference frames do not ring; frames one spread away ring after some fifty."""
    reference = Reference.of("v", seen)
    rng = np.random.default_rng(1)
    assert not _first_rings(reference, seen, 3_000, rng, Silent()).any()
    shifted = seen + 2.0 * (np.arange(WIDTH) == 4)
    found = _median_detection(reference, seen, shifted, rng)
    assert found is not None
    assert 30 < found < 90
    assert _median_detection(reference, seen, seen, rng) is None


def test_only_costly_shifts_have_to_be_noticed() -> None:
    """A shift that costs little may pass; one that costs five points may not, and false alarms count."""
    harmless = ShiftRow("harmless", 0.8, 0.01, None)
    costly = ShiftRow("costly", 0.7, 0.11, 400.0)
    assert DriftResult("v", 1, (harmless, costly)).holds
    assert not DriftResult("v", 2, (harmless, costly)).holds
    assert not DriftResult("v", 0, (ShiftRow("late", 0.7, 0.11, 1_500.0),)).holds
    assert not DriftResult("v", 0, (ShiftRow("never", 0.7, 0.11, None),)).holds


def test_what_cannot_be_replayed_is_refused(tmp_path: Path) -> None:
    """A repository without a reference and a set that was not rendered are named."""
    repository = tiny_repository(tmp_path / "repo")
    data = read_dataset(squares_data(tmp_path / "data", {"test": 4}), needed=("test",))
    with pytest.raises(RunError, match="no reference of tiny-0"):
        drift(repository, data, Silent())
    reference = Reference(variant="tiny-0", images=9, mean=(0.0,) * WIDTH, spread=(1.0,) * WIDTH)
    frontier = repository.frontier.model_copy(update={"references": (reference,)})
    with pytest.raises(RunError, match="no rendered conveyor set"):
        drift(replace(repository, frontier=frontier), data, Silent())
