"""Targets that cost the generator little: plain streams, kept connections, no client library.

`router.client` checks every answer against its schema, which is right for users and takes a core at a few
hundred answers a second; a load beyond a server's capacity needs less.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np

from loadtest.sample import Outcome, Reply
from loadtest.target import Description, TargetError
from model_repo.detections import Detections
from router.documents import PointsDocument

_LENGTH = struct.Struct(">I")
_OUTCOMES: dict[int, Outcome] = {200: "answered", 503: "shed", 429: "shed"}
_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Connections:
    """Connections to a port of 127.0.0.1, opened as needed, kept, and used by one exchange at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._free: list[_Connection] = []

    @asynccontextmanager
    async def one(self) -> AsyncIterator[_Connection]:
        """Lend a connection; one on which anything goes wrong is closed."""
        reader, writer = self._kept() or await self._open()
        try:
            yield reader, writer
        except BaseException:
            writer.close()
            raise
        self._free.append((reader, writer))

    def _kept(self) -> _Connection | None:
        """Return a free connection that the server has not closed meanwhile, as servers do with idle ones."""
        while self._free:
            reader, writer = self._free.pop()
            if not reader.at_eof() and reader.exception() is None:
                return reader, writer
            writer.close()
        return None

    async def _open(self) -> _Connection:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20)
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return reader, writer

    def close(self) -> None:
        """Close those that are free."""
        for _, writer in self._free:
            writer.close()
        self._free.clear()


class _ClosedByServerError(ConnectionError):
    """The server said that it closes the connection after this answer."""


class RawTarget:
    """Post frames to a gateway."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connections = _Connections(port)

    async def describe(self) -> Description:
        """Return classes and operating points; raises TargetError when the gateway does not answer."""
        served = await self.points()
        return Description(tuple(served.classes), tuple(point.name for point in served.operating_points))

    async def points(self) -> PointsDocument:
        """Return what the gateway says it serves; raises TargetError when it does not answer."""
        try:
            status, body = await self._exchange(b"GET /v1/operating-points HTTP/1.1\r\nHost: gateway\r\n\r\n")
        except (OSError, asyncio.IncompleteReadError) as error:
            raise TargetError(f"127.0.0.1:{self._port}: {error}") from error
        if status != 200:
            raise TargetError(f"127.0.0.1:{self._port}: status {status}")
        return PointsDocument.model_validate_json(body)

    async def send(self, frame: bytes, budget_ms: float | None, operating_point: str | None) -> Reply:
        """Send one encoded frame; every error of the gateway or the connection is a Reply."""
        head = b"POST /v1/detect HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/octet-stream\r\n"
        if budget_ms is not None:
            head += b"X-Latency-Budget-Ms: %.3f\r\n" % budget_ms
        if operating_point is not None:
            head += b"X-Operating-Point: %b\r\n" % operating_point.encode()
        try:
            status, body = await self._exchange(b"%bContent-Length: %d\r\n\r\n%b" % (head, len(frame), frame))
        except (OSError, asyncio.IncompleteReadError) as error:
            return Reply("failed", detail=f"the connection broke: {type(error).__name__}")
        document = json.loads(body)
        if status != 200:
            outcome = _OUTCOMES.get(status, "rejected" if status < 500 else "failed")
            return Reply(outcome, detail=document["title"])
        found, cut = document["detections"], document["cut"]
        return Reply(
            "answered",
            plan=document["plan"],
            stages=tuple(stage["variant"] for stage in document["stages"]),
            cut=None if cut is None else f"{cut['stage']}: {cut['reason']}",
            detections=Detections.make(
                [(b["x1"], b["y1"], b["x2"], b["y2"]) for b in (each["box"] for each in found)],
                [each["score"] for each in found],
                [each["class_id"] for each in found],
            ),
        )

    async def close(self) -> None:
        """Close the connections that nobody uses."""
        self._connections.close()

    async def _exchange(self, request: bytes) -> tuple[int, bytes]:
        """Send a request and return status and body."""
        answer: tuple[int, bytes] | None = None
        try:
            async with self._connections.one() as (reader, writer):
                writer.write(request)
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
                answer = int(head.split(b" ", 2)[1]), await reader.readexactly(length)
                if b"connection: close" in head:
                    raise _ClosedByServerError
        except _ClosedByServerError:
            assert answer is not None, "it is raised once there is an answer"
        return answer


class BareTarget:
    """Send frames to `loadtest.bare`, which knows no budgets and no operating points."""

    def __init__(self, port: int, classes: tuple[str, ...]) -> None:
        self._connections = _Connections(port)
        self._classes = classes

    async def describe(self) -> Description:
        """Return the classes that it was told of."""
        return Description(self._classes, ())

    async def send(self, frame: bytes, budget_ms: float | None, operating_point: str | None) -> Reply:
        """Send one encoded frame; a broken connection is a Reply."""
        del budget_ms, operating_point
        try:
            async with self._connections.one() as (reader, writer):
                writer.write(_LENGTH.pack(len(frame)) + frame)
                content = await reader.readexactly(_LENGTH.unpack(await reader.readexactly(_LENGTH.size))[0])
        except (OSError, asyncio.IncompleteReadError) as error:
            return Reply("failed", detail=f"the connection broke: {type(error).__name__}")
        rows = np.frombuffer(content, dtype=np.float32).reshape(-1, 6)
        return Reply("answered", detections=Detections.make(rows[:, :4], rows[:, 4], rows[:, 5]))

    async def close(self) -> None:
        """Close the connections that nobody uses."""
        self._connections.close()
