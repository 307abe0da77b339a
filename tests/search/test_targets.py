"""Targets are there, or what is missing is said before a run begins."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
import pytest
from typer.testing import CliRunner

from model_repo.latency import RuntimeName
from model_repo.runtime.onnxruntime import CUDA
from search.__main__ import app
from search.run_folder import RunError
from search.settings import Settings
from search.targets import Targets
from tests.search.tiny import recorded_table, tiny_dataset

NO_GPU = pytest.mark.skipif(
    CUDA in ort.get_available_providers(), reason="this build of ONNX Runtime is one for GPUs"
)


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_a_runtime_that_is_there_runs_the_probe(tmp_path: Path, runtime: RuntimeName) -> None:
    """The embedded runtimes of this machine pass their check, and run f32 at least."""
    targets = Targets(tmp_path)
    targets.check(runtime)
    assert "f32" in targets.precisions(runtime)


@NO_GPU
def test_a_missing_runtime_is_named_with_what_it_needs(tmp_path: Path) -> None:
    """No package, no address, no server: each is said, and such a runtime runs no precision."""
    needed: dict[RuntimeName, str] = {
        "onnxruntime-cuda": "onnxruntime-gpu",
        "onnxruntime-tensorrt": "TensorRT",
        "triton": "--triton-url",
    }
    for runtime, what in needed.items():
        assert Targets(tmp_path).precisions(runtime) == ()
        with pytest.raises(RunError, match=f"target {runtime}: .*{what}"):
            Targets(tmp_path).check(runtime)
    with pytest.raises(RunError, match=r"target triton: .*127\.0\.0\.1:9"):
        Targets(tmp_path, "127.0.0.1:9").check("triton")


def test_triton_runs_what_its_backend_computes_as_it_says(tmp_path: Path) -> None:
    """A backend that would compute a precision in another one does not have it."""
    of = {
        platform: set(Targets(tmp_path, "127.0.0.1:9", platform).precisions("triton"))
        for platform in ("onnxruntime", "openvino", "python")
    }
    assert of == {
        "onnxruntime": {"f32", "fp16", "int8"},
        "openvino": {"bf16", "int8"},
        "python": {"f32", "int8"},
    }


@NO_GPU
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--target", "onnxruntime-cuda"), "target onnxruntime-cuda: .*onnxruntime-gpu"),
        (("--target", "openvino", "--target", "onnxruntime-tensorrt"), "onnxruntime-tensorrt: .*TensorRT"),
        (("--target", "abacus"), "runtimes.*abacus|runtimes.*'openvino'"),
        (("--target", "openvino", "--target", "openvino"), "openvino, openvino"),
        (("--target", "triton"), "triton_url"),
        (("--target", "triton", "--triton-url", "127.0.0.1:9"), r"target triton: .*127\.0\.0\.1:9"),
        (
            ("--target", "onnxruntime", "--latency-precision", "fp16"),
            "latency_precision: onnxruntime does not run fp16 here; it runs f32, int8",
        ),
        (
            ("--target", "onnxruntime", "--precision", "bf16", "--precision", "fp16"),
            "precisions: onnxruntime runs none of bf16, fp16 here; it runs f32, int8",
        ),
    ],
)
def test_a_run_that_could_not_measure_does_not_begin(
    tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    """An absent target, and a precision that the first one does not run, end a run before its first step."""
    data = tiny_dataset(tmp_path / "data", {"train": 4, "calib": 2, "valid": 2, "test": 2})
    out = tmp_path / "run"
    command = [
        "run", "--data", str(data), "--out", str(out), "--repo", str(tmp_path / "repo"), "--steps", "2",
    ]  # fmt: skip
    with pytest.raises(RunError, match=said):
        CliRunner().invoke(app, [*command, *options], catch_exceptions=False)
    assert not (out / "steps").exists()


def test_a_latency_table_of_another_runtime_is_refused_at_once(tmp_path: Path) -> None:
    """What was measured on OpenVINO says nothing about ONNX Runtime, and is not asked for hours later."""
    data = tiny_dataset(tmp_path / "data", {"train": 4, "calib": 2, "valid": 2, "test": 2})
    (tmp_path / "table.json").write_text(recorded_table(tmp_path).model_dump_json())
    command = [
        "run", "--data", str(data), "--out", str(tmp_path / "run"), "--repo", str(tmp_path / "repo"),
        "--steps", "2", "--target", "onnxruntime", "--latency-table", str(tmp_path / "table.json"),
    ]  # fmt: skip
    with pytest.raises(RunError, match="latency_table: it was measured on openvino"):
        CliRunner().invoke(app, command, catch_exceptions=False)
    assert not (tmp_path / "run" / "steps").exists()


def test_only_the_first_target_decides_about_exploring() -> None:
    """Another second target leaves what was explored standing; another first one does not."""
    before, after, other = (
        Settings(data="d", runtimes=runtimes).of_step("explore")
        for runtimes in (("openvino", "onnxruntime"), ("openvino",), ("onnxruntime", "openvino"))
    )
    assert before == after == Settings(data="d").of_step("explore")
    assert other != before
