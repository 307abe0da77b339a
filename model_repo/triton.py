"""From published variants to what Triton serves: config.pbtxt messages and whole model repositories.

A Triton model is named after the variant's folder, which carries its digest. Platforms:

  onnxruntime  the ONNX file on Triton's ONNX Runtime backend; on GPUs through its TensorRT accelerator
  tensorrt     engine plans, one per compute capability, built on the target GPU by the commands in BUILD.txt
  openvino     the ONNX file on Triton's OpenVINO backend; that backend can be told to compute in bf16 but
               not to compute in f32, which CPUs with AMX then do not: there, take python for exact answers
  python       a self-contained model.py that runs OpenVINO or ONNX Runtime; the only one for variants of
               several segments, because the others serve one file per model
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Literal, get_args

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType as TritonType
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup, ModelOptimizationPolicy

from model_repo.detections import MAX_ROWS, ROW_WIDTH
from model_repo.frontier import Variant
from model_repo.latency import Precision
from model_repo.publish import Repository

Platform = Literal["onnxruntime", "tensorrt", "openvino", "python"]
Device = Literal["auto", "cpu", "gpu"]
PythonRuntime = Literal["openvino", "onnxruntime"]
PLATFORMS: tuple[Platform, ...] = get_args(Platform)
CONFIG = "config.pbtxt"
COMPUTE_CAPABILITIES = ("8.0", "8.6", "8.9", "9.0")

_VERSION = "1"
_WORKSPACE_BYTES = 1 << 30
_KIND: Mapping[Device, ModelInstanceGroup.Kind.ValueType] = {
    "auto": ModelInstanceGroup.KIND_AUTO,
    "cpu": ModelInstanceGroup.KIND_CPU,
    "gpu": ModelInstanceGroup.KIND_GPU,
}


class PlatformError(ValueError):
    """A variant cannot be served on a platform, or a repository cannot be rendered; the message says why."""


def model_config(
    variant: Variant,
    platform: Platform = "onnxruntime",
    *,
    runtime: PythonRuntime = "openvino",
    device: Device = "auto",
    threads: int = 1,
    instances: int = 1,
    compute_capabilities: Sequence[str] = COMPUTE_CAPABILITIES,
) -> ModelConfig:
    """Return the message of a variant's config.pbtxt.

    device: where instances run, for onnxruntime alone (auto: the GPUs that the server has, else the CPU).
    threads: cores per inference on a CPU. instances: inferences at once. runtime: the python platform's.
    Raises PlatformError when the platform cannot serve the variant.
    """
    if len(variant.segments) > 1 and platform != "python":
        raise PlatformError(
            f"{variant.name!r} is a chain of {len(variant.segments)} segments, which {platform} does not"
            " serve as one model; render it for the platform 'python'"
        )
    width, height = variant.resolution_wh
    config = ModelConfig(name=variant.folder, max_batch_size=0)
    config.input.add(name="frames", data_type=TritonType.TYPE_UINT8, dims=[1, height, width, 3])
    config.output.add(name="detections", data_type=TritonType.TYPE_FP32, dims=[1, MAX_ROWS, ROW_WIDTH])
    config.version_policy.specific.versions.append(int(_VERSION))
    _set(config, precision=variant.precision)
    if platform == "onnxruntime":
        _onnxruntime(config, variant, device, threads, instances)
    elif platform == "tensorrt":
        _tensorrt(config, instances, compute_capabilities)
    elif platform == "openvino":
        _openvino(config, variant, threads, instances)
    else:
        _python(config, variant, runtime, threads, instances)
    return config


def format_config(config: ModelConfig) -> str:
    """Return a message as the text of a config.pbtxt."""
    return str(text_format.MessageToString(config))


def parse_config(text: str) -> ModelConfig:
    """Read the text of a config.pbtxt; raises PlatformError naming the line."""
    try:
        return text_format.Parse(text, ModelConfig())
    except text_format.ParseError as error:
        raise PlatformError(f"{CONFIG}: {error}") from error


def arithmetic(precision: Precision, runtime: PythonRuntime) -> Precision:
    """Return the precision that a runtime computes in: bf16 is OpenVINO's; ONNX Runtime runs it in f32."""
    return "f32" if precision == "bf16" and runtime == "onnxruntime" else precision


def _set(config: ModelConfig, **parameters: str) -> None:
    for name, value in parameters.items():
        config.parameters[name].string_value = value


def _file(variant: Variant) -> str:
    return Path(variant.segments[0].file).name


def _onnxruntime(config: ModelConfig, variant: Variant, device: Device, threads: int, instances: int) -> None:
    config.backend = "onnxruntime"
    config.default_model_filename = _file(variant)
    config.instance_group.add(kind=_KIND[device], count=instances)
    # `precision` above is what was published and measured; this is what is computed in here.
    _set(
        config,
        arithmetic=arithmetic(variant.precision, "onnxruntime"),
        intra_op_thread_count=str(threads),
        inter_op_thread_count="1",
        execution_mode="0",
    )
    if device == "cpu":
        return
    # Read for instances on GPUs alone. Int8 graphs carry their own Q/DQ scales, so there is no table.
    accelerator: ModelOptimizationPolicy.ExecutionAccelerators.Accelerator = (
        config.optimization.execution_accelerators.gpu_execution_accelerator.add(name="tensorrt")
    )
    mode = {"int8": "INT8", "fp16": "FP16"}.get(variant.precision, "FP32")
    accelerator.parameters["precision_mode"] = mode
    accelerator.parameters["max_workspace_size_bytes"] = str(_WORKSPACE_BYTES)
    accelerator.parameters["trt_engine_cache_enable"] = "1"
    accelerator.parameters["trt_engine_cache_path"] = f"/tmp/triton-engines/{variant.folder}"


