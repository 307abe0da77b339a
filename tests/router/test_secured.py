"""A gateway with keys: who has none that holds reaches no engine, over whatever edge."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc.aio as triton_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tritonclient.grpc import service_pb2, service_pb2_grpc

from router.bootstrap import Gateway
from router.client import (
    AsyncGatewayClient,
    AsyncGrpcGatewayClient,
    GatewayClient,
    GatewayOverloaded,
    RequestRejected,
)
from router.keys import read, token_parts
from router.tracing import OpenTelemetry
from router.wire import paretogate_pb2 as wire
from router.wire import paretogate_pb2_grpc as wire_grpc
from tests.fakes import FakeClock, FakeEngine
from tests.router.conftest import LARGE, SURE, Bench, admin_of, http_to, sample
from tests.router.keyring import Keyring, bearer, wrong_tokens
from tests.router.test_grpc_api import serving as serving_grpc
from tests.router.test_http_server import serving as serving_http

pytestmark = pytest.mark.anyio
PNG = {"Content-Type": "image/png"}
WRONG = ("missing", "malformed", "unknown", "wrong secret", "hash for secret", "expired", "revoked")
HEAD = b"POST /v1/detect HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n%b\r\n"


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    """An empty file of keys."""
    return Keyring(tmp_path / "keys.json")


@dataclass(frozen=True, slots=True)
class Edges:
    """A gateway with a key, over real sockets."""

    gateway: Gateway
    http: httpx.AsyncClient
    channel: grpc.aio.Channel
    port: int


@asynccontextmanager
async def edges(gateway: Gateway) -> AsyncIterator[Edges]:
    """Serve a gateway over both protocols."""
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(serving_http(gateway))
        _, address = await stack.enter_async_context(serving_grpc(gateway))
        http = await stack.enter_async_context(
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60)
        )
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        yield Edges(gateway, http, channel, port)


Ask = Callable[[Edges, dict[str, str], bytes], Awaitable[int]]


def http_asking(method: str, path: str, **options: Any) -> Ask:  # Any: as httpx takes them
    """Return what sends a request and returns its status."""

    async def ask(to: Edges, headers: dict[str, str], frame: bytes) -> int:
        given = {name: value(frame) if callable(value) else value for name, value in options.items()}
        extra = given.pop("headers", {})
        return (await to.http.request(method, path, headers={**extra, **headers}, **given)).status_code

    return ask


def grpc_asking(call: Callable[[grpc.aio.Channel, bytes, Any], Awaitable[object]]) -> Ask:
    """Return what makes a call and returns 200, or what HTTP would have said."""

    async def ask(to: Edges, headers: dict[str, str], frame: bytes) -> int:
        metadata = [(name.lower(), value) for name, value in headers.items()]
        try:
            await call(to.channel, frame, metadata)
        except grpc.aio.AioRpcError as error:
            return 401 if error.code() is grpc.StatusCode.UNAUTHENTICATED else 500
        return 200

    return ask


async def _reflect(channel: grpc.aio.Channel, _: bytes, metadata: Any) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    requests = [reflection_pb2.ServerReflectionRequest(list_services="")]
    async for _ in stub.ServerReflectionInfo(iter(requests), metadata=metadata):
        pass


def _infer_request(frame: bytes) -> service_pb2.ModelInferRequest:
    tensor = triton_grpc.InferInput("image", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([frame], dtype=np.object_))
    return service_pb2.ModelInferRequest(
        model_name="paretogate", inputs=[tensor._get_tensor()], raw_input_contents=[tensor._get_content()]
    )


async def _stream(channel: grpc.aio.Channel, frame: bytes, metadata: Any) -> None:
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    async for _ in stub.ModelStreamInfer(iter([_infer_request(frame)]), metadata=metadata):
        pass


def _as_json(frame: bytes) -> dict[str, str]:
    return {"image": base64.b64encode(frame).decode()}


def _as_oip(frame: bytes) -> dict[str, object]:
    data = [_as_json(frame)["image"]]
    return {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": data}]}


EDGES: dict[str, Ask] = {
    "frame": http_asking("POST", "/v1/detect", content=lambda frame: frame, headers=PNG),
    "frame with a query": http_asking("POST", "/v1/detect?format=coco", content=lambda f: f, headers=PNG),
    "form": http_asking("POST", "/v1/detect", files=lambda frame: {"file": ("f.png", frame)}),
    "json": http_asking("POST", "/v1/detect", json=_as_json),
    "oip": http_asking("POST", "/v2/models/paretogate/infer", json=_as_oip),
    "oip metadata": http_asking("GET", "/v2"),
    "oip index": http_asking("POST", "/v2/repository/index"),
    "points": http_asking("GET", "/v1/operating-points"),
    "openapi": http_asking("GET", "/openapi.json"),
    "grpc": grpc_asking(
        lambda channel, frame, metadata: wire_grpc.DetectionStub(channel).Detect(
            wire.DetectRequest(image=frame), metadata=metadata
        )
    ),
    "grpc oip": grpc_asking(
        lambda channel, frame, metadata: service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(
            _infer_request(frame), metadata=metadata
        )
    ),
    "grpc oip stream": grpc_asking(_stream),
    "grpc oip metadata": grpc_asking(
        lambda channel, _, metadata: service_pb2_grpc.GRPCInferenceServiceStub(channel).ServerMetadata(
            service_pb2.ServerMetadataRequest(), metadata=metadata
        )
    ),
    "reflection": grpc_asking(_reflect),
}


@pytest.mark.parametrize("name", EDGES)
async def test_a_wrong_key_never_reaches_an_engine(
    bench: Bench, frame: bytes, keyring: Keyring, name: str
) -> None:
    """Missing, malformed, unknown, wrong, expired or revoked: 401 at every edge, and no inference."""
    wrong = wrong_tokens(keyring)
    assert set(wrong) == set(WRONG)
    engine = FakeEngine(rows={"tiny-0": SURE, "tiny-1": LARGE})
    async with edges(bench(engine, keys=keyring.path)) as to:
        for what, token in wrong.items():
            headers = {} if token is None else bearer(token)
            assert await EDGES[name](to, headers, frame) == 401, what
            if token is not None:
                assert await EDGES[name](to, {"X-Api-Key": token}, frame) == 401, what
        assert to.gateway.service.state().inside == 0
    assert engine.calls == []


@pytest.mark.parametrize("name", EDGES)
async def test_a_good_key_is_let_in(bench: Bench, frame: bytes, keyring: Keyring, name: str) -> None:
    """In either header, at every edge; and without keys everybody is."""
    token = keyring.add("good")
    async with edges(bench(keys=keyring.path)) as to:
        assert await EDGES[name](to, bearer(token), frame) == 200
        assert await EDGES[name](to, {"X-Api-Key": token}, frame) == 200
        assert to.gateway.access is not None
        assert to.gateway.access.account({b"x-api-key": [token.encode()]}).inside == 0
    async with edges(bench()) as to:
        assert await EDGES[name](to, {}, frame) == 200


async def test_health_is_everybodys(bench: Bench, keyring: Keyring) -> None:
    """Orchestrators have no key."""
    keyring.add("good")
    async with edges(bench(keys=keyring.path)) as to:
        for path in ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"):
            assert (await to.http.get(path)).status_code == 200
        stub = health_pb2_grpc.HealthStub(to.channel)
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status
        for path in (
            "/healthz/",
            "//healthz",
            "/HEALTHZ",
            "/nothing",
            "/assets/nothing",
            "/assets/../console/state",
        ):
            # Whole, for a path that begins with two slashes is none of its client's base.
            assert (await to.http.get(f"http://127.0.0.1:{to.port}{path}")).status_code == 401


async def test_who_is_refused_is_not_read(bench: Bench, keyring: Keyring) -> None:
    """401 comes when the head is there, before a byte of the body, which nobody then waits for."""
    keyring.add("good")
    async with edges(bench(keys=keyring.path)) as to:
        reader, writer = await asyncio.open_connection("127.0.0.1", to.port)
        writer.write(HEAD % b"")
        told = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert told.split()[1] == b"401"
        assert b"www-authenticate: bearer" in told
        writer.close()


async def test_a_refused_call_is_not_read(bench: Bench, keyring: Keyring) -> None:
    """Over gRPC the status comes before the message that a sender holds back."""
    keyring.add("good")
    async with edges(bench(keys=keyring.path)) as to:
        call = to.channel.stream_stream("/paretogate.v1.Detection/Detect")()
        assert await call.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_the_same_refusal_over_both_protocols(bench: Bench, frame: bytes, keyring: Keyring) -> None:
    """Clients get the same problem and words, and what a key forbids is 403."""
    keyring.add("good")
    fast = keyring.add("fast", operating_points=["fast"])
    gateway = bench(keys=keyring.path)
    async with serving_http(gateway) as port, serving_grpc(gateway) as (_, address):
        for api_key, point, status in ((None, None, 401), (fast, "accurate", 403)):
            told = []
            for client in (
                AsyncGatewayClient(f"http://127.0.0.1:{port}", api_key=api_key),
                AsyncGrpcGatewayClient(address, api_key=api_key),
            ):
                async with client:
                    with pytest.raises(RequestRejected) as caught:
                        await client.detect(frame, operating_point=point)
                    told.append(caught.value.problem)
            assert {problem.status for problem in told} == {status}
            assert len({(problem.type, problem.title, problem.detail) for problem in told}) == 1


@pytest.mark.parametrize(
    ("allowed", "asked", "answered"),
    [
        (["fast"], {}, "fast"),
        (["accurate"], {}, "accurate"),
        # The cascade in force costs more here than the largest model alone.
        (["fast", "accurate"], {}, "accurate"),
        (["balanced", "fast"], {}, "balanced"),
        (["fast", "accurate"], {"X-Operating-Point": "accurate"}, "accurate"),
        (["fast", "accurate"], {"X-Min-Accuracy": "0.1"}, "accurate"),
        (["fast"], {"X-Operating-Point": "balanced"}, None),
        (["nothing"], {}, None),
    ],
)
async def test_a_key_is_for_its_operating_points(
    bench: Bench,
    frame: bytes,
    keyring: Keyring,
    allowed: list[str],
    asked: dict[str, str],
    answered: str | None,
) -> None:
    """Who names none gets the one in force or the next below, else the cheapest; another is forbidden."""
    token = keyring.add("some", operating_points=allowed)
    engine = FakeEngine(rows={"tiny-0": SURE, "tiny-1": LARGE})
    async with http_to(bench(engine, keys=keyring.path)) as http:
        response = await http.post("/v1/detect", content=frame, headers=PNG | bearer(token) | asked)
        variant = await http.post("/v2/models/tiny-0/infer", json=_as_oip(frame), headers=bearer(token))
    if answered is None:
        assert response.status_code == 403
        assert engine.calls == []
    else:
        assert response.json()["operating_point"] == answered
    assert variant.status_code == 403


@pytest.mark.parametrize("name", ["frame", "form", "json", "oip", "grpc", "grpc oip"])
async def test_a_rate_holds_over_every_edge(bench: Bench, frame: bytes, keyring: Keyring, name: str) -> None:
    """A saturating sender is answered at its rate within 5 %, and the rest reaches no engine."""
    token, clock = keyring.add("some", rate_per_s=5.0), FakeClock()
    engine = FakeEngine(rows={"tiny-0": SURE, "tiny-1": LARGE})
    async with edges(bench(engine, keys=keyring.path, clock=clock)) as to:
        statuses = []
        for _ in range(160):
            statuses.append(await EDGES[name](to, bearer(token), frame))
            clock.sleep(0.08)
    answered = statuses.count(200)
    assert 0.95 <= answered / (5.0 * 160 * 0.08) <= 1.05
    assert len(engine.calls) == answered


async def test_a_limit_says_when_to_ask_again(bench: Bench, frame: bytes, keyring: Keyring) -> None:
    """429 with Retry-After, RESOURCE_EXHAUSTED with RetryInfo; clients take both for overload."""
    token, clock = keyring.add("some", rate_per_s=0.5, burst=1), FakeClock()
    gateway = bench(keys=keyring.path, clock=clock)
    async with serving_http(gateway) as port, serving_grpc(gateway) as (_, address):
        over_http = AsyncGatewayClient(f"http://127.0.0.1:{port}", api_key=token)
        over_grpc = AsyncGrpcGatewayClient(address, api_key=token)
        async with over_http, over_grpc:
            await over_http.detect(frame)
            for client in (over_http, over_grpc):
                with pytest.raises(GatewayOverloaded) as caught:
                    await client.detect(frame)
                assert caught.value.problem.status == 429
                assert caught.value.problem.retry_after_s == pytest.approx(2.0)
        async with http_to(gateway) as http:
            response = await http.post("/v1/detect", content=frame, headers=PNG | bearer(token))
    assert response.headers["retry-after"] == "2"
    assert sample(gateway, "paretogate_access_refused_total", reason="rate") == 3
    assert sample(gateway, "paretogate_key_frames_total", key="some") == 1


async def test_every_frame_of_a_request_counts(bench: Bench, frame: bytes, keyring: Keyring) -> None:
    """Four frames at once take four; more than the key ever allows are forbidden."""
    token, clock = keyring.add("some", rate_per_s=1.0, burst=5), FakeClock()
    gateway = bench(keys=keyring.path, clock=clock)
    image = _as_json(frame)["image"]
    async with http_to(gateway) as http:
        statuses = [
            (
                await http.post("/v1/detect", json={"images": [image] * count}, headers=bearer(token))
            ).status_code
            for count in (4, 4, 6)
        ]
    assert statuses == [200, 429, 429]
    assert sample(gateway, "paretogate_key_frames_total", key="some") == 5
    clock.sleep(60.0)
    async with http_to(gateway) as http:
        response = await http.post("/v1/detect", json={"images": [image] * 6}, headers=bearer(token))
    assert response.status_code == 403
    assert "6 frames at once" in response.json()["detail"]


async def test_only_an_administrators_key_changes_the_gateway_from_elsewhere(
    bench: Bench, keyring: Keyring
) -> None:
    """From this machine nothing is needed, but the request must be addressed to it; reading is anybody's."""
    admin, user = keyring.add("admin", admin=True), keyring.add("user")
    gateway = bench(keys=keyring.path)
    hold = {"operating_point": "fast"}
    async with admin_of(gateway, host="10.0.0.7") as elsewhere:
        assert (await elsewhere.get("/metrics")).status_code == 200
        for headers, status in (({}, 401), (bearer(user), 403), (bearer(admin), 200)):
            assert (await elsewhere.put("/operating-point", json=hold, headers=headers)).status_code == status
    async with admin_of(gateway) as here:
        assert (await here.put("/operating-point", json=hold)).status_code == 200
        rebound = await here.put("/operating-point", json=hold, headers={"Host": "evil.example:8082"})
        assert rebound.status_code == 401
    async with admin_of(bench(), host="10.0.0.7") as elsewhere:
        assert (await elsewhere.put("/operating-point", json=hold)).status_code == 403


