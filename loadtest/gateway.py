"""A running gateway as a target, over HTTP or gRPC, through the project's own client."""

from __future__ import annotations

from typing import Literal

from loadtest.sample import Outcome, Reply
from loadtest.target import Description, Target, TargetError
from model_repo.detections import Detections
from router.client import (
    AsyncGatewayClient,
    AsyncGrpcGatewayClient,
    GatewayError,
    GatewayOverloaded,
    RequestRejected,
)

Protocol = Literal["http", "grpc"]

# How the client says that a call's deadline passed before any answer came.
_DEADLINE_PASSED = "grpc-deadline-exceeded"
# The runner's own limit strikes first; this one only keeps a lost connection from staying for ever.
_SPARE_S = 5.0


class GatewayTarget:
    """Send frames over `calls`; ask for what is served over HTTP, which gRPC has no call for.

    There is no bound on connections: a request that waited for a free one inside the generator would look
    like a slow gateway.
    """

    def __init__(
        self, url: str, http: AsyncGatewayClient, calls: AsyncGatewayClient | AsyncGrpcGatewayClient
    ) -> None:
        self._url, self._http, self._calls = url, http, calls

    async def describe(self) -> Description:
        """Return classes and operating points; raises TargetError when the gateway does not answer."""
        try:
            points = await self._http.operating_points()
        except GatewayError as error:
            raise TargetError(f"{self._url}: {error}") from error
        return Description(tuple(points.classes), tuple(point.name for point in points.operating_points))

    async def send(self, frame: bytes, budget_ms: float | None, operating_point: str | None) -> Reply:
        """Send one encoded frame; every error of the gateway or the connection is a Reply."""
        try:
            answer = await self._calls.detect(frame, budget_ms=budget_ms, operating_point=operating_point)
        except GatewayError as error:
            outcome = _outcome(error)
            late = outcome == "timed_out"
            return Reply(outcome, detail="The call's deadline passed" if late else error.problem.title)
        found = answer.detections
        return Reply(
            "answered",
            plan=answer.plan,
            stages=tuple(stage.variant for stage in answer.stages),
            cut=f"{answer.cut.stage}: {answer.cut.reason}" if answer.cut is not None else None,
            detections=Detections.make(
                [(box.x1, box.y1, box.x2, box.y2) for box in (each.box for each in found)],
                [each.score for each in found],
                [each.class_id for each in found],
            ),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._calls.close()
        if self._calls is not self._http:
            await self._http.close()


def connect(
    url: str,
    protocol: Protocol,
    *,
    grpc_address: str | None = None,
    api_key: str | None = None,
    timeout_s: float,
) -> Target:
    """Return a target at an HTTP address; over gRPC frames go to `grpc_address`, host:port.

    api_key: shown to a gateway that asks for one. To be called on the event loop that uses it; nothing is
    sent yet. Raises ValueError for gRPC without an address.
    """
    http = AsyncGatewayClient(url, api_key=api_key, timeout_s=timeout_s + _SPARE_S, connections=None)
    if protocol == "http":
        return GatewayTarget(url, http, http)
    if grpc_address is None:
        raise ValueError("gRPC needs the address to call, host:port")
    return GatewayTarget(url, http, AsyncGrpcGatewayClient(grpc_address, api_key=api_key))


def _outcome(error: GatewayError) -> Outcome:
    if isinstance(error, GatewayOverloaded):
        return "shed"
    if isinstance(error, RequestRejected):
        return "rejected"
    return "timed_out" if error.slug == _DEADLINE_PASSED else "failed"
