"""Triton's configurations and repositories, as far as they can be checked without a server."""

from __future__ import annotations

import ast
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto
from tritonclient.grpc import model_config_pb2

from model_repo import triton
from model_repo.frontier import Variant
from model_repo.publish import Repository, file_digest
from model_repo.triton import Serving
from tests.fakes import CLASSES, tiny_repository

_ONNX_TYPES = {
    model_config_pb2.TYPE_UINT8: TensorProto.UINT8,
    model_config_pb2.TYPE_FP32: TensorProto.FLOAT,
}


@pytest.fixture
def variant(repository: Repository) -> Variant:
    """Return the smaller tiny variant."""
    return repository.frontier.variants[0]


@pytest.mark.parametrize("platform", triton.PLATFORMS)
def test_text_round_trip(platform: triton.Platform, variant: Variant) -> None:
    """What format writes, parse reads back as the same message, on every platform."""
    config = triton.model_config(variant, platform, Serving(threads=2, instances=3))
    assert triton.parse_config(triton.format_config(config)) == config
    assert config.name == variant.folder
    assert config.max_batch_size == 0
    assert [(tensor.name, list(tensor.dims)) for tensor in config.input] == [("frames", [1, 64, 64, 3])]
    assert [(tensor.name, list(tensor.dims)) for tensor in config.output] == [("detections", [1, 100, 6])]
    assert config.instance_group[0].count == 3
    assert config.backend or config.platform


@pytest.mark.parametrize("platform", triton.PLATFORMS)
def test_batches(platform: triton.Platform, variant: Variant) -> None:
    """With batches the dimensions leave the batch out, and Triton is told which size to wait for."""
    config = triton.model_config(variant, platform, Serving(batch=8, batch_wait_ms=0.5))
    assert triton.parse_config(triton.format_config(config)) == config
    assert config.max_batch_size == 8
    assert list(config.input[0].dims) == [64, 64, 3]
    assert list(config.output[0].dims) == [100, 6]
    assert list(config.dynamic_batching.preferred_batch_size) == [8]
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    assert [sample.batch_size for sample in config.model_warmup] == [1, 8]


@pytest.mark.parametrize("platform", triton.PLATFORMS)
def test_queue_and_warm_up(platform: triton.Platform, variant: Variant) -> None:
    """Without batches too, who waits too long is rejected, a request's own timeout counts, and one frame
    warms every instance up."""
    config = triton.model_config(variant, platform, Serving(queue_timeout_ms=250, max_queue=16))
    assert config.HasField("dynamic_batching")
    policy = config.dynamic_batching.default_queue_policy
    assert policy.timeout_action == model_config_pb2.ModelQueuePolicy.REJECT
    assert (policy.default_timeout_microseconds, policy.max_queue_size) == (250_000, 16)
    assert policy.allow_timeout_override
    (sample,) = config.model_warmup
    assert sample.batch_size == 1
    assert list(sample.inputs["frames"].dims) == [1, 64, 64, 3]
    assert sample.inputs["frames"].zero_data
    # Triton takes a request's own timeout only where it is below a default that is not 0.
    assert triton.model_config(variant).dynamic_batching.default_queue_policy.default_timeout_microseconds


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threads", 0),
        ("instances", 0),
        ("batch", 0),
        ("batch_wait_ms", -1.0),
        ("queue_timeout_ms", 0.0),
        ("max_queue", -1),
        ("compute_capabilities", ("89",)),
    ],
)
def test_what_makes_no_sense(name: str, value: object) -> None:
    """A number below what can be, or no compute capability, is refused with the option's name."""
    with pytest.raises(triton.PlatformError, match="capability" if "capab" in name else name):
        Serving(**{name: value})  # type: ignore[arg-type]  # one name at a time, of any type


def test_parse_names_the_problem() -> None:
    """A wrong field is refused with its name and line."""
    with pytest.raises(triton.PlatformError, match=r"2:1.*colour"):
        triton.parse_config('name: "x"\ncolour: "red"\n')


