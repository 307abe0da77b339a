"""Both clients over gRPC; the budget becomes the call's deadline."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, Unpack

import grpc
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo  # type: ignore[import-untyped]  # ships no types
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]  # ships no types

from router.arms import ARMS, ArmName
from router.budget import BUDGET_HEADER
from router.client.asking import Asked, Patience, waiting, waiting_async, wishes_of
from router.client.errors import URN, GatewayError, GatewayFailed, RequestRejected, error_for
from router.client.tls import ClientTls, bearer
from router.documents import (
    AnswerDocument,
    Box,
    CertificateDocument,
    CutDocument,
    DetectedObject,
    ImageDocument,
    ProblemDocument,
    ReusedDocument,
    StageDocument,
    StreamedDocument,
    TimingDocument,
)
from router.wire import paretogate_pb2 as wire
from router.wire import paretogate_pb2_grpc as wire_grpc
from router.wishes import IN_FLIGHT_HEADER, POINT_HEADER, REUSE_HEADER

_MAX_MESSAGE = 64 * 1024 * 1024
_OPTIONS = (
    ("grpc.max_send_message_length", _MAX_MESSAGE),
    ("grpc.max_receive_message_length", _MAX_MESSAGE),
)


class GrpcGatewayClient:
    """Ask a gateway over gRPC and wait; close it, or use it as a context manager.

    A deadline that passes before any answer is a GatewayFailed. api_key: a token of `python -m router.keys
    add`. tls: None for none. retries: how often a frame is asked for again, see `Patience`.
    """

    def __init__(
        self,
        address: str,
        *,
        api_key: str | None = None,
        tls: ClientTls | None = None,
        retries: int = 0,
    ) -> None:
        self._channel = _channel(grpc, address, tls)
        self._shown = bearer(api_key)
        self._stub = wire_grpc.DetectionStub(self._channel)
        self._retries = retries

    def detect(self, frame: bytes, **asked: Unpack[Asked]) -> AnswerDocument:
        """Send an encoded JPEG or PNG; raises GatewayError."""
        request, metadata = _request(frame, asked), _metadata(asked, self._shown)

        def ask(left_ms: float | None) -> AnswerDocument:
            timeout_s = None if left_ms is None else left_ms / 1e3
            try:
                return _document(self._stub.Detect(request, timeout=timeout_s, metadata=metadata))
            except grpc.RpcError as error:
                raise _grpc_error(error) from error

        return waiting(ask, Patience(self._retries, asked.get("budget_ms")))

    def stream(
        self,
        frames: Iterable[bytes],
        *,
        in_flight: int = 1,
        reuse_within: float | None = None,
        **asked: Unpack[Asked],
    ) -> Iterator[StreamedDocument]:
        """Send the frames of a camera as they come; yield the result of each that no newer one replaced.

        budget_ms is each frame's. frames: asked for the next one in a thread of gRPC's own, so that waiting
        for a camera holds up nothing. in_flight: how many the gateway may be at work on. reuse_within: see
        `X-Reuse-Within`. Raises GatewayError when the stream cannot begin or breaks off; a frame without an
        answer has a problem as its result.
        """
        messages = (wire.StreamFrame(image=frame) for frame in frames)
        call = self._stub.DetectStream(
            messages, metadata=_stream_metadata(asked, in_flight, reuse_within, self._shown)
        )
        try:
            for result in call:
                yield _streamed(result)
        except grpc.RpcError as error:
            raise _grpc_error(error) from error
        finally:
            call.cancel()

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncGrpcGatewayClient:
    """Ask a gateway over gRPC, many calls at once; make it on the event loop that uses it.

    A deadline that passes before any answer is a GatewayFailed. api_key: a token of `python -m router.keys
    add`. tls: None for none. retries: how often a frame is asked for again, see `Patience`.
    """

    def __init__(
        self,
        address: str,
        *,
        api_key: str | None = None,
        tls: ClientTls | None = None,
        retries: int = 0,
    ) -> None:
        self._channel = _channel(grpc.aio, address, tls)
        self._shown = bearer(api_key)
        self._stub = wire_grpc.DetectionStub(self._channel)
        self._retries = retries

    async def detect(self, frame: bytes, **asked: Unpack[Asked]) -> AnswerDocument:
        """Send an encoded JPEG or PNG; raises GatewayError."""
        request, metadata = _request(frame, asked), _metadata(asked, self._shown)

        async def ask(left_ms: float | None) -> AnswerDocument:
            timeout_s = None if left_ms is None else left_ms / 1e3
            try:
                return _document(await self._stub.Detect(request, timeout=timeout_s, metadata=metadata))
            except grpc.aio.AioRpcError as error:
                raise _grpc_error(error) from error

        return await waiting_async(ask, Patience(self._retries, asked.get("budget_ms")))

    async def stream(
        self,
        frames: AsyncIterable[bytes],
        *,
        in_flight: int = 1,
        reuse_within: float | None = None,
        **asked: Unpack[Asked],
    ) -> AsyncIterator[StreamedDocument]:
        """Do what `GrpcGatewayClient.stream` does on an event loop."""

        async def messages() -> AsyncIterator[wire.StreamFrame]:
            async for frame in frames:
                yield wire.StreamFrame(image=frame)

        call = self._stub.DetectStream(
            messages(), metadata=_stream_metadata(asked, in_flight, reuse_within, self._shown)
        )
        try:
            async for result in call:
                yield _streamed(result)
        except grpc.aio.AioRpcError as error:
            raise _grpc_error(error) from error
        finally:
            call.cancel()

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _channel(kind: Any, address: str, tls: ClientTls | None) -> Any:  # Any: grpc or grpc.aio, and its channel
    if tls is None:
        return kind.insecure_channel(address, options=_OPTIONS)
    return kind.secure_channel(address, tls.credentials(), options=_OPTIONS)


def _request(frame: bytes, asked: Asked) -> wire.DetectRequest:
    return wire.DetectRequest(
        image=frame,
        operating_point=asked.get("operating_point") or "",
        request_id=asked.get("request_id") or "",
    )


def _metadata(asked: Asked, shown: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((name.lower(), value) for name, value in (*wishes_of(asked).items(), *shown.items()))


def _stream_metadata(
    asked: Asked, in_flight: int, reuse_within: float | None, shown: Mapping[str, str]
) -> tuple[tuple[str, str], ...]:
    """Return what holds for every frame of a stream: a deadline would be that of the whole call."""
    said = {
        IN_FLIGHT_HEADER: str(in_flight),
        REUSE_HEADER: None if reuse_within is None else f"{reuse_within:.3f}",
        BUDGET_HEADER: None if (budget_ms := asked.get("budget_ms")) is None else f"{budget_ms:.3f}",
        POINT_HEADER: asked.get("operating_point"),
        "X-Request-Id": asked.get("request_id"),
    }
    return (
        *_metadata(asked, shown),
        *((name.lower(), value) for name, value in said.items() if value is not None),
    )


def _streamed(result: wire.StreamResult) -> StreamedDocument:
    problem, reused = result.problem, result.reused
    return StreamedDocument(
        number=result.number,
        name=result.name,
        dropped=result.dropped,
        age_ms=result.age_ms,
        reused=ReusedDocument(number=reused.number, difference=reused.difference)
        if result.HasField("reused")
        else None,
        answer=_document(result.answer) if result.HasField("answer") else None,
        problem=ProblemDocument(
            type=URN + problem.slug,
            title=problem.title,
            status=problem.status,
            detail=problem.detail,
            retry_after_s=problem.retry_after_s if problem.HasField("retry_after_s") else None,
        )
        if result.HasField("problem")
        else None,
    )


# What HTTP would have said, so that a problem reads the same over both.
STATUS_OF_REASON: Mapping[str, int] = {
    "malformed-request": 400,
    "malformed-budget": 400,
    "unknown-operating-point": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "unknown-model": 404,
    "stream-idle": 408,
    "rate-limited": 429,
    "too-large": 413,
    "unsupported-type": 415,
    "broken-image": 422,
    "unmeetable-accuracy": 422,
    "unmeetable-budget": 422,
    "overloaded": 503,
    "not-ready": 503,
    "engine-failed": 503,
}


def _grpc_error(error: grpc.Call) -> GatewayError:
    detail = error.details() or error.code().name
    metadata: Iterable[tuple[str, str | bytes]] = error.trailing_metadata() or ()
    for key, value in metadata:
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            return error_for(_problem_of_status(Status.FromString(value), detail))
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        # The transport refused the message before the gateway saw it.
        return RequestRejected(
            ProblemDocument(type=f"{URN}too-large", title="The image is too large", status=413, detail=detail)
        )
    return GatewayFailed(
        ProblemDocument(
            type=f"{URN}grpc-{error.code().name.lower().replace('_', '-')}",
            title="The call failed",
            status=0,
            detail=detail,
        )
    )


def _problem_of_status(status: Status, detail: str) -> ProblemDocument:
    info, retry = ErrorInfo(), RetryInfo()
    retry_after_s = None
    for packed in status.details:
        if packed.Is(RetryInfo.DESCRIPTOR):
            packed.Unpack(retry)
            retry_after_s = retry.retry_delay.ToMilliseconds() / 1e3
        elif packed.Is(ErrorInfo.DESCRIPTOR):
            packed.Unpack(info)
    slug = info.reason.lower().replace("_", "-")
    known = info.metadata.get("operating_points", "")
    return ProblemDocument(
        type=URN + slug,
        title=info.metadata.get("title", "The call failed"),
        status=STATUS_OF_REASON.get(slug, 500),
        detail=detail,
        request_id=info.metadata.get("request_id", ""),
        retry_after_s=retry_after_s,
        operating_points=known.split(",") if known else None,
    )


def _document(response: wire.DetectResponse) -> AnswerDocument:
    cut, certificate = response.cut, response.certificate
    known: Mapping[str, ArmName] = {name: name for name in ARMS}
    return AnswerDocument(
        request_id=response.request_id,
        arm=known.get(response.arm),
        operating_point=response.operating_point,
        plan=response.plan,
        stages=[StageDocument(variant=s.variant, latency_ms=s.latency_ms) for s in response.stages],
        cut=CutDocument.model_validate(
            {
                "stage": cut.stage,
                "plan": cut.plan,
                "reason": cut.reason,
                "needed_ms": cut.needed_ms,
                "left_ms": cut.left_ms if cut.HasField("left_ms") else None,
            }
        )
        if response.HasField("cut")
        else None,
        certificate=CertificateDocument(
            loss=certificate.loss,
            images=certificate.images,
            epsilon=certificate.epsilon,
            delta=certificate.delta,
            bound=certificate.bound,
            empirical=certificate.empirical,
        )
        if response.HasField("certificate")
        else None,
        image=ImageDocument(width=response.image_width, height=response.image_height),
        timing=TimingDocument(
            queue_ms=response.timing.queue_ms,
            decode_ms=response.timing.decode_ms,
            total_ms=response.timing.total_ms,
        ),
        detections=[
            DetectedObject(
                box=Box(x1=d.x1, y1=d.y1, x2=d.x2, y2=d.y2),
                label=d.label,
                class_id=d.class_id,
                score=d.score,
            )
            for d in response.detections
        ],
    )
