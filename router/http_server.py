"""uvicorn as this gateway uses it: bounded heads of requests, no signal handlers of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from router.http_detect import EXCHANGE, Asgi

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 128
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n"
    b"content-type: application/problem+json\r\ncontent-length: %d\r\n\r\n%b"
)
_TOO_LARGE_BODY = (
    b'{"type":"urn:paretogate:problem:http-431","title":"Request Header Fields Too Large","status":431,'
    b'"detail":"the request\'s head exceeds 65536 bytes or 128 headers"}'
)


class CycleExchange:
    """An `Exchange` over uvicorn's state of a request; it does what `receive` and `send` do, in one step."""

    __slots__ = ("_cycle", "left")

    def __init__(self, cycle: RequestResponseCycle, left: asyncio.Future[None]) -> None:
        self._cycle, self.left = cycle, left

    def whole_body(self) -> bytes | None:
        """Return the body where all of it has arrived, otherwise None."""
        cycle = self._cycle
        if cycle.more_body or cycle.disconnected:
            return None
        # It stops at large bodies, and a lost connection is only seen while reading.
        cycle.flow.resume_reading()
        return bytes(cycle.body)

    def taken(self) -> None:
        """Let go of the body."""
        self._cycle.body = bytearray()

    def answer(self, headers: bytes, body: bytes) -> bool:
        """Send a 200 with header lines and a body; returns False where `send` has to do it."""
        cycle = self._cycle
        if cycle.flow.write_paused or cycle.disconnected:
            return False
        cycle.response_started = cycle.response_complete = True
        always = b"".join(b"%b: %b\r\n" % header for header in cycle.default_headers)
        close = b"" if cycle.keep_alive else b"connection: close\r\n"
        cycle.transport.write(b"HTTP/1.1 200 OK\r\n%b%b%b\r\n%b" % (always, headers, close, body))
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()
        return True


class BoundedHttpProtocol(HttpToolsProtocol):
    """Refuse a request whose head grows past a limit, which the parser has not; tell of lost connections."""

    _head_bytes = 0
    _header_bytes = 0
    _in_head = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Begin a connection."""
        super().connection_made(transport)
        self._left: asyncio.Future[None] = self.loop.create_future()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the requests of this connection."""
        super().connection_lost(exc)
        self._left.set_result(None)

    def on_message_begin(self) -> None:
        """Begin to count."""
        self._in_head = True
        self._head_bytes = self._header_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Stop counting."""
        self._in_head = False
        super().on_headers_complete()
        cast("dict[str, object]", self.scope)[EXCHANGE] = CycleExchange(self.cycle, self._left)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; one too many is a parser error, which closes the connection with 400."""
        self._header_bytes += len(name) + len(value)
        if len(self.headers) >= MAX_HEADERS or self._header_bytes > MAX_HEAD_BYTES:
            raise ValueError("too many headers")
        super().on_header(name, value)

    def data_received(self, data: bytes) -> None:
        """Feed the parser; a head that has not ended after so many bytes is refused."""
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.transport.write(_TOO_LARGE % (len(_TOO_LARGE_BODY), _TOO_LARGE_BODY))
                self.transport.close()


class GatewayServer(uvicorn.Server):
    """A uvicorn server that leaves signals to the composition root."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def make_server(app: Asgi, *, drain_s: float) -> GatewayServer:
    """Return the server of an application; the caller binds the socket and passes it to `serve`."""
    config = uvicorn.Config(
        app,
        http=BoundedHttpProtocol,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        # Nobody asks who sent a request.
        proxy_headers=False,
        # A parser error per malformed request would let anybody fill the log.
        log_level="error",
        backlog=2048,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=max(int(drain_s), 1),
    )
    return GatewayServer(config)
