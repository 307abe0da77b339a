"""Connections: how many there may be, and how long each may take for what."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import pytest

from router.bootstrap import Gateway
from router.http_server import ConnectionLimits, DetectProtocol, GatewayServer
from tests.router.conftest import Bench, sample
from tests.router.test_http_server import REQUEST, server_of
from tests.router.test_service import until

pytestmark = pytest.mark.anyio
LIMITS = ConnectionLimits(most=3, head_s=10.0, write_s=30.0, idle_s=20.0)
PNG = {"Content-Type": "image/png"}


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect, and disconnect however the test ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def cut(gateway: Gateway, waiting_for: str) -> float:
    """Return how many connections were cut while they waited for something."""
    return sample(gateway, "paretogate_connections_cut_total", waiting_for=waiting_for)


def passes(server: GatewayServer, from_s: float, seconds: float) -> float:
    """Let the server look once a second for so long, at once; return when it was last."""
    for second in range(round(seconds) + 1):
        server.look(from_s + second)
    return from_s + seconds


async def test_one_connection_too_many_is_told_so(bench: Bench, frame: bytes) -> None:
    """503 that says why, at once and counted; when one leaves there is room again."""
    gateway = bench()
    async with server_of(gateway, LIMITS) as (server, port), AsyncExitStack() as stack:
        kept = [await stack.enter_async_context(connected(port)) for _ in range(3)]
        await until(lambda: len(server.server_state.connections) == 3)
        reader, _ = await stack.enter_async_context(connected(port))
        told = await reader.read()
        assert told.startswith(b"HTTP/1.1 503 ")
        assert b"Too many connections" in told
        assert sample(gateway, "paretogate_connections_refused_total") == 1
        kept[0][1].close()
        await until(lambda: len(server.server_state.connections) == 2)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            assert (await client.post("/v1/detect", content=frame, headers=PNG)).status_code == 200


@pytest.mark.parametrize("sent", [b"", b"POST /v1", b"GET / HTTP/1.1\r\nX-A: 1\r\n", b"\r\n\r\n"])
async def test_a_head_that_does_not_come_is_not_waited_for(bench: Bench, sent: bytes) -> None:
    """Nothing, a part of a head, or empty lines: the connection is cut after the time for a head."""
    gateway = bench()
    async with server_of(gateway, LIMITS) as (server, port), connected(port) as (reader, writer):
        writer.write(sent)
        await until(lambda: len(server.server_state.connections) == 1)
        await asyncio.sleep(0.05)
        now_s = passes(server, 1000.0, 10.0)
        assert cut(gateway, "head") == 0
        writer.write(sent[:1])
        passes(server, now_s, 1.0)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        assert cut(gateway, "head") == 1


async def test_heads_that_follow_one_another_have_each_their_time(bench: Bench, frame: bytes) -> None:
    """A connection that is in a head at every look, a new one each time, is kept."""
    gateway = bench()
    request = REQUEST % (len(frame), frame)
    async with server_of(gateway, LIMITS) as (server, port), connected(port) as (reader, writer):
        writer.write(request[:20])
        for second in range(30):
            await asyncio.sleep(0.01)
            server.look(float(second))
            writer.write(request[20:] + request[:20])
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
        assert cut(gateway, "head") == 0


async def test_who_does_not_take_answers_is_cut(bench: Bench) -> None:
    """An answer that nobody reads holds its connection for a while and no longer."""
    gateway = bench()
    many = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 2000
    async with server_of(gateway, LIMITS) as (server, port), connected(port) as (_, writer):
        writer.write(many)

        def stuck() -> bool:
            (connection,) = server.server_state.connections
            return isinstance(connection, DetectProtocol) and connection.flow.write_paused

        await until(stuck)
        await asyncio.sleep(0.1)
        now_s = passes(server, 1000.0, 30.0)
        assert cut(gateway, "write") == 0
        passes(server, now_s, 1.0)
        assert cut(gateway, "write") == 1
        await until(lambda: not server.server_state.connections)


async def test_the_rest_of_a_refused_body_is_not_waited_for(bench: Bench) -> None:
    """After an answer that came early, what still drips in keeps the connection no longer than a pause."""
    gateway = bench()
    head = b"POST /v1/detect HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nX-Priority: none\r\n"
    async with server_of(gateway, LIMITS) as (server, port), connected(port) as (reader, writer):
        writer.write(head + b"Content-Length: 1000000\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
        writer.write(b"x")
        await asyncio.sleep(0.05)
        now_s = passes(server, 1000.0, 20.0)
        assert cut(gateway, "idle") == 0
        passes(server, now_s, 1.0)
        assert cut(gateway, "idle") == 1


async def test_a_request_at_work_is_left_alone(bench: Bench) -> None:
    """A body on its way and an answer in the making have limits of their own."""
    gateway = bench()
    async with server_of(gateway, LIMITS) as (server, port), connected(port) as (reader, writer):
        writer.write(REQUEST % (1000, b"begun"))
        await until(lambda: sample(gateway, "paretogate_arrivals_total", protocol="http") == 1)
        passes(server, 1000.0, 100.0)
        writer.write(b"x" * 995)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 415 ")
