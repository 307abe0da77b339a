"""Clients that send a byte a second do not keep a fast one from its budget."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import httpx

from model_repo.publish import Repository
from router.client import GatewayClient
from tests.e2e.gateway_process import GatewayProcess, gateway_process
from tests.e2e.test_router_server import wait_until
from tests.fakes import Square, encode_image, squares_frame

SLOW = 200
BUDGET_MS = 2000.0
FRAMES = 40
FRAME = encode_image(squares_frame([Square(0, 0, 0), Square(2, 1, 1, 200)], (160, 120)))
HEAD = (
    b"POST /v1/detect HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nX-Request-Id: %d\r\n"
    b"Content-Length: %d\r\n\r\n"
)


@contextlib.contextmanager
def slow_clients(port: int) -> Iterator[list[socket.socket]]:
    """Keep connections on which a byte a second is sent: half of them in their head, half in their body.

    Those that the gateway closes are taken from the list.
    """
    whole = [HEAD % (number, len(FRAME)) + FRAME for number in range(SLOW)]
    connections = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(SLOW)]
    said = [0 if number % 2 else len(HEAD % (number, len(FRAME))) for number in range(SLOW)]
    for connection, request, begun in zip(connections, whole, said, strict=True):
        connection.sendall(request[:begun])
    left, stop = list(connections), threading.Event()

    def drip() -> None:
        second = 0
        while not stop.wait(1.0):
            for number, connection in enumerate(connections):
                at = said[number] + second
                if connection not in left:
                    continue
                try:
                    connection.sendall(whole[number][at : at + 1])
                except OSError:
                    left.remove(connection)
            second += 1

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    try:
        yield left
    finally:
        stop.set()
        thread.join()
        for connection in connections:
            connection.close()


def test_slow_clients_do_not_keep_a_fast_one_from_its_budget(repository: Repository) -> None:
    """Beside 200 of them every frame is answered within its budget, and in the end they are let go of."""
    options = ("--head-timeout-s", "20", "--body-timeout-s", "20", "--workers", "1")
    with gateway_process(repository.root, *options) as gateway, slow_clients(gateway.port) as left:
        with GatewayClient(gateway.url) as fast:
            for _ in range(FRAMES):
                answer = fast.detect(FRAME, budget_ms=BUDGET_MS)
                assert answer.timing.total_ms < BUDGET_MS
                assert answer.detections
            assert len(left) == SLOW, "they were to be there all the while"
        wait_until(lambda: not left)
        assert outcomes(gateway)["answered"] == FRAMES
        cut = exposition(gateway, 'paretogate_connections_cut_total{waiting_for="head"}')
        assert cut == SLOW / 2
        # Those whose bodies did not come were told so.
        assert outcomes(gateway)["rejected"] == SLOW / 2


def outcomes(gateway: GatewayProcess) -> dict[str, float]:
    """Return how many HTTP requests ended in each way."""
    return {
        name: exposition(gateway, f'paretogate_requests_total{{outcome="{name}",protocol="http"}}')
        for name in ("answered", "rejected")
    }


def exposition(gateway: GatewayProcess, series: str) -> float:
    """Return a series' value."""
    text = httpx.get(f"{gateway.admin_url}/metrics").text
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{series} "))
