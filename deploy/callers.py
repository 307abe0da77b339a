"""Who asks a gateway while it is watched: over HTTP, over a stream, over UDP, well-behaved or not."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from router.client import GatewayClient, GatewayError, GrpcGatewayClient
from router.datagrams import datagrams

# Who has fallen behind by more than this does not catch up.
_BEHIND_S = 1.0
_WAIT_S = 60.0
_STREAM = 7


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
    """Send frames over HTTP until the block ends; what was due while another was open is sent late."""
    over = threading.Event()
    lock = threading.Lock()

    def send(number: int) -> None:
        due_s, position = time.monotonic(), number
        if carried.rate_hz > 0:
            due_s += number / carried.rate_hz
        with GatewayClient(url, api_key=carried.key, timeout_s=_WAIT_S) as client:
            while not over.wait(max(due_s - time.monotonic(), 0.0)):
                outcome = _ask(client, carried, position)
                with lock:
                    carried.outcomes[outcome] = carried.outcomes.get(outcome, 0) + 1
                position += clients
                now_s = time.monotonic()
                if carried.rate_hz > 0:
                    due_s = max(due_s + clients / carried.rate_hz, now_s - _BEHIND_S)
                else:
                    due_s = now_s

    with _in_threads(over, [lambda number=number: send(number) for number in range(clients)]):  # type: ignore[misc]  # a lambda's default has no type
        yield carried


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
