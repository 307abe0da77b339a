"""The gateway's client: one frame in, an `AnswerDocument` out, over HTTP (sync, async) or gRPC (async).

Errors: GatewayError
  RequestRejected   the request is at fault (malformed, unknown point, a budget that nothing can meet)
  GatewayOverloaded the gateway sheds load; `problem.retry_after_s` says when to ask again
  GatewayFailed     the gateway or the connection to it failed
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import NoReturn, Self

import grpc
import httpx
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo  # type: ignore[import-untyped]  # ships no types
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]  # ships no types
from pydantic import ValidationError

from router.budget import BUDGET_HEADER
from router.documents import (
    AnswerDocument,
    Box,
    CertificateDocument,
    CutDocument,
    DetectedObject,
    ImageDocument,
    PointsDocument,
    ProblemDocument,
    StageDocument,
    TimingDocument,
)
from router.wire import paretogate_pb2 as wire
from router.wire import paretogate_pb2_grpc as wire_grpc
from router.wishes import ACCURACY_HEADER, POINT_HEADER, PRIORITY_HEADER, SCORE_HEADER, Priority

_URN = "urn:paretogate:problem:"
_OVERLOADED = "overloaded"
_MAX_MESSAGE = 64 * 1024 * 1024


class GatewayError(Exception):
    """The gateway gave no answer; `problem` is what it said, or what the connection said in its place."""

    def __init__(self, problem: ProblemDocument) -> None:
        super().__init__(f"{problem.title}: {problem.detail}")
        self.problem = problem

    @property
    def slug(self) -> str:
        """Return the last part of the problem's type, such as `unmeetable-budget`."""
        return self.problem.type.removeprefix(_URN)


class RequestRejected(GatewayError):
    """The request itself is at fault."""


class GatewayOverloaded(GatewayError):
    """The gateway sheds load."""


class GatewayFailed(GatewayError):
    """The gateway or the connection to it failed."""


