"""The HTTP server around the application: what only a real connection shows."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import orjson
import pytest

from model_repo.runtime.engine import EngineUnavailable
from router import shapes
from router.bootstrap import Gateway
from router.execution import Job
from router.http_server import ConnectionLimits, CycleExchange, GatewayServer, make_server
from router.workers import Ticket
from tests.fakes import FakeEngine
from tests.router.conftest import SURE, Bench, sample
from tests.router.test_service import Held, until

pytestmark = pytest.mark.anyio
LIMITS = ConnectionLimits()

REQUEST = (
    b"POST /v1/detect HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
    b"X-Operating-Point: fast\r\nContent-Length: %d\r\n\r\n%b"
)


@asynccontextmanager
async def serving(gateway: Gateway, max_message_bytes: int = 100_000) -> AsyncIterator[int]:
    """Serve a gateway on a free port of this event loop."""
    async with server_of(gateway, max_message_bytes=max_message_bytes) as (_, port):
        yield port


@asynccontextmanager
async def server_of(
    gateway: Gateway,
    limits: ConnectionLimits = LIMITS,
    *,
    tls: ssl.SSLContext | None = None,
    max_message_bytes: int = 100_000,
) -> AsyncIterator[tuple[GatewayServer, int]]:
    """Serve a gateway within limits on a free port of this event loop."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = make_server(
            gateway.app,
            gateway.endpoint,
            limits,
            gateway.metrics,
            tls=tls,
            drain_s=1.0,
            max_message_bytes=max_message_bytes,
        )
        task = asyncio.create_task(server.serve(sockets=[listener]))
        await until(lambda: server.started)
        try:
            yield server, listener.getsockname()[1]
        finally:
            server.should_exit = True
            await task


def ended(gateway: Gateway, outcome: str) -> float:
    return sample(gateway, "paretogate_requests_total", protocol="http", outcome=outcome)


async def test_a_connection_that_is_lost_takes_its_queued_frame_along(bench: Bench, frame: bytes) -> None:
    """The engine never sees it, it is counted as cancelled, and a connection kept open is answered."""
    held = Held()
    engine = FakeEngine(rows={"tiny-0": held})
    gateway = bench(engine)
    async with serving(gateway) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as kept:
        headers = {"Content-Type": "application/octet-stream", "X-Operating-Point": "fast"}
        running = asyncio.create_task(kept.post("/v1/detect", content=frame, headers=headers))
        await held.wait_until_busy()
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST % (len(frame), frame))
        await until(lambda: gateway.service.state().waiting == 1)
        writer.close()
        await until(lambda: ended(gateway, "cancelled") == 1)
        assert gateway.service.state().waiting == 0
        held.open()
        assert (await running).status_code == 200
        again = await kept.post("/v1/detect", content=frame, headers=headers)
        assert again.status_code == 200
    assert engine.calls == ["tiny-0", "tiny-0"]
    assert (ended(gateway, "answered"), ended(gateway, "cancelled")) == (2, 1)


async def test_a_lost_connection_gives_back_its_place_when_the_worker_is_done(
    bench: Bench, frame: bytes
) -> None:
    """A frame that runs is not taken back; it is counted once, and nothing stays inside."""
    held = Held()
    gateway = bench(FakeEngine(rows={"tiny-0": held}))
    async with serving(gateway) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST % (len(frame), frame))
        await held.wait_until_busy()
        writer.close()
        await until(lambda: ended(gateway, "cancelled") == 1)
        assert gateway.service.state().inside == 1
        held.open()
        await until(lambda: gateway.service.state().inside == 0)
    assert (ended(gateway, "answered"), ended(gateway, "cancelled")) == (0, 1)
    assert gateway.service.serving.inside == 0


@pytest.mark.parametrize(
    ("headers", "status", "word"),
    [
        (b"X-Operating-Point: none\r\n", 400, "unknown-operating-point"),
        (b"X-Latency-Budget-Ms: 0.01\r\n", 422, "unmeetable-budget"),
        (b"X-Latency-Budget-Ms: soon\r\n", 400, "malformed-budget"),
    ],
)
async def test_a_refused_frame_leaves_its_connection_usable(
    bench: Bench, frame: bytes, headers: bytes, status: int, word: str
) -> None:
    """What is refused at once is told at once, and the next frame on the connection is answered."""
    gateway = bench(FakeEngine(rows={"tiny-0": SURE}))
    refused = REQUEST.replace(b"X-Operating-Point: fast\r\n", headers)
    async with serving(gateway) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for message, expected in ((refused, status), (REQUEST, 200)):
            writer.write(message % (len(frame), frame))
            told = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert told.split()[1] == b"%d" % expected
            length = int(told.split(b"content-length: ")[1].split(b"\r\n")[0])
            answer = orjson.loads(await reader.readexactly(length))
            assert answer.get("type", word).endswith(word)
        writer.close()
    assert (ended(gateway, "rejected"), ended(gateway, "answered")) == (1, 1)


