"""The bench of cascades: every way is measured, and the claim fails when any part of it does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from model_repo.frontier import Plan
from search.bench import CascadeResult, Claim, Verdict, cascade, choose
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
    assert {verdict.chosen for verdict in found.verdicts} == {"tiny-0-then-tiny-1"}
    for row in found.rows:
        assert 0.0 <= row.map <= row.map50 + 1e-9 <= 1.0 + 1e-9
        assert 0.0 < row.mean_ms <= row.p99_ms
        assert row.asked == 0.0 or row.stages == 2


def test_the_claim_needs_all_three_parts() -> None:
    """Too little accuracy, too much latency, or a single model that does as well: each breaks the claim."""
    good = Verdict(Claim(0.99, 0.5), "plan", accuracy_kept=0.991, latency_share=0.49, matched_by=())
    assert good.holds
    for bad in (
        replace(good, accuracy_kept=0.989),
        replace(good, latency_share=0.51),
        replace(good, matched_by=("middle",)),
    ):
        assert not bad.holds
        assert not CascadeResult((), "large", (good, bad)).holds
    assert CascadeResult((), "large", (good,)).holds


def test_a_claim_takes_the_most_accurate_plan_that_its_latency_allows(tmp_path: Path) -> None:
    """Calibration chooses by published cost and accuracy, with a little room for what stages do not add up
    to; where nothing is cheap enough, the cheapest cascade stands for the claim."""
    plans = tiny_repository(tmp_path).frontier.plans
    alone = next(plan for plan in plans if plan.name == "tiny-1")
    cascade_of = next(plan for plan in plans if len(plan.stages) == 2)

    def costing(share: float, accuracy: float) -> Plan:
        own = cascade_of.accuracy[0].model_copy(update={"map": accuracy})
        return cascade_of.model_copy(update={"mean_ms": share * alone.mean_ms, "accuracy": (own,)})

    cheap, better, dear = costing(0.3, 0.4), costing(0.48, 0.5), costing(0.495, 0.6)
    assert choose([alone, cheap, better, dear], "tiny-1", Claim(0.99, 0.5)) is better
    assert choose([alone, cheap, better, dear], "tiny-1", Claim(0.99, 0.65)) is dear
    assert choose([alone, better, dear], "tiny-1", Claim(0.99, 0.2)) is better


def test_a_repository_without_cascades_is_refused(tmp_path: Path) -> None:
    """Where no plan has two stages there is nothing to measure."""
    data = read_dataset(squares_data(tmp_path / "data", {"test": 4}), needed=("test",))
    with pytest.raises(RunError, match="publishes no plan of several stages"):
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
