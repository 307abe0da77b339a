"""ONNX Runtime in this process: on the CPU, on CUDA, or on TensorRT, each a runtime of its own by name.

The thread pool does not spin between inferences: spinning threads take the cores that decoding and the other
workers need. Precision lies in the graph (f32, fp16, or int8 by Q/DQ), and where a provider would compute
f32 in TF32 it is told not to. The CPU has no bf16, and gets int8 in the form that its kernels are fast for,
see `model_repo.runtime.unsigned`; CUDA has no int8 convolutions and computes them in float between Q and DQ.

Options of the providers are by https://onnxruntime.ai/docs/execution-providers/ (CUDA- and
TensorRT-ExecutionProvider.html). Neither was run where this was written: their names, options and errors are
tested without a GPU.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from model_repo.frontier import Variant
from model_repo.latency import OnnxRuntimeName, Precision
from model_repo.runtime.chain import Feed, check_signature, run_chain
from model_repo.runtime.engine import (
    EngineTimeout,
    EngineUnavailable,
    Inference,
    Tensors,
    UnknownVariant,
)

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
_PROVIDER: Mapping[OnnxRuntimeName, str] = {
    "onnxruntime": CPU,
    "onnxruntime-cuda": CUDA,
    "onnxruntime-tensorrt": TENSORRT,
}
_PRECISIONS: Mapping[OnnxRuntimeName, frozenset[Precision]] = {
    "onnxruntime": frozenset({"f32", "int8"}),
    "onnxruntime-cuda": frozenset({"f32", "fp16", "int8"}),
    "onnxruntime-tensorrt": frozenset({"f32", "fp16", "int8"}),
}
_NEEDS: Mapping[OnnxRuntimeName, str] = {
    "onnxruntime": "the package onnxruntime",
    "onnxruntime-cuda": "the package onnxruntime-gpu in place of onnxruntime, CUDA and cuDNN as installed by"
    " onnxruntime-gpu[cuda,cudnn] or the system, and a GPU",
    "onnxruntime-tensorrt": "what onnxruntime-cuda needs, and the libraries of the TensorRT that this version"
    " of onnxruntime-gpu was built with on LD_LIBRARY_PATH",
}
_NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
_NVIDIA_SMI_S = 20.0
_ERRORS = (
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)


@dataclass(frozen=True, slots=True)
class _Loaded:
    variant: Variant
    sessions: tuple[ort.InferenceSession, ...]


class OnnxRuntimeEngine:
    """Run variants on ONNX Runtime.

    threads: cores that one inference uses; parallelism: inferences that run at once (a session may be
    called from several threads; further callers wait). An inference that has started is not taken back:
    `timeout_s` bounds the wait for its turn. engine_cache: a folder in which TensorRT keeps the engines that
    it builds, which takes minutes for each model; None to build them anew every time.
    Raises EngineUnavailable when the runtime's provider is not in this build of ONNX Runtime.
    """

    def __init__(
        self,
        threads: int = 1,
        parallelism: int = 1,
        *,
        runtime: OnnxRuntimeName = "onnxruntime",
        engine_cache: Path | None = None,
    ) -> None:
        if threads < 1 or parallelism < 1:
            raise ValueError(f"threads and parallelism must be at least 1, got {threads} and {parallelism}")
        if _PROVIDER[runtime] not in ort.get_available_providers():
            raise EngineUnavailable(
                f"{_PROVIDER[runtime]} is not in this build of ONNX Runtime, which has"
                f" {', '.join(ort.get_available_providers())}; {runtime} needs {_NEEDS[runtime]}"
            )
        if runtime != "onnxruntime" and hasattr(ort, "preload_dlls"):
            # CUDA and cuDNN as Python packages are found by nobody who has not loaded them before.
            ort.preload_dlls()
        if runtime == "onnxruntime-tensorrt":
            # TensorRT computes f32 in TF32 unless the whole process is told not to: the provider has no
            # option for it (https://github.com/microsoft/onnxruntime/issues/26029).
            os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
        self._threads, self._parallelism = threads, parallelism
        self._runtime, self._engine_cache = runtime, engine_cache
        self._turn = threading.BoundedSemaphore(parallelism)
        self._loaded: dict[str, _Loaded] = {}
        self._closed = False

    @property
    def runtime(self) -> OnnxRuntimeName:
        """Return the runtime's name as the manifest spells it."""
        return self._runtime

    @property
    def version(self) -> str:
        """Return ONNX Runtime's version."""
        return version()

    @cached_property
    def device(self) -> str:
        """Return "cpu", or the name of the GPU."""
        return "cpu" if self._runtime == "onnxruntime" else gpu_name()

    @property
    def parallelism(self) -> int:
        """Return how many inferences may usefully run at once."""
        return self._parallelism

    def load(self, root: Path, variant: Variant) -> None:
        """Make sessions of a variant's segments; raises EngineUnavailable when ONNX Runtime refuses them."""
        if self._closed:
            raise EngineUnavailable("the ONNX Runtime engine is closed")
        if variant.precision not in _PRECISIONS[self._runtime]:
            raise EngineUnavailable(
                f"{variant.name!r} is {variant.precision}, which ONNX Runtime's"
                f" {_PROVIDER[self._runtime]} does not run"
            )
        chosen = providers(self._runtime, variant, self._engine_cache)
        sessions = []
        for segment in variant.segments:
            try:
                session = ort.InferenceSession(
                    self._graph(root / segment.file, variant),
                    self._options(),
                    providers=chosen,
                    enable_fallback=0,
                )
            except (*_ERRORS, ValueError, RuntimeError, OSError) as error:
                raise EngineUnavailable(f"ONNX Runtime refused {segment.file}: {error}") from error
            # A provider whose libraries are missing is left out with no more than a log line.
            if session.get_providers()[0] != _PROVIDER[self._runtime]:
                raise EngineUnavailable(
                    f"ONNX Runtime fell back to {session.get_providers()[0]} for {segment.file}, for"
                    f" {_PROVIDER[self._runtime]} did not start: {self._runtime} needs"
                    f" {_NEEDS[self._runtime]}"
                )
            check_signature(
                variant,
                segment,
                [node.name for node in session.get_inputs()],
                [node.name for node in session.get_outputs()],
            )
            sessions.append(session)
        self._loaded[variant.folder] = _Loaded(variant, tuple(sessions))

    def _graph(self, file: Path, variant: Variant) -> str | bytes:
        if variant.precision == "int8" and self._runtime == "onnxruntime":
            # Not before it is needed: it brings onnx along.
            from model_repo.runtime.unsigned import with_unsigned_activations

            return with_unsigned_activations(file.read_bytes())
        return str(file)

    def _options(self) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        return options

    def unload(self, variant: Variant) -> None:
        """Forget a variant; does nothing when it was not loaded."""
        self._loaded.pop(variant.folder, None)

    def infer(
        self,
        variant: Variant,
        frames: NDArray[np.uint8],
        *,
        done: Mapping[str, Tensors] | None = None,
        timeout_s: float | None = None,
    ) -> Inference:
        """Run a variant on letterboxed frames uint8 [n, h, w, 3], one after another.

        Raises UnknownVariant, EngineTimeout when its turn did not come in time, EngineUnavailable when the
        runtime fails, ValueError on a wrong shape or type.
        """
        if self._closed:
            raise EngineUnavailable("the ONNX Runtime engine is closed")
        loaded = self._loaded.get(variant.folder)
        if loaded is None:
            raise UnknownVariant(f"{variant.name!r} is not loaded on ONNX Runtime")
        segments = loaded.variant.segments

        def run(index: int, feed: Feed) -> Tensors:
            names = [tensor.name for tensor in segments[index].outputs]
            outputs = loaded.sessions[index].run(names, feed)
            return {
                key: np.asarray(value, dtype=np.float32) for key, value in zip(names, outputs, strict=True)
            }

        if not self._wait_turn(timeout_s):
            raise EngineTimeout(f"no turn for {variant.name!r} within {timeout_s} s")
        try:
            return run_chain(loaded.variant, frames, done, run)
        except _ERRORS as error:
            raise EngineUnavailable(f"ONNX Runtime failed on {variant.name!r}: {error}") from error
        finally:
            self._turn.release()

    def _wait_turn(self, timeout_s: float | None) -> bool:
        if timeout_s is None:
            return self._turn.acquire()
        return timeout_s > 0 and self._turn.acquire(timeout=timeout_s)

    def close(self) -> None:
        """Let go of every session; later calls raise EngineUnavailable."""
        self._closed = True
        self._loaded.clear()


