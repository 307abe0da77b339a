"""Speaking to peers: frames in, rows float32 [n, 6] out, as bytes over HTTP or over the inference protocol.

One small HTTP/1.1 client for everybody that is asked over HTTP, the gateway included: latency and rate of one
client and of several in a closed loop are measured with it. It reads answers with a length and in chunks.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Any  # tritonclient ships no types.

import numpy as np
from tritonclient import grpc as oip
from tritonclient.grpc import aio as async_oip
from tritonclient.utils import InferenceServerException

from loadtest.closed import ConversationError
from loadtest.process import HOST
from loadtest.raw import Connections
from loadtest.sample import Reply
from loadtest.target import Description
from model_repo.detections import ROW_WIDTH, Detections

MODEL, INPUT, OUTPUT = "detection", "frame", "rows"
_TIMEOUT_S = 30.0
_LINE_LIMIT = 1 << 20


def detections_of(rows: bytes) -> Detections:
    """Return the detections in an answer's bytes; raises ValueError when they are no rows."""
    table = np.frombuffer(rows, dtype=np.float32).reshape(-1, ROW_WIDTH)
    return Detections.make(table[:, :4], table[:, 4], table[:, 5])


def _answered(rows: bytes) -> Reply:
    try:
        return Reply("answered", detections=detections_of(rows))
    except ValueError as error:
        return Reply("failed", detail=f"the answer is no rows: {error}")


def request_head(path: str, content_type: str, headers: Sequence[tuple[str, str]] = ()) -> bytes:
    """Return the head of a POST, up to its Content-Length."""
    lines = [f"POST {path} HTTP/1.1", f"Host: {HOST}", f"Content-Type: {content_type}"]
    return "\r\n".join((*lines, *(f"{name}: {value}" for name, value in headers))).encode()


def _request(head: bytes, frame: bytes) -> bytes:
    return b"%b\r\nContent-Length: %d\r\n\r\n%b" % (head, len(frame), frame)


def _body_of(head: Sequence[bytes]) -> tuple[int, int | None]:
    """Return the status and the body's length, None when it comes in chunks."""
    status, length = int(head[0].split(b" ", 2)[1]), 0
    for line in head[1:]:
        name, _, value = line.lower().partition(b":")
        if name == b"content-length":
            length = int(value)
        elif name == b"transfer-encoding" and b"chunked" in value:
            return status, None
    return status, length


class HttpLoop:
    """One kept connection that asks one frame at a time, blocking."""

    def __init__(self, port: int, head: bytes) -> None:
        self._socket = socket.create_connection((HOST, port), timeout=_TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = self._socket.makefile("rb")
        self._head = head

    def ask(self, frame: bytes) -> None:
        """Send a frame and read its answer; raises ConversationError unless it is 200."""
        self.exchange(frame)

    def exchange(self, frame: bytes) -> bytes:
        """Send a frame and return its answer; raises ConversationError unless it is 200."""
        try:
            return self._exchange(frame)
        except OSError as error:
            raise ConversationError(f"the connection broke: {error}") from error

    def _exchange(self, frame: bytes) -> bytes:
        self._socket.sendall(_request(self._head, frame))
        head = []
        while (line := self._reader.readline()).strip():
            head.append(line.rstrip())
        if not head:
            raise ConversationError("the server closed the connection")
        status, length = _body_of(head)
        body = self._reader.read(length) if length is not None else self._chunks()
        if status != 200:
            raise ConversationError(f"{head[0].decode('latin-1')}: {body[:300]!r}")
        return body

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self._reader.readline().split(b";")[0], 16):
            parts.append(self._reader.read(size))
            self._reader.readline()
        self._reader.readline()
        return b"".join(parts)

    def close(self) -> None:
        """Close the connection."""
        self._reader.close()
        self._socket.close()


class HttpTarget:
    """Post frames to a peer over as many connections as it takes; it knows no budgets and no points."""

    def __init__(self, port: int, head: bytes, classes: tuple[str, ...]) -> None:
        self._connections, self._head, self._classes = Connections(port), head, classes

    async def describe(self) -> Description:
        """Return the classes that it was told of."""
        return Description(self._classes, ())

    async def send(self, frame: bytes, budget_ms: float | None, operating_point: str | None) -> Reply:
        """Send one encoded frame; an error of the server or the connection is a Reply."""
        del budget_ms, operating_point
        try:
            status, body = await self._exchange(frame)
        except (OSError, asyncio.IncompleteReadError) as error:
            return Reply("failed", detail=f"the connection broke: {type(error).__name__}")
        if status != 200:
            return Reply("shed" if status in (429, 503) else "failed", detail=f"status {status}")
        return _answered(body)

    async def _exchange(self, frame: bytes) -> tuple[int, bytes]:
        async with self._connections.one() as (reader, writer):
            writer.write(_request(self._head, frame))
            head = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
            status, length = _body_of(head)
            body = await (_chunks(reader) if length is None else reader.readexactly(length))
            if any(line.lower() == b"connection: close" for line in head):
                writer.close()
        return status, body

    async def close(self) -> None:
        """Close the connections that nobody uses."""
        self._connections.close()


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    parts = []
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        parts.append((await reader.readexactly(size + 2))[:-2])
    await reader.readuntil(b"\r\n")
    return b"".join(parts)


def _input(module: Any, frame: bytes) -> Any:
    tensor = module.InferInput(INPUT, [1], "BYTES")
    tensor.set_data_from_numpy(np.array([frame], dtype=np.object_))
    return tensor


class OipLoop:
    """One gRPC channel to a server of the Open Inference Protocol, one frame at a time, blocking."""

    def __init__(self, port: int) -> None:
        self._client: Any = oip.InferenceServerClient(f"{HOST}:{port}")

    def ask(self, frame: bytes) -> None:
        """Send a frame and read its answer; raises ConversationError."""
        self.exchange(frame)

    def exchange(self, frame: bytes) -> bytes:
        """Send a frame and return its answer as bytes; raises ConversationError."""
        try:
            answer = self._client.infer(MODEL, [_input(oip, frame)], client_timeout=_TIMEOUT_S)
        except InferenceServerException as error:
            raise ConversationError(str(error)) from error
        return _rows(answer).tobytes()

    def close(self) -> None:
        """Close the channel."""
        self._client.close()


class OipTarget:
    """Call a server of the Open Inference Protocol over one gRPC channel; it knows no budgets."""

    def __init__(self, port: int, classes: tuple[str, ...]) -> None:
        self._client: Any = async_oip.InferenceServerClient(f"{HOST}:{port}")
        self._classes = classes

    async def describe(self) -> Description:
        """Return the classes that it was told of."""
        return Description(self._classes, ())

    async def send(self, frame: bytes, budget_ms: float | None, operating_point: str | None) -> Reply:
        """Send one encoded frame; an error of the server or the channel is a Reply."""
        del budget_ms, operating_point
        try:
            answer = await self._client.infer(MODEL, [_input(async_oip, frame)])
        except InferenceServerException as error:
            shed = error.status() == "StatusCode.UNAVAILABLE"
            return Reply("shed" if shed else "failed", detail=str(error.status()))
        return _answered(_rows(answer).tobytes())

    async def close(self) -> None:
        """Close the channel."""
        await self._client.close()


def _rows(answer: Any) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.asarray(answer.as_numpy(OUTPUT), dtype=np.float32)
