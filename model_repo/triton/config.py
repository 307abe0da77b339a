"""The message of a model's config.pbtxt: what it is, where and how often it runs, who may wait for it.

Batches. A batch above 1 pays on GPUs, where a batch takes little longer than a frame; on two cores it brought
1.4x for the largest nets and nothing for small ones, so that 1 is the default. Triton's dynamic batcher puts
together what waits at the same moment; `batch_wait_ms` has it wait for more, which every lone frame pays.
Triton's OpenVINO backend compiles for the largest batch alone and fills others up (ENABLE_BATCH_PADDING;
`ov::set_batch` in its openvino.cc): there a lone frame costs what the largest batch does.

Queue. Triton has queue policies in its dynamic batcher only, which is why there is one without batches too
(it then takes one request at a time: `max(1, max_batch_size)` in core's dynamic_batch_scheduler.cc). A
request's own timeout, which `TritonEngine` sets to what is left of the budget, counts where it is below
`queue_timeout_ms`; with a default of 0 Triton would never look at it (PolicyQueue::Enqueue in
scheduler_utils.cc). It covers the time in the queue: what runs is not taken back, and the gateway's own
deadline stays with the gateway.

Warm-up. Every instance runs a batch of one, and one of the largest size, before the model is ready: no
request pays for what runtimes prepare at their first inference.

Labels. `labels.txt` has one class a line; column 5 of a row of `detections` is the number of its line, from 0
(-1 for padding). Triton itself reads the file for its classification extension, which means nothing for rows
of detections.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType as TritonType
from tritonclient.grpc.model_config_pb2 import (
    ModelConfig,
    ModelInstanceGroup,
    ModelOptimizationPolicy,
    ModelQueuePolicy,
)

from model_repo.detections import MAX_ROWS, ROW_WIDTH
from model_repo.frontier import Variant
from model_repo.latency import Precision

Platform = Literal["onnxruntime", "tensorrt", "openvino", "python"]
Device = Literal["auto", "cpu", "gpu"]
PythonRuntime = Literal["openvino", "onnxruntime"]
PLATFORMS: tuple[Platform, ...] = get_args(Platform)
DEVICES: tuple[Device, ...] = get_args(Device)
PYTHON_RUNTIMES: tuple[PythonRuntime, ...] = get_args(PythonRuntime)
CONFIG = "config.pbtxt"
LABELS = "labels.txt"
VERSION = "1"
INPUT, OUTPUT = "frames", "detections"
COMPUTE_CAPABILITIES = ("8.0", "8.6", "8.9", "9.0", "10.0", "12.0")

_WORKSPACE_BYTES = 1 << 30
_KIND: Mapping[Device, ModelInstanceGroup.Kind.ValueType] = {
    "auto": ModelInstanceGroup.KIND_AUTO,
    "cpu": ModelInstanceGroup.KIND_CPU,
    "gpu": ModelInstanceGroup.KIND_GPU,
}


class PlatformError(ValueError):
    """A variant cannot be served on a platform, or a repository cannot be rendered; the message says why."""


@dataclass(frozen=True, slots=True)
class Serving:
    """How Triton is to run the models of a repository. Raises PlatformError when it is made of nonsense.

    runtime: the python platform's. device: where instances run, for onnxruntime alone (auto: the GPUs that
    the server has, else the CPU). threads: cores per inference on a CPU. instances: inferences at once.
    batch: the largest one. batch_wait_ms: how long a smaller one waits for more requests.
    queue_timeout_ms: how long any request may wait for its turn. max_queue: how many may wait, 0 for any
    number. compute_capabilities: of the GPUs that tensorrt has plans for.
    """

    runtime: PythonRuntime = "openvino"
    device: Device = "auto"
    threads: int = 1
    instances: int = 1
    batch: int = 1
    batch_wait_ms: float = 0.0
    queue_timeout_ms: float = 30_000.0
    max_queue: int = 0
    compute_capabilities: tuple[str, ...] = COMPUTE_CAPABILITIES

    def __post_init__(self) -> None:
        """Check every number."""
        for name, value, least in (
            ("threads", self.threads, 1),
            ("instances", self.instances, 1),
            ("batch", self.batch, 1),
            ("batch_wait_ms", self.batch_wait_ms, 0),
            ("queue_timeout_ms", self.queue_timeout_ms, 1),
            ("max_queue", self.max_queue, 0),
        ):
            if value < least:
                raise PlatformError(f"{name} must be at least {least}, got {value:g}")
        for capability in self.compute_capabilities:
            if not re.fullmatch(r"\d+\.\d", capability):
                raise PlatformError(f"capability: {capability!r} is not of the form 8.9")


def model_config(
    variant: Variant, platform: Platform = "onnxruntime", serving: Serving | None = None
) -> ModelConfig:
    """Return the message of a variant's config.pbtxt; the file that it names labels in is for the caller.

    Raises PlatformError when the platform cannot serve the variant.
    """
    serving = serving or Serving()
    if len(variant.segments) > 1 and platform != "python":
        raise PlatformError(
            f"{variant.name!r} is a chain of {len(variant.segments)} segments, which {platform} does not"
            " serve as one model; render it for the platform 'python'"
        )
    width, height = variant.resolution_wh
    batched = serving.batch > 1
    config = ModelConfig(name=variant.folder, max_batch_size=serving.batch if batched else 0)
    one = [] if batched else [1]  # with batches, Triton's shapes leave the first dimension out
    config.input.add(name=INPUT, data_type=TritonType.TYPE_UINT8, dims=[*one, height, width, 3])
    config.output.add(
        name=OUTPUT,
        data_type=TritonType.TYPE_FP32,
        dims=[*one, MAX_ROWS, ROW_WIDTH],
        label_filename=LABELS,
    )
    config.version_policy.specific.versions.append(int(VERSION))
    _set(config, precision=variant.precision)
    _queue(config, serving)
    _warm_up(config, serving)
    if platform == "onnxruntime":
        _onnxruntime(config, variant, serving)
    elif platform == "tensorrt":
        _tensorrt(config, serving)
    elif platform == "openvino":
        _openvino(config, variant, serving)
    else:
        _python(config, variant, serving)
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


def labels_text(classes: Sequence[str]) -> str:
    """Return the text of labels.txt: one class a line, whatever white space its name has."""
    return "".join(f"{' '.join(name.split())}\n" for name in classes)


def arithmetic(precision: Precision, runtime: PythonRuntime) -> Precision:
    """Return the precision that a runtime computes in: bf16 is OpenVINO's; ONNX Runtime runs it in f32."""
    return "f32" if precision == "bf16" and runtime == "onnxruntime" else precision


