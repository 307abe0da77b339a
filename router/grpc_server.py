"""The gRPC server: detection, the Open Inference Protocol, the standard health check, and reflection."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection
from tritonclient.grpc import service_pb2_grpc as oip_wire

from router.grpc_api import SERVICE, DetectionServicer
from router.oip_grpc import OIP_SERVICE, InferenceServicer
from router.wire import paretogate_pb2_grpc as wire_grpc

# Above this much more than the largest frame the transport itself refuses the message.
_MESSAGE_OVERHEAD = 64 * 1024


class GrpcServer:
    """A grpc.aio server with detection, the Open Inference Protocol, health and reflection."""

    def __init__(self, detection: DetectionServicer, inference: InferenceServicer, max_bytes: int) -> None:
        self._server = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", max_bytes + _MESSAGE_OVERHEAD),
                # Two gateways on one port would share it silently.
                ("grpc.so_reuseport", 0),
            )
        )
        wire_grpc.add_DetectionServicer_to_server(detection, self._server)
        oip_wire.add_GRPCInferenceServiceServicer_to_server(inference, self._server)
        self._health = health_aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (SERVICE, OIP_SERVICE, "grpc.health.v1.Health", reflection.SERVICE_NAME), self._server
        )

    def bind(self, address: str) -> int:
        """Bind host:port and return the port; raises RuntimeError when it is taken."""
        return int(self._server.add_insecure_port(address))

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
