"""ONNX Runtime's providers: names, errors and options without a GPU, and CUDA itself where there is one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from model_repo.frontier import Variant
from model_repo.latency import OnnxRuntimeName
from model_repo.publish import Repository
from model_repo.runtime import onnxruntime, select
from model_repo.runtime.engine import EngineUnavailable, answer_frame
from model_repo.runtime.onnxruntime import CPU, CUDA, TENSORRT, OnnxRuntimeEngine, gpu_name, providers
from tests.fakes import Square, squares_frame

FRAME = squares_frame([Square(0, 1, 0), Square(2, 3, 1, 100)])
HAS_CUDA = CUDA in ort.get_available_providers()


class FakeSession:
    """A session of a build with all providers; `started` is what of them comes up."""

    started = (TENSORRT, CUDA, CPU)

    def __init__(self, graph: str, options: ort.SessionOptions, **given: object) -> None:
        self.graph, self.given = graph, given
        FakeSession.last = self

    last: FakeSession

    def get_providers(self) -> list[str]:
        asked = [each if isinstance(each, str) else each[0] for each in self._asked()]
        return [each for each in asked if each in self.started]

    def _asked(self) -> list[onnxruntime.Provider]:
        asked = self.given["providers"]
        assert isinstance(asked, list)
        return asked

    def get_inputs(self) -> list[object]:
        return [type("Node", (), {"name": "frames"})]

    def get_outputs(self) -> list[object]:
        return [type("Node", (), {"name": "detections"})]


@pytest.fixture
def gpu_build(monkeypatch: pytest.MonkeyPatch) -> type[FakeSession]:
    """Make ONNX Runtime look like a build for GPUs."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setattr(ort, "InferenceSession", FakeSession)
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    return FakeSession


def _as(variant: Variant, precision: str) -> Variant:
    return variant.model_copy(update={"precision": precision})


@pytest.mark.parametrize("runtime", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
@pytest.mark.skipif(HAS_CUDA, reason="this build of ONNX Runtime is one for GPUs")
def test_what_is_not_in_the_build_is_refused_with_what_to_install(runtime: OnnxRuntimeName) -> None:
    """Without the package for GPUs the error names it and the providers that are there."""
    with pytest.raises(EngineUnavailable, match=f"which has .*{CPU}.*; {runtime} needs .*onnxruntime-gpu"):
        select.make_engine(runtime)
    assert not select.supports(runtime, "f32")


@pytest.mark.parametrize("runtime", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_an_engine_says_which_runtime_it_is(
    gpu_build: type[FakeSession],
    monkeypatch: pytest.MonkeyPatch,
    repository: Repository,
    runtime: OnnxRuntimeName,
) -> None:
    """Its name is the provider's, its device the GPU, and the CPU's form of int8 is not made for it."""
    monkeypatch.setattr(onnxruntime, "gpu_name", lambda: "NVIDIA H200")
    engine = select.make_engine(runtime)
    variant = _as(repository.frontier.variants[0], "int8")
    engine.load(repository.root, variant)
    assert (engine.runtime, engine.device) == (runtime, "NVIDIA H200")
    assert gpu_build.last.graph == str(repository.root / variant.segments[0].file)
    assert select.supports(runtime, "fp16")
    assert not select.supports(runtime, "bf16"), "files in bf16 are f32 to anyone but OpenVINO"


def test_a_provider_that_does_not_come_up_is_refused(
    gpu_build: type[FakeSession], monkeypatch: pytest.MonkeyPatch, repository: Repository
) -> None:
    """A session on CUDA in place of TensorRT, or on the CPU in place of CUDA, is no session."""
    variant = repository.frontier.variants[0]
    monkeypatch.setattr(gpu_build, "started", (CUDA, CPU))
    with pytest.raises(EngineUnavailable, match=r"fell back to CUDA.*TensorRT"):
        OnnxRuntimeEngine(runtime="onnxruntime-tensorrt").load(repository.root, variant)
    monkeypatch.setattr(gpu_build, "started", (CPU,))
    with pytest.raises(EngineUnavailable, match=r"fell back to CPU.*onnxruntime-gpu"):
        OnnxRuntimeEngine(runtime="onnxruntime-cuda").load(repository.root, variant)
    assert gpu_build.last.given["enable_fallback"] == 0


def test_tensorrt_gets_types_and_a_folder_for_each_model(
    gpu_build: type[FakeSession], repository: Repository, tmp_path: Path
) -> None:
    """Each precision has its flag and no calibration table; engines of two models never share a folder."""
    one, two = repository.frontier.variants
    flags = {}
    for precision in ("f32", "fp16", "int8"):
        first, *others = providers("onnxruntime-tensorrt", _as(one, precision), None)
        assert isinstance(first, tuple)
        name, options = first
        assert name == TENSORRT
        assert others == [(CUDA, {"use_tf32": "0"}), CPU]
        flags[precision] = {option for option, value in options.items() if value == "True"}
    assert flags == {"f32": set(), "fp16": {"trt_fp16_enable"}, "int8": {"trt_int8_enable"}}
    engine = OnnxRuntimeEngine(runtime="onnxruntime-tensorrt", engine_cache=tmp_path / "engines")
    caches = set()
    for variant in (one, two):
        engine.load(repository.root, variant)
        asked = gpu_build.last.given["providers"]
        assert isinstance(asked, list)
        assert asked[0][1]["trt_engine_cache_enable"] == "True"
        caches.add(Path(asked[0][1]["trt_engine_cache_path"]))
    assert len(caches) == 2
    assert all(cache.is_dir() and cache.is_relative_to(tmp_path / "engines") for cache in caches)


@pytest.mark.parametrize(
    ("script", "name"),
    [
        ("echo 'NVIDIA H200'; echo 'NVIDIA H200'", "NVIDIA H200"),
        ("echo 'NVIDIA L4'; echo 'NVIDIA T4'", "cuda"),
        ("echo broken; exit 9", "cuda"),
        (None, "cuda"),
    ],
    ids=["two alike", "two kinds", "no driver", "no nvidia-smi"],
)
def test_a_gpu_is_named_or_left_unnamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, name: str
) -> None:
    """Its name is nvidia-smi's; where that is missing, fails, or tells of several kinds, nobody guesses."""
    if script is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_name() == name


@pytest.mark.skipif(not HAS_CUDA, reason="no CUDA provider in this build of ONNX Runtime")
def test_cuda_answers_as_the_cpu_does(repository: Repository) -> None:
    """On a real GPU the rows are the CPU's, and the environment has the GPU's name."""
    variant = repository.frontier.variants[1]
    rows = []
    for runtime in ("onnxruntime", "onnxruntime-cuda"):
        engine = select.make_engine(runtime)
        engine.load(repository.root, variant)
        found = answer_frame(engine, variant, FRAME).detections
        rows.append(np.c_[found.xyxy, found.score, found.label])
        assert (engine.device == "cpu") == (runtime == "onnxruntime")
        engine.close()
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-3, atol=1e-3)
