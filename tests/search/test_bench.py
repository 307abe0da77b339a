"""The bench of cascades: every way is measured, and the claim fails when any part of it does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from search.bench import CascadeResult, cascade
from search.bench_search import PrecisionResult, PrecisionRow
from search.data.coco import read_dataset
from search.run_folder import RunError, Silent
from tests.fakes import tiny_repository
from tests.search.test_calibrate import squares_data


def test_models_and_plans_are_measured_on_the_test_split(tmp_path: Path) -> None:
    """Every model and every plan of two stages has a row; the largest and the chosen plan are named."""
    repository = tiny_repository(tmp_path / "repo")
    data = read_dataset(squares_data(tmp_path / "data", {"test": 10}), needed=("test",))
    found = cascade(repository, data, Silent(), frames=8)
    assert {row.name for row in found.rows} == {"tiny-0", "tiny-1", "tiny-0-then-tiny-1"}
    assert found.largest == "tiny-1"
    assert found.chosen == "tiny-0-then-tiny-1"
    for row in found.rows:
        assert 0.0 <= row.map <= row.map50 + 1e-9 <= 1.0 + 1e-9
        assert 0.0 < row.mean_ms <= row.p99_ms
        assert row.escalated == 0.0 or row.stages == 2


def test_the_claim_needs_all_three_parts() -> None:
    """Too little accuracy, too much latency, or a single model that does as well: each breaks the claim."""
    good = CascadeResult((), "large", "plan", accuracy_kept=0.985, latency_share=0.59, matched_by=())
    assert good.holds
    assert not replace(good, accuracy_kept=0.979).holds
    assert not replace(good, latency_share=0.61).holds
    assert not replace(good, matched_by=("middle",)).holds


def test_a_repository_without_cascades_is_refused(tmp_path: Path) -> None:
    """Where no plan has two stages there is nothing to measure."""
    data = read_dataset(squares_data(tmp_path / "data", {"test": 4}), needed=("test",))
    with pytest.raises(RunError, match="publishes no plan of two stages"):
        cascade(tiny_repository(tmp_path / "repo", plans=False), data, Silent())


def test_other_classes_are_refused(tmp_path: Path) -> None:
    """Frames labelled with other classes would give a plausible wrong number."""
    others = squares_data(tmp_path / "data", {"test": 4}, classes=("cat", "dog"))
    with pytest.raises(RunError, match="its classes are cat, dog"):
        cascade(tiny_repository(tmp_path / "repo"), read_dataset(others, needed=("test",)), Silent())


def test_what_int8_loses_is_of_all_and_what_it_saves_of_the_larger_half() -> None:
    """The claim needs both, on each runtime."""
    small, large = PrecisionRow("s", 0.5, 0.5, 1.0, 1.0), PrecisionRow("l", 0.6, 0.592, 8.0, 4.0)
    result = PrecisionResult("openvino", (small, large))
    assert result.lost == pytest.approx(0.004)
    assert result.faster == pytest.approx(2.0)
    assert result.holds
    assert not replace(result, rows=(small, replace(large, int8_map=0.589))).holds
    assert not replace(result, rows=(small, replace(large, int8_ms=4.1))).holds
