"""Traces: taken from the sender, passed on to the engine, written with every step."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from model_repo.runtime.engine import TRACEPARENT
from router.tracing import NoTracing, OpenTelemetry
from tests.fakes import FakeEngine
from tests.router.conftest import DOUBTFUL, LARGE, Bench, http_to

pytestmark = pytest.mark.anyio

SENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
PNG = {"Content-Type": "image/png"}


@pytest.fixture
def exported() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exported: InMemorySpanExporter) -> OpenTelemetry:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exported))
    return OpenTelemetry(provider)


async def test_a_request_leaves_its_steps_under_the_senders_trace(
    bench: Bench, frame: bytes, tracing: OpenTelemetry, exported: InMemorySpanExporter
) -> None:
    """The span is a child of the sender's; queue, decoding and each stage follow one another inside it."""
    seen: list[str | None] = []

    def large(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        del frames
        seen.append(TRACEPARENT.get())
        return LARGE

    gateway = bench(FakeEngine(rows={"tiny-0": DOUBTFUL, "tiny-1": large}))
    gateway.metrics._tracing = tracing
    async with http_to(gateway) as users:
        answer = await users.post("/v1/detect", content=frame, headers={**PNG, "traceparent": SENT})
        assert answer.status_code == 200
    *steps, request = exported.get_finished_spans()
    assert [step.name for step in steps] == ["queue", "decode", "stage tiny-0", "stage tiny-1"]
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == "b7ad6b7169203331"
    assert request.context is not None
    assert f"{request.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert seen == [f"00-0af7651916cd43dd8448eb211c80319c-{request.context.span_id:016x}-01"]
    assert request.attributes is not None
    assert request.attributes["paretogate.plan"] == "tiny-0-then-tiny-1"
    assert request.attributes["paretogate.outcome"] == "answered"
    times = [moment for step in steps for moment in _times(step)]
    assert times == sorted(times)
    assert _times(request)[0] <= times[0]


async def test_what_was_refused_says_why(
    bench: Bench, frame: bytes, tracing: OpenTelemetry, exported: InMemorySpanExporter
) -> None:
    """A request without an answer has a span with the problem; a broken traceparent begins a new trace."""
    gateway = bench()
    gateway.metrics._tracing = tracing
    async with http_to(gateway) as users:
        await users.post("/v1/detect", content=frame[:40], headers={**PNG, "traceparent": "nonsense"})
    (request,) = exported.get_finished_spans()
    assert request.parent is None
    assert request.attributes is not None
    assert request.attributes["paretogate.problem"] == "broken-image"


def test_without_an_endpoint_nothing_is_traced() -> None:
    """The default does nothing and names nobody."""
    trace = NoTracing().begin({b"traceparent": [SENT.encode()]}, "http")
    assert trace.traceparent is None
    trace.end("answered", None, None)


def _times(span: ReadableSpan) -> tuple[int, int]:
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time, span.end_time
