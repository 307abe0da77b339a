"""The gRPC edge over a real channel, and both clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from router.bootstrap import Gateway
from router.client import (
    AsyncGatewayClient,
    AsyncGrpcGatewayClient,
    GatewayFailed,
    GatewayOverloaded,
    RequestRejected,
)
from router.grpc_api import SERVICE
from router.grpc_server import CallLimits, GrpcServer
from router.wire import paretogate_pb2 as wire
from router.wire import paretogate_pb2_grpc as wire_grpc
from tests.fakes import FakeEngine
from tests.router.conftest import DOUBTFUL, LARGE, Bench, sample

pytestmark = pytest.mark.anyio
MAX_BYTES = 100_000
LIMITS = CallLimits(MAX_BYTES, 512, 10.0)


@asynccontextmanager
async def serving(
    gateway: Gateway,
    limits: CallLimits = LIMITS,
    credentials: grpc.ServerCredentials | None = None,
) -> AsyncIterator[tuple[GrpcServer, str]]:
    """Serve a gateway over gRPC on a free port."""
    server = GrpcServer(gateway.servicer, gateway.inference, limits, gateway.access)
    port = server.bind("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield server, f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


async def test_both_protocols_give_the_same_answer(bench: Bench, frame: bytes) -> None:
    """Over HTTP and gRPC the same frame gets the same detections, plan and stages."""
    gateway = bench(FakeEngine(rows={"tiny-0": DOUBTFUL, "tiny-1": LARGE}))
    transport = httpx.ASGITransport(gateway.app)
    async with (
        serving(gateway) as (_, address),
        AsyncGrpcGatewayClient(address) as over_grpc,
        AsyncGatewayClient("http://gateway", transport=transport) as over_http,
    ):
        first = await over_grpc.detect(frame, request_id="same", operating_point="balanced")
        second = await over_http.detect(frame, request_id="same", operating_point="balanced")
    assert first.as_detections().xyxy.tolist() == second.as_detections().xyxy.tolist()
    assert first.as_detections().score == pytest.approx(second.as_detections().score, abs=1e-6)
    for name in ("request_id", "operating_point", "plan", "image", "cut", "certificate"):
        assert getattr(first, name) == getattr(second, name)
    assert [stage.variant for stage in first.stages] == [stage.variant for stage in second.stages]
    assert [found.label for found in first.detections] == ["green"]
    assert sample(gateway, "paretogate_requests_total", protocol="grpc", outcome="answered") == 1


@pytest.mark.parametrize(
    ("content", "point", "slug", "status"),
    [
        ("cut", None, "broken-image", 422),
        ("empty", None, "broken-image", 422),
        ("gif", None, "unsupported-type", 415),
        ("whole", "nope", "unknown-operating-point", 400),
        ("large", None, "too-large", 413),
    ],
)
async def test_both_protocols_give_the_same_errors(
    bench: Bench, frame: bytes, content: str, point: str | None, slug: str, status: int
) -> None:
    """The same fault is the same problem, with the same words, over both."""
    contents = {
        "cut": frame[:60],
        "empty": b"",
        "gif": b"GIF89a",
        "whole": frame,
        "large": frame + b"\0" * 1000,
    }
    gateway = bench(max_bytes=len(frame) + 100)
    async with (
        serving(gateway) as (_, address),
        AsyncGrpcGatewayClient(address) as over_grpc,
        AsyncGatewayClient("http://gateway", transport=httpx.ASGITransport(gateway.app)) as over_http,
    ):
        problems = []
        for client in (over_grpc, over_http):
            with pytest.raises(RequestRejected) as caught:
                await client.detect(contents[content], operating_point=point)
            assert caught.value.slug == slug
            assert caught.value.problem.request_id
            problems.append(caught.value.problem)
    assert {problem.status for problem in problems} == {status}
    assert problems[0].title == problems[1].title
    assert problems[0].operating_points == problems[1].operating_points


async def test_a_call_without_client_is_told_its_status(bench: Bench) -> None:
    """Whoever reads statuses alone sees INVALID_ARGUMENT and the reason in words."""
    async with serving(bench()) as (_, address), grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(f"/{SERVICE}/Detect")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "empty body" in (caught.value.details() or "")


async def test_a_message_that_is_no_message_leaves_the_server_serving(bench: Bench, frame: bytes) -> None:
    """Garbage in place of a request is refused by the transport, and the next call is answered."""
    async with serving(bench()) as (_, address), grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await channel.unary_unary(f"/{SERVICE}/Detect")(b"\xff\xff\xff\xff")
        async with AsyncGrpcGatewayClient(address) as client:
            assert (await client.detect(frame)).plan == "tiny-0-then-tiny-1"


async def test_a_message_above_the_limit_is_too_large(bench: Bench) -> None:
    """What the transport refuses reads the same to the client as what the gateway refuses."""
    async with serving(bench()) as (_, address), AsyncGrpcGatewayClient(address) as client:
        with pytest.raises(RequestRejected) as caught:
            await client.detect(b"x" * (MAX_BYTES * 3))
    assert caught.value.slug == "too-large"


async def test_the_calls_deadline_is_the_budget(bench: Bench, frame: bytes) -> None:
    """A deadline that no plan can meet is refused, or has passed before the refusal arrives."""
    gateway = bench(answer_ms=5000.0)
    async with serving(gateway) as (_, address), AsyncGrpcGatewayClient(address) as client:
        with pytest.raises(RequestRejected) as caught:
            await client.detect(frame, budget_ms=3000)
    assert caught.value.slug == "unmeetable-budget"


async def test_a_full_gateway_says_when_to_come_back(bench: Bench, frame: bytes) -> None:
    """Overload is UNAVAILABLE with a RetryInfo."""
    gateway = bench(max_queue=0, max_buffered_bytes=MAX_BYTES, max_bytes=MAX_BYTES)
    permit = gateway.service._limiter.acquire()
    async with serving(gateway) as (_, address), AsyncGrpcGatewayClient(address) as client:
        with pytest.raises(GatewayOverloaded) as caught:
            await client.detect(frame)
    assert caught.value.problem.retry_after_s
    assert permit is not None


async def test_health_follows_readiness(bench: Bench) -> None:
    """The health service says SERVING and NOT_SERVING for the server and for the service."""
    async with serving(bench()) as (server, address), grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for ready, status in ((True, "SERVING"), (False, "NOT_SERVING")):
            await server.show_ready(ready)
            for name in ("", SERVICE):
                response = await stub.Check(health_pb2.HealthCheckRequest(service=name))
                assert response.status == health_pb2.HealthCheckResponse.ServingStatus.Value(status)


async def test_reflection_lists_the_service(bench: Bench) -> None:
    """Tools can ask what is served."""
    async with serving(bench()) as (_, address), grpc.aio.insecure_channel(address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        requests = [reflection_pb2.ServerReflectionRequest(list_services="")]
        async for response in stub.ServerReflectionInfo(iter(requests)):
            names = {service.name for service in response.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names


async def test_one_connection_too_many_is_refused(bench: Bench, frame: bytes) -> None:
    """It is unavailable, and those that there are go on."""
    limits = CallLimits(MAX_BYTES, 2, 10.0)
    apart = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))

    async def code(channel: grpc.aio.Channel) -> grpc.StatusCode:
        call = wire_grpc.DetectionStub(channel).Detect(wire.DetectRequest(image=frame))
        return await call.code()

    async with serving(bench(), limits) as (_, address):
        kept = [grpc.aio.insecure_channel(address, options=apart) for _ in range(2)]
        assert [await code(channel) for channel in kept] == [grpc.StatusCode.OK] * 2
        async with grpc.aio.insecure_channel(address, options=apart) as channel:
            assert await code(channel) is grpc.StatusCode.UNAVAILABLE
        assert await code(kept[1]) is grpc.StatusCode.OK
        for channel in kept:
            await channel.close()


async def test_a_gateway_that_is_not_there_is_a_failure(unused: int) -> None:
    """Both clients tell a connection that cannot be made as GatewayFailed."""
    async with AsyncGrpcGatewayClient(f"127.0.0.1:{unused}") as over_grpc:
        with pytest.raises(GatewayFailed):
            await over_grpc.detect(b"x")
    async with AsyncGatewayClient(f"http://127.0.0.1:{unused}") as over_http:
        with pytest.raises(GatewayFailed):
            await over_http.detect(b"x")


@pytest.fixture
async def unused() -> int:
    """Return a port that nobody listens on."""
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = int(server.sockets[0].getsockname()[1])
    server.close()
    await server.wait_closed()
    return port
