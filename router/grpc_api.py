"""The gRPC edge of detection: the call's deadline is the budget."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc

from router.access import Access, entered, limited
from router.admission import Shed
from router.budget import Budgets, Clock
from router.execution import Answer
from router.grpc_reply import abort, encode_answer, grouped, outcome_of
from router.grpc_stream import serve_stream
from router.http_reply import request_id_of
from router.metrics import Metrics
from router.problems import Problem
from router.service import Service
from router.stream import Streams
from router.wire import paretogate_pb2 as wire
from router.wire import paretogate_pb2_grpc as wire_grpc
from router.wishes import Wishes

SERVICE = "paretogate.v1.Detection"


class DetectionServicer(wire_grpc.DetectionServicer):
    """Answer frames over gRPC."""

    def __init__(
        self,
        service: Service,
        streams: Streams,
        budgets: Budgets,
        metrics: Metrics,
        clock: Clock,
        access: Access | None = None,
    ) -> None:
        self._service, self._streams = service, streams
        self._budgets, self._access = budgets, access
        self._metrics, self._clock = metrics, clock

    async def Detect(
        self, request: wire.DetectRequest, context: grpc.aio.ServicerContext
    ) -> wire.DetectResponse:
        """Handle one call."""
        arrived_ns = self._clock.now_ns()
        headers = grouped(context.invocation_metadata())
        arrival = self._metrics.arrived("grpc", headers)
        request_id = request_id_of([request.request_id.encode()])
        written: list[wire.DetectResponse] = []

        async def work() -> Answer | Shed:
            with entered(self._access, headers) as stay:
                wishes = Wishes.of(headers, operating_point=request.operating_point or None)
                return await self._service.detect(
                    request.image,
                    self._budgets.deadline(headers, arrived_ns, call_s=context.time_remaining()),
                    limited(stay, wishes),
                    arrived_ns=arrived_ns,
                    traceparent=arrival.traceparent,
                    finish=lambda answer: written.append(encode_answer(answer, request_id)),
                )

        ended = await outcome_of(work(), arrival, request_id)
        if isinstance(ended, Problem):
            return await abort(context, ended, request_id)
        return written[0]

    async def DetectStream(
        self, frames: AsyncIterator[wire.StreamFrame], context: grpc.aio.ServicerContext
    ) -> None:
        """Handle one stream."""
        await serve_stream(self._streams, frames, context)
