"""Ray Serve: one replica behind its HTTP proxy. `python -m loadtest.peers.servers.ray_app`.

Sources: docs.ray.io, "Performance Tuning" (the throughput settings are environment variables, which the load
test sets), "Configure Ray Serve deployments" (`max_ongoing_requests`), "Monitoring" (logging).
"""

from __future__ import annotations

import os
import signal
from typing import Any  # Ray is not here, so nothing is known of its types.

import ray
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.schema import LoggingConfig
from starlette.requests import Request
from starlette.responses import Response

from loadtest.peers.servers.detector import make_detector
from loadtest.peers.servers.serving import http_port

_QUIET = LoggingConfig(log_level="ERROR", enable_access_log=False)


@serve.deployment(
    num_replicas=1,
    max_ongoing_requests=1_000,
    ray_actor_options={"num_cpus": 1},
    logging_config=_QUIET,
)
class Detection:
    """Frames as bytes in, rows as bytes out."""

    def __init__(self) -> None:
        self._detector = make_detector()

    async def __call__(self, request: Request) -> Response:
        """Answer a frame."""
        return Response(self._detector.answer(await request.body()), media_type="application/octet-stream")


def main() -> None:
    """Start Ray and the deployment, and stay until somebody ends this process."""
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        _node_ip_address="127.0.0.1",
        # The load test's scratch folder, which goes with the run; sockets' paths must stay short.
        _temp_dir=os.getcwd(),
    )
    serve.start(
        proxy_location=ProxyLocation.HeadOnly,
        http_options=HTTPOptions(host="127.0.0.1", port=http_port()),
        logging_config=_QUIET,
    )
    deployment: Any = Detection  # what the decorator makes of the class
    serve.run(deployment.bind(), route_prefix="/detect")
    print("ready", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    ray.shutdown()


if __name__ == "__main__":
    # Blocked here and in every thread that is started below, so that sigwait gets it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    main()