def plan_file(compute_capability: str) -> str:
    """Return the name of the plan for a compute capability such as "8.9"."""
    return f"model-{architecture(compute_capability)}.plan"


def architecture(compute_capability: str) -> str:
    """Return "sm89" for "8.9"."""
    return f"sm{compute_capability.replace('.', '')}"


def chain_files(variant: Variant) -> list[str]:
    """Name the copies of a variant's segments in its own version folder, in order."""
    if len(variant.segments) == 1:
        return [_file(variant)]
    return [f"{index}-{Path(segment.file).name}" for index, segment in enumerate(variant.segments)]


def input_shape(variant: Variant, batch: int) -> str:
    """Return "frames:8x160x192x3", as trtexec and ONNX Runtime's accelerator write the shape of an input."""
    width, height = variant.resolution_wh
    return f"{INPUT}:{batch}x{height}x{width}x3"


def _set(config: ModelConfig, **parameters: str) -> None:
    for name, value in parameters.items():
        config.parameters[name].string_value = value


def _file(variant: Variant) -> str:
    return Path(variant.segments[0].file).name


def _queue(config: ModelConfig, serving: Serving) -> None:
    batching = config.dynamic_batching
    if serving.batch > 1:
        batching.preferred_batch_size.append(serving.batch)
        batching.max_queue_delay_microseconds = round(serving.batch_wait_ms * 1_000)
    policy = batching.default_queue_policy
    policy.timeout_action = ModelQueuePolicy.REJECT
    policy.default_timeout_microseconds = round(serving.queue_timeout_ms * 1_000)
    policy.allow_timeout_override = True
    policy.max_queue_size = serving.max_queue


def _warm_up(config: ModelConfig, serving: Serving) -> None:
    for size in sorted({1, serving.batch}):
        sample = config.model_warmup.add(name=f"batch-{size}", batch_size=size)
        frames = sample.inputs[INPUT]
        frames.data_type = config.input[0].data_type
        frames.dims.extend(config.input[0].dims)
        frames.zero_data = True


def _onnxruntime(config: ModelConfig, variant: Variant, serving: Serving) -> None:
    config.backend = "onnxruntime"
    config.default_model_filename = _file(variant)
    config.instance_group.add(kind=_KIND[serving.device], count=serving.instances)
    # `precision` above is what was published and measured; this is what is computed in here.
    _set(
        config,
        arithmetic=arithmetic(variant.precision, "onnxruntime"),
        intra_op_thread_count=str(serving.threads),
        inter_op_thread_count="1",
        execution_mode="0",
    )
    if serving.device == "cpu":
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
    if serving.batch > 1:
        # Without them an engine is built anew whenever a batch is larger than all before it.
        accelerator.parameters["trt_profile_min_shapes"] = input_shape(variant, 1)
        accelerator.parameters["trt_profile_opt_shapes"] = input_shape(variant, serving.batch)
        accelerator.parameters["trt_profile_max_shapes"] = input_shape(variant, serving.batch)


def _tensorrt(config: ModelConfig, serving: Serving) -> None:
    config.platform = "tensorrt_plan"
    for capability in serving.compute_capabilities:
        config.cc_model_filenames[capability] = plan_file(capability)
    config.instance_group.add(kind=ModelInstanceGroup.KIND_GPU, count=serving.instances)


def _openvino(config: ModelConfig, variant: Variant, serving: Serving) -> None:
    config.backend = "openvino"
    config.default_model_filename = _file(variant)
    config.instance_group.add(kind=ModelInstanceGroup.KIND_CPU, count=serving.instances)
    _set(
        config,
        PERFORMANCE_HINT="LATENCY",
        INFERENCE_NUM_THREADS=str(serving.threads),
        NUM_STREAMS=str(serving.instances),
    )
    if variant.precision == "bf16":
        _set(config, HINT_BF16="YES")
    if serving.batch > 1:
        _set(config, ENABLE_BATCH_PADDING="YES")


def _python(config: ModelConfig, variant: Variant, serving: Serving) -> None:
    config.backend = "python"
    config.instance_group.add(kind=ModelInstanceGroup.KIND_CPU, count=serving.instances)
    chain = [
        {
            "file": name,
            "inputs": [tensor.name for tensor in segment.inputs],
            "outputs": [tensor.name for tensor in segment.outputs],
        }
        for name, segment in zip(chain_files(variant), variant.segments, strict=True)
    ]
    _set(
        config,
        runtime=serving.runtime,
        arithmetic=arithmetic(variant.precision, serving.runtime),
        threads=str(serving.threads),
        chain=json.dumps(chain),
    )
