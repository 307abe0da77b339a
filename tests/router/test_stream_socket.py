"""Streams over a WebSocket, with a client of another make."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from router.bootstrap import Gateway
from router.documents import AnswerDocument
from tests.fakes import FakeEngine
from tests.router.conftest import SURE, Bench, sample
from tests.router.keyring import Keyring
from tests.router.test_http_server import server_of, serving
from tests.router.test_service import Held, until

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def socket_to(
    gateway: Gateway, query: str = "?operating_point=fast", origin: str | None = None
) -> AsyncIterator[ClientConnection]:
    """Serve a gateway and open a stream to it."""
    async with serving(gateway) as port:
        url = f"ws://127.0.0.1:{port}/v1/stream{query}"
        headers = {"X-Request-Id": "door"}
        given = None if origin is None else origin.format(port=port)
        async with connect(url, additional_headers=headers, origin=given, proxy=None) as socket:  # type: ignore[arg-type]  # a NewType of str
            yield socket


async def said(socket: ClientConnection) -> Any:  # Any: a JSON document
    """Return the next result."""
    return json.loads(await asyncio.wait_for(socket.recv(), 20))


def ended(gateway: Gateway, outcome: str) -> float:
    return sample(gateway, "paretogate_requests_total", protocol="websocket", outcome=outcome)


async def test_a_binary_message_is_a_frame_and_a_text_before_it_speaks_of_it(
    bench: Bench, frame: bytes
) -> None:
    """Its name is echoed and its budget holds for it alone; a broken frame fails alone."""
    gateway = bench(FakeEngine(rows={"tiny-0": SURE}))
    async with socket_to(gateway) as socket:
        await socket.send('{"name": "a", "budget_ms": 0.001}')
        await socket.send(frame)
        late = await said(socket)
        await socket.send(frame)
        whole = await said(socket)
        await socket.send(b"no image")
        broken = await said(socket)
    assert (late["number"], late["name"], late["problem"]["status"]) == (0, "a", 422)
    assert late["problem"]["type"] == "urn:paretogate:problem:unmeetable-budget"
    assert (whole["number"], whole["name"], whole["dropped"]) == (1, "", 0)
    assert whole["age_ms"] > 0
    answer = AnswerDocument.model_validate(whole["answer"])
    assert (answer.request_id, answer.operating_point) == ("door.1", "fast")
    assert [found.label for found in answer.detections] == ["red"]
    assert broken["problem"]["status"] == 415
    assert broken["problem"]["request_id"] == "door.2"
    assert (ended(gateway, "answered"), ended(gateway, "rejected")) == (1, 2)


async def test_frames_that_come_too_fast_are_dropped_and_counted(bench: Bench, frame: bytes) -> None:
    """The newest is answered; the messages that could not wait are counted in its result."""
    held = Held()
    gateway = bench(FakeEngine(rows={"tiny-0": held}))
    async with socket_to(gateway, "?operating_point=fast&reuse_within=4") as socket:
        await socket.send(frame)
        await held.wait_until_busy()
        for _ in range(5):
            await socket.send(frame)
        await until(lambda: ended(gateway, "superseded") == 4)
        held.open()
        first, last = await said(socket), await said(socket)
    assert (first["number"], last["number"], last["dropped"]) == (0, 5, 4)
    assert "reused" not in first
    assert last["reused"] == {"number": 0, "difference": 0.0}


@pytest.mark.parametrize(
    "text",
    ["hello", "[]", '{"name": 3}', '{"budget_ms": "5"}', '{"fps": 30}', '{"name": "%s"}' % ("x" * 300)],
)
async def test_a_text_that_is_none_of_ours_ends_the_stream(bench: Bench, text: str) -> None:
    """With the code for such data, and words."""
    gateway = bench()
    async with socket_to(gateway) as socket:
        await socket.send(text)
        with pytest.raises(ConnectionClosed) as closed:
            await asyncio.wait_for(socket.recv(), 20)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1003
    assert closed.value.rcvd.reason
    await until(lambda: sample(gateway, "paretogate_streams", protocol="websocket") == 0)


async def test_a_message_above_the_limit_ends_the_stream(bench: Bench, frame: bytes) -> None:
    """With the code for that; the gateway goes on."""
    gateway = bench()
    async with serving(gateway, max_message_bytes=1000) as port:
        url = f"ws://127.0.0.1:{port}/v1/stream"
        async with connect(url, proxy=None) as socket:
            await socket.send(bytes(2000))
            with pytest.raises(ConnectionClosed) as closed:
                await asyncio.wait_for(socket.recv(), 20)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009
        async with connect(url, proxy=None) as socket:
            await socket.send(frame)
            assert "answer" in await said(socket)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("?fps=30", "fps"),
        ("?budget_ms=soon", "X-Latency-Budget-Ms"),
        ("?operating_point=nope", "nope"),
        ("?in_flight=100", "X-Stream-In-Flight"),
        ("?budget_ms=1&budget_ms=2", "2 times"),
    ],
)
async def test_what_a_stream_cannot_ask_for_is_a_problem(bench: Bench, query: str, words: str) -> None:
    """The socket is never opened; the answer is HTTP's."""
    with pytest.raises(InvalidStatus) as refused:
        async with socket_to(bench(), query):
            pass
    response = refused.value.response
    assert response.status_code == 400
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["X-Request-Id"] == "door"
    assert words in json.loads(response.body or b"")["detail"]


