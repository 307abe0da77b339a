from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from model_repo.publish import read
from search.artifacts import Artifacts
from search.data.coco import read_dataset
from search.evaluate import SubnetEvaluator
from search.results import MeasuredAll
from search.run_folder import RunFolder
from search.settings import read_settings
from search.space import Architecture
from search.weights import read_supernet
from tests.search.tiny import CHOICES, recorded_table, tiny_dataset


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny data set, a tiny space, and a recorded latency table."""
    root = tmp_path_factory.mktemp("given")
    tiny_dataset(root / "data", {"train": 16, "calib": 12, "valid": 8, "test": 6})
    (root / "space.json").write_text(json.dumps(CHOICES))
    (root / "table.json").write_text(recorded_table(root).model_dump_json())
    return root


def arguments(given: Path, out: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "search", "run", "--data", str(given / "data"), "--out", str(out),
        "--repo", str(out.parent / f"{out.name}-repo"), "--space", str(given / "space.json"),
        "--latency-table", str(given / "table.json"), "--steps", "6", "--batch-size", "4",
        "--checkpoint-s", "0",
        "--candidates", "6", "--population", "3", "--search-images", "6", "--keep", "3", "--publish", "2",
        "--samples", "20", "--workers", "1", "--seed", "5", "--finish-steps", "2", "--tune-steps", "2", *more,
    ]  # fmt: skip


def to_the_end(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def killed_when(command: list[str], reached: Callable[[], bool], delay_s: float) -> bool:
    """Kill the command `delay_s` after `reached` becomes true; return whether it was still alive."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not reached() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(delay_s)
        return process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def averaged_weights(out: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(out / "train" / "weights.pt", weights_only=True)["weights"]
    return weights


@pytest.mark.timeout(290)
def test_a_run_that_is_killed_ends_as_one_that_is_not(given: Path, tmp_path: Path) -> None:
    """SIGKILL in training, exploring and exporting: finished work stays, and the results are the same."""
    until = ("--until", "export")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    to_the_end(arguments(given, whole, *until))
    command = arguments(given, broken, *until)
    moments = random.Random(os.getpid())
    journal = broken / "explore" / "candidates.jsonl"
    assert killed_when(command, (broken / "train" / "checkpoint.pt").exists, moments.uniform(0, 0.05))
    killed_when(command, lambda: len(lines(journal)) >= 2, moments.uniform(0, 0.3))
    kept_lines = lines(journal)
    trained = (broken / "train" / "weights.pt").stat().st_mtime_ns
    killed_when(command, lambda: any((broken / "export").glob("r*.json")), moments.uniform(0, 0.1))
    exported = {path: path.stat().st_mtime_ns for path in (broken / "export").glob("r*.json")}
    said = to_the_end(command)

    assert "train: finished before" in said
    assert (broken / "train" / "weights.pt").stat().st_mtime_ns == trained
    assert lines(journal)[: len(kept_lines) - 1] == kept_lines[:-1]
    assert all(path.stat().st_mtime_ns == written for path, written in exported.items())
    before, after = averaged_weights(whole), averaged_weights(broken)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert _without_times(whole) == _without_times(broken)
    assert _files(whole) == _files(broken)


def _without_times(out: Path) -> list[dict[str, object]]:
    rows = [json.loads(line) for line in lines(out / "explore" / "candidates.jsonl")]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def stem_of(model: Path) -> NDArray[np.float32]:
    """Return the first layer's kernel of an exported file."""
    kernels = {each.name: each for each in onnx.load(model).graph.initializer}
    return onnx.numpy_helper.to_array(kernels["stem/weight"])


def kernel_of(out: Path, weights: Path, architecture: str) -> NDArray[np.float32]:
    """Return the first layer's kernel, fused, of a subnet with these weights."""
    settings = read_settings(RunFolder(out))
    assert settings is not None
    data = read_dataset(Path(settings.data), calibration_share=settings.calibration_share)
    evaluator = SubnetEvaluator(
        read_supernet(weights).supernet(), data, seed=settings.seed, precision="float32"
    )
    kernel = evaluator.detector(Architecture.parse(architecture)).stem.conv.weight
    return np.asarray(kernel.detach().numpy())


def _files(out: Path) -> list[str]:
    """Return the exported models; their folders carry their digests."""
    return sorted(path.name for path in (out / "export" / "models").iterdir())


@pytest.mark.timeout(290)
def test_one_command_ends_in_a_published_repository(given: Path, tmp_path: Path) -> None:
    """A whole run publishes a repository that verifies, and reports; a second call repeats nothing."""
    out = tmp_path / "run"
    to_the_end(arguments(given, out))
    repository = read(tmp_path / "run-repo")
    frontier = repository.frontier
    assert 1 <= len(frontier.variants) <= 2
    for variant in frontier.variants:
        for measurement in variant.measurements:
            assert {accuracy.split for accuracy in measurement.accuracy} == {"valid", "calibration", "test"}
            assert {profile.concurrency for profile in measurement.latency} == {1, 2}
    for plan in frontier.plans:
        assert plan.accuracy_on("test").images == 6
    assert {point.name for point in frontier.operating_points} == {"fast", "balanced", "accurate"}
    page = (out / "report" / "report.html").read_text()
    assert all(variant.name in page for variant in frontier.variants)
    assert page.count("<img") >= 3
    assert "http" not in page
    measured = MeasuredAll.model_validate_json((out / "measure" / "measured.json").read_text())
    assert len(measured.screened) > len(measured.best) == 3
    alone = {path.parent.name for path in (out / "finish").glob("*/weights.pt")}
    artifacts = Artifacts.model_validate_json((out / "export" / "artifacts.json").read_text()).artifacts
    assert alone == {artifact.architecture for artifact in artifacts}
    model = next(artifact for artifact in artifacts if artifact.precision == "f32")
    stem = stem_of(out / "export" / "models" / model.folder / "1" / "model.onnx")
    finished = out / "finish" / model.architecture / "weights.pt"
    assert np.allclose(stem, kernel_of(out, finished, model.architecture), rtol=1e-4, atol=1e-6)
    before = kernel_of(out, out / "train" / "weights.pt", model.architecture)
    assert not np.allclose(stem, before, rtol=1e-4, atol=1e-6)
    assert all((artifact.quantized is None) == (artifact.precision != "int8") for artifact in artifacts)
    assert to_the_end(arguments(given, out)).count("finished before") == 9

    changed = subprocess.run(
        arguments(given, out, "--candidates", "7"), capture_output=True, text=True, timeout=120, check=False
    )
    assert changed.returncode == 2
    assert "candidates: was 6, is now 7" in changed.stderr
    assert read(tmp_path / "run-repo").digest == repository.digest


@pytest.mark.timeout(290)
def test_named_subnets_go_on_in_place_of_a_search(given: Path, tmp_path: Path) -> None:
    """Just those are evaluated, to the end, and all of them are kept, however far one trails."""
    names = [
        f"r{side}-d1.{depth}.1.1-w8.8.16.16-n8-h1" for side, depth in ((128, 2), (96, 1), (128, 1), (96, 2))
    ]
    out = tmp_path / "run"
    chosen = [word for name in names for word in ("--subnet", name)]
    to_the_end(arguments(given, out, *chosen, "--keep", "2", "--max-trail", "0.001", "--until", "finish"))
    assert [row["architecture"] for row in _without_times(out)] == names
    assert all(row["finished"] for row in _without_times(out))
    assert {path.parent.name for path in (out / "finish").glob("*/weights.pt")} == set(names)

    wrong = ("--subnet", "r64-d1.1.1.1-w8.8.16.16-n8-h1", "--subnet", names[0])
    unknown = subprocess.run(
        arguments(given, tmp_path / "other", *wrong), capture_output=True, text=True, timeout=200, check=False
    )
    assert unknown.returncode == 2
    assert "r64-d1.1.1.1-w8.8.16.16-n8-h1 is not in the search space" in unknown.stderr
    assert not (tmp_path / "other" / "train" / "weights.pt").exists()