class GatewayClient:
    """Ask a gateway over HTTP and wait; close it, or use it as a context manager."""

    def __init__(
        self, url: str, *, timeout_s: float = 30.0, transport: httpx.BaseTransport | None = None
    ) -> None:
        self._http = httpx.Client(base_url=url, timeout=timeout_s, transport=transport)

    def detect(
        self,
        frame: bytes,
        *,
        budget_ms: float | None = None,
        operating_point: str | None = None,
        min_accuracy: float | None = None,
        priority: Priority | None = None,
        min_score: float | None = None,
        request_id: str | None = None,
    ) -> AnswerDocument:
        """Send an encoded JPEG or PNG; raises GatewayError."""
        headers = _headers(budget_ms, operating_point, request_id, _wishes(min_accuracy, priority, min_score))
        try:
            return _answer(self._http.post("/v1/detect", content=frame, headers=headers))
        except httpx.HTTPError as error:
            _fail(error)

    def operating_points(self) -> PointsDocument:
        """Return what the gateway serves; raises GatewayError."""
        try:
            return _points(self._http.get("/v1/operating-points"))
        except httpx.HTTPError as error:
            _fail(error)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncGatewayClient:
    """Ask a gateway over HTTP, many requests at once; close it, or use it as a context manager.

    connections: how many are open at most; more requests wait for one, None for no limit.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 30.0,
        connections: int | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        self._http = httpx.AsyncClient(base_url=url, timeout=timeout_s, limits=limits, transport=transport)

    async def detect(
        self,
        frame: bytes,
        *,
        budget_ms: float | None = None,
        operating_point: str | None = None,
        min_accuracy: float | None = None,
        priority: Priority | None = None,
        min_score: float | None = None,
        request_id: str | None = None,
    ) -> AnswerDocument:
        """Send an encoded JPEG or PNG; raises GatewayError."""
        headers = _headers(budget_ms, operating_point, request_id, _wishes(min_accuracy, priority, min_score))
        try:
            return _answer(await self._http.post("/v1/detect", content=frame, headers=headers))
        except httpx.HTTPError as error:
            _fail(error)

    async def operating_points(self) -> PointsDocument:
        """Return what the gateway serves; raises GatewayError."""
        try:
            return _points(await self._http.get("/v1/operating-points"))
        except httpx.HTTPError as error:
            _fail(error)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class GrpcGatewayClient:
    """Ask a gateway over gRPC; the budget becomes the call's deadline.

    Make it on the event loop that uses it. A deadline that passes before any answer is a GatewayFailed.
    """

    def __init__(self, address: str) -> None:
        options = (
            ("grpc.max_send_message_length", _MAX_MESSAGE),
            ("grpc.max_receive_message_length", _MAX_MESSAGE),
        )
        self._channel = grpc.aio.insecure_channel(address, options=options)
        self._stub = wire_grpc.DetectionStub(self._channel)

    async def detect(
        self,
        frame: bytes,
        *,
        budget_ms: float | None = None,
        operating_point: str | None = None,
        min_accuracy: float | None = None,
        priority: Priority | None = None,
        min_score: float | None = None,
        request_id: str | None = None,
    ) -> AnswerDocument:
        """Send an encoded JPEG or PNG; raises GatewayError."""
        request = wire.DetectRequest(
            image=frame, operating_point=operating_point or "", request_id=request_id or ""
        )
        timeout_s = None if budget_ms is None else budget_ms / 1e3
        metadata = [
            (name.lower(), value) for name, value in _wishes(min_accuracy, priority, min_score).items()
        ]
        try:
            response = await self._stub.Detect(request, timeout=timeout_s, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise _grpc_error(error) from error
        return _document(response)

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _headers(
    budget_ms: float | None,
    operating_point: str | None,
    request_id: str | None,
    wishes: Mapping[str, str],
) -> Mapping[str, str]:
    headers = {"Content-Type": "application/octet-stream", **wishes}
    if budget_ms is not None:
        headers[BUDGET_HEADER] = f"{budget_ms:.3f}"
    if operating_point is not None:
        headers[POINT_HEADER] = operating_point
    if request_id is not None:
        headers["X-Request-Id"] = request_id
    return headers


def _wishes(
    min_accuracy: float | None, priority: Priority | None, min_score: float | None
) -> Mapping[str, str]:
    said = {
        ACCURACY_HEADER: None if min_accuracy is None else f"{min_accuracy:.6f}",
        PRIORITY_HEADER: priority,
        SCORE_HEADER: None if min_score is None else f"{min_score:.6f}",
    }
    return {name: value for name, value in said.items() if value is not None}


def _answer(response: httpx.Response) -> AnswerDocument:
    if response.status_code != 200:
        _refuse(response)
    try:
        return AnswerDocument.model_validate_json(response.content)
    except ValidationError as error:
        _fail(error)


def _points(response: httpx.Response) -> PointsDocument:
    if response.status_code != 200:
        _refuse(response)
    try:
        return PointsDocument.model_validate_json(response.content)
    except ValidationError as error:
        _fail(error)


def _refuse(response: httpx.Response) -> NoReturn:
    try:
        problem = ProblemDocument.model_validate_json(response.content)
    except ValidationError:
        # Something between the client and the gateway answered.
        problem = ProblemDocument(
            type=f"{_URN}http-{response.status_code}",
            title=response.reason_phrase,
            status=response.status_code,
            detail=response.text[:200],
        )
    raise _error_for(problem)


def _fail(error: Exception) -> NoReturn:
    raise GatewayFailed(
        ProblemDocument(
            type=f"{_URN}connection",
            title="The gateway cannot be reached",
            status=0,
            detail=str(error) or type(error).__name__,
        )
    ) from error


def _error_for(problem: ProblemDocument) -> GatewayError:
    if problem.type == _URN + _OVERLOADED or problem.status == 429:
        return GatewayOverloaded(problem)
    if 400 <= problem.status < 500:
        return RequestRejected(problem)
    return GatewayFailed(problem)


# What HTTP would have said, so that a problem reads the same over both.
_STATUS_OF_REASON: Mapping[str, int] = {
    "malformed-request": 400,
    "malformed-budget": 400,
    "unknown-operating-point": 400,
    "too-large": 413,
    "unsupported-type": 415,
    "broken-image": 422,
    "unmeetable-budget": 422,
    "overloaded": 503,
    "not-ready": 503,
    "engine-failed": 503,
}


def _grpc_error(error: grpc.aio.AioRpcError) -> GatewayError:
    detail = error.details() or error.code().name
    metadata: Iterable[tuple[str, str | bytes]] = error.trailing_metadata() or ()
    for key, value in metadata:
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            return _error_for(_problem_of_status(Status.FromString(value), detail))
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        # The transport refused the message before the gateway saw it.
        return RequestRejected(
            ProblemDocument(
                type=f"{_URN}too-large", title="The image is too large", status=413, detail=detail
            )
        )
    return GatewayFailed(
        ProblemDocument(
            type=f"{_URN}grpc-{error.code().name.lower().replace('_', '-')}",
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
        type=_URN + slug,
        title=info.metadata.get("title", "The call failed"),
        status=_STATUS_OF_REASON.get(slug, 500),
        detail=detail,
        request_id=info.metadata.get("request_id", ""),
        retry_after_s=retry_after_s,
        operating_points=known.split(",") if known else None,
    )


def _document(response: wire.DetectResponse) -> AnswerDocument:
    cut, certificate = response.cut, response.certificate
    return AnswerDocument(
        request_id=response.request_id,
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
