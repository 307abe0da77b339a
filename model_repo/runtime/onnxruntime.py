"""ONNX Runtime in this process: the CPU, or CUDA and TensorRT where they are asked for and present.

The thread pool does not spin between inferences: spinning threads take the cores that decoding and the other
workers need. Precision lies in the graph (f32, fp16, or int8 by Q/DQ); the CPU provider has no bf16, and gets
int8 in the form that its kernels are fast for, see `model_repo.runtime.unsigned`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from model_repo.frontier import Variant
from model_repo.latency import Precision, RuntimeName
from model_repo.runtime.chain import Feed, check_signature, run_chain
from model_repo.runtime.engine import (
    EngineTimeout,
    EngineUnavailable,
    Inference,
    Tensors,
    UnknownVariant,
)

Provider = Literal["cpu", "cuda", "tensorrt"]
_PROVIDER_NAME: Mapping[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
_PRECISIONS: Mapping[Provider, frozenset[Precision]] = {
    "cpu": frozenset({"f32", "int8"}),
    "cuda": frozenset({"f32", "fp16", "int8"}),
    "tensorrt": frozenset({"f32", "fp16", "bf16", "int8"}),
}
_ERRORS = (
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
    `timeout_s` bounds the wait for its turn. Raises EngineUnavailable when the provider is not installed.
    """

    def __init__(self, threads: int = 1, parallelism: int = 1, *, provider: Provider = "cpu") -> None:
        if threads < 1 or parallelism < 1:
            raise ValueError(f"threads and parallelism must be at least 1, got {threads} and {parallelism}")
        if _PROVIDER_NAME[provider] not in ort.get_available_providers():
            raise EngineUnavailable(
                f"{_PROVIDER_NAME[provider]} is not in this build of ONNX Runtime;"
                f" it has {', '.join(ort.get_available_providers())}"
            )
        self._threads, self._parallelism, self._provider = threads, parallelism, provider
        self._turn = threading.BoundedSemaphore(parallelism)
        self._loaded: dict[str, _Loaded] = {}
        self._closed = False

    @property
    def runtime(self) -> RuntimeName:
        """Return the runtime's name as the manifest spells it."""
        return "onnxruntime"

    @property
    def version(self) -> str:
        """Return ONNX Runtime's version."""
        return version()

    @property
    def parallelism(self) -> int:
        """Return how many inferences may usefully run at once."""
        return self._parallelism

    def load(self, root: Path, variant: Variant) -> None:
        """Make sessions of a variant's segments; raises EngineUnavailable when ONNX Runtime refuses them."""
        if self._closed:
            raise EngineUnavailable("the ONNX Runtime engine is closed")
        if variant.precision not in _PRECISIONS[self._provider]:
            raise EngineUnavailable(
                f"{variant.name!r} is {variant.precision}, which ONNX Runtime's"
                f" {_PROVIDER_NAME[self._provider]} does not run"
            )
        sessions = []
        for segment in variant.segments:
            try:
                session = ort.InferenceSession(
                    self._graph(root / segment.file, variant), self._options(), providers=self._providers()
                )
            except (*_ERRORS, ValueError, OSError) as error:
                raise EngineUnavailable(f"ONNX Runtime refused {segment.file}: {error}") from error
            # ONNX Runtime falls back to the CPU with no more than a log line.
            if session.get_providers()[0] != _PROVIDER_NAME[self._provider]:
                raise EngineUnavailable(
                    f"ONNX Runtime fell back to {session.get_providers()[0]} for {segment.file}"
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
        if variant.precision == "int8" and self._provider == "cpu":
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

    def _providers(self) -> list[str]:
        chosen = [_PROVIDER_NAME[self._provider]]
        return chosen if self._provider == "cpu" else [*chosen, _PROVIDER_NAME["cpu"]]

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


def supports(precision: Precision, provider: Provider = "cpu") -> bool:
    """Return whether a provider is installed and runs a precision."""
    return _PROVIDER_NAME[provider] in ort.get_available_providers() and precision in _PRECISIONS[provider]
