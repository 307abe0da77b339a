"""uvicorn as this gateway uses it: frames without a task each, bounded heads, no handlers of signals."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from router.http_detect import DETECT_PATH, DetectEndpoint, Pending
from router.http_reply import Asgi, Lines

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

    __slots__ = ("_cycle", "body")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self.body = bytes(cycle.body)

    @property
    def query(self) -> bytes:
        """Return what stands behind the path's question mark."""
        return self._cycle.scope["query_string"]

    @property
    def headers(self) -> Lines:
        """Return the request's headers, names in lower case."""
        return cast("Lines", self._cycle.scope["headers"])

    def answer(self, status: int, headers: Lines, body: bytes) -> None:
        """Send the answer, at once."""
        cycle = self._cycle
        cycle.response_started = cycle.response_complete = True
        cycle.body = bytearray()
        if not cycle.keep_alive:
            headers = [*headers, (b"connection", b"close")]
        elif (b"connection", b"close") in headers:
            cycle.keep_alive = False
        lines = [b"%b: %b\r\n" % line for line in (*cycle.default_headers, *headers)]
        cycle.transport.write(b"".join((STATUS_LINE[status], *lines, b"\r\n", body)))
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()


class DetectProtocol(HttpToolsProtocol):
    """Hand whole frames to the endpoint; bound the heads of requests, which the parser does not.

    Everything else goes uvicorn's way: bodies that come in pieces, requests sent ahead, other paths.
    """

    _head_bytes = 0
    _header_bytes = 0
    _in_head = False
    _feeding = False
    _held: tuple[RequestResponseCycle, Any] | None = None  # Any: an application as uvicorn has it
    _pending: Pending | None = None

    def __init__(
        self, *given: Any, endpoint: DetectEndpoint | None, **named: Any
    ) -> None:  # Any: as uvicorn's
        super().__init__(*given, **named)
        self._endpoint = endpoint

    def connection_lost(self, exc: Exception | None) -> None:
        """Drop what nobody waits for any more."""
        super().connection_lost(exc)
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.leave()

    def on_message_begin(self) -> None:
        """Begin to count."""
        self._in_head = True
        self._head_bytes = self._header_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Stop counting."""
        self._in_head = False
        super().on_headers_complete()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; one too many is a parser error, which closes the connection with 400."""
        self._header_bytes += len(name) + len(value)
        if len(self.headers) >= MAX_HEADERS or self._header_bytes > MAX_HEAD_BYTES:
            raise ValueError("too many headers")
        # What uvicorn does, without another call: it is paid for every header.
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def data_received(self, data: bytes) -> None:
        """Feed the parser; a head that has not ended after so many bytes is refused."""
        self._feeding = True
        super().data_received(data)
        self._feeding = False
        if self._held is not None:
            self._begin(*self._held)
        if self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.transport.write(_TOO_LARGE % (len(_TOO_LARGE_BODY), _TOO_LARGE_BODY))
                self.transport.close()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:  # Any: as uvicorn's
        """Begin a request; a frame waits until the parser has seen all that has arrived."""
        scope = cycle.scope
        detect = self._endpoint is not None and scope["path"] == DETECT_PATH and scope["method"] == "POST"
        if detect and self._feeding:
            self._held = (cycle, app)
        else:
            super()._start_asgi_task(cycle, app)

    def _begin(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._held = None
        # Who does not read answers waits until they have gone out.
        whole = not (cycle.more_body or cycle.flow.write_paused or self.transport.is_closing())
        assert self._endpoint is not None, "without one nothing is held"
        pending = self._endpoint.begin(CycleExchange(cycle)) if whole else None
        if pending is None:
            super()._start_asgi_task(cycle, app)
        else:
            # A lost connection is only seen while reading.
            cycle.flow.resume_reading()
            self._pending = pending


class GatewayServer(uvicorn.Server):
    """A uvicorn server that leaves signals to the composition root."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def make_server(
    app: Asgi,
    endpoint: DetectEndpoint | None = None,
    *,
    drain_s: float,
    max_message_bytes: int | None = None,
) -> GatewayServer:
    """Return the server of an application; the caller binds the socket and passes it to `serve`.

    endpoint: answers frames without a task each; without one they are the application's, like all else.
    max_message_bytes: of a WebSocket, which a longer one closes with 1009; None to serve no WebSockets.
    """
    config = uvicorn.Config(
        app,
        http=cast("type[asyncio.Protocol]", partial(DetectProtocol, endpoint=endpoint)),
        ws="none" if max_message_bytes is None else "websockets-sansio",
        ws_max_size=max_message_bytes or 0,
        # Frames are compressed already, and answers are not worth the event loop's time.
        ws_per_message_deflate=False,
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
