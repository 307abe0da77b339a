"""FastAPI and uvicorn: one model, or the cascade built the usual way, with a fixed max-score threshold.

`python -m loadtest.peers.servers.fastapi_app`.
"""

from __future__ import annotations

import uvicorn
from fastapi import FastAPI, Request, Response

from loadtest.peers.servers.detector import make_detector
from loadtest.peers.servers.serving import http_port


def make_app() -> FastAPI:
    """Return the application; the models are loaded here, before it listens."""
    detector = make_detector()
    app = FastAPI(openapi_url=None)

    @app.post("/detect")
    async def detect(request: Request) -> Response:
        # On one core a thread pool gains nothing: it costs two switches a request and loses the order.
        return Response(detector.answer(await request.body()), media_type="application/octet-stream")

    @app.get("/ready")
    async def ready() -> Response:
        return Response()

    return app


if __name__ == "__main__":
    uvicorn.run(
        make_app(),
        host="127.0.0.1",
        port=http_port(),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
