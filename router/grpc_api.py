"""The gRPC edge: `Detect` with the call's deadline as budget, health, reflection, and errors as statuses.

Statuses carry a `google.rpc.Status` with an ErrorInfo (reason: the problem's slug in capitals) and, where
asking again makes sense, a RetryInfo, under the key that gRPC tools read, `grpc-status-details-bin`.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping, Sequence
from typing import NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo  # type: ignore[import-untyped]  # ships no types
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]  # ships no types
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from router.admission import Shed
from router.budget import Budgets, Clock
from router.errors import RouterError
from router.execution import Answer
from router.headers import Headers
from router.http_detect import request_id_of
from router.metrics import Metrics
from router.problems import Problem, internal_problem, problem_of
from router.service import Service
from router.wire import paretogate_pb2 as wire
from router.wire import paretogate_pb2_grpc as wire_grpc
from router.wishes import Wishes

_LOG = logging.getLogger(__name__)
DOMAIN = "paretogate"
SERVICE = "paretogate.v1.Detection"
DETAILS_KEY = "grpc-status-details-bin"
# Above this much more than the largest frame the transport itself refuses the message.
_MESSAGE_OVERHEAD = 64 * 1024
_CODES: Mapping[str, grpc.StatusCode] = {
    "malformed-request": grpc.StatusCode.INVALID_ARGUMENT,
    "malformed-budget": grpc.StatusCode.INVALID_ARGUMENT,
    "unknown-operating-point": grpc.StatusCode.INVALID_ARGUMENT,
    "unsupported-type": grpc.StatusCode.INVALID_ARGUMENT,
    "broken-image": grpc.StatusCode.INVALID_ARGUMENT,
    # The status that the transport itself gives a message above its limit.
    "too-large": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "unmeetable-accuracy": grpc.StatusCode.FAILED_PRECONDITION,
    "unmeetable-budget": grpc.StatusCode.DEADLINE_EXCEEDED,
    "overloaded": grpc.StatusCode.UNAVAILABLE,
    "not-ready": grpc.StatusCode.UNAVAILABLE,
    "engine-failed": grpc.StatusCode.UNAVAILABLE,
}


class DetectionServicer(wire_grpc.DetectionServicer):
    """Answer frames over gRPC."""

    def __init__(self, service: Service, budgets: Budgets, metrics: Metrics, clock: Clock) -> None:
        self._service, self._budgets = service, budgets
        self._metrics, self._clock = metrics, clock

    async def Detect(
        self, request: wire.DetectRequest, context: grpc.aio.ServicerContext
    ) -> wire.DetectResponse:
        """Handle one call."""
        arrived_ns = self._clock.now_ns()
        headers = _grouped(context.invocation_metadata())
        arrival = self._metrics.arrived("grpc", headers)
        request_id = request_id_of([request.request_id.encode()])
        written: list[wire.DetectResponse] = []
        try:
            answer = await self._service.detect(
                request.image,
                self._budgets.deadline(headers, arrived_ns, call_s=context.time_remaining()),
                Wishes.of(headers, operating_point=request.operating_point or None),
                arrived_ns=arrived_ns,
                traceparent=arrival.traceparent,
                finish=lambda answer: written.append(encode_answer(answer, request_id)),
            )
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
                return written[0]
            problem = problem_of(answer)
        arrival.end(problem.outcome, problem.slug)
        level = logging.WARNING if problem.outcome == "failed" else logging.INFO
        _LOG.log(
            level, "call %s: %s: %s", request_id, problem.slug, problem.detail,
            extra={"request_id": request_id, "problem": problem.slug},
        )  # fmt: skip
        return await _abort(context, problem, request_id)


def _grouped(metadata: Sequence[tuple[str, str | bytes]] | None) -> Headers:
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


async def _abort(context: grpc.aio.ServicerContext, problem: Problem, request_id: str) -> NoReturn:
    details = status_details(problem, request_id)
    context.set_trailing_metadata(((DETAILS_KEY, details.SerializeToString()),))
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


class GrpcServer:
    """A grpc.aio server with detection, health and reflection."""

    def __init__(self, servicer: DetectionServicer, max_bytes: int) -> None:
        self._server = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", max_bytes + _MESSAGE_OVERHEAD),
                # Two gateways on one port would share it silently.
                ("grpc.so_reuseport", 0),
            )
        )
        wire_grpc.add_DetectionServicer_to_server(servicer, self._server)
        self._health = health_aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (SERVICE, "grpc.health.v1.Health", reflection.SERVICE_NAME), self._server
        )

    def bind(self, address: str) -> int:
        """Bind host:port and return the port; raises RuntimeError when it is taken."""
        return int(self._server.add_insecure_port(address))

    async def start(self) -> None:
        """Begin to serve, not ready yet."""
        await self.show_ready(False)
        await self._server.start()

    async def show_ready(self, ready: bool) -> None:
        """Tell health checks, of the server and of the service, whether requests can expect answers."""
        response = health_pb2.HealthCheckResponse
        status = response.SERVING if ready else response.NOT_SERVING
        for name in ("", SERVICE):
            await self._health.set(name, status)

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, and let those in flight finish for up to `grace_s`."""
        await self._server.stop(grace_s)