def version() -> str:
    """Return the installed ONNX Runtime's version."""
    return str(ort.__version__)


def supports(precision: Precision, runtime: OnnxRuntimeName = "onnxruntime") -> bool:
    """Return whether a runtime's provider is in this build and runs a precision.

    That it is in the build does not say that its libraries are there: loading a model tells.
    """
    return _PROVIDER[runtime] in ort.get_available_providers() and precision in _PRECISIONS[runtime]


Provider = str | tuple[str, dict[str, str]]
"""A provider's name, with its options where it gets some; as ONNX Runtime takes them."""


def providers(runtime: OnnxRuntimeName, variant: Variant, engine_cache: Path | None) -> list[Provider]:
    """Return the providers that a variant's sessions get: the runtime's own, then those for what it leaves.

    TensorRT before version 11 has to be told which types may be computed in; the files carry the same types,
    so the flags choose nothing. Int8 graphs carry their scales as Q/DQ: a calibration table beside them would
    be refused. Engines hold for one model, version of ONNX Runtime and kind of GPU, so each has a folder by
    the first two (TensorRT puts the third into the name); delete them when TensorRT is replaced.
    """
    if runtime == "onnxruntime":
        return [CPU]
    cuda = (CUDA, {"use_tf32": "0"})
    if runtime == "onnxruntime-cuda":
        return [cuda, CPU]
    options = {
        "trt_fp16_enable": str(variant.precision == "fp16"),
        "trt_int8_enable": str(variant.precision == "int8"),
    }
    if engine_cache is not None:
        folder = engine_cache / f"onnxruntime-{version()}"
        (folder / variant.folder).mkdir(parents=True, exist_ok=True)
        options |= {
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": str(folder / variant.folder),
            "trt_timing_cache_enable": "True",
            "trt_timing_cache_path": str(folder),
        }
    return [(TENSORRT, options), cuda, CPU]


def gpu_name() -> str:
    """Return the GPU's name by nvidia-smi, "cuda" where that does not say or several differ."""
    try:
        said = subprocess.run(
            _NVIDIA_SMI, capture_output=True, text=True, timeout=_NVIDIA_SMI_S, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return "cuda"
    names = {line.strip() for line in said.splitlines() if line.strip()}
    return names.pop() if len(names) == 1 else "cuda"
