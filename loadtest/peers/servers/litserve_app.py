"""LitServe: a LitAPI with one worker. `python -m loadtest.peers.servers.litserve_app`.

Sources: lightning.ai/docs/litserve, "LitAPI", "LitServer" (`fast_queue`, `workers_per_device`), "Request and
response format". The queue is its fast one (ZeroMQ); one worker, as there is one core; no batching, which
gains nothing there.
"""

# No `from __future__ import annotations`: LitServe reads the annotation below as it stands.
from typing import Annotated

import litserve as ls
from fastapi import Body, Response

from loadtest.peers.servers.detector import Detector, make_detector
from loadtest.peers.servers.serving import http_port


class DetectionApi(ls.LitAPI):
    """Frames as bytes in, rows as bytes out."""

    _detector: Detector

    def setup(self, device: str) -> None:
        """Load the models, in the worker."""
        self._detector = make_detector()

    # The annotation makes LitServe take the body as it is, where without one it would read JSON.
    def decode_request(self, request: Annotated[bytes, Body(media_type="application/octet-stream")]) -> bytes:
        """Return the frame."""
        return request

    def predict(self, frame: bytes) -> bytes:
        """Answer it."""
        return self._detector.answer(frame)

    def encode_response(self, output: bytes) -> Response:
        """Send the rows as they are."""
        return Response(output, media_type="application/octet-stream")


if __name__ == "__main__":
    server = ls.LitServer(
        DetectionApi(api_path="/detect"),
        accelerator="cpu",
        devices=1,
        workers_per_device=1,
        timeout=False,
        fast_queue=True,
        healthcheck_path="/ready",
    )
    server.run(
        host="127.0.0.1",
        port=http_port(),
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
