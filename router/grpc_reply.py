"""What gRPC's edges share: statuses with their details, how a call ended, and the messages of answers.

Statuses carry a `google.rpc.Status` with an ErrorInfo (reason: the problem's slug in capitals) and, where
asking again makes sense, a RetryInfo, under the key that gRPC tools read, `grpc-status-details-bin`.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Coroutine, Mapping, Sequence
from typing import NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo  # type: ignore[import-untyped]  # ships no types
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]  # ships no types

from router.admission import Shed
from router.errors import RouterError
from router.execution import Answer
from router.headers import Headers
from router.metrics import Arrival
from router.problems import Problem, internal_problem, problem_of
from router.wire import paretogate_pb2 as wire

_LOG = logging.getLogger(__name__)
DOMAIN = "paretogate"
DETAILS_KEY = "grpc-status-details-bin"
_CODES: Mapping[str, grpc.StatusCode] = {
    "malformed-request": grpc.StatusCode.INVALID_ARGUMENT,
    "malformed-budget": grpc.StatusCode.INVALID_ARGUMENT,
    "unknown-operating-point": grpc.StatusCode.INVALID_ARGUMENT,
    "unknown-model": grpc.StatusCode.NOT_FOUND,
    "unsupported-type": grpc.StatusCode.INVALID_ARGUMENT,
    "broken-image": grpc.StatusCode.INVALID_ARGUMENT,
    # The status that the transport itself gives a message above its limit.
    "too-large": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "unauthorized": grpc.StatusCode.UNAUTHENTICATED,
    "forbidden": grpc.StatusCode.PERMISSION_DENIED,
    "rate-limited": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "stream-idle": grpc.StatusCode.DEADLINE_EXCEEDED,
    "unmeetable-accuracy": grpc.StatusCode.FAILED_PRECONDITION,
    "unmeetable-budget": grpc.StatusCode.DEADLINE_EXCEEDED,
    "overloaded": grpc.StatusCode.UNAVAILABLE,
    "not-ready": grpc.StatusCode.UNAVAILABLE,
    "engine-failed": grpc.StatusCode.UNAVAILABLE,
}


async def outcome_of(
    work: Coroutine[None, None, Answer | Shed], arrival: Arrival, request_id: str
) -> Answer | Problem:
    """Await a call's work; count and log how it ended."""
    try:
        answer = await work
    except asyncio.CancelledError:
        arrival.end("cancelled")
        raise
    except RouterError as error:
        problem = problem_of(error)
    except Exception:  # noqa: BLE001
        # The edge of a call: whatever nobody expected is logged and told as such.
        _LOG.exception("call %s failed", request_id, extra={"request_id": request_id})
        problem = internal_problem()
    else:
        if not isinstance(answer, Shed):
            arrival.end("answered", answer=answer)
            return answer
        problem = problem_of(answer)
    arrival.end(problem.outcome, problem.slug)
    level = logging.WARNING if problem.outcome == "failed" else logging.INFO
    _LOG.log(
        level, "call %s: %s: %s", request_id, problem.slug, problem.detail,
        extra={"request_id": request_id, "problem": problem.slug},
    )  # fmt: skip
    return problem


def grouped(metadata: Sequence[tuple[str, str | bytes]] | None) -> Headers:
    """Return a call's metadata as HTTP's headers are given: lower-case names, all values."""
    headers: dict[bytes, list[bytes]] = {}
    for name, value in metadata or ():
        headers.setdefault(name.encode(), []).append(value if isinstance(value, bytes) else value.encode())
    return headers


def code_of(problem: Problem) -> grpc.StatusCode:
    """Return the gRPC status of a problem."""
    return _CODES.get(problem.slug, grpc.StatusCode.INTERNAL)


def status_details(problem: Problem, request_id: str) -> Status:
    """Return the structured detail of a problem."""
    info = ErrorInfo(
        reason=problem.slug.upper().replace("-", "_"),
        domain=DOMAIN,
        metadata={"request_id": request_id, "title": problem.title},
    )
    if problem.operating_points:
        info.metadata["operating_points"] = ",".join(problem.operating_points)
    packed = [AnyMessage()]
    packed[0].Pack(info)
    if problem.retry_after_s is not None:
        delay = Duration()
        delay.FromMilliseconds(math.ceil(problem.retry_after_s * 1e3))
        packed.append(AnyMessage())
        packed[1].Pack(RetryInfo(retry_delay=delay))
    return Status(code=code_of(problem).value[0], message=problem.detail, details=packed)


async def abort(
    context: grpc.aio.ServicerContext,
    problem: Problem,
    request_id: str,
    trailing: Sequence[tuple[str, str]] = (),
) -> NoReturn:
    """End a call with a problem's status and details; `trailing` is metadata beside them."""
    details = status_details(problem, request_id)
    context.set_trailing_metadata((*trailing, (DETAILS_KEY, details.SerializeToString())))
    await context.abort(code_of(problem), problem.detail)
    raise AssertionError("abort raises")


def encode_answer(answer: Answer, request_id: str) -> wire.DetectResponse:
    """Return the message of an answer."""
    detections, cut, classes = answer.detections, answer.cut, answer.classes
    response = wire.DetectResponse(
        request_id=request_id,
        image_width=answer.image_wh[0],
        image_height=answer.image_wh[1],
        operating_point=answer.operating_point,
        arm=answer.arm or "",
        plan=answer.plan.name,
        stages=[wire.Stage(variant=stage.variant, latency_ms=stage.latency_ms) for stage in answer.stages],
        timing=wire.Timing(queue_ms=answer.queue_ms, decode_ms=answer.decode_ms, total_ms=answer.total_ms),
        detections=[
            wire.DetectedObject(x1=x1, y1=y1, x2=x2, y2=y2, label=classes[label], class_id=label, score=score)
            for (x1, y1, x2, y2), label, score in zip(
                detections.xyxy.tolist(), detections.label.tolist(), detections.score.tolist(), strict=True
            )
        ],
    )
    if cut is not None:
        left_ms = cut.left_ms if math.isfinite(cut.left_ms) else None
        response.cut.CopyFrom(
            wire.Cut(
                stage=cut.stage, plan=cut.plan, reason=cut.reason, needed_ms=cut.needed_ms, left_ms=left_ms
            )
        )
    if answer.certificate is not None:
        response.certificate.CopyFrom(wire.Certificate(**answer.certificate.model_dump()))
    return response
