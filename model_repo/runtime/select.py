"""Choosing a runtime, and naming the machine that it runs on.

A runtime is imported only when it is asked for: an installation needs the ones it uses.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

from model_repo.latency import EmbeddedName, Environment, Precision, RuntimeName
from model_repo.runtime.engine import Engine

_X86 = frozenset({"x86_64", "amd64", "i386", "i686"})
_LIBRARIES = (
    "numpy", "opencv-python-headless", "openvino", "onnxruntime", "onnxruntime-gpu", "tensorrt",
    "tritonclient",
)  # fmt: skip


def default_runtime() -> RuntimeName:
    """Return the embedded runtime for this processor: OpenVINO on x86, ONNX Runtime elsewhere."""
    return "openvino" if platform.machine().lower() in _X86 else "onnxruntime"


def make_engine(
    runtime: RuntimeName | None = None,
    *,
    threads: int = 1,
    parallelism: int = 1,
    url: str | None = None,
    shared_memory: bool = False,
    engine_cache: Path | None = None,
) -> Engine:
    """Make the engine of a runtime; None means this processor's default.

    threads: cores per inference; parallelism: inferences at once. url (host:port of the gRPC endpoint) and
    shared_memory (the server is on this host) are Triton's, engine_cache is TensorRT's: a folder for the
    engines that it builds. Raises ImportError when the runtime is not installed, EngineUnavailable when its
    provider is not, ValueError when Triton has no url.
    """
    runtime = runtime or default_runtime()
    if runtime == "openvino":
        from model_repo.runtime.openvino import OpenVinoEngine

        return OpenVinoEngine(threads=threads, streams=parallelism)
    if runtime == "triton":
        if url is None:
            raise ValueError("the triton engine needs the url of a server: host:port of its gRPC endpoint")
        from model_repo.runtime.triton import TritonEngine

        return TritonEngine(url, parallelism=parallelism, shared_memory=shared_memory)
    from model_repo.runtime.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(threads, parallelism, runtime=runtime, engine_cache=engine_cache)


def supports(runtime: EmbeddedName, precision: Precision) -> bool:
    """Return whether a runtime of this process executes a precision here; ImportError when not installed."""
    if runtime == "openvino":
        from model_repo.runtime import openvino

        return openvino.supports(precision)
    from model_repo.runtime import onnxruntime

    return onnxruntime.supports(precision, runtime)


def environment(device: str = "cpu") -> Environment:
    """Describe this machine and the libraries that a measurement depends on; device: as `Engine.device`."""
    return Environment(
        machine=_processor(),
        device=device,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        python=platform.python_version(),
        os=f"{platform.system()} {platform.machine()}",
        libraries={name: found for name in _LIBRARIES if (found := _installed(name)) is not None},
    )


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