async def test_no_secret_is_written_anywhere(
    bench: Bench, frame: bytes, keyring: Keyring, caplog: pytest.LogCaptureFixture
) -> None:
    """Not in a log line at any level, a trace, a metric, or a reply: neither of good tokens nor of wrong."""
    caplog.set_level(logging.DEBUG)
    good, spent = keyring.add("mine"), keyring.add("spent", rate_per_s=0.001, burst=1)
    tokens = [good, spent, *(token for token in wrong_tokens(keyring).values() if token is not None)]
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    gateway = bench(keys=keyring.path)
    gateway.metrics._tracing = OpenTelemetry(provider)
    replies = []
    async with edges(gateway) as to:
        for token in tokens:
            for header in (bearer(token), {"X-Api-Key": token}):
                for name in EDGES:
                    await EDGES[name](to, header, frame)
                reply = await to.http.post("/v1/detect", content=frame, headers=PNG | header)
                replies.append(f"{reply.headers} {reply.text}")
    provider.shutdown()
    written = [
        *replies,
        gateway.metrics.render().decode(),
        *(span.to_json() for span in exporter.get_finished_spans()),
        *(f"{record.getMessage()} {vars(record)}" for record in caplog.records),
    ]
    assert exporter.get_finished_spans()
    secrets = [parts[1] for token in tokens if (parts := token_parts(token)) is not None]
    secrets += [key.sha256 for key in read(keyring.path)] + ["let-me-in"]
    for secret in secrets:
        assert not any(secret in text for text in written), secret


async def test_a_blocking_client_shows_its_key(bench: Bench, frame: bytes, keyring: Keyring) -> None:
    """`api_key` is all that a client needs to be told."""
    token = keyring.add("good")
    async with serving_http(bench(keys=keyring.path)) as port:
        with GatewayClient(f"http://127.0.0.1:{port}", api_key=token) as client:
            answer = await asyncio.to_thread(client.detect, frame)
    assert answer.detections
