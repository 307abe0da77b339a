"""uvicorn as this gateway uses it: frames without a task each, limits, no handlers of signals.

Slow clients cost no request a timer: once a second the server looks at its connections, and one that has been
waiting for the same thing for too long is cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from router.config import Config
from router.http_detect import DETECT_PATH, DetectEndpoint, Pending
from router.http_reply import Asgi, Lines
from router.metrics import Metrics, Slowness

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
_TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 1\r\n"
    b"content-type: application/problem+json\r\ncontent-length: %d\r\n\r\n%b"
)
_TOO_MANY_BODY = (
    b'{"type":"urn:paretogate:problem:connections","title":"Too many connections","status":503,'
    b'"detail":"as many connections are open as the gateway takes"}'
)
# Several results, of which each is a few kilobytes.
_MOST_UNREAD = 4 * 1024 * 1024
# uvicorn looks ten times a second whether it is to end.
_LOOK_EVERY = 10


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """How many connections there may be, and how long each may take for what; seconds.

    head_s: for a request's head, the first one included, and for TLS's handshake. write_s: to take an answer
    that is ready. idle_s: between requests.
    """

    most: int = 512
    head_s: float = 10.0
    write_s: float = 30.0
    idle_s: float = 30.0

    @classmethod
    def of(cls, config: Config) -> Self:
        """Return those of a configuration."""
        return cls(
            config.max_connections, config.head_timeout_s, config.write_timeout_s, config.idle_timeout_s
        )

    def of_waiting(self, waiting_for: Slowness) -> float:
        """Return how long a connection may wait for something."""
        return {"head": self.head_s, "write": self.write_s, "idle": self.idle_s}[waiting_for]


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
    _waiting: tuple[Slowness, RequestResponseCycle | None] | None = None
    _since_s = 0.0

    def __init__(
        self,
        *given: Any,
        endpoint: DetectEndpoint | None,
        limits: ConnectionLimits,
        metrics: Metrics,
        **named: Any,
    ) -> None:  # Any: as uvicorn's
        super().__init__(*given, **named)
        self._endpoint, self._limits, self._metrics = endpoint, limits, metrics

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Begin, or refuse one connection too many at once."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.most:
            self._metrics.turned_away()
            transport.write(_TOO_MANY % (len(_TOO_MANY_BODY), _TOO_MANY_BODY))
            transport.close()

    def look(self, now_s: float) -> None:
        """Cut the connection if it has been waiting for the same thing for too long; now and then called.

        What it waits for in the middle of a request, its body and its answer, has limits elsewhere.
        """
        waiting = self._waits()
        if waiting is None or self._waiting is None or waiting != self._waiting:
            self._waiting, self._since_s = waiting, now_s
        elif now_s - self._since_s > self._limits.of_waiting(waiting[0]):
            self._metrics.cut_off(waiting[0])
            # Closing would wait for what was not taken.
            self.transport.abort()

    def _waits(self) -> tuple[Slowness, RequestResponseCycle | None] | None:
        """Return what the sender keeps waiting for, and after which request."""
        cycle = self.cycle
        if self.transport.get_write_buffer_size() > 0:
            return "write", cycle
        if self._in_head or cycle is None:
            return "head", cycle
        # Bytes that are no request, the rest of a body that was refused, stop uvicorn's own timer.
        if cycle.response_complete and self.timeout_keep_alive_task is None:
            return "idle", cycle
        return None

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


class StreamProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSockets, with an eye on who does not read."""

    _unread_since_s: float | None = None

    async def send(self, message: Any) -> None:  # Any: as uvicorn's
        """Send a message; a refusal is an answer to the handshake, and no error of the application."""
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True

    def look(self, now_s: float, limits: ConnectionLimits, metrics: Metrics) -> None:
        """Cut the connection if what it was sent, pongs among them, waits for too long or is too much."""
        waiting = self.transport.get_write_buffer_size()
        if waiting == 0:
            self._unread_since_s = None
            return
        if self._unread_since_s is None:
            self._unread_since_s = now_s
        if waiting > _MOST_UNREAD or now_s - self._unread_since_s > limits.write_s:
            metrics.cut_off("write")
            # Closing would wait for what was not taken.
            self.transport.abort()


class GatewayServer(uvicorn.Server):
    """A uvicorn server on sockets of its caller, who also minds signals; it cuts slow connections."""

    def __init__(
        self,
        config: uvicorn.Config,
        tls: ssl.SSLContext | None,
        limits: ConnectionLimits,
        metrics: Metrics,
    ) -> None:
        super().__init__(config)
        self._tls, self._limits, self._metrics = tls, limits, metrics

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; uvicorn's own would wait a minute for TLS's handshake."""
        await self.lifespan.startup()
        loop = asyncio.get_running_loop()
        make = partial(
            cast("Any", self.config.http_protocol_class),  # Any: uvicorn's protocols have no common type
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        self.servers = [
            await loop.create_server(
                make,
                sock=listener,
                ssl=self._tls,
                ssl_handshake_timeout=None if self._tls is None else self._limits.head_s,
                backlog=self.config.backlog,
            )
            for listener in sockets or ()
        ]
        self.started = True

    async def on_tick(self, counter: int) -> bool:
        """Do uvicorn's housekeeping, and look at the connections once a second."""
        if counter % _LOOK_EVERY == 0:
            self.look(asyncio.get_running_loop().time())
        return await super().on_tick(counter)

    def look(self, now_s: float) -> None:
        """Cut the connections that have been waiting for too long."""
        for connection in tuple(self.server_state.connections):
            if isinstance(connection, DetectProtocol):
                connection.look(now_s)
            elif isinstance(connection, StreamProtocol):
                connection.look(now_s, self._limits, self._metrics)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def make_server(
    app: Asgi,
    endpoint: DetectEndpoint | None,
    limits: ConnectionLimits,
    metrics: Metrics,
    *,
    tls: ssl.SSLContext | None = None,
    drain_s: float,
    max_message_bytes: int | None = None,
) -> GatewayServer:
    """Return the server of an application; the caller binds the socket and passes it to `serve`.

    endpoint: answers frames without a task each; without one they are the application's, like all else. tls:
    None for plain HTTP. max_message_bytes: of a WebSocket, which a longer one closes with 1009; None to serve
    no WebSockets.
    """
    protocol = partial(DetectProtocol, endpoint=endpoint, limits=limits, metrics=metrics)
    config = uvicorn.Config(
        app,
        http=cast("type[asyncio.Protocol]", protocol),
        ws="none" if max_message_bytes is None else StreamProtocol,
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
        timeout_keep_alive=max(round(limits.idle_s), 1),
        timeout_graceful_shutdown=max(int(drain_s), 1),
    )
    return GatewayServer(config, tls, limits, metrics)
