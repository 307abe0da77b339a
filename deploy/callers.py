"""Who asks a gateway while it is watched: over HTTP, over a stream, over UDP, well-behaved or not."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from router.client import GatewayClient, GatewayError, GrpcGatewayClient
from router.datagrams import datagrams

# Who has fallen behind by more than this does not catch up.
_BEHIND_S = 1.0
_WAIT_S = 60.0
_STREAM = 7
# A flood begins with so many frames a second, and has grown enough once that share of them is dropped.
_FIRST_HZ, _MOST_HZ, _STEP_S, _FLOODED = 50.0, 4_000.0, 0.5, 0.8


@dataclass
class Traffic:
    """Requests that go on in the background; what they carry may be changed meanwhile.

    rate_hz: of all clients together, evenly; 0 for as fast as answers come. outcomes: how many ended how.
    """

    frames: Sequence[bytes]
    rate_hz: float
    budget_ms: float | None = None
    operating_point: str | None = None
    key: str | None = None
    outcomes: dict[str, int] = field(default_factory=dict)


@contextmanager
def traffic(url: str, carried: Traffic, *, clients: int = 4) -> Iterator[Traffic]:
    """Send frames over HTTP until the block ends; what is due while all clients are busy is sent late."""
    over, turns = threading.Event(), Turns(carried)
    lock = threading.Lock()

    def send() -> None:
        with GatewayClient(url, api_key=carried.key, timeout_s=_WAIT_S) as client:
            while (position := turns.take(over)) is not None:
                outcome = _ask(client, carried, position)
                with lock:
                    carried.outcomes[outcome] = carried.outcomes.get(outcome, 0) + 1

    with _in_threads(over, [send] * clients):
        yield carried


class Turns:
    """Whose turn it is to send the next frame: one client waits until it is due, the others for that one.

    So a rate that is changed meanwhile holds from the next frame on.
    """

    def __init__(self, carried: Traffic) -> None:
        self._carried, self._lock = carried, threading.Lock()
        self._position, self._due_s = -1, time.monotonic()

    def take(self, over: threading.Event) -> int | None:
        """Return the number of the frame that is due now; None once it is over."""
        with self._lock:
            if over.wait(max(self._due_s - time.monotonic(), 0.0)):
                return None
            self._position += 1
            rate_hz, now_s = self._carried.rate_hz, time.monotonic()
            step_s = 1.0 / rate_hz if rate_hz > 0 else 0.0
            self._due_s = max(self._due_s + step_s, now_s - _BEHIND_S)
            return self._position


def _ask(client: GatewayClient, carried: Traffic, position: int) -> str:
    frame = carried.frames[position % len(carried.frames)]
    try:
        client.detect(frame, budget_ms=carried.budget_ms, operating_point=carried.operating_point)
    except GatewayError as error:
        return error.slug
    return "answered"


@contextmanager
def streaming(
    address: str, key: str, frames: Sequence[bytes], rate_hz: float, budget_ms: float | None = None
) -> Iterator[None]:
    """Stream frames over gRPC until the block ends; each is shown twice, and may be answered once for both.

    A gateway that ends, or stands still for too long, ends its streams: then another one begins.
    """
    over = threading.Event()

    def camera() -> Iterator[bytes]:
        position = 0
        while not over.wait(1.0 / rate_hz):
            yield frames[(position // 2) % len(frames)]
            position += 1

    def stream() -> None:
        while not over.is_set():
            try:
                with GrpcGatewayClient(address, api_key=key) as client:
                    for _ in client.stream(camera(), reuse_within=1.0, budget_ms=budget_ms):
                        pass
            except GatewayError:
                over.wait(1.0)

    with _in_threads(over, [stream]):
        yield


@contextmanager
def flooding(
    address: str, key: str, frames: Sequence[bytes], budget_ms: float | None = None
) -> Iterator[None]:
    """Stream frames over gRPC until the block ends, more and more of them until the gateway drops most.

    How many that takes is the machine's affair: the rate is doubled while fewer than `_FLOODED` are dropped.
    """
    over = threading.Event()
    pace = Pace()

    def camera() -> Iterator[bytes]:
        position, due_s = 0, time.monotonic()
        while not over.wait(max(due_s - time.monotonic(), 0.0)):
            yield frames[position % len(frames)]
            position += 1
            due_s = max(due_s + 1.0 / pace.rate_hz, time.monotonic() - _BEHIND_S)

    def stream() -> None:
        with GrpcGatewayClient(address, api_key=key) as client, suppress(GatewayError):
            for result in client.stream(camera(), budget_ms=budget_ms):
                pace.saw(result.number + 1, result.dropped)

    with _in_threads(over, [stream]):
        yield


class Pace:
    """The rate of a camera that sends twice as many frames as before until enough of them are dropped."""

    def __init__(self) -> None:
        self.rate_hz = _FIRST_HZ
        self._arrived = self._dropped = 0

    def saw(self, arrived: int, dropped: int) -> None:
        """Note how many frames have arrived at the gateway so far, and how many it has dropped."""
        if arrived - self._arrived < _STEP_S * self.rate_hz:
            return
        if dropped - self._dropped < _FLOODED * (arrived - self._arrived):
            self.rate_hz = min(2.0 * self.rate_hz, _MOST_HZ)
        self._arrived, self._dropped = arrived, dropped


@contextmanager
def filming(address: str, frames: Sequence[bytes], rate_hz: float, *, loses: int = 0) -> Iterator[None]:
    """Send frames over UDP until the block ends; of every `loses`-th one a datagram never comes."""
    over = threading.Event()
    host, _, port = address.rpartition(":")

    def film() -> None:
        number = 0
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            while not over.wait(1.0 / rate_hz):
                pieces = datagrams(frames[number % len(frames)], stream=_STREAM, frame=number)
                number += 1
                if loses and number % loses == 0:
                    del pieces[len(pieces) // 2]
                for piece in pieces:
                    sender.sendto(piece, (host, int(port)))

    with _in_threads(over, [film]):
        yield


@contextmanager
def _in_threads(over: threading.Event, works: Sequence[Callable[[], None]]) -> Iterator[None]:
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
