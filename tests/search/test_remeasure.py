"""Latencies and plan costs of a published repository, measured again on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from model_repo.publish import read
from search.__main__ import app
from search.data.coco import read_dataset
from search.remeasure import remeasure
from search.run_folder import RunError, Silent
from search.targets import Targets
from tests.fakes import tiny_repository
from tests.search.test_calibrate import squares_data


def test_latencies_are_this_machines_and_the_rest_stays(tmp_path: Path) -> None:
    """Profiles and costs are new, of concurrency 1 and 2; models, rules, accuracies and points stay."""
    before = tiny_repository(tmp_path / "repo", mean_ms=500.0)
    data = read_dataset(squares_data(tmp_path / "data", {"test": 6}), needed=("test",))
    after = remeasure(before, data, Silent(), Targets(tmp_path), samples=20)
    assert after.environment != before.frontier.environment
    for old, new in zip(before.frontier.variants, after.variants, strict=True):
        for runtime in ("openvino", "onnxruntime"):
            profiles = new.on(runtime).latency
            assert [profile.concurrency for profile in profiles] == [1, 2]
            assert 0 < profiles[0].mean_ms < 200, "not the 500 ms that were published"
            assert new.on(runtime).alignment == old.on(runtime).alignment
        assert new.on("triton") == old.on("triton"), "no Triton was asked"
        assert new.segments == old.segments
    for old_plan, plan in zip(before.frontier.plans, after.plans, strict=True):
        assert plan.mean_ms < old_plan.mean_ms
        assert plan.p99_ms > 0
        assert (plan.stages, plan.accuracy) == (old_plan.stages, old_plan.accuracy)
    assert after.operating_points == before.frontier.operating_points


def test_the_command_replaces_the_manifest(tmp_path: Path) -> None:
    """It publishes in place, and says what is missing without a test split."""
    repository = tiny_repository(tmp_path / "repo", mean_ms=500.0)
    data = squares_data(tmp_path / "data", {"test": 4})
    arguments = ["remeasure", "--repo", str(repository.root), "--data", str(data), "--samples", "20"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert read(repository.root).digest != repository.digest
    with pytest.raises(RunError, match="nowhere"):
        CliRunner().invoke(app, [*arguments[:3], "--data", str(tmp_path / "nowhere")], catch_exceptions=False)
