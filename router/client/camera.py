"""Frames to a gateway in UDP datagrams, and its results: what a camera would do."""

from __future__ import annotations

import secrets
import socket
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from pydantic import Field, ValidationError

from router import rtp_jpeg
from router.client.errors import unreachable
from router.datagrams import datagrams
from router.documents import AnswerDocument, Document, ProblemDocument
from router.pieces import NUMBERS

_LARGEST = 65_536


@dataclass(frozen=True, slots=True)
class CameraResult:
    """What came of a frame; either answer or problem is None.

    frame: what `UdpCamera.send` returned for it. dropped: how many of the stream's frames have been dropped
    so far because a newer one came. age_ms: from the frame's arrival until its result. left_out: detections,
    the least certain, for which the datagram had no room.
    """

    frame: int
    dropped: int
    age_ms: float
    answer: AnswerDocument | None
    problem: ProblemDocument | None
    left_out: int


class _FittingAnswer(AnswerDocument):
    left_out: int = 0


class _ResultDocument(Document):
    name: str = Field(pattern=r"/[0-9]+$")
    dropped: int
    age_ms: float
    answer: _FittingAnswer | None = None
    problem: ProblemDocument | None = None


class UdpCamera:
    """Send frames to a gateway's UDP port, "host:port", and receive results; close it, or use it as a context
    manager.

    rtp: as RTP (baseline JPEG alone, see `router.rtp_jpeg`), otherwise in the gateway's own format (any JPEG
    or PNG). datagram_bytes: of the largest datagram; 1400 passes Ethernet unfragmented. Frames that are lost
    on the way have no result: whoever waits for one waits with a timeout.
    """

    def __init__(self, address: str, *, rtp: bool = False, datagram_bytes: int = 1400) -> None:
        """Raises GatewayFailed when the address leads nowhere."""
        host, _, port = address.rpartition(":")
        try:
            family, kind, number, _, to = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_DGRAM)[
                0
            ]
            self._socket = socket.socket(family, kind, number)
            self._socket.connect(to)
        except OSError as error:
            raise unreachable(error) from error
        self._rtp, self._most = rtp, datagram_bytes
        self._stream = secrets.randbits(32)
        self._next = 0
        self._sequence = secrets.randbits(16)

    def send(self, frame: bytes, *, budget_ms: float | None = None) -> int:
        """Send an encoded frame; returns its number, which its result has too.

        Raises GatewayFailed when the gateway's machine says that nobody listens, ValueError when the frame
        cannot be sent in this format (`router.jpeg.UnsuitableJpeg` is one), or a budget not be said in it.
        """
        number, made = self._pack(frame, budget_ms)
        try:
            for datagram in made:
                self._socket.send(datagram)
        except OSError as error:
            raise unreachable(error) from error
        return number

    def receive(self, timeout_s: float | None = None) -> CameraResult | None:
        """Return the next result, None when there is none within the time; raises GatewayFailed."""
        self._socket.settimeout(timeout_s)
        try:
            said = _ResultDocument.model_validate_json(self._socket.recv(_LARGEST))
        except (TimeoutError, BlockingIOError):
            return None
        except (OSError, ValidationError) as error:
            raise unreachable(error) from error
        return CameraResult(
            frame=int(said.name.rpartition("/")[2]),
            dropped=said.dropped,
            age_ms=said.age_ms,
            answer=said.answer,
            problem=said.problem,
            left_out=0 if said.answer is None else said.answer.left_out,
        )

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _pack(self, frame: bytes, budget_ms: float | None) -> tuple[int, list[bytes]]:
        if not self._rtp:
            number, self._next = self._next, (self._next + 1) % NUMBERS
            return number, datagrams(
                frame, stream=self._stream, frame=number, budget_ms=budget_ms, most_bytes=self._most
            )
        if budget_ms is not None:
            raise ValueError("budget_ms: RTP has no place for it; the gateway's --udp-query has")
        # Two frames within a tick of the clock would be one.
        number = max(time.monotonic_ns() * rtp_jpeg.CLOCK_HZ // 1_000_000_000, self._next)
        self._next = number + 1
        made = rtp_jpeg.packets(
            frame, ssrc=self._stream, timestamp=number, sequence=self._sequence, most_bytes=self._most
        )
        self._sequence += len(made)
        return number % NUMBERS, made