async def test_a_page_from_elsewhere_is_refused(bench: Bench, frame: bytes) -> None:
    """Any page may open a socket to anywhere: only one that this gateway served may use it."""
    with pytest.raises(InvalidStatus) as refused:
        async with socket_to(bench(), origin="http://elsewhere.example"):
            pass
    assert refused.value.response.status_code == 403
    assert b"Origin" in (refused.value.response.body or b"")
    for origin in ("http://[", "null"):
        with pytest.raises(InvalidStatus) as refused:
            async with socket_to(bench(), origin=origin):
                pass
        assert refused.value.response.status_code == 403
    async with socket_to(bench(), origin="http://127.0.0.1:{port}") as socket:
        await socket.send(frame)
        assert "answer" in await said(socket)


async def test_a_socket_that_is_lost_takes_its_frames_along(bench: Bench, frame: bytes) -> None:
    """What is queued never reaches the engine."""
    held = Held()
    engine = FakeEngine(rows={"tiny-0": held})
    gateway = bench(engine)
    async with socket_to(gateway) as running:
        await running.send(frame)
        await held.wait_until_busy()
        host, port = running.remote_address[:2]
        other = await connect(f"ws://{host}:{port}/v1/stream?operating_point=fast", proxy=None)
        await other.send(frame)
        await until(lambda: gateway.service.state().waiting == 1)
        other.transport.abort()
        await until(lambda: ended(gateway, "cancelled") == 1)
        held.open()
        assert "answer" in await said(running)
    assert engine.calls == ["tiny-0"]


async def test_a_gateway_that_drains_says_so(bench: Bench, frame: bytes) -> None:
    """What it has taken is answered; then the socket is closed as one whose server goes away."""
    held = Held()
    gateway = bench(FakeEngine(rows={"tiny-0": held}))
    async with socket_to(gateway) as socket:
        await socket.send(frame)
        await held.wait_until_busy()
        gateway.streams.drain()
        held.open()
        assert "answer" in await said(socket)
        with pytest.raises(ConnectionClosed) as closed:
            await asyncio.wait_for(socket.recv(), 20)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1001


async def test_there_are_no_other_sockets_and_a_refusal_is_no_error(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """On every other path 403, with and without keys; nothing is logged as a failure of the gateway."""
    keyring = Keyring(tmp_path / "keys.json")
    keyring.add("door")
    for gateway in (bench(), bench(keys=keyring.path)):
        async with serving(gateway) as port:
            for path in ("/v1/detect", "/v1/nope", "/v2", "/"):
                with pytest.raises(InvalidStatus) as refused:
                    async with connect(f"ws://127.0.0.1:{port}{path}", proxy=None):
                        pass
                assert refused.value.response.status_code == 403
            with pytest.raises(InvalidStatus):
                async with connect(f"ws://127.0.0.1:{port}/v1/stream?fps=3", proxy=None):
                    pass
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_who_pings_and_does_not_read_is_cut(bench: Bench) -> None:
    """What is unread is bounded, and the stream's place is free again."""
    gateway = bench()
    async with server_of(gateway, max_message_bytes=100_000) as (server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"GET /v1/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        assert b"101" in await reader.readline()
        await until(lambda: sample(gateway, "paretogate_streams", protocol="websocket") == 1)
        reader._transport.pause_reading()  # type: ignore[attr-defined]  # there is no public way
        ping = b"\x89\xfd" + b"\0\0\0\0" + bytes(125)
        for _ in range(400):
            writer.write(ping * 500)
            await asyncio.sleep(0)
            server.look(0.0)
            if sample(gateway, "paretogate_streams", protocol="websocket") == 0:
                break
        await until(lambda: sample(gateway, "paretogate_streams", protocol="websocket") == 0)
        writer.close()
