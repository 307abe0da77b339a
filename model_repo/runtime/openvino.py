"""OpenVINO on the CPU, in this process.

Precision is always explicit: on CPUs that can, OpenVINO would run float graphs in bf16 unasked, and an
accuracy measured in one precision says nothing about another. An int8 graph carries its own Q/DQ operators,
which are brought into the form that CPUs are fast for, see `model_repo.runtime.unsigned`; what is left of it
in float runs in f32.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino as ov
from numpy.typing import NDArray

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

DEVICE = "CPU"
_PRECISION_HINT: Mapping[Precision, str] = {"f32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}
_WATCHED_S = 5.0
_CAPABILITY: Mapping[Precision, str] = {"f32": "FP32", "bf16": "BF16", "fp16": "FP16", "int8": "INT8"}


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A compiled variant; `free` holds chains of infer requests, one request per segment."""

    variant: Variant
    free: queue.SimpleQueue[tuple[ov.InferRequest, ...]]


class OpenVinoEngine:
    """Run variants on OpenVINO's CPU plugin.

    threads: cores that one inference uses; streams: inferences that run at once (further callers wait for
    a free request). An inference that exceeds `timeout_s` is cancelled at its next operator. That takes a
    second thread for every inference, and so is done for limits of five seconds and
    less alone: longer ones, which are not requests' budgets, are meant for engines that may hang, and one on
    this process's own cores does not. They bound the wait for a free request.
    cache: a folder in which compiled models are kept between processes, None for none.
    """

    def __init__(self, threads: int = 1, streams: int = 1, *, cache: Path | None = None) -> None:
        if threads < 1 or streams < 1:
            raise ValueError(f"threads and streams must be at least 1, got {threads} and {streams}")
        self._threads, self._streams = threads, streams
        self._core: ov.Core | None = ov.Core()
        if cache is not None:
            self._core.set_property({"CACHE_DIR": str(cache)})
        self._loaded: dict[str, _Loaded] = {}
        self._lock = threading.Lock()

    @property
    def runtime(self) -> RuntimeName:
        """Return the runtime's name as the manifest spells it."""
        return "openvino"

    @property
    def version(self) -> str:
        """Return OpenVINO's version."""
        return version()

    @property
    def device(self) -> str:
        """Return "cpu"."""
        return "cpu"

    @property
    def parallelism(self) -> int:
        """Return how many inferences may usefully run at once."""
        return self._streams

    def load(self, root: Path, variant: Variant) -> None:
        """Compile a variant's segments; raises EngineUnavailable when OpenVINO refuses them."""
        core = self._core
        if core is None:
            raise EngineUnavailable("the OpenVINO engine is closed")
        if not supports(variant.precision, core):
            raise EngineUnavailable(f"{variant.name!r} is {variant.precision}, which this CPU does not run")
        properties = {
            "INFERENCE_PRECISION_HINT": _PRECISION_HINT[variant.precision],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self._threads * self._streams,
            "NUM_STREAMS": str(self._streams),
        }
        compiled = []
        for segment in variant.segments:
            try:
                graph = _graph(core, root / segment.file, variant)
                model = core.compile_model(graph, DEVICE, properties)
            except (RuntimeError, ValueError, OSError) as error:
                raise EngineUnavailable(f"OpenVINO refused {segment.file}: {_first_line(error)}") from error
            check_signature(
                variant,
                segment,
                [port.get_any_name() for port in model.inputs],
                [port.get_any_name() for port in model.outputs],
            )
            compiled.append(model)
        free: queue.SimpleQueue[tuple[ov.InferRequest, ...]] = queue.SimpleQueue()
        for _ in range(self._streams):
            free.put(tuple(model.create_infer_request() for model in compiled))
        with self._lock:
            self._loaded[variant.folder] = _Loaded(variant, free)

    def unload(self, variant: Variant) -> None:
        """Forget a variant; does nothing when it was not loaded."""
        with self._lock:
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

        Raises UnknownVariant, EngineTimeout when the answer did not come within five seconds or less, or no
        request became free within more; EngineUnavailable when
        the runtime fails, ValueError on a wrong shape or type.
        """
        if self._core is None:
            raise EngineUnavailable("the OpenVINO engine is closed")
        loaded = self._loaded.get(variant.folder)
        if loaded is None:
            raise UnknownVariant(f"{variant.name!r} is not loaded on OpenVINO")
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            requests = _take(loaded.free, timeout_s)
        except queue.Empty:
            raise EngineTimeout(f"no free request for {variant.name!r} within {timeout_s} s") from None
        segments = loaded.variant.segments

        def run(index: int, feed: Feed) -> Tensors:
            request = requests[index]
            # The arrays outlive the call, so the runtime may read them where they are.
            # It takes none that may not be written to, such as a view of a request's bytes.
            held = {key: np.require(value, requirements=("C", "W")) for key, value in feed.items()}
            for key, value in held.items():
                request.set_tensor(key, ov.Tensor(value, shared_memory=True))
            if deadline_s is None or (timeout_s is not None and timeout_s > _WATCHED_S):
                request.infer(share_outputs=True)
            elif not _infer_until(request, deadline_s):
                raise EngineTimeout(f"{variant.name!r} was not done within {timeout_s} s")
            return {
                tensor.name: request.get_tensor(tensor.name).data.copy() for tensor in segments[index].outputs
            }

        try:
            return run_chain(loaded.variant, frames, done, run)
        except RuntimeError as error:
            raise EngineUnavailable(f"OpenVINO failed on {variant.name!r}: {_first_line(error)}") from error
        finally:
            loaded.free.put(requests)

    def close(self) -> None:
        """Let go of every model; later calls raise EngineUnavailable."""
        with self._lock:
            self._loaded.clear()
            self._core = None


def _graph(core: ov.Core, file: Path, variant: Variant) -> ov.Model:
    if variant.precision == "int8":
        # Not before it is needed: it brings onnx along.
        from model_repo.runtime.unsigned import with_unsigned_activations

        return core.read_model(with_unsigned_activations(file.read_bytes()), b"")
    return core.read_model(str(file))


def version() -> str:
    """Return the installed OpenVINO's version, without its build number."""
    return str(ov.get_version()).split("-", 1)[0]


def supports(precision: Precision, core: ov.Core | None = None) -> bool:
    """Return whether the CPU plugin runs a precision on this machine."""
    capabilities = (core or ov.Core()).get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
    return _CAPABILITY[precision] in capabilities


def _take(
    free: queue.SimpleQueue[tuple[ov.InferRequest, ...]], timeout_s: float | None
) -> tuple[ov.InferRequest, ...]:
    if timeout_s is not None and timeout_s <= 0:
        raise queue.Empty
    return free.get(timeout=timeout_s)


def _infer_until(request: ov.InferRequest, deadline_s: float) -> bool:
    """Run a request; returns False when it was cancelled because the deadline passed."""
    # Whole milliseconds are all that OpenVINO takes; rounding down keeps the promise.
    left_ms = int((deadline_s - time.monotonic()) * 1e3)
    if left_ms <= 0:
        return False
    request.start_async()
    if request.wait_for(left_ms):
        return True
    request.cancel()
    try:
        request.wait()
    except RuntimeError:
        # What waiting for a cancelled request raises; without it the request was done in the meantime.
        return False
    return True


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
