"""Reading a frame from a request's body: raw or as a form, limited while it is being streamed.

What comes is hostile: a length that is too large is refused before anything is read, and a body without one
as soon as it has grown too large; the bytes of all bodies in flight together are bounded; a form is parsed
as it arrives, in small pieces, and given up at the first thing that a form with one image does not have.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from router.admission import Shed
from router.errors import BodyTimeout, MalformedRequest, TooLarge, UnsupportedType

# ASGI messages are dictionaries of any content by its specification.
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]  # Any: as ASGI defines its messages

RAW_TYPES = ("image/jpeg", "image/png", "application/octet-stream")
_PLAIN = frozenset(kind.encode() for kind in RAW_TYPES)
FORM_TYPE = "multipart/form-data"
FORM_FIELDS = ("file", "image")
# Boundaries, part headers and small other fields around the one image.
_FORM_OVERHEAD = 64 * 1024
_MAX_PARTS = 8
# Names, shapes and parameters around a frame.
_MESSAGE_OVERHEAD = 64 * 1024
_MAX_PART_HEADER = 4096
_PIECE = 16 * 1024
_LARGE = 128 * 1024
T = TypeVar("T")


class SenderLeft(Exception):
    """The connection was closed before the body was complete."""


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """State how large one body and all bodies in flight may be, and how long one may take."""

    max_bytes: int
    max_buffered_bytes: int
    timeout_s: float


class _Sink(Protocol):
    def feed(self, chunk: bytes) -> None: ...

    def frame(self) -> bytes: ...


class _Raw:
    """A body that is the frame."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []

    def feed(self, chunk: bytes) -> None:
        self._chunks.append(chunk)

    def frame(self) -> bytes:
        return self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)


class _Form:
    """A body that is a form; the frame is its field `file` or `image`."""

    def __init__(self, boundary: bytes) -> None:
        self._frame: list[bytes] | None = None
        self._parts = 0
        self._taking = False
        self._ended = False
        self._header_name = b""
        self._header_value = b""
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._part_begin,
                    "on_part_data": self._part_data,
                    "on_header_field": self._header_field,
                    "on_header_value": self._header_value_piece,
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_finished,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise MalformedRequest(f"multipart body: {error}") from error
        self._disposition = b""

    def feed(self, chunk: bytes) -> None:
        try:
            for start in range(0, len(chunk), _PIECE):
                self._parser.write(chunk[start : start + _PIECE])
        except FormParserError as error:
            raise MalformedRequest(f"multipart body: {error}") from error

    def frame(self) -> bytes:
        if not self._ended:
            raise MalformedRequest("multipart body: it ends before its last boundary")
        if self._frame is None:
            raise MalformedRequest(f"multipart body: no field named {' or '.join(FORM_FIELDS)}")
        return b"".join(self._frame)

    def _part_begin(self) -> None:
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise MalformedRequest(f"multipart body: more than {_MAX_PARTS} parts")
        self._taking = False
        self._disposition = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]
        self._check_header()

    def _header_value_piece(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]
        self._check_header()

    def _check_header(self) -> None:
        if len(self._header_name) + len(self._header_value) > _MAX_PART_HEADER:
            raise MalformedRequest(f"multipart body: a part's header exceeds {_MAX_PART_HEADER} bytes")

    def _header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if options.get(b"name", b"").decode("latin-1") in FORM_FIELDS:
            if self._frame is not None:
                raise MalformedRequest("multipart body: more than one image; send one request for each")
            self._frame = []
            self._taking = True

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._taking and self._frame is not None:
            self._frame.append(data[start:end])

    def _end(self) -> None:
        self._ended = True


class Bodies:
    """Read bodies one after another or side by side, within limits that hold for all of them together."""

    def __init__(self, limits: BodyLimits) -> None:
        self._limits = limits
        self._buffered = 0

    @property
    def buffered_bytes(self) -> int:
        """Return how many bytes of unfinished bodies are held."""
        return self._buffered

    def at_once(self, content_type: bytes, body: bytes) -> bytes | None:
        """Return a whole body if it is a frame as it stands; None means that `read` has to look."""
        return body if content_type in _PLAIN and len(body) <= self._limits.max_bytes else None

    async def read(self, content_type: bytes, content_length: bytes | None, receive: Receive) -> bytes | Shed:
        """Return the encoded frame, or a Shed when too many bytes are in flight.

        Raises UnsupportedType, TooLarge, MalformedRequest, BodyTimeout, or SenderLeft.
        """
        sink, overhead = _sink_for(content_type)
        frame = await self._fed(sink, self._limits.max_bytes + overhead, content_length, receive)
        if not isinstance(frame, Shed) and len(frame) > self._limits.max_bytes:
            raise TooLarge(f"{len(frame)} bytes, the limit is {self._limits.max_bytes}")
        return frame

    async def message(self, content_length: bytes | None, receive: Receive) -> bytes | Shed:
        """Return a body that holds a frame in some other form: as text it is up to four thirds as long.

        Raises TooLarge, MalformedRequest, BodyTimeout, or SenderLeft.
        """
        most = self._limits.max_bytes * 4 // 3 + _MESSAGE_OVERHEAD
        return await self._fed(_Raw(), most, content_length, receive)

    async def _fed(
        self, sink: _Sink, most: int, content_length: bytes | None, receive: Receive
    ) -> bytes | Shed:
        """Return what a sink makes of a body of at most so many bytes."""
        declared = _declared(content_length)
        if declared > most:
            raise TooLarge(f"{declared} bytes, the limit is {self._limits.max_bytes}")
        if self._buffered + declared > self._limits.max_buffered_bytes:
            return self._shed()
        size = 0
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise SenderLeft
                    chunk: bytes = message.get("body", b"")
                    size += len(chunk)
                    self._buffered += len(chunk)
                    if size > most:
                        raise TooLarge(f"more than {self._limits.max_bytes} bytes, which is the limit")
                    if self._buffered > self._limits.max_buffered_bytes:
                        return self._shed()
                    if chunk:
                        sink.feed(chunk)
                    if not message.get("more_body", False):
                        frame = sink.frame()
                        break
        except TimeoutError:
            raise BodyTimeout(f"the body did not arrive within {self._limits.timeout_s:g} s") from None
        finally:
            self._buffered -= size
        return frame

    def _shed(self) -> Shed:
        return Shed(f"bodies in flight hold more than {self._limits.max_buffered_bytes} bytes", 1.0)


async def parsed(parse: Callable[[bytes], T], body: bytes) -> T:
    """Parse a body, a long one in a thread of its own, for the event loop has others to serve."""
    return await asyncio.to_thread(parse, body) if len(body) > _LARGE else parse(body)


def _sink_for(content_type: bytes) -> tuple[_Sink, int]:
    kind, options = parse_options_header(content_type)
    name = kind.decode("latin-1").strip()
    if name in RAW_TYPES:
        return _Raw(), 0
    if name == FORM_TYPE:
        boundary = options.get(b"boundary")
        if not boundary:
            raise MalformedRequest("Content-Type: multipart/form-data without a boundary")
        return _Form(boundary), _FORM_OVERHEAD
    said = f"{name[:80]!r}" if name else "no Content-Type"
    raise UnsupportedType(f"{said}: expected {', '.join(RAW_TYPES)} or {FORM_TYPE}")


def _declared(content_length: bytes | None) -> int:
    if content_length is None:
        return 0
    if not content_length.isdigit() or len(content_length) > 18:
        raise MalformedRequest(f"Content-Length: {content_length[:40].decode('latin-1')!r} is not a number")
    return int(content_length)
