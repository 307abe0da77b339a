"""Triton Inference Server as the engine: over gRPC, frames optionally through shared memory.

The server's model name is the variant's folder name, which carries its digest: a server that has the model
has these very files. One gRPC client serves all threads (its calls are thread-safe; its streams, unused
here, are not).
"""

from __future__ import annotations

import os
import queue
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import (
    InferenceServerClient,
    InferenceServerException,
    InferInput,
    InferRequestedOutput,
)

from model_repo.detections import MAX_ROWS, ROW_WIDTH
from model_repo.frontier import Variant
from model_repo.latency import RuntimeName
from model_repo.runtime.chain import OUTPUT, check_frames, check_rows
from model_repo.runtime.engine import (
    TRACEPARENT,
    EngineBusy,
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    Inference,
    Tensors,
    UnknownVariant,
)

INPUT = "frames"
_CLOSE_S = 2.0
# Core's dynamic_batch_scheduler.cc says so, with the status UNAVAILABLE.
_QUEUE_TIMEOUT = "Request timeout expired"
_QUEUE_FULL = "Exceeds maximum queue size"
_CHANNEL = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A server that comes back is found within a second, not after gRPC's usual two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


@dataclass(slots=True)
class _Slot:
    """A place for one call in flight; with shared memory it owns the region that the frame travels in."""

    region: SharedMemory | None = None
    name: str = ""
    registered: bool = False