async def test_an_answer_that_cannot_be_written_is_a_failure(
    bench: Bench, frame: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500, counted as failed, and the gateway goes on."""
    gateway = bench(FakeEngine(rows={"tiny-0": SURE}))
    headers = {"Content-Type": "image/png", "X-Operating-Point": "fast"}
    async with serving(gateway) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        with monkeypatch.context() as patch:
            patch.setattr(shapes, "answer_json", _fail)
            assert (await client.post("/v1/detect", content=frame, headers=headers)).status_code == 500
        assert (await client.post("/v1/detect", content=frame, headers=headers)).status_code == 200
    assert (ended(gateway, "failed"), ended(gateway, "answered")) == (1, 1)


def _fail(*_: object) -> bytes:
    raise ValueError("as scripted")


async def test_another_server_tells_by_its_next_message(bench: Bench, frame: bytes) -> None:
    """Under a server without an exchange of ours, a disconnect message does the same."""
    held = Held()
    engine = FakeEngine(rows={"tiny-0": held})
    gateway = bench(engine)
    left = asyncio.Event()
    sent: list[Any] = []
    first = asyncio.create_task(_post(gateway, frame, asyncio.Event(), sent))
    await held.wait_until_busy()
    second = asyncio.create_task(_post(gateway, frame, left, sent))
    await until(lambda: gateway.service.state().waiting == 1)
    left.set()
    await second
    assert sent == []
    held.open()
    await first
    assert [message.get("status") for message in sent] == [200, None]
    assert engine.calls == ["tiny-0"]
    assert ended(gateway, "cancelled") == 1


async def _post(gateway: Gateway, frame: bytes, left: asyncio.Event, sent: list[Any]) -> None:
    messages = iter([{"type": "http.request", "body": frame, "more_body": False}])

    async def receive() -> Any:  # Any: as ASGI defines its messages
        for message in messages:
            return message
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:  # Any: as ASGI defines its messages
        sent.append(message)

    headers = [(b"content-type", b"application/octet-stream"), (b"x-operating-point", b"fast")]
    scope = {"type": "http", "method": "POST", "path": "/v1/detect", "headers": headers}
    await gateway.app(scope, receive, send)


@pytest.mark.parametrize(
    ("head", "chunks", "expected"),
    [
        (b"Content-Length: %d\r\n", 1, (b"200", b"content-length")),
        (b"Content-Length: %d\r\n", 3, (b"200", b"content-length")),
        (b"Content-Length: %d\r\nConnection: close\r\n", 1, (b"200", b"connection: close")),
        (b"Content-Length: %d\r\nExpect: 100-continue\r\n", 1, (b"200", b"server-timing")),
    ],
)
async def test_an_answer_is_the_same_however_its_request_arrives(
    bench: Bench, frame: bytes, head: bytes, chunks: int, expected: tuple[bytes, ...]
) -> None:
    """At once or in pieces, on a connection that is kept or not."""
    gateway = bench(FakeEngine(rows={"tiny-0": SURE}))
    request = b"POST /v1/detect HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n%b\r\n%b"
    message = request % (head % len(frame), frame)
    size = -(-len(message) // chunks)
    async with serving(gateway) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for start in range(0, len(message), size):
            writer.write(message[start : start + size])
            await writer.drain()
            await asyncio.sleep(0.02)
        told = await reader.readuntil(b"\r\n\r\n")
        length = int(told.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        answer = orjson.loads(await reader.readexactly(length))
        closed = b"connection: close" in told.lower()
        assert (await reader.read(1) == b"") if closed else not reader.at_eof()
        writer.close()
    assert all(part in told.lower() for part in expected)
    assert [found["label"] for found in answer["detections"]] == ["red"]


async def test_requests_sent_ahead_are_answered_in_turn(bench: Bench, frame: bytes) -> None:
    """Three on one connection before the first answer: three answers, in order, each to its own."""
    gateway = bench(FakeEngine(rows={"tiny-0": SURE}))
    message = REQUEST.replace(b"Host: x", b"Host: x\r\nX-Request-Id: r%d")
    async with serving(gateway) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"".join(message % (number, len(frame), frame) for number in range(3)))
        ids = []
        for _ in range(3):
            told = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(told.split(b"content-length: ")[1].split(b"\r\n")[0])
            ids.append(orjson.loads(await reader.readexactly(length))["request_id"])
        writer.close()
    assert ids == ["r0", "r1", "r2"]


@pytest.mark.parametrize(("broken", "failing"), [(False, False), (True, False), (False, True)])
async def test_an_ended_request_keeps_nothing_for_the_collector(
    bench: Bench, frame: bytes, broken: bool, failing: bool
) -> None:
    """Its frame goes with its last reference, whether it was answered, broken, or the engine failed."""
    failures: deque[Exception | None] = deque([EngineUnavailable("down")] * 5 if failing else [])
    gateway = bench(FakeEngine(rows={"tiny-0": SURE}, failures=failures))
    body = frame[: len(frame) // 2] if broken else frame
    expected = 422 if broken else 503 if failing else 200
    async with serving(gateway) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        gc.collect()
        before = {id(each) for each in _of_requests()}
        gc.disable()
        try:
            for _ in range(5):
                headers = {"Content-Type": "image/png", "X-Operating-Point": "fast"}
                response = await client.post("/v1/detect", content=body, headers=headers)
                assert response.status_code == expected
            await asyncio.sleep(0.05)
            assert [each for each in _of_requests() if id(each) not in before] == []
        finally:
            gc.enable()


def _of_requests() -> list[object]:
    # By their very type: asking every object there is for its class wakes some that warn.
    return [each for each in gc.get_objects() if type(each) in (CycleExchange, Job, Ticket)]
