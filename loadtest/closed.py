"""A closed loop over plain sockets: the next request is sent when the answer is there.

For comparing servers, not for judging one: it costs the measuring process next to nothing, which a full HTTP
client does not, and it hides what an open loop shows.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

_LENGTH = struct.Struct(">I")
_TIMEOUT_S = 30.0


class ConversationError(RuntimeError):
    """A server closed the connection or answered with an error."""


class Conversation(Protocol):
    """One connection that asks one frame at a time."""

    def ask(self, frame: bytes) -> None:
        """Send a frame and read its answer; raises ConversationError."""

    def close(self) -> None:
        """Close the connection."""


class BareConversation:
    """Speak to `loadtest.bare`."""

    def __init__(self, port: int) -> None:
        self._socket = _connected(port)
        self._reader = self._socket.makefile("rb")

    def ask(self, frame: bytes) -> None:
        """Send a frame and read its answer; raises ConversationError."""
        self._socket.sendall(_LENGTH.pack(len(frame)) + frame)
        head = self._reader.read(_LENGTH.size)
        if len(head) < _LENGTH.size:
            raise ConversationError("the server closed the connection")
        self._reader.read(_LENGTH.unpack(head)[0])

    def close(self) -> None:
        """Close the connection."""
        self._reader.close()
        self._socket.close()


class HttpConversation:
    """Post frames to a gateway's /v1/detect over one kept connection."""

    def __init__(self, port: int, headers: Sequence[tuple[str, str]] = ()) -> None:
        self._socket = _connected(port)
        self._reader = self._socket.makefile("rb")
        lines = [
            "POST /v1/detect HTTP/1.1",
            "Host: 127.0.0.1",
            "Content-Type: application/octet-stream",
            *(f"{name}: {value}" for name, value in headers),
        ]
        self._head = "\r\n".join(lines).encode()

    def ask(self, frame: bytes) -> None:
        """Send a frame and read its answer; raises ConversationError unless it is 200."""
        self._socket.sendall(b"%b\r\nContent-Length: %d\r\n\r\n%b" % (self._head, len(frame), frame))
        status = self._reader.readline()
        length = 0
        while (line := self._reader.readline()) not in (b"\r\n", b""):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        body = self._reader.read(length)
        if b" 200 " not in status:
            raise ConversationError(f"{status.decode('latin-1').strip()}: {body[:300]!r}")

    def close(self) -> None:
        """Close the connection."""
        self._reader.close()
        self._socket.close()


def latencies_ms(
    conversation: Conversation, frames: Sequence[bytes], count: int, *, start: int = 0
) -> NDArray[np.float64]:
    """Return the latency of `count` requests, one after another from frame `start` on, in milliseconds."""
    taken = np.empty(count)
    for position in range(count):
        began_ns = time.perf_counter_ns()
        conversation.ask(frames[(start + position) % len(frames)])
        taken[position] = (time.perf_counter_ns() - began_ns) / 1e6
    return taken


def saturated_per_s(
    connect: Callable[[], Conversation], frames: Sequence[bytes], *, clients: int, seconds: float
) -> float:
    """Return how many requests per second `clients` closed loops get answered in `seconds`.

    Raises ConversationError when one of them failed.
    """
    counts = [0] * clients
    errors: list[ConversationError] = []
    ends_s = time.monotonic() + seconds

    def loop(number: int) -> None:
        conversation = connect()
        try:
            while time.monotonic() < ends_s:
                conversation.ask(frames[(number + counts[number] * clients) % len(frames)])
                counts[number] += 1
        except ConversationError as error:
            errors.append(error)
        finally:
            conversation.close()

    threads = [threading.Thread(target=loop, args=(number,)) for number in range(clients)]
    began_s = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return sum(counts) / (time.monotonic() - began_s)


def _connected(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection
