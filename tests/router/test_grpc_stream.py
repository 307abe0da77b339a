"""`DetectStream` over a real channel."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterable, Iterator

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo  # type: ignore[import-untyped]  # ships no types
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]  # ships no types

from router.client import AsyncGrpcGatewayClient, GrpcGatewayClient, RequestRejected
from router.client.rpc import STATUS_OF_REASON
from router.documents import ReusedDocument, StreamedDocument
from router.errors import RouterError
from router.grpc_reply import DETAILS_KEY, code_of
from router.problems import problem_of
from router.wire import paretogate_pb2 as wire
from router.wire import paretogate_pb2_grpc as wire_grpc
from tests.fakes import FakeEngine
from tests.router.conftest import SURE, Bench, sample
from tests.router.test_grpc_api import serving
from tests.router.test_service import Held, until

pytestmark = pytest.mark.anyio
FAST = (("x-operating-point", "fast"),)


def reason_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """Return the reason in a call's details."""
    value = dict(metadata or ())[DETAILS_KEY]
    assert isinstance(value, bytes)
    info = ErrorInfo()
    Status.FromString(value).details[0].Unpack(info)
    return str(info.reason)


async def test_frames_are_answered_and_the_end_tells_what_was_dropped(bench: Bench, frame: bytes) -> None:
    """A whole frame gets an answer, a broken one a problem; trailing metadata count frames."""
    gateway = bench(FakeEngine(rows={"tiny-0": SURE}))
    async with serving(gateway) as (_, address), grpc.aio.insecure_channel(address) as channel:
        call = wire_grpc.DetectionStub(channel).DetectStream(
            metadata=(*FAST, ("x-request-id", "door")), timeout=20.0
        )
        await call.write(wire.StreamFrame(image=frame, name="a"))
        first = await call.read()
        await call.write(wire.StreamFrame(image=frame[:60], name="b"))
        second = await call.read()
        await call.write(wire.StreamFrame(image=frame, budget_ms=0.001))
        third = await call.read()
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK
        trailing = dict(await call.trailing_metadata())
    assert (first.number, first.name, first.answer.request_id) == (0, "a", "door.0")
    assert [found.label for found in first.answer.detections] == ["red"]
    assert first.age_ms >= first.answer.timing.total_ms > 0
    assert not first.HasField("reused")
    assert (second.number, second.name, second.problem.slug, second.problem.status) == (
        1, "b", "broken-image", 422,
    )  # fmt: skip
    assert third.problem.slug == "unmeetable-budget"
    assert (trailing["paretogate-frames"], trailing["paretogate-dropped"]) == ("3", "0")
    # The stream's own deadline ends the call; it is no frame's budget.
    assert first.answer.operating_point == "fast"


async def test_what_a_stream_cannot_ask_for_is_a_status(bench: Bench) -> None:
    """With the details that every other call has."""
    gateway = bench()
    async with serving(gateway) as (_, address), grpc.aio.insecure_channel(address) as channel:
        call = wire_grpc.DetectionStub(channel).DetectStream(metadata=(("x-reuse-within", "a bit"),))
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "X-Reuse-Within" in await call.details()
        assert reason_of(await call.trailing_metadata()) == "MALFORMED_REQUEST"


async def test_a_caller_who_cancels_takes_his_frames_along(bench: Bench, frame: bytes) -> None:
    """What is queued never reaches the engine, and the stream is gone."""
    held = Held()
    engine = FakeEngine(rows={"tiny-0": held})
    gateway = bench(engine)
    async with serving(gateway) as (_, address), grpc.aio.insecure_channel(address) as channel:
        stub = wire_grpc.DetectionStub(channel)
        running = asyncio.ensure_future(stub.Detect(wire.DetectRequest(image=frame), metadata=FAST))
        await held.wait_until_busy()
        call = stub.DetectStream(metadata=FAST)
        await call.write(wire.StreamFrame(image=frame))
        await until(lambda: gateway.service.state().waiting == 1)
        call.cancel()
        await until(lambda: sample(gateway, "paretogate_streams", protocol="grpc-stream") == 0)
        assert gateway.service.state().waiting == 0
        held.open()
        await running
    assert engine.calls == ["tiny-0"]
    cancelled = sample(gateway, "paretogate_requests_total", protocol="grpc-stream", outcome="cancelled")
    assert cancelled == 1


