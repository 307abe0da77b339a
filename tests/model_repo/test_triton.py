"""Triton's configurations and repositories, as far as they can be checked without a server."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from tritonclient.grpc import model_config_pb2

from model_repo import triton
from model_repo.frontier import Variant
from model_repo.publish import Repository, file_digest
from tests.fakes import tiny_repository


@pytest.fixture
def variant(repository: Repository) -> Variant:
    """Return the smaller tiny variant."""
    return repository.frontier.variants[0]


@pytest.mark.parametrize("platform", triton.PLATFORMS)
def test_text_round_trip(platform: triton.Platform, variant: Variant) -> None:
    """What format writes, parse reads back as the same message, on every platform."""
    config = triton.model_config(variant, platform, threads=2, instances=3)
    assert triton.parse_config(triton.format_config(config)) == config
    assert config.name == variant.folder
    assert config.max_batch_size == 0
    assert [(tensor.name, list(tensor.dims)) for tensor in config.input] == [("frames", [1, 64, 64, 3])]
    assert [(tensor.name, list(tensor.dims)) for tensor in config.output] == [("detections", [1, 100, 6])]
    assert config.instance_group[0].count == 3
    assert config.backend or config.platform


def test_parse_names_the_problem() -> None:
    """A wrong field is refused with its name and line."""
    with pytest.raises(triton.PlatformError, match=r"2:1.*colour"):
        triton.parse_config('name: "x"\ncolour: "red"\n')


def test_onnxruntime_uses_tensorrt_on_gpus_only(variant: Variant) -> None:
    """One configuration serves CPU and GPU: threads for the one, the TensorRT accelerator for the other."""
    config = triton.model_config(variant, "onnxruntime", threads=2)
    assert config.parameters["intra_op_thread_count"].string_value == "2"
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_AUTO
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    assert accelerator.parameters["precision_mode"] == "FP32"
    cpu = triton.model_config(variant, "onnxruntime", device="cpu")
    assert not cpu.optimization.execution_accelerators.gpu_execution_accelerator


@pytest.mark.parametrize(("precision", "mode"), [("int8", "INT8"), ("fp16", "FP16"), ("bf16", "FP32")])
def test_accelerator_precision(precision: str, mode: str, variant: Variant) -> None:
    """The accelerator computes in the variant's precision; bf16, OpenVINO's alone, is named f32."""
    changed = variant.model_copy(update={"precision": precision})
    config = triton.model_config(changed, "onnxruntime")
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.parameters["precision_mode"] == mode
    assert config.parameters["precision"].string_value == precision
    expected = "f32" if precision == "bf16" else precision
    assert config.parameters["arithmetic"].string_value == expected


def test_openvino_bf16_hint(variant: Variant) -> None:
    """OpenVINO's backend is told to compute in bf16 exactly for bf16 variants."""
    assert "HINT_BF16" not in triton.model_config(variant, "openvino").parameters
    bf16 = triton.model_config(variant.model_copy(update={"precision": "bf16"}), "openvino")
    assert bf16.parameters["HINT_BF16"].string_value == "YES"


def test_chains_need_the_python_platform(tmp_path: Path) -> None:
    """A variant of several segments is refused by name where a model is one file."""
    repository = tiny_repository(tmp_path / "repository", shared_trunk=True)
    variant = repository.frontier.variants[0]
    for platform in triton.PLATFORMS:
        if platform == "python":
            chain = triton.model_config(variant, platform).parameters["chain"].string_value
            assert "0-trunk.onnx" in chain
            assert "1-head.onnx" in chain
        else:
            with pytest.raises(triton.PlatformError, match=r"tiny-0.*2 segments"):
                triton.model_config(variant, platform)
            with pytest.raises(triton.PlatformError, match="tiny-0"):
                triton.render_repository(repository, platform, tmp_path / "out")
            assert not (tmp_path / "out").exists()
    triton.render_repository(repository, "python", tmp_path / "chain")
    assert (tmp_path / "chain" / variant.folder / "1" / "1-head.onnx").is_file()


@pytest.mark.parametrize("platform", triton.PLATFORMS)
def test_rendered_repository(platform: triton.Platform, repository: Repository, tmp_path: Path) -> None:
    """Every variant becomes a model folder with its configuration and an exact copy of its file."""
    out = triton.render_repository(repository, platform, tmp_path / "made" / "triton")
    models = {path.name for path in out.iterdir() if path.is_dir()}
    assert models == {variant.folder for variant in repository.frontier.variants}
    for variant in repository.frontier.variants:
        folder = out / variant.folder
        config = triton.parse_config((folder / triton.CONFIG).read_text())
        assert config.name == variant.folder
        assert file_digest(folder / "1" / "model.onnx") == variant.segments[0].sha256
        if config.default_model_filename:
            assert (folder / "1" / config.default_model_filename).is_file()
        assert (folder / "1" / "model.py").exists() == (platform == "python")
    assert [path.name for path in out.parent.iterdir()] == ["triton"]


def test_tensorrt_says_how_to_build_its_plans(repository: Repository, tmp_path: Path) -> None:
    """Each plan that a configuration names has the command that writes it."""
    out = triton.render_repository(repository, "tensorrt", tmp_path / "out", compute_capabilities=("8.9",))
    commands = (out / "BUILD.txt").read_text()
    for variant in repository.frontier.variants:
        config = triton.parse_config((out / variant.folder / triton.CONFIG).read_text())
        assert dict(config.cc_model_filenames) == {"8.9": "model-sm89.plan"}
        assert f"--saveEngine={variant.folder}/1/model-sm89.plan" in commands


def test_refuses_what_is_there(repository: Repository, tmp_path: Path) -> None:
    """A folder that holds something, or a file, is left as it is; an empty folder is taken."""
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "note").write_text("mine")
    with pytest.raises(triton.PlatformError, match="taken"):
        triton.render_repository(repository, "python", taken)
    with pytest.raises(triton.PlatformError, match="note"):
        triton.render_repository(repository, "python", taken / "note")
    assert [path.name for path in taken.iterdir()] == ["note"]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert triton.render_repository(repository, "python", empty) == empty


def test_failure_half_way_leaves_nothing(repository: Repository, tmp_path: Path) -> None:
    """When a model file is gone, no half repository stays behind."""
    repository.path(repository.frontier.variants[1].segments[0]).unlink()
    with pytest.raises(FileNotFoundError):
        triton.render_repository(repository, "python", tmp_path / "made" / "out")
    assert list((tmp_path / "made").iterdir()) == []


def test_python_model_stands_alone(repository: Repository, tmp_path: Path) -> None:
    """The model.py that is copied imports numpy and the standard library alone at its top."""
    out = triton.render_repository(repository, "python", tmp_path / "out")
    source = (out / repository.frontier.variants[0].folder / "1" / "model.py").read_text()
    imported = {
        name.split(".")[0]
        for node in ast.parse(source).body
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported <= {"__future__", "importlib", "json", "collections", "pathlib", "typing", "numpy"}