class TritonEngine:
    """Run variants on a Triton server at `url` (host:port of its gRPC endpoint).

    parallelism: calls in flight at once (further callers wait). shared_memory: pass frames through system
    shared memory; the server must run on this host and see its /dev/shm. limit_s bounds every call, so that
    a server that hangs is an error and not a wait without end. Nothing is sent before the first `load`.

    Triton runs a variant as a whole: outputs of segments that ran before are not used, nor returned.
    """

    def __init__(
        self, url: str, *, parallelism: int = 1, shared_memory: bool = False, limit_s: float = 30.0
    ) -> None:
        if parallelism < 1:
            raise ValueError(f"parallelism must be at least 1, got {parallelism}")
        self._url, self._limit_s = url, limit_s
        self._parallelism, self._shared_memory = parallelism, shared_memory
        self._client: InferenceServerClient | None = InferenceServerClient(url, channel_args=_CHANNEL)
        self._free: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        for _ in range(parallelism):
            self._free.put(_Slot())
        self._retired = 0
        self._platforms: dict[str, str] = {}  # of what is loaded, by folder
        self._version: str | None = None
        self._lock = threading.Lock()

    @property
    def runtime(self) -> RuntimeName:
        """Return the runtime's name as the manifest spells it."""
        return "triton"

    @property
    def version(self) -> str:
        """Return the server's version; raises EngineUnavailable when it has never answered."""
        if self._version is None:
            client = self._open()
            try:
                metadata = client.get_server_metadata(client_timeout=self._limit_s)
            except InferenceServerException as error:
                raise self._translated(error, "the server's metadata") from error
            self._version = str(metadata.version)
        return self._version

    @property
    def device(self) -> str:
        """Return the server's address and, once models are loaded, the platforms that run them."""
        platforms = sorted(set(self._platforms.values()))
        return ", ".join((f"triton {self._url}", *platforms))

    @property
    def parallelism(self) -> int:
        """Return how many calls may be in flight at once."""
        return self._parallelism

    def load(self, root: Path, variant: Variant) -> None:
        """Check that the server has the variant ready, asking it to load it otherwise.

        Nothing below `root` is read: the server has its own copy. Raises EngineUnavailable when the server
        does not answer, has not the model, or has one of another signature.
        """
        client = self._open()
        folder = variant.folder
        try:
            if not client.is_model_ready(folder, client_timeout=self._limit_s):
                client.load_model(folder, client_timeout=self._limit_s)
            metadata = client.get_model_metadata(folder, client_timeout=self._limit_s)
        except InferenceServerException as error:
            raise EngineUnavailable(f"Triton at {self._url} has not {folder!r}: {_text(error)}") from error
        width, height = variant.resolution_wh
        found = {
            (kind, tensor.name): (tensor.datatype, _single(tensor.shape))
            for kind, tensors in (("input", metadata.inputs), ("output", metadata.outputs))
            for tensor in tensors
        }
        expected = {
            ("input", INPUT): ("UINT8", (1, height, width, 3)),
            ("output", OUTPUT): ("FP32", (1, MAX_ROWS, ROW_WIDTH)),
        }
        if found != expected:
            raise EngineUnavailable(f"Triton's {folder!r} has the signature {found}, expected {expected}")
        # A configuration may name the backend alone, or its formats: "onnxruntime_onnx", "tensorrt_plan".
        self._platforms[variant.folder] = str(metadata.platform).split("_")[0]

    def unload(self, variant: Variant) -> None:
        """Forget a variant here; the server keeps it, for others may use it."""
        self._platforms.pop(variant.folder, None)

    def infer(
        self,
        variant: Variant,
        frames: NDArray[np.uint8],
        *,
        done: Mapping[str, Tensors] | None = None,
        timeout_s: float | None = None,
    ) -> Inference:
        """Run a variant on letterboxed frames uint8 [n, h, w, 3], one call after another.

        `timeout_s` bounds the whole: waiting for a free place, sending, running, receiving. Raises
        UnknownVariant, EngineTimeout, EngineUnavailable; ValueError on a wrong shape or type.
        """
        del done
        client = self._open()
        if variant.folder not in self._platforms:
            raise UnknownVariant(f"{variant.name!r} is not loaded on Triton")
        check_frames(variant, frames)
        deadline_s = time.monotonic() + (
            self._limit_s if timeout_s is None else min(timeout_s, self._limit_s)
        )
        try:
            slot = self._free.get(timeout=_left_s(deadline_s, variant.name))
        except queue.Empty:
            raise EngineTimeout(f"no free place for {variant.name!r} within {timeout_s} s") from None
        try:
            rows = [
                self._call(client, slot, variant, frames[index : index + 1], deadline_s)
                for index in range(len(frames))
            ]
        finally:
            self._free.put(slot)
        return Inference(rows[0] if len(rows) == 1 else np.concatenate(rows))

    def _call(
        self,
        client: InferenceServerClient,
        slot: _Slot,
        variant: Variant,
        frame: NDArray[np.uint8],
        deadline_s: float,
    ) -> NDArray[np.float32]:
        tensor = InferInput(INPUT, list(frame.shape), "UINT8")
        try:
            if self._shared_memory:
                self._place(client, slot, frame, _left_s(deadline_s, variant.name))
                tensor.set_shared_memory(slot.name, frame.nbytes)
            else:
                tensor.set_data_from_numpy(np.ascontiguousarray(frame))
            # The answer comes back in the message: a call that was given up may still write one, and must
            # not write it where the next call of this slot reads.
            left_s = _left_s(deadline_s, variant.name)
            result = client.infer(
                variant.folder,
                [tensor],
                outputs=[InferRequestedOutput(OUTPUT)],
                client_timeout=left_s,
                # Microseconds: whoever waits in the server's queue for longer is dropped there.
                timeout=max(1, round(left_s * 1e6)),
                headers=_trace(),
            )
        except InferenceServerException as error:
            # A server that was started anew knows no regions; registering again costs one small call.
            slot.registered = False
            raise self._translated(error, variant.folder) from error
        except ValueError as error:
            # gRPC's answer to a call on a connection that `close` has closed meanwhile.
            raise EngineUnavailable(f"Triton at {self._url}, {variant.folder}: {error}") from error
        rows: NDArray[np.float32] | None = result.as_numpy(OUTPUT)
        return check_rows(variant, None if rows is None else rows.copy())

    def _place(
        self, client: InferenceServerClient, slot: _Slot, frame: NDArray[np.uint8], timeout_s: float
    ) -> None:
        """Copy a frame into the slot's region, making and registering a large enough one first."""
        if slot.region is None or slot.region.size < frame.nbytes:
            self._release(client, slot)
            slot.name = f"paretogate-{os.getpid()}-{uuid.uuid4().hex[:12]}"
            slot.region = SharedMemory(slot.name, create=True, size=frame.nbytes)
        if not slot.registered:
            client.unregister_system_shared_memory(slot.name, client_timeout=timeout_s)
            client.register_system_shared_memory(
                slot.name, f"/{slot.name}", slot.region.size, client_timeout=timeout_s
            )
            slot.registered = True
        np.ndarray(frame.shape, np.uint8, buffer=slot.region.buf)[:] = frame

    def _release(self, client: InferenceServerClient | None, slot: _Slot) -> None:
        if slot.region is None:
            return
        try:
            if slot.registered and client is not None:
                client.unregister_system_shared_memory(slot.name, client_timeout=1.0)
        finally:
            slot.registered = False
            slot.region.close()
            slot.region.unlink()
            slot.region = None

    def close(self) -> None:
        """Unregister shared memory and close the connection; later calls raise EngineUnavailable."""
        with self._lock:
            client, self._client = self._client, None
            self._platforms.clear()
        if client is None:
            return
        # Calls in flight give their slots back: in their own time, or cut short by the closed connection.
        for slot in self._returned(_CLOSE_S):
            try:
                self._release(client, slot)
            except InferenceServerException:
                # The server is gone, and with it what was registered there.
                continue
        client.close()
        for slot in self._returned(_CLOSE_S):
            self._release(None, slot)

    def _returned(self, within_s: float) -> list[_Slot]:
        """Take the slots that come free within a time, each at most once in the engine's life."""
        deadline_s = time.monotonic() + within_s
        taken: list[_Slot] = []
        while self._parallelism > self._retired + len(taken):
            try:
                taken.append(self._free.get(timeout=max(deadline_s - time.monotonic(), 0.0)))
            except queue.Empty:
                break
        self._retired += len(taken)
        return taken

    def _open(self) -> InferenceServerClient:
        if self._client is None:
            raise EngineUnavailable("the Triton engine is closed")
        return self._client

    def _translated(self, error: InferenceServerException, subject: str) -> EngineError:
        text = f"Triton at {self._url}, {subject}: {_text(error)}"
        status = error.status() or ""
        if status.endswith("DEADLINE_EXCEEDED") or _QUEUE_TIMEOUT in text:
            return EngineTimeout(text)
        if status.endswith("NOT_FOUND") or "unknown model" in text:
            return UnknownVariant(text)
        return EngineBusy(text) if _QUEUE_FULL in text else EngineUnavailable(text)


def _left_s(deadline_s: float, name: str) -> float:
    """Return the seconds left; raises EngineTimeout when there are none."""
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise EngineTimeout(f"no time was left for {name!r}")
    return left_s


def _single(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a tensor's shape for one frame: a server that batches reports -1 for the first dimension."""
    return tuple(1 if (place, size) == (0, -1) else int(size) for place, size in enumerate(shape))


def _text(error: InferenceServerException) -> str:
    return f"{error.status() or 'error'}: {error.message()}"


def _trace() -> dict[str, str] | None:
    traceparent = TRACEPARENT.get()
    return None if traceparent is None else {"traceparent": traceparent}