async def test_a_gateway_that_drains_ends_its_streams(bench: Bench, frame: bytes) -> None:
    """What it has taken is answered; then the status says why, and that asking elsewhere makes sense."""
    held = Held()
    gateway = bench(FakeEngine(rows={"tiny-0": held}))
    async with serving(gateway) as (_, address), grpc.aio.insecure_channel(address) as channel:
        call = wire_grpc.DetectionStub(channel).DetectStream(metadata=FAST)
        await call.write(wire.StreamFrame(image=frame))
        await held.wait_until_busy()
        gateway.streams.drain()
        held.open()
        assert (await call.read()).answer.plan != ""
        with pytest.raises(grpc.aio.AioRpcError):
            await call.read()
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        trailing = await call.trailing_metadata()
    assert reason_of(trailing) == "NOT_READY"
    assert dict(trailing)["paretogate-frames"] == "1"


async def test_both_clients_speak_of_frames_as_documents(bench: Bench, frame: bytes) -> None:
    """The same stream, waiting and not: answers, a problem, and what was reused."""
    gateway = bench(FakeEngine(rows={"tiny-0": SURE}))
    contents = [frame, frame, b"no image"]
    async with serving(gateway) as (_, address):
        streamed: list[StreamedDocument] = []
        turn = asyncio.Event()

        async def one_by_one() -> AsyncIterator[bytes]:
            for content in contents:
                turn.clear()
                yield content
                await turn.wait()

        async with AsyncGrpcGatewayClient(address) as client:
            async for result in client.stream(one_by_one(), reuse_within=3, operating_point="fast"):
                streamed.append(result)
                turn.set()
        waited = await asyncio.to_thread(_waited, address, contents)
    for results in (streamed, waited):
        answers = [result.answer for result in results]
        assert answers[0] is not None
        assert answers[1] is not None
        assert answers[0].detections == answers[1].detections
        assert [result.number for result in results] == [0, 1, 2]
        assert [result.reused for result in results[:2]] == [None, ReusedDocument(number=0, difference=0.0)]
        assert results[2].problem is not None
        assert results[2].problem.type == "urn:paretogate:problem:unsupported-type"


def _waited(address: str, contents: list[bytes]) -> list[StreamedDocument]:
    turn = threading.Semaphore(1)

    def one_by_one() -> Iterator[bytes]:
        for content in contents:
            turn.acquire()
            yield content

    results = []
    with GrpcGatewayClient(address) as client:
        for result in client.stream(one_by_one(), reuse_within=3, operating_point="fast"):
            results.append(result)
            turn.release()
    return results


async def test_a_stream_that_cannot_begin_is_an_error_of_the_client(bench: Bench, frame: bytes) -> None:
    """As for a single frame."""

    async def frames() -> AsyncIterator[bytes]:
        yield frame

    async with serving(bench()) as (_, address), AsyncGrpcGatewayClient(address) as client:
        with pytest.raises(RequestRejected) as refused:
            async for _ in client.stream(frames(), operating_point="nope"):
                pass
    assert refused.value.problem.operating_points == ["fast", "balanced", "accurate"]


@pytest.mark.parametrize(
    "path",
    [
        "/paretogate.v1.Detection/Detect",
        "/paretogate.v1.Detection/DetectStream",
        "/inference.GRPCInferenceService/ModelInfer",
        "/inference.GRPCInferenceService/ModelStreamInfer",
    ],
)
async def test_bytes_that_are_no_message_are_the_senders_fault(bench: Bench, path: str) -> None:
    """Over every kind of call: INVALID_ARGUMENT, with the details of every other problem."""
    async with serving(bench()) as (_, address), grpc.aio.insecure_channel(address) as channel:
        call = channel.stream_stream(path)()
        await call.write(b"\xff\xff\xff")
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert reason_of(await call.trailing_metadata()) == "MALFORMED_REQUEST"


def test_every_error_is_told_alike_over_both_protocols() -> None:
    """What can end a call or a frame has a gRPC status, and in the client the status that HTTP says."""

    def kinds(kind: type[RouterError]) -> Iterator[type[RouterError]]:
        for below in kind.__subclasses__():
            yield below
            yield from kinds(below)

    # Those that only their subclasses are raised as, and those that HTTP alone has.
    others = {"rejected", "unavailable", "internal", "body-timeout", "promotion-failed"}
    slugs = {kind.slug: kind for kind in kinds(RouterError) if kind.slug not in others}
    assert len(slugs) >= 15
    for slug, kind in slugs.items():
        error = kind.__new__(kind)
        for name, value in (("retry_after_s", 1.0), ("known", ())):
            setattr(error, name, value)
        problem = problem_of(error)
        assert code_of(problem) is not grpc.StatusCode.INTERNAL, slug
        assert STATUS_OF_REASON[slug] == problem.status, slug
