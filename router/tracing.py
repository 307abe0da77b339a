"""OpenTelemetry traces: `traceparent` is taken, passed on to the engine, and every request leaves its spans.

The worker's steps are known when an answer is there, so their spans are written after the fact, from the
times in the answer: tracing costs the hot path one span. Without `--otlp-endpoint` nothing is imported and a
request costs one call that does nothing.

Times of spans are of the wall clock; inside a request the steps follow one another without gaps, and what
came before the queue (reading the body) is the time that they leave over.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from router.engines import StartupError
from router.execution import Answer
from router.headers import Headers

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

_NAME = "paretogate.detect"


class RequestTrace(Protocol):
    """The trace of one request; `traceparent` is what is passed on, None where nothing is."""

    @property
    def traceparent(self) -> str | None:
        """Return the W3C header that names this request's span."""

    def end(self, outcome: str, problem: str | None, answer: Answer | None) -> None:
        """Write the spans of a request that has ended."""


class Tracing(Protocol):
    """Begin traces and, at the end, send what is left."""

    def begin(self, headers: Headers, protocol: str) -> RequestTrace:
        """Begin a request's trace, as a child of the sender's where the headers say so."""

    def close(self) -> None:
        """Send what has not been sent."""


class _NoTrace:
    """The trace of a request that nobody traces."""

    traceparent = None

    def end(self, outcome: str, problem: str | None, answer: Answer | None) -> None:
        """Do nothing."""


class NoTracing:
    """Trace nothing."""

    _TRACE = _NoTrace()

    def begin(self, headers: Headers, protocol: str) -> RequestTrace:
        """Return the trace that does nothing."""
        del headers, protocol
        return self._TRACE

    def close(self) -> None:
        """Do nothing."""


class OpenTelemetry:
    """Trace through OpenTelemetry's SDK with the exporter that the provider was given."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer: Tracer = provider.get_tracer("paretogate")

    @classmethod
    def exporting(cls, endpoint: str, share: float, version: str) -> OpenTelemetry:
        """Send spans to an OTLP endpoint over HTTP; `share` of the requests whose sender does not decide.

        Raises StartupError when OpenTelemetry is not installed.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        except ImportError as error:
            raise StartupError(
                f"--otlp-endpoint needs the extra: pip install 'paretogate[otel]': {error}"
            ) from error
        provider = TracerProvider(
            resource=Resource.create({"service.name": "paretogate", "service.version": version}),
            sampler=ParentBased(TraceIdRatioBased(share)),
        )
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        return cls(provider)

    def begin(self, headers: Headers, protocol: str) -> RequestTrace:
        """Begin a request's trace, as a child of the sender's where `traceparent` says so."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier = {
            name: values[0].decode("latin-1")
            for name in ("traceparent", "tracestate")
            if (values := headers.get(name.encode()))
        }
        context = TraceContextTextMapPropagator().extract(carrier)
        now_ns = time.time_ns()
        span = self._tracer.start_span(_NAME, context, kind=SpanKind.SERVER, start_time=now_ns)
        span.set_attribute("rpc.system" if protocol == "grpc" else "network.protocol.name", protocol)
        return _OpenTrace(self._tracer, span, now_ns)

    def close(self) -> None:
        """Send what has not been sent."""
        self._provider.shutdown()


class _OpenTrace:
    def __init__(self, tracer: Tracer, span: Span, began_ns: int) -> None:
        self._tracer, self._span, self._began_ns = tracer, span, began_ns

    @property
    def traceparent(self) -> str | None:
        context = self._span.get_span_context()
        if not context.is_valid:
            return None
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"

    def end(self, outcome: str, problem: str | None, answer: Answer | None) -> None:
        from opentelemetry.trace import Status, StatusCode

        span = self._span
        span.set_attribute("paretogate.outcome", outcome)
        if problem is not None:
            span.set_attribute("paretogate.problem", problem)
        if outcome == "failed":
            span.set_status(Status(StatusCode.ERROR, problem))
        if answer is not None and span.is_recording():
            self._write_steps(answer)
        span.end()

    def _write_steps(self, answer: Answer) -> None:
        from opentelemetry.trace import set_span_in_context

        span = self._span
        span.set_attribute("paretogate.operating_point", answer.operating_point)
        span.set_attribute("paretogate.plan", answer.plan.name)
        span.set_attribute("paretogate.detections", len(answer.detections))
        if answer.escalated is not None:
            span.set_attribute("paretogate.escalated", answer.escalated)
        if answer.cut is not None:
            span.set_attribute("paretogate.cut.stage", answer.cut.stage)
            span.set_attribute("paretogate.cut.reason", answer.cut.reason)
        steps = [("queue", answer.queue_ms), ("decode", answer.decode_ms)]
        steps += [(f"stage {stage.variant}", stage.latency_ms) for stage in answer.stages]
        context = set_span_in_context(span)
        at_ms = max(answer.total_ms - sum(ms for _, ms in steps), 0.0)
        for name, ms in steps:
            step = self._tracer.start_span(name, context, start_time=self._began_ns + round(at_ms * 1e6))
            at_ms += ms
            step.end(self._began_ns + round(at_ms * 1e6))