def test_onnxruntime_uses_tensorrt_on_gpus_only(variant: Variant) -> None:
    """One configuration serves CPU and GPU: threads for the one, the TensorRT accelerator for the other."""
    config = triton.model_config(variant, "onnxruntime", Serving(threads=2))
    assert config.parameters["intra_op_thread_count"].string_value == "2"
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_AUTO
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    assert accelerator.parameters["precision_mode"] == "FP32"
    assert "trt_profile_min_shapes" not in accelerator.parameters
    cpu = triton.model_config(variant, "onnxruntime", Serving(device="cpu"))
    assert not cpu.optimization.execution_accelerators.gpu_execution_accelerator


def test_the_accelerator_builds_one_engine_for_all_batches(variant: Variant) -> None:
    """The accelerator is told the smallest and largest batch, so that no batch has it build again."""
    config = triton.model_config(variant, "onnxruntime", Serving(batch=4))
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.parameters["trt_profile_min_shapes"] == "frames:1x64x64x3"
    assert accelerator.parameters["trt_profile_opt_shapes"] == "frames:4x64x64x3"
    assert accelerator.parameters["trt_profile_max_shapes"] == "frames:4x64x64x3"


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


def test_openvino_hints(variant: Variant) -> None:
    """OpenVINO's backend is told to compute in bf16 exactly for bf16 variants, to fill up exactly batches."""
    plain = triton.model_config(variant, "openvino").parameters
    assert "HINT_BF16" not in plain
    assert "ENABLE_BATCH_PADDING" not in plain
    bf16 = triton.model_config(variant.model_copy(update={"precision": "bf16"}), "openvino", Serving(batch=2))
    assert bf16.parameters["HINT_BF16"].string_value == "YES"
    assert bf16.parameters["ENABLE_BATCH_PADDING"].string_value == "YES"


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
    """Every variant becomes a model folder with its configuration, labels and an exact copy of its file."""
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
        labels = (folder / config.output[0].label_filename).read_text()
        assert labels.splitlines() == list(CLASSES)
    assert [path.name for path in out.parent.iterdir()] == ["triton"]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("platform", triton.PLATFORMS)
def test_the_graph_is_what_the_configuration_says(
    platform: triton.Platform, batch: int, repository: Repository, tmp_path: Path
) -> None:
    """Names, types and dimensions of the rendered graph's tensors are those of its config.pbtxt."""
    out = triton.render_repository(repository, platform, tmp_path / "out", Serving(batch=batch))
    for variant in repository.frontier.variants:
        config = triton.parse_config((out / variant.folder / triton.CONFIG).read_text())
        graph = onnx.load(out / variant.folder / "1" / "model.onnx").graph
        for values, tensors in ((graph.input, config.input), (graph.output, config.output)):
            for value, tensor in zip(values, tensors, strict=True):
                found = value.type.tensor_type
                assert value.name == tensor.name
                assert found.elem_type == _ONNX_TYPES[tensor.data_type]
                dims = [dim.dim_param or dim.dim_value for dim in found.shape.dim]
                assert dims == ([] if batch == 1 else ["batch"]) + list(tensor.dims)


def test_labels_are_lines() -> None:
    """A class is one line of the labels, whatever its name holds."""
    assert triton.labels_text(("a b", "c\nd ")) == "a b\nc d\n"


def test_tensorrt_says_how_to_build_its_plans(repository: Repository, tmp_path: Path) -> None:
    """Each plan that a configuration names has the command that writes it, with the shapes of its batches."""
    serving = Serving(batch=4, compute_capabilities=("8.9",))
    out = triton.render_repository(repository, "tensorrt", tmp_path / "out", serving)
    commands = (out / "BUILD.txt").read_text()
    assert "python -m search build-engines --repo ." in commands
    for variant in repository.frontier.variants:
        config = triton.parse_config((out / variant.folder / triton.CONFIG).read_text())
        assert dict(config.cc_model_filenames) == {"8.9": "model-sm89.plan"}
        (command,) = (
            line
            for line in commands.splitlines()
            if f"--saveEngine={variant.folder}/1/model-sm89.plan" in line
        )
        side = variant.resolution_wh[0]
        for flag, size in (("--minShapes", 1), ("--optShapes", 4), ("--maxShapes", 4)):
            assert f"{flag}=frames:{size}x{side}x{side}x3" in command
    single = triton.render_repository(repository, "tensorrt", tmp_path / "single")
    assert "Shapes" not in (single / "BUILD.txt").read_text()


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
