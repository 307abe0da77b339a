"""The gateway as a process: real sockets, real engine, real signals."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from model_repo.detections import Detections
from model_repo.publish import Repository
from model_repo.runtime.engine import answer_frame
from model_repo.runtime.select import make_engine
from router.client import AsyncGrpcGatewayClient, GatewayClient
from tests.e2e.gateway_process import GatewayProcess, gateway_process
from tests.fakes import Square, encode_image, squares_frame, tiny_repository

IMAGE = squares_frame([Square(0, 0, 0), Square(2, 1, 1, 200)], (256, 192))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """A repository for the gateway that several tests share."""
    return tiny_repository(tmp_path_factory.mktemp("published") / "repository")


@pytest.fixture(scope="module")
def gateway(published: Repository) -> Iterator[GatewayProcess]:
    """A running gateway that tests may not stop."""
    with gateway_process(published.root) as process:
        yield process


def test_the_gateway_answers_as_the_engine_does(gateway: GatewayProcess, published: Repository) -> None:
    """Over HTTP and gRPC the detections are those of the same model run offline, under aligned scores."""
    variant = published.frontier.variant("tiny-1")
    engine = make_engine()
    engine.load(published.root, variant)
    raw = answer_frame(engine, variant, IMAGE).detections
    expected = variant.on(engine.runtime).alignment.apply(raw).top()
    engine.close()

    async def call() -> Detections:
        async with AsyncGrpcGatewayClient(gateway.grpc_address) as grpc_client:
            answer = await grpc_client.detect(encode_image(IMAGE), operating_point="accurate")
            return answer.as_detections()

    with GatewayClient(gateway.url) as client:
        over_http = client.detect(encode_image(IMAGE), operating_point="accurate", budget_ms=5000)
    over_grpc = asyncio.run(call())
    found = over_http.as_detections()
    assert len(expected) >= 2
    assert np.allclose(found.xyxy, expected.xyxy, atol=0.01)
    assert np.allclose(found.score, expected.score, atol=1e-5)
    assert found.label.tolist() == expected.label.tolist()
    assert np.allclose(over_grpc.xyxy, expected.xyxy, atol=1e-3)
    assert (over_http.image.width, over_http.image.height) == (256, 192)


def test_sigterm_finishes_what_is_in_flight_and_exits_with_0(repository: Repository) -> None:
    """A request whose body is half sent when SIGTERM comes is still answered; then the process ends well."""
    frame = encode_image(IMAGE)
    head = (
        f"POST /v1/detect HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
        f"Content-Length: {len(frame)}\r\nConnection: close\r\n\r\n"
    )
    with (
        gateway_process(repository.root, "--drain-s", "60", "--body-timeout-s", "60") as gateway,
        socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as connection,
        ThreadPoolExecutor(1) as thread,
    ):
        connection.sendall(head.encode() + frame[:100])
        wait_until(
            lambda: 'arrivals_total{protocol="http"} 1.0' in httpx.get(f"{gateway.admin_url}/metrics").text
        )
        status = thread.submit(gateway.terminate)
        wait_until(lambda: any("draining" in line for line in gateway.log))
        connection.sendall(frame[100:])
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert status.result() == 0
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert "Traceback" not in "".join(gateway.log)


def test_a_sender_who_hangs_up_is_counted_as_cancelled(gateway: GatewayProcess) -> None:
    """A connection closed in the middle of a body ends in exactly one outcome, cancelled."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as connection:
        connection.sendall(
            b"POST /v1/detect HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
            b"Content-Length: 500\r\n\r\nhalf"
        )
    line = 'paretogate_requests_total{outcome="cancelled",protocol="http"} 1.0'
    wait_until(lambda: line in exposition(gateway))


def test_importing_the_router_leaves_torch_out() -> None:
    """Neither torch nor the search comes along with the gateway."""
    code = (
        "import sys, router.__main__, router.running, router.client;"
        "import model_repo.runtime.openvino, model_repo.runtime.onnxruntime;"
        "print([m for m in ('torch', 'search', 'loadtest', 'onnx', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("runtime", ["onnxruntime"])
def test_the_other_embedded_runtime_serves_too(repository: Repository, runtime: str) -> None:
    """--runtime chooses the engine, and the gateway says which one it is."""
    with (
        gateway_process(repository.root, "--runtime", runtime) as gateway,
        GatewayClient(gateway.url) as client,
    ):
        assert client.operating_points().runtime == runtime
        assert len(client.detect(encode_image(IMAGE)).detections) >= 2


def exposition(gateway: GatewayProcess) -> str:
    """Return what Prometheus would read now."""
    return httpx.get(f"{gateway.admin_url}/metrics").text


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait until something holds, for a minute at most."""
    pause = threading.Event()
    for _ in range(1200):
        if holds():
            return
        pause.wait(0.05)
    raise AssertionError("it did not come to hold")
