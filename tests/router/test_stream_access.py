"""Streams of a gateway with keys: asked for at the beginning, and again with every frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from router.bootstrap import Gateway
from router.errors import Forbidden, RateLimited, Unauthorized
from router.keys import write
from router.wire import paretogate_pb2 as wire
from router.wire import paretogate_pb2_grpc as wire_grpc
from tests.fakes import FakeClock, FakeEngine
from tests.router.conftest import LARGE, SURE, Bench, sample
from tests.router.keyring import Keyring, bearer, make_key, wrong_tokens
from tests.router.test_grpc_api import serving as serving_grpc
from tests.router.test_http_server import serving as serving_http
from tests.router.test_stream import Camera
from tests.router.test_stream_socket import said

pytestmark = pytest.mark.anyio
WRONG = ("missing", "malformed", "unknown", "wrong secret", "hash for secret", "expired", "revoked")


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    """An empty file of keys."""
    return Keyring(tmp_path / "keys.json")


def opened(
    port: int, headers: Mapping[str, str] | None = None, protocols: Sequence[str] | None = None, **given: Any
) -> connect:  # Any: as the client of WebSockets takes them
    """Return a socket to a gateway's stream."""
    return connect(
        f"ws://127.0.0.1:{port}/v1/stream",
        additional_headers=headers,
        subprotocols=protocols,  # type: ignore[arg-type]  # a NewType of str
        proxy=None,
        **given,
    )


async def answered(socket: ClientConnection, frame: bytes) -> bool:
    """Send a frame; return whether it was answered."""
    await socket.send(frame)
    return "answer" in await said(socket)


@pytest.mark.parametrize("what", WRONG)
async def test_no_wrong_key_opens_a_stream(bench: Bench, frame: bytes, keyring: Keyring, what: str) -> None:
    """Over both edges, in a header or among the protocols; the engine is never asked."""
    token = wrong_tokens(keyring)[what]
    engine = FakeEngine(rows={"tiny-0": SURE})
    gateway = bench(engine, keys=keyring.path)
    shown = {} if token is None else bearer(token)
    protocols = ["paretogate"] if token is None else ["paretogate", f"key.{token}"]
    async with serving_http(gateway) as port:
        for headers, offered in ((shown, None), ({}, protocols)):
            with pytest.raises(InvalidStatus) as refused:
                async with opened(port, headers, offered):
                    pass
            assert refused.value.response.status_code == 401
            assert "Bearer" in refused.value.response.headers["WWW-Authenticate"]
            assert token is None or token not in (refused.value.response.body or b"").decode()
    async with serving_grpc(gateway) as (_, address), grpc.aio.insecure_channel(address) as channel:
        metadata = [(name.lower(), value) for name, value in shown.items()]
        call = wire_grpc.DetectionStub(channel).DetectStream(metadata=metadata)
        assert await call.code() is grpc.StatusCode.UNAUTHENTICATED
    assert engine.calls == []


async def test_a_good_key_opens_one_in_a_header_or_as_a_protocol(
    bench: Bench, frame: bytes, keyring: Keyring
) -> None:
    """A browser can only offer protocols; the one that is taken is ours, never the key."""
    token = keyring.add("door")
    gateway = bench(FakeEngine(rows={"tiny-0": SURE}), keys=keyring.path)
    async with serving_http(gateway) as port:
        async with opened(port, bearer(token)) as socket:
            assert await answered(socket, frame)
        async with opened(port, None, ["paretogate", f"key.{token}"]) as socket:
            assert socket.subprotocol == "paretogate"
            assert await answered(socket, frame)
    async with serving_grpc(gateway) as (_, address), grpc.aio.insecure_channel(address) as channel:
        call = wire_grpc.DetectionStub(channel).DetectStream(metadata=(("x-api-key", token),))
        await call.write(wire.StreamFrame(image=frame))
        assert (await call.read()).HasField("answer")
        call.cancel()


