"""The gRPC server: detection, the Open Inference Protocol, the standard health check, and reflection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection
from tritonclient.grpc import service_pb2_grpc as oip_wire

from router.access import Access
from router.grpc_access import KeyInterceptor
from router.grpc_api import SERVICE, DetectionServicer
from router.grpc_messages import TolerantServer
from router.oip_grpc import OIP_SERVICE, InferenceServicer
from router.wire import paretogate_pb2_grpc as wire_grpc

# Above this much more than the largest frame the transport itself refuses the message.
_MESSAGE_OVERHEAD = 64 * 1024
_MAX_HEAD_BYTES = 64 * 1024
# Calls at the same time on one connection; there are streams among them.
_CALLS_PER_CONNECTION = 128
# A client that pings more often than this is told to go away, calls in flight or none.
_LEAST_PING_MS = 10_000
_PING_STRIKES = 2
# A connection on which nothing is in flight is probed, so that dead ones do not count.
_PROBE_MS, _PROBE_ANSWER_MS = 60_000, 20_000


@dataclass(frozen=True, slots=True)
class CallLimits:
    """How large a frame is at most, how many connections there are, and how long one may take to be made."""

    max_bytes: int
    max_connections: int
    handshake_s: float

    def options(self) -> Sequence[tuple[str, int]]:
        """Return them as gRPC's channel arguments."""
        return (
            ("grpc.max_receive_message_length", self.max_bytes + _MESSAGE_OVERHEAD),
            ("grpc.max_metadata_size", _MAX_HEAD_BYTES),
            ("grpc.absolute_max_metadata_size", _MAX_HEAD_BYTES),
            ("grpc.max_allowed_incoming_connections", self.max_connections),
            ("grpc.max_concurrent_streams", _CALLS_PER_CONNECTION),
            ("grpc.server_handshake_timeout_ms", round(self.handshake_s * 1e3)),
            ("grpc.http2.min_ping_interval_without_data_ms", _LEAST_PING_MS),
            ("grpc.http2.max_ping_strikes", _PING_STRIKES),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.keepalive_time_ms", _PROBE_MS),
            ("grpc.keepalive_timeout_ms", _PROBE_ANSWER_MS),
            # Two gateways on one port would share it silently.
            ("grpc.so_reuseport", 0),
        )


class GrpcServer:
    """A grpc.aio server with detection, the Open Inference Protocol, health and reflection."""

    def __init__(
        self,
        detection: DetectionServicer,
        inference: InferenceServicer,
        limits: CallLimits,
        access: Access | None = None,
    ) -> None:
        """access: who is let in, None for everybody; health is everybody's."""
        self._server = grpc.aio.server(
            interceptors=() if access is None else (KeyInterceptor(access),),
            options=limits.options(),
        )
        tolerant = TolerantServer(self._server)
        wire_grpc.add_DetectionServicer_to_server(detection, tolerant)
        oip_wire.add_GRPCInferenceServiceServicer_to_server(inference, tolerant)
        self._health = health_aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (SERVICE, OIP_SERVICE, "grpc.health.v1.Health", reflection.SERVICE_NAME), self._server
        )

    def bind(self, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
        """Bind host:port, with TLS where there are credentials; return the port.

        Raises RuntimeError when it is taken.
        """
        if credentials is None:
            return int(self._server.add_insecure_port(address))
        return int(self._server.add_secure_port(address, credentials))

    async def start(self) -> None:
        """Begin to serve, not ready yet."""
        await self.show_ready(False)
        await self._server.start()

    async def show_ready(self, ready: bool) -> None:
        """Tell health checks, of the server and of its services, whether requests can expect answers."""
        response = health_pb2.HealthCheckResponse
        status = response.SERVING if ready else response.NOT_SERVING
        for name in ("", SERVICE, OIP_SERVICE):
            await self._health.set(name, status)

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, and let those in flight finish for up to `grace_s`."""
        await self._server.stop(grace_s)
