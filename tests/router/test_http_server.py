"""The HTTP server around the application: what only a real connection shows."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from router.bootstrap import Gateway
from router.http_server import make_server
from tests.fakes import FakeEngine
from tests.router.conftest import Bench, sample
from tests.router.test_service import Held, until

pytestmark = pytest.mark.anyio

REQUEST = (
    b"POST /v1/detect HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
    b"X-Operating-Point: fast\r\nContent-Length: %d\r\n\r\n%b"
)


@asynccontextmanager
async def serving(gateway: Gateway) -> AsyncIterator[int]:
    """Serve a gateway on a free port of this event loop."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = make_server(gateway.app, drain_s=1.0)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        await until(lambda: server.started)
        try:
            yield listener.getsockname()[1]
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


async def test_another_server_tells_by_its_next_message(bench: Bench, frame: bytes) -> None:
    """Under a server without the future of ours, a disconnect message does the same."""
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
