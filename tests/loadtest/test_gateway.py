"""A gateway as a target: what its answers and errors become."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from loadtest.gateway import GatewayTarget, connect
from loadtest.sample import Reply
from loadtest.target import TargetError
from router.client import AsyncGatewayClient

ANSWER = {
    "request_id": "r",
    "operating_point": "balanced",
    "plan": "cascade",
    "stages": [{"variant": "small", "latency_ms": 2.0}],
    "cut": {"stage": "large", "plan": "cascade", "reason": "deadline", "needed_ms": 9.0, "left_ms": 3.0},
    "certificate": None,
    "image": {"width": 64, "height": 48},
    "timing": {"queue_ms": 0.1, "decode_ms": 0.5, "total_ms": 3.0},
    "detections": [
        {"box": {"x1": 1.0, "y1": 2.0, "x2": 3.0, "y2": 4.0}, "label": "green", "class_id": 1, "score": 0.5}
    ],
}


def send(response: httpx.Response | Exception) -> Reply:
    """Return what becomes of a request that is answered with this response."""

    def handle(_: httpx.Request) -> httpx.Response:
        if isinstance(response, Exception):
            raise response
        return response

    async def ask() -> Reply:
        client = AsyncGatewayClient("http://gateway", transport=httpx.MockTransport(handle))
        target = GatewayTarget("http://gateway", client, client)
        try:
            return await target.send(b"frame", 50.0, "balanced")
        finally:
            await target.close()

    return asyncio.run(ask())


def problem(status: int, slug: str) -> httpx.Response:
    """Return a problem as the gateway writes it."""
    body = {
        "type": f"urn:paretogate:problem:{slug}",
        "title": slug.title(),
        "status": status,
        "detail": "why",
    }
    return httpx.Response(status, content=json.dumps(body))


def test_an_answer_keeps_plan_stages_cut_and_boxes() -> None:
    """Detections come with the gateway's class numbers and the answer's history."""
    reply = send(httpx.Response(200, json=ANSWER))
    assert reply.outcome == "answered"
    assert (reply.plan, reply.stages, reply.cut) == ("cascade", ("small",), "large: deadline")
    assert reply.detections.label.tolist() == [1]
    assert reply.detections.xyxy.tolist() == [[1.0, 2.0, 3.0, 4.0]]


@pytest.mark.parametrize(
    ("response", "outcome"),
    [
        (problem(503, "overloaded"), "shed"),
        (problem(422, "unmeetable-budget"), "rejected"),
        (problem(413, "too-large"), "rejected"),
        (problem(503, "not-ready"), "failed"),
        (httpx.Response(502, text="a proxy"), "failed"),
        (httpx.Response(200, text="no JSON"), "failed"),
        (httpx.ConnectError("refused"), "failed"),
    ],
)
def test_what_is_no_answer_has_one_outcome(response: httpx.Response | Exception, outcome: str) -> None:
    """Shed, rejected and failed are told apart, whatever stands behind them."""
    reply = send(response)
    assert reply.outcome == outcome
    assert reply.detail
    assert len(reply.detections) == 0


def test_a_gateway_that_is_not_there_is_an_error_of_the_run() -> None:
    """Asking nobody what is served is a TargetError that names the address; gRPC needs its own address."""

    async def ask() -> None:
        target = connect("http://127.0.0.1:1", "http", timeout_s=1.0)
        try:
            with pytest.raises(TargetError, match=r"127\.0\.0\.1:1"):
                await target.describe()
        finally:
            await target.close()
        with pytest.raises(ValueError, match="host:port"):
            connect("http://127.0.0.1:1", "grpc", timeout_s=1.0)

    asyncio.run(ask())
