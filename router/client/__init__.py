"""The gateway's client: one frame in, an `AnswerDocument` out, over HTTP or gRPC, waiting or asynchronous.

    with GatewayClient("http://127.0.0.1:8080", api_key=None, retries=2) as client:
        answer = client.detect(jpeg, budget_ms=50)
        answer.as_coco(image_id=7)     # COCO result dictionaries
        answer.as_supervision()        # supervision.Detections

`python -m router.client image.jpg --budget-ms 50 --save out.jpg` does it for files. Errors are GatewayErrors,
see `router.client.errors`.
"""

from router.client.asking import Asked, Patience
from router.client.camera import CameraResult, UdpCamera
from router.client.errors import GatewayError, GatewayFailed, GatewayOverloaded, RequestRejected
from router.client.http import AsyncGatewayClient, GatewayClient
from router.client.rpc import AsyncGrpcGatewayClient, GrpcGatewayClient
from router.client.tls import ClientTls

__all__ = [
    "Asked",
    "AsyncGatewayClient",
    "AsyncGrpcGatewayClient",
    "CameraResult",
    "ClientTls",
    "GatewayClient",
    "GatewayError",
    "GatewayFailed",
    "GatewayOverloaded",
    "GrpcGatewayClient",
    "Patience",
    "RequestRejected",
    "UdpCamera",
]
