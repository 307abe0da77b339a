"""From published variants to what Triton serves: config.pbtxt messages and whole model repositories.

A Triton model is named after the variant's folder, which carries its digest. Platforms:

  onnxruntime  the ONNX file on Triton's ONNX Runtime backend; on GPUs through its TensorRT accelerator
  tensorrt     engine plans, one per compute capability, built on the target GPU: `search build-engines`, or
               the trtexec commands in BUILD.txt
  openvino     the ONNX file on Triton's OpenVINO backend; that backend can be told to compute in bf16 but
               not to compute in f32, which CPUs with AMX then do not: there, take python for exact answers
  python       a self-contained model.py that runs OpenVINO or ONNX Runtime; the only one for variants of
               several segments, because the others serve one file per model

`config` makes the messages, `graphs` the copies of ONNX files that batches and TensorRT need, `render` writes
repositories, and `model` is what the python platform runs. Published files are never changed.
"""

from model_repo.triton.config import (
    COMPUTE_CAPABILITIES,
    CONFIG,
    DEVICES,
    LABELS,
    PLATFORMS,
    PYTHON_RUNTIMES,
    Device,
    Platform,
    PlatformError,
    PythonRuntime,
    Serving,
    arithmetic,
    format_config,
    labels_text,
    model_config,
    parse_config,
    plan_file,
)
from model_repo.triton.render import render_repository, write_description

__all__ = [
    "COMPUTE_CAPABILITIES",
    "CONFIG",
    "DEVICES",
    "LABELS",
    "PLATFORMS",
    "PYTHON_RUNTIMES",
    "Device",
    "Platform",
    "PlatformError",
    "PythonRuntime",
    "Serving",
    "arithmetic",
    "format_config",
    "labels_text",
    "model_config",
    "parse_config",
    "plan_file",
    "render_repository",
    "write_description",
]