def plan_file(compute_capability: str) -> str:
    """Return the name of the plan for a compute capability such as "8.9"."""
    return f"model-sm{compute_capability.replace('.', '')}.plan"


def _tensorrt(config: ModelConfig, instances: int, compute_capabilities: Sequence[str]) -> None:
    config.platform = "tensorrt_plan"
    for capability in compute_capabilities:
        config.cc_model_filenames[capability] = plan_file(capability)
    config.instance_group.add(kind=ModelInstanceGroup.KIND_GPU, count=instances)


def _openvino(config: ModelConfig, variant: Variant, threads: int, instances: int) -> None:
    config.backend = "openvino"
    config.default_model_filename = _file(variant)
    config.instance_group.add(kind=ModelInstanceGroup.KIND_CPU, count=instances)
    _set(config, PERFORMANCE_HINT="LATENCY", INFERENCE_NUM_THREADS=str(threads), NUM_STREAMS=str(instances))
    if variant.precision == "bf16":
        _set(config, HINT_BF16="YES")


def _python(
    config: ModelConfig, variant: Variant, runtime: PythonRuntime, threads: int, instances: int
) -> None:
    config.backend = "python"
    config.instance_group.add(kind=ModelInstanceGroup.KIND_CPU, count=instances)
    chain = [
        {
            "file": name,
            "inputs": [tensor.name for tensor in segment.inputs],
            "outputs": [tensor.name for tensor in segment.outputs],
        }
        for name, segment in zip(_chain_files(variant), variant.segments, strict=True)
    ]
    _set(
        config,
        runtime=runtime,
        arithmetic=arithmetic(variant.precision, runtime),
        threads=str(threads),
        chain=json.dumps(chain),
    )


def _chain_files(variant: Variant) -> list[str]:
    """Name the copies of a variant's segments in its own version folder, in order."""
    if len(variant.segments) == 1:
        return [_file(variant)]
    return [f"{index}-{Path(segment.file).name}" for index, segment in enumerate(variant.segments)]


def render_repository(
    repository: Repository,
    platform: Platform,
    out: Path,
    *,
    runtime: PythonRuntime = "openvino",
    device: Device = "auto",
    threads: int = 1,
    instances: int = 1,
    compute_capabilities: Sequence[str] = COMPUTE_CAPABILITIES,
) -> Path:
    """Write a whole Triton model repository at `out`, all of it or nothing; returns `out`.

    Every variant becomes a model. For tensorrt no plan is built: the ONNX files come along, and BUILD.txt
    gives the command per model and GPU. Raises PlatformError when `out` holds something already or a
    variant cannot be served.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PlatformError(f"{out} is there already and is not an empty folder")
    configs = [
        model_config(
            variant,
            platform,
            runtime=runtime,
            device=device,
            threads=threads,
            instances=instances,
            compute_capabilities=compute_capabilities,
        )
        for variant in repository.frontier.variants
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = out.parent / f".{out.name}-{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir()
        for variant, config in zip(repository.frontier.variants, configs, strict=True):
            _write_model(repository, variant, platform, config, staging / variant.folder)
        if platform == "tensorrt":
            (staging / "BUILD.txt").write_text(build_commands(repository, compute_capabilities))
        os.rename(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return out


def _write_model(
    repository: Repository, variant: Variant, platform: Platform, config: ModelConfig, folder: Path
) -> None:
    version = folder / _VERSION
    version.mkdir(parents=True)
    for name, segment in zip(_chain_files(variant), variant.segments, strict=True):
        shutil.copyfile(repository.path(segment), version / name)
    if platform == "python":
        source = resources.files("model_repo").joinpath("triton_model.py").read_bytes()
        (version / "model.py").write_bytes(source)
    (folder / CONFIG).write_text(format_config(config))


def build_commands(repository: Repository, compute_capabilities: Sequence[str] = COMPUTE_CAPABILITIES) -> str:
    """Return the text of BUILD.txt: how to build each plan, to be run on a GPU of its kind.

    Graphs are built strongly typed: f32, fp16 and int8 (explicit Q/DQ) are what the ONNX file says.
    """
    lines = [
        "No plan is built here: a plan runs only on the kind of GPU and the TensorRT version that built it.",
        "Triton refuses these models until their plans exist. In this folder, with the trtexec of the",
        "TensorRT that your Triton release uses, on a GPU of each compute capability you serve on:",
        "",
    ]
    for capability in compute_capabilities:
        lines.append(f"# compute capability {capability}")
        lines += [
            f"trtexec --onnx={variant.folder}/{_VERSION}/{_file(variant)} --stronglyTyped"
            f" --timingCacheFile=timing-sm{capability.replace('.', '')}.cache"
            f" --saveEngine={variant.folder}/{_VERSION}/{plan_file(capability)}"
            for variant in repository.frontier.variants
        ]
        lines.append("")
    lines.append(
        "(TensorRT 11 builds strongly typed always: leave out --stronglyTyped where trtexec refuses it.)"
    )
    return "\n".join(lines) + "\n"
