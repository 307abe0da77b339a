"""Targets that cost the generator little: plain streams, kept connections, no client library.

`router.client` checks every answer against its schema, which is right for users and takes a core at a few
hundred answers a second; a generator that shares a machine with what it measures needs less.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import numpy as np
import orjson

from loadtest.replies import answered, refused
from loadtest.sample import Reply
from loadtest.target import Description, TargetError
from model_repo.detections import Detections
from router.client import ClientTls
from router.client.tls import bearer
from router.documents import PointsDocument

_LENGTH = struct.Struct(">I")
_HOST = "127.0.0.1"
_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Connections:
    """Connections to one address, opened as needed, kept, and used by one exchange at a time.

    There is no bound on them: a request that waited for a free one inside the generator would look like a
    slow gateway.
    """

    def __init__(self, port: int, host: str = _HOST, tls: ssl.SSLContext | None = None) -> None:
        self._port, self._host, self._tls = port, host, tls
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
        """Return a free connection that neither end has closed meanwhile, as servers do with idle ones."""
        while self._free:
            reader, writer = self._free.pop()
            if not (writer.is_closing() or reader.at_eof() or reader.exception()):
                return reader, writer
            writer.close()
        return None

    async def _open(self) -> _Connection:
        reader, writer = await asyncio.open_connection(self._host, self._port, limit=1 << 20, ssl=self._tls)
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
    """Post frames to a gateway at a port, on this machine unless a host is named.

    tls: how to trust it, None to speak in clear. prefix: of its paths. api_key: shown to it where it asks
    for one.
    """

    def __init__(
        self,
        port: int,
        host: str = _HOST,
        *,
        tls: ssl.SSLContext | None = None,
        prefix: str = "",
        api_key: str | None = None,
    ) -> None:
        self._place = f"{host}:{port}"
        self._connections = Connections(port, host, tls)
        lines = [f"Host: {self._place}", *(f"{name}: {value}" for name, value in bearer(api_key).items())]
        common = "".join(f"{line}\r\n" for line in lines)
        self._get = f"GET {prefix}/v1/operating-points HTTP/1.1\r\n{common}\r\n".encode()
        self._post = (
            f"POST {prefix}/v1/detect HTTP/1.1\r\n{common}Content-Type: application/octet-stream\r\n"
        ).encode()

    @classmethod
    def at(cls, url: str, *, api_key: str | None = None, tls: ClientTls | None = None) -> RawTarget:
        """Return a target at an http:// or https:// address; raises ValueError when it is none, OSError when
        a certificate cannot be read."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"expected an address such as http://127.0.0.1:8080, got {url!r}")
        secure = parts.scheme == "https"
        return cls(
            parts.port or (443 if secure else 80),
            parts.hostname,
            tls=(tls or ClientTls()).context() if secure else None,
            prefix=parts.path.rstrip("/"),
            api_key=api_key,
        )

    async def describe(self) -> Description:
        """Return classes and operating points; raises TargetError when the gateway does not answer."""
        served = await self.points()
        return Description(tuple(served.classes), tuple(point.name for point in served.operating_points))

    async def points(self) -> PointsDocument:
        """Return what the gateway says it serves; raises TargetError when it does not answer."""
        try:
            status, body = await self._exchange(self._get)
            if status != 200:
                raise TargetError(f"{self._place}: {refused(status, body).detail}")
            return PointsDocument.model_validate_json(body)
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            raise TargetError(f"{self._place}: {error}") from error

    async def send(self, frame: bytes, budget_ms: float | None, operating_point: str | None) -> Reply:
        """Send one encoded frame; every error of the gateway or the connection is a Reply."""
        head = self._post
        if budget_ms is not None:
            head += b"X-Latency-Budget-Ms: %.3f\r\n" % budget_ms
        if operating_point is not None:
            head += b"X-Operating-Point: %b\r\n" % operating_point.encode()
        try:
            status, body = await self._exchange(b"%bContent-Length: %d\r\n\r\n%b" % (head, len(frame), frame))
        except (OSError, asyncio.IncompleteReadError) as error:
            return Reply("failed", detail=f"the connection broke: {type(error).__name__}")
        except ValueError:
            return Reply("failed", detail="what came back is not the gateway's HTTP")
        if status != 200:
            return refused(status, body)
        try:
            return answered(orjson.loads(body))
        except (ValueError, KeyError, TypeError):
            return Reply("failed", detail="what came back is no answer")

    async def close(self) -> None:
        """Close the connections that nobody uses."""
        self._connections.close()

    async def _exchange(self, request: bytes) -> tuple[int, bytes]:
        """Send a request and return status and body; raises ValueError where that is no such HTTP."""
        answer: tuple[int, bytes] | None = None
        try:
            async with self._connections.one() as (reader, writer):
                writer.write(request)
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                _, told, rest = head.partition(b"content-length:")
                if not told or not head.startswith(b"http/1."):
                    raise ValueError(f"no HTTP answer with a length: {head[:80]!r}")
                length = int(rest.split(b"\r\n", 1)[0])
                answer = int(head.split(b" ", 2)[1]), await reader.readexactly(length)
                if b"connection: close" in head:
                    raise _ClosedByServerError
        except _ClosedByServerError:
            assert answer is not None, "it is raised once there is an answer"
        return answer


class BareTarget:
    """Send frames to `loadtest.bare`, which knows no budgets and no operating points."""

    def __init__(self, port: int, classes: tuple[str, ...]) -> None:
        self._connections = Connections(port)
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
