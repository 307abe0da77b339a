"""Frames from cameras in UDP datagrams: the third edge of streams, see `router.stream`.

One port takes both formats, which their first two bits tell apart: `router.rtp_jpeg` and this gateway's own,
`router.datagrams`. What is lost, doubled or out of order is dealt with by `router.reassembly`. A stream opens
at its first whole frame and ends when none has come for ten seconds; what it asks for is configured, as the
query of a WebSocket's path, and frames of our own format may bring a budget. A frame arrives when its last
piece does.

Results go to the sender in a datagram each, or to a callback, as the JSON that a WebSocket gets. A frame's
name is "ADDRESS/STREAM/FRAME", its sender's, the stream's number (the SSRC) and its own (the timestamp), so
that a result says whose it is wherever it goes. An answer that no datagram holds is without its least certain
detections, and `left_out` in it says how many those are.

UDP has no keys: only senders in the networks that are allowed are heard, which this machine alone is unless
configured. As an address can be forged, results are what somebody in such a network could have sent to
another one there. What bounds them: one datagram of less than 64 KiB for a frame that came whole, and none
for datagrams that make no frame; the engine's pace, for a stream has few frames at work at once and drops
the others; and the number of streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol, cast

from router import datagrams, rtp_jpeg
from router.callback import posting
from router.config import Config, Network
from router.encoding import answer_json
from router.engines import StartupError
from router.errors import NotReady, RouterError
from router.execution import Answer
from router.http_reply import request_id_in
from router.metrics import Metrics
from router.pieces import MalformedDatagram, Piece, UnsupportedDatagram
from router.problems import problem_of
from router.reassembly import Reassembly, Whole
from router.stream import FrameStream, Result, Streams, StreamWishes
from router.stream_socket import encode_result, with_query

_LOG = logging.getLogger(__name__)
Address = tuple[str | int, ...]
Key = tuple[Address, int]
Tell = Callable[[Address, str, bytes], None]
"""Send a result to the sender at an address, or elsewhere: of a stream of a name, JSON."""

LONGEST_ANSWER = 60_000
_RECEIVE_BUFFER = 4 * 1024 * 1024
_MOST_UNSENT = 1024 * 1024
_SWEEP_S = 1.0
_RTP_VERSION = 2


class _Transport(Protocol):
    """What asyncio's and uvloop's transports of datagrams both have."""

    def sendto(self, data: bytes, addr: Address) -> None: ...

    def is_closing(self) -> bool: ...

    def get_write_buffer_size(self) -> int: ...


@dataclass(frozen=True, slots=True)
class _Open:
    stream: FrameStream[bytes]
    running: asyncio.Task[None]


class UdpIngest(asyncio.DatagramProtocol):
    """Turn datagrams into frames of streams; lives on the event loop."""

    def __init__(
        self,
        streams: Streams,
        metrics: Metrics,
        asked: StreamWishes,
        allowed: Sequence[Network],
        *,
        most_streams: int,
        frame_bytes: int,
        tell: Tell | None = None,
    ) -> None:
        """allowed: networks that are heard. frame_bytes: of one frame. tell: None for a datagram to the
        sender.
        """
        self._streams, self._metrics, self._asked = streams, metrics, asked
        self._frames = Reassembly(
            metrics.udp_frame,
            most_streams=most_streams,
            most_bytes=4 * frame_bytes,
            frame_bytes=frame_bytes,
        )
        # Forged addresses may be many: what is known of them is not kept for ever.
        self._heard = lru_cache(maxsize=1024)(lambda host: _is_in(host, allowed))
        self._write = datagram_json if tell is None else answer_json
        self._tell = tell or self._send
        self._open: dict[Hashable, _Open] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._transport: _Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; called by the event loop."""
        self._transport = cast(_Transport, transport)

    def datagram_received(self, data: bytes, addr: Address) -> None:
        """Take a datagram; called by the event loop."""
        try:
            self._take(data, addr)
        except Exception:  # noqa: BLE001 - the edge of a datagram: uvloop would close the port
            _LOG.exception("UDP: a datagram of %d bytes", len(data))

    def error_received(self, exc: Exception) -> None:
        """Log what the operating system says of a datagram that was sent; called by the event loop."""
        _LOG.debug("UDP: %s", exc)

    def sweep(self) -> None:
        """Give up frames that will not become whole, and end streams that have had none for long."""
        for key in self._frames.sweep(self._streams.clock.now_ns()):
            self._end(key)

    async def drain(self, drain_s: float) -> None:
        """End all streams, once the frames that were taken are answered or `drain_s` is over."""
        for key in list(self._open):
            self._end(key)
        if self._ending:
            _, late = await asyncio.wait(self._ending, timeout=drain_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _take(self, data: bytes, addr: Address) -> None:
        if not self._heard(addr[0]):
            self._metrics.datagram("foreign")
            return
        try:
            piece = parse(data)
        except MalformedDatagram:
            self._metrics.datagram("malformed")
            return
        except UnsupportedDatagram:
            self._metrics.datagram("unsupported")
            return
        key: Key = (addr, piece.stream)
        fate, whole = self._frames.take(key, piece, self._streams.clock.now_ns())
        self._metrics.datagram(fate)
        if whole is not None:
            self._offer(key, whole)

    def _offer(self, key: Key, whole: Whole) -> None:
        at = self._open.get(key)
        if at is None:
            try:
                at = self._begin(key)
            except NotReady as error:
                problem = problem_of(error)
                self._metrics.arrived("udp").end(problem.outcome, problem.slug)
                _LOG.debug("UDP: stream %s cannot begin: %s", _name(key), error)
                return
        at.stream.offer(whole.image, name=f"{_name(key)}/{whole.frame}", budget_ms=whole.budget_ms)

    def _begin(self, key: Key) -> _Open:
        """Open a stream; raises NotReady."""
        address, name, request_id = key[0], _name(key), request_id_in({})

        async def send(result: Result[bytes]) -> None:
            self._tell(address, name, encode_result(result, request_id))

        stream = self._streams.open("udp", self._asked, self._write, send, request_id)
        running = asyncio.create_task(self._run(stream))
        at = self._open[key] = _Open(stream, running)
        running.add_done_callback(lambda _: self._ended(key, at))
        _LOG.info("UDP: stream %s begins", name)
        return at

    async def _run(self, stream: FrameStream[bytes]) -> None:
        try:
            await stream.run(_for_ever())
        except Exception:  # noqa: BLE001 - the edge of a stream: others go on
            _LOG.exception("UDP: a stream failed")

    def _end(self, key: Hashable) -> None:
        at = self._open.pop(key, None)
        if at is not None:
            at.stream.close()
            self._ending.add(at.running)

    def _ended(self, key: Hashable, at: _Open) -> None:
        if self._open.get(key) is at:
            del self._open[key]
        self._ending.discard(at.running)

    def _send(self, address: Address, name: str, body: bytes) -> None:
        """Send a result back, or drop it where earlier ones are still on their way out."""
        transport = self._transport
        if transport is None or transport.is_closing() or transport.get_write_buffer_size() > _MOST_UNSENT:
            self._metrics.told("superseded")
            return
        transport.sendto(body, address)
        self._metrics.told("sent")


def parse(datagram: bytes) -> Piece:
    """Read a datagram of either format; raises MalformedDatagram or UnsupportedDatagram."""
    if datagram and datagram[0] >> 6 == _RTP_VERSION:
        return rtp_jpeg.parse(datagram)
    return datagrams.parse(datagram)


def datagram_json(answer: Answer, request_id: str) -> bytes:
    """Return the answer as JSON that fits a datagram, see above."""
    body = answer_json(answer, request_id)
    kept = len(answer.detections)
    while len(body) > LONGEST_ANSWER and kept:
        kept = kept * LONGEST_ANSWER // len(body)
        fewer = replace(answer, detections=answer.detections.top(kept))
        left_out = b',"left_out":%d}' % (len(answer.detections) - kept)
        body = answer_json(fewer, request_id)[:-1] + left_out
    return body


def bind_udp(host: str, port: int) -> socket.socket:
    """Bind a UDP socket with a large receive buffer; raises StartupError when the address cannot be had.

    A camera sends a frame's datagrams at once, and what finds the buffer full is lost.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    receiver = socket.socket(family, socket.SOCK_DGRAM)
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
    try:
        receiver.bind((host, port))
    except OSError as error:
        receiver.close()
        raise StartupError(f"cannot listen on {host}:{port} (UDP): {error.strerror}") from error
    receiver.setblocking(False)
    return receiver


@contextlib.asynccontextmanager
async def receiving(config: Config, port: int, streams: Streams, metrics: Metrics) -> AsyncIterator[str]:
    """Take datagrams on a port of the configured host, and yield the address.

    On leaving, what was taken is answered. Raises StartupError.
    """
    try:
        asked = streams.wishes(with_query({}, config.udp_query.encode()), trusted=True)
    except RouterError as error:
        raise StartupError(f"--udp-query: {error}") from error
    async with contextlib.AsyncExitStack() as stack:
        tell: Tell | None = None
        if config.udp_callback is not None:
            callback = await stack.enter_async_context(
                posting(config.udp_callback, metrics.told, drain_s=config.drain_s)
            )
            tell = lambda _, name, body: callback.tell(name, body)  # noqa: E731
        ingest = UdpIngest(
            streams,
            metrics,
            asked,
            config.udp_networks,
            most_streams=config.udp_streams,
            frame_bytes=config.max_bytes,
            tell=tell,
        )
        receiver = bind_udp(config.host, port)
        granted = receiver.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: ingest, sock=receiver)
        stack.callback(transport.close)
        host, port = receiver.getsockname()[:2]
        _LOG.info(
            "UDP on %s:%d for %s; receive buffer %d KiB (sysctl net.core.rmem_max bounds it)",
            host, port, ", ".join(map(str, config.udp_networks)), granted // 1024,
        )  # fmt: skip
        stack.push_async_callback(ingest.drain, config.drain_s)
        sweeping = asyncio.create_task(_sweep(ingest))
        stack.callback(sweeping.cancel)
        yield _named(host, port)


async def _sweep(ingest: UdpIngest) -> None:
    while True:
        await asyncio.sleep(_SWEEP_S)
        ingest.sweep()


async def _for_ever() -> None:
    await asyncio.get_running_loop().create_future()


def _is_in(host: object, networks: Sequence[Network]) -> bool:
    address = ipaddress.ip_address(str(host).partition("%")[0])
    # An IPv6 socket shows senders of IPv4 so.
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in network for network in networks)


def _name(key: Key) -> str:
    return f"{_named(key[0][0], key[0][1])}/{key[1]}"


def _named(host: object, port: object) -> str:
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