async def test_a_key_that_is_revoked_ends_the_stream(bench: Bench, frame: bytes, keyring: Keyring) -> None:
    """Its next frame is told so and never reaches the engine."""
    token = keyring.add("door")
    engine = FakeEngine(rows={"tiny-0": SURE})
    gateway = bench(engine, keys=keyring.path)
    assert gateway.keys_file is not None
    async with serving_http(gateway) as port, opened(port, bearer(token)) as socket:
        assert await answered(socket, frame)
        keyring.revoke("door")
        await gateway.keys_file.look()
        await socket.send(frame)
        refused = await said(socket)
        assert refused["problem"]["status"] == 401
        with pytest.raises(ConnectionClosed):
            await socket.recv()
    assert len(engine.calls) == 1
    assert sample(gateway, "paretogate_streams", protocol="websocket") == 0


async def test_a_revoked_key_frees_its_place_without_a_frame(bench: Bench, keyring: Keyring) -> None:
    """The sender is told why, and not that the gateway goes away."""
    token = keyring.add("door")
    gateway = bench(keys=keyring.path)
    assert gateway.keys_file is not None
    async with serving_http(gateway) as port, opened(port, bearer(token)) as socket:
        keyring.revoke("door")
        await gateway.keys_file.look()
        gateway.streams.sweep()
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, "the API key has been revoked")


async def test_one_key_holds_half_of_the_streams(bench: Bench, keyring: Keyring) -> None:
    """The others are there for others."""
    one, other = keyring.add("one"), keyring.add("other")
    gateway = bench(keys=keyring.path, max_streams=4)
    cameras = [Camera(gateway, bearer(one)) for _ in range(2)]
    with pytest.raises(RateLimited, match="2 streams are open with this API key"):
        Camera(gateway, bearer(one))
    cameras.append(Camera(gateway, bearer(other)))
    for camera in cameras:
        await camera.ended()


async def test_what_a_key_is_for_is_asked_with_every_frame(
    bench: Bench, frame: bytes, keyring: Keyring
) -> None:
    """A key that is narrowed narrows the streams that it opened."""
    token, key = make_key("door")
    write(keyring.path, [key])
    gateway = bench(FakeEngine(rows={"tiny-1": LARGE}), keys=keyring.path)
    assert gateway.keys_file is not None
    camera = Camera(gateway, {**bearer(token), "X-Operating-Point": "accurate"})
    camera.stream.offer(frame)
    await camera.after(1)
    write(keyring.path, [key.model_copy(update={"operating_points": frozenset({"fast"})})])
    await gateway.keys_file.look()
    camera.stream.offer(frame)
    before, after = await camera.ended()
    assert before.problem is None
    assert after.problem is not None
    assert after.problem.slug == "forbidden"


async def test_every_frame_counts_against_the_rate(bench: Bench, frame: bytes, keyring: Keyring) -> None:
    """Beyond it a frame is told when to come again, and the stream goes on."""
    clock = FakeClock()
    token = keyring.add("door", rate_per_s=2.0, burst=2)
    camera = Camera(bench(FakeEngine(rows={"tiny-0": SURE}), clock=clock, keys=keyring.path), bearer(token))
    for place in range(4):
        camera.stream.offer(frame)
        await camera.after(place + 1)
    clock.sleep(0.5)
    camera.stream.offer(frame)
    slugs = [None if result.problem is None else result.problem.slug for result in await camera.ended()]
    assert slugs == [None, None, "rate-limited", "rate-limited", None]


async def test_a_key_is_for_its_operating_points_in_streams_too(
    bench: Bench, frame: bytes, keyring: Keyring
) -> None:
    """Another is refused at once; where none is named, frames are answered at an allowed one."""
    token = keyring.add("door", operating_points=["fast"])
    gateway = bench(FakeEngine(rows={"tiny-0": SURE}), keys=keyring.path)
    with pytest.raises(Unauthorized):
        Camera(gateway)
    with pytest.raises(Forbidden, match="accurate"):
        Camera(gateway, {**bearer(token), "X-Operating-Point": "accurate"})
    camera = Camera(gateway, bearer(token))
    camera.stream.offer(frame)
    (result,) = await camera.ended()
    assert result.written is not None
    assert result.written.operating_point == "fast"


async def test_the_gateways_own_work_needs_no_key(bench: Bench, keyring: Keyring) -> None:
    """Datagrams cannot carry one: their edge asks by address instead."""
    keyring.add("door")
    gateway: Gateway = bench(keys=keyring.path)
    assert gateway.streams.wishes({}, trusted=True).account is None
