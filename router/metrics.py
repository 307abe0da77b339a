"""What the gateway tells Prometheus.

Classic histograms whose buckets are dense where latency budgets lie. Every request that arrives ends in
exactly one outcome, which `Arrival` sees to. The registry is the gateway's own, so that two gateways in one
process (as in tests) do not meet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from model_repo.frontier import Plan
from router.drift import Signal
from router.endpoints import EndpointState
from router.engines import published_accuracy
from router.execution import Answer
from router.headers import Headers
from router.reassembly import DatagramFate, FrameFate
from router.tracing import NoTracing, RequestTrace, Tracing

Protocol = Literal["http", "grpc", "websocket", "grpc-stream", "udp"]
OutcomeName = Literal["answered", "shed", "cancelled", "rejected", "failed", "superseded"]
ReloadResult = Literal["taken", "refused", "rolled back"]
TellFate = Literal["sent", "failed", "superseded"]
Slowness = Literal["head", "write", "idle"]
AccessRefusal = Literal[
    "no key", "unknown key", "expired", "operating point", "rate", "concurrency", "administration", "watching"
]
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS_S = tuple(
    ms / 1e3
    for ms in (1, 2, 3, 4, 5, 7.5, 10, 12.5, 15, 20, 25, 30, 40, 50, 75, 100, 150, 200, 300, 500, 1000, 3000)
)


DISAGREEMENTS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8)


@dataclass(frozen=True, slots=True)
class State:
    """What gauges show, read when Prometheus scrapes."""

    ready: bool
    engine_up: bool
    inside: int
    waiting: int
    busy: int
    workers: int
    limit: int
    operating_point: str
    operating_points: tuple[str, ...]
    slow_down: tuple[tuple[str, float], ...]
    escalated: tuple[tuple[str, float], ...]
    drifting: frozenset[str]
    variants: tuple[str, ...]
    signals: tuple[Signal, ...]
    certified: tuple[tuple[str, bool], ...]


class Arrival:
    """A request that has arrived and has to end in exactly one outcome."""

    __slots__ = ("_ended", "_metrics", "_protocol", "_trace")

    def __init__(self, metrics: Metrics, protocol: Protocol, trace: RequestTrace) -> None:
        self._metrics, self._protocol, self._trace = metrics, protocol, trace
        self._ended = False

    @property
    def traceparent(self) -> str | None:
        """Return what names this request to whoever is asked on its behalf, None when it is not traced."""
        return self._trace.traceparent

    def end(self, outcome: OutcomeName, problem: str | None = None, answer: Answer | None = None) -> None:
        """Count the outcome, and the problem's slug if any; raises RuntimeError the second time."""
        if self._ended:
            raise RuntimeError("a request ended twice")
        self._ended = True
        self._metrics.count_end(self._protocol, outcome, problem)
        self._trace.end(outcome, problem, answer)


class Metrics:
    """All series of one gateway; safe to use from any thread."""

    def __init__(self, tracing: Tracing | None = None) -> None:
        self.registry = CollectorRegistry()
        self._tracing = tracing or NoTracing()
        self._arrivals = self._counter("arrivals", "Requests that arrived", "protocol")
        self._requests = self._counter("requests", "Requests by how they ended", "protocol", "outcome")
        self._problems = self._counter("problems", "Requests without an answer, by problem", "problem")
        self._answers = self._counter("answers", "Answers by what made them", "operating_point", "plan")
        self._reloads = self._counter("reloads", "Changes of the published set", "result")
        self._refusals = self._counter("access_refused", "Who was not let in, by reason", "reason")
        self._let_in = self._counter("key_frames", "Frames let in, by the key's name", "key")
        self._turned_away = Counter(
            "paretogate_connections_refused", "Connections closed at once: too many", registry=self.registry
        )
        self._cut_off = self._counter("connections_cut", "Connections that were too slow", "waiting_for")
        self._missed = self._counter("budget_missed", "Answers after their deadline", "operating_point")
        self._cut = self._counter("cut_stages", "Stages that were not run", "variant", "reason")
        self._decisions = self._counter("escalation_decisions", "First rules asked, on uncut answers", "plan")
        self._escalations = self._counter("escalations", "First rules that said go on", "plan")
        self._request_s = _Series(
            self._histogram("request_seconds", "From arrival to answer, answered requests", "operating_point")
        )
        self._stage_s = _Series(
            self._histogram("stage_seconds", "Resize, inference and suppression", "variant")
        )
        self._decode_s = self._histogram("decode_seconds", "Decoding a frame")
        self._queue_s = self._histogram("queue_seconds", "Waiting for a worker")
        self._age_s = self._histogram(
            "stream_age_seconds", "From a frame's arrival to its answer", "protocol"
        )
        self._reused = self._counter("reused", "Frames answered with an earlier one's answer", "protocol")
        self._streams = self._gauge("streams", "Open streams", "protocol")
        self._datagrams = self._counter("udp_datagrams", "Datagrams by what became of them", "fate")
        self._udp_frames = self._counter("udp_frames", "Frames in datagrams by how they ended", "fate")
        self._told = self._counter("udp_results", "Results for cameras by what became of them", "fate")
        self._slack_s = self._histogram("slack_seconds", "Budget left when the answer was ready")
        self._unbudgeted_s = self._histogram(
            "unbudgeted_seconds", "From arrival to answer, requests without a budget"
        )
        self._shadow = Histogram(
            "paretogate_shadow_disagreement",
            "1 - F1 of early answers against their plan's last stage, on a share of them",
            ["plan"],
            buckets=DISAGREEMENTS,
            registry=self.registry,
        )
        self._expected = Gauge(
            "paretogate_escalation_share_expected",
            "Share escalated on calibration",
            ["plan"],
            registry=self.registry,
        )
        self._point_map = self._gauge(
            "operating_point_map", "mAP of a plan, as published", "operating_point", "plan"
        )
        self._point_mean_s = self._gauge(
            "operating_point_mean_seconds",
            "Mean cost of a point's plan, as published",
            "operating_point",
            "plan",
        )
        self._point_p99_s = self._gauge(
            "operating_point_p99_seconds", "p99 of a plan, as published", "operating_point", "plan"
        )
        self._build = Gauge(
            "paretogate_build_info",
            "What is served, and by what; always 1",
            ["version", "runtime", "runtime_version", "manifest", "profiles"],
            registry=self.registry,
        )
        for result in get_args(ReloadResult):
            self._reloads[result]
        for reason in get_args(AccessRefusal):
            self._refusals[reason]
        for waiting_for in get_args(Slowness):
            self._cut_off[waiting_for]
        for datagram_fate in get_args(DatagramFate):
            self._datagrams[datagram_fate]
        for frame_fate in get_args(FrameFate):
            self._udp_frames[frame_fate]
        for protocol in get_args(Protocol):
            self._arrivals[protocol]
            for outcome in get_args(OutcomeName):
                self._requests[protocol, outcome]

    def arrived(self, protocol: Protocol, headers: Headers | None = None) -> Arrival:
        """Count an arrival, and begin its trace where requests are traced."""
        self._arrivals[protocol].inc()
        return Arrival(self, protocol, self._tracing.begin(headers or {}, protocol))

    def count_end(self, protocol: Protocol, outcome: OutcomeName, problem: str | None) -> None:
        """Count how a request ended; called by `Arrival.end` alone."""
        self._requests[protocol, outcome].inc()
        if problem is not None:
            self._problems[problem].inc()

    def answered(
        self,
        operating_point: str,
        plan: str,
        *,
        total_ms: float,
        queue_ms: float,
        decode_ms: float,
        left_ms: float,
    ) -> None:
        """Record an answer's times; `left_ms` is infinite without a deadline and negative after it."""
        self._answers[operating_point, plan].inc()
        self._request_s[operating_point].observe(total_ms / 1e3)
        self._queue_s.observe(queue_ms / 1e3)
        self._decode_s.observe(decode_ms / 1e3)
        if left_ms < 0:
            self._missed[operating_point].inc()
        if left_ms != float("inf"):
            self._slack_s.observe(max(left_ms, 0.0) / 1e3)
        else:
            self._unbudgeted_s.observe(total_ms / 1e3)

    def reloaded(self, result: ReloadResult) -> None:
        """Count an attempt to put a new set in force."""
        self._reloads[result].inc()

    def refused(self, reason: AccessRefusal) -> None:
        """Count somebody who was not let in."""
        self._refusals[reason].inc()

    def let_in(self, key: str, frames: int) -> None:
        """Count frames that a key let in; by its name, of which there are as many as the file has."""
        self._let_in[key].inc(frames)

    def turned_away(self) -> None:
        """Count a connection that was one too many."""
        self._turned_away.inc()

    def cut_off(self, waiting_for: Slowness) -> None:
        """Count a connection that was too slow."""
        self._cut_off[waiting_for].inc()

    def shadowed(self, plan: str, disagreement: float) -> None:
        """Record how far an early answer was from its plan's last stage."""
        self._shadow.labels(plan).observe(disagreement)

    def streaming(self, protocol: Protocol, more: int) -> None:
        """Count a stream that begins, 1, or ends, -1."""
        self._streams.labels(protocol).inc(more)

    def streamed(self, protocol: Protocol, age_ms: float, *, reused: bool) -> None:
        """Record an answered frame of a stream; its age runs from its arrival, waiting included."""
        self._age_s.labels(protocol).observe(age_ms / 1e3)
        if reused:
            self._reused[protocol].inc()

    def datagram(self, fate: DatagramFate) -> None:
        """Count a datagram."""
        self._datagrams[fate].inc()

    def udp_frame(self, fate: FrameFate) -> None:
        """Count a frame of which a datagram came: how its pieces ended."""
        self._udp_frames[fate].inc()

    def told(self, fate: TellFate) -> None:
        """Count a result that was to be sent to a camera, or to a callback."""
        self._told[fate].inc()

    def stage(self, variant: str, latency_ms: float) -> None:
        """Record a stage that ran."""
        self._stage_s[variant].observe(latency_ms / 1e3)

    def cut(self, variant: str, reason: str) -> None:
        """Count a stage that was not run."""
        self._cut[variant, reason].inc()

    def decided(self, plan: str, escalated: bool) -> None:
        """Count a first rule's decision."""
        self._decisions[plan].inc()
        if escalated:
            self._escalations[plan].inc()

    def publish(
        self,
        plans: tuple[Plan, ...],
        points: Sequence[tuple[str, Plan]],
        *,
        version: str,
        runtime: str,
        runtime_version: str,
        manifest: str,
        profiles: str,
    ) -> None:
        """Show what is served; `points` by name, `profiles` says where the latency profiles come from."""
        self._build.clear()
        self._build.labels(version, runtime, runtime_version, manifest, profiles).set(1)
        self._expected.clear()
        for plan in plans:
            # Series that exist from the start make rates right from the first event on.
            self._decisions[plan.name]
            self._escalations[plan.name]
            if len(plan.stages) > 1 and plan.accuracy:
                self._expected.labels(plan.name).set(plan.accuracy[0].escalated[0])
            for stage in plan.stages:
                self._cut[stage.variant, "deadline"]
        for gauge in (self._point_map, self._point_mean_s, self._point_p99_s):
            gauge.clear()
        for name, plan in points:
            self._answers[name, plan.name]
            self._missed[name]
            accuracy = published_accuracy(plan)
            if accuracy is not None:
                self._point_map.labels(name, plan.name).set(accuracy.map)
            self._point_mean_s.labels(name, plan.name).set(plan.mean_ms / 1e3)
            self._point_p99_s.labels(name, plan.name).set(plan.p99_ms / 1e3)

    def watch(self, state: Callable[[], State]) -> None:
        """Read gauges from `state` at every scrape."""
        self.registry.register(_StateCollector(state))

    def watch_endpoints(self, states: Callable[[], Sequence[EndpointState]]) -> None:
        """Read the state of an engine's endpoints at every scrape."""
        self.registry.register(_EndpointCollector(states))

    def render(self) -> bytes:
        """Return the exposition in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> _Series[Counter]:
        return _Series(Counter(f"paretogate_{name}", text, labels, registry=self.registry))

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"paretogate_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(f"paretogate_{name}", text, labels, buckets=BUCKETS_S, registry=self.registry)


M = TypeVar("M", Counter, Histogram)


class _Series(dict[str | tuple[str, ...], M]):
    """A metric's series by the value of its label, or the values of its labels; made when first asked for.

    Finding one here costs a fraction of `labels`, which counts when every frame asks for ten.
    """

    def __init__(self, metric: M) -> None:
        super().__init__()
        self._metric: M = metric

    def __missing__(self, values: str | tuple[str, ...]) -> M:
        child = self._metric.labels(*((values,) if isinstance(values, str) else values))
        self[values] = child
        return child


class _StateCollector(Collector):
    def __init__(self, state: Callable[[], State]) -> None:
        self._state = state

    def describe(self) -> list[Metric]:
        """Return nothing: names are told at the first scrape, when there is a state to read."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges of the present state."""
        state = self._state()
        for name, text, value in (
            ("ready", "Whether the gateway takes requests", float(state.ready)),
            ("engine_up", "Whether the engine answers", float(state.engine_up)),
            ("inside", "Requests admitted and not yet ended", float(state.inside)),
            ("queue_length", "Requests waiting for a worker", float(state.waiting)),
            ("workers_busy", "Workers at work", float(state.busy)),
            ("workers", "Workers", float(state.workers)),
            ("limit", "Requests that may be inside", float(state.limit)),
        ):
            yield GaugeMetricFamily(f"paretogate_{name}", text, value=value)
        point = GaugeMetricFamily(
            "paretogate_operating_point", "1 for the point in force", labels=["operating_point"]
        )
        for operating_point in state.operating_points:
            point.add_metric([operating_point], float(operating_point == state.operating_point))
        yield point
        slow_down = GaugeMetricFamily(
            "paretogate_slow_down", "How many times longer than its profile a step takes now", labels=["step"]
        )
        for step, factor in state.slow_down:
            slow_down.add_metric([step], factor)
        yield slow_down
        escalated = GaugeMetricFamily(
            "paretogate_escalation_share", "Share of recent frames that were sent on", labels=["plan"]
        )
        for plan, share in state.escalated:
            escalated.add_metric([plan], share)
        yield escalated
        drift = GaugeMetricFamily(
            "paretogate_latency_drift",
            "1 when a variant's baseline does not hold any more",
            labels=["variant"],
        )
        for variant in state.variants:
            drift.add_metric([variant], float(variant in state.drifting))
        yield drift
        height = GaugeMetricFamily(
            "paretogate_drift_height",
            "How far frames, answers or escalations are from calibration's, 1 where it is an alarm",
            labels=["subject", "signal"],
        )
        alarm = GaugeMetricFamily(
            "paretogate_drift_alarm",
            "1 where frames, answers or escalations are not like calibration's",
            labels=["subject", "signal"],
        )
        for signal in state.signals:
            height.add_metric([signal.subject, signal.name], signal.height)
            alarm.add_metric([signal.subject, signal.name], float(signal.rings))
        yield height
        yield alarm
        certified = GaugeMetricFamily(
            "paretogate_certificate_valid", "0 while drift voids a plan's certificate", labels=["plan"]
        )
        for plan, holds in state.certified:
            certified.add_metric([plan], float(holds))
        yield certified


class _EndpointCollector(Collector):
    def __init__(self, states: Callable[[], Sequence[EndpointState]]) -> None:
        self._states = states

    def describe(self) -> list[Metric]:
        """Return nothing, as `_StateCollector` does."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield how each endpoint is."""
        well = GaugeMetricFamily(
            "paretogate_endpoint_up", "Whether an endpoint's circuit is closed", labels=["endpoint"]
        )
        in_flight = GaugeMetricFamily(
            "paretogate_endpoint_in_flight", "Calls at an endpoint", labels=["endpoint"]
        )
        for state in self._states():
            well.add_metric([state.name], float(state.well))
            in_flight.add_metric([state.name], float(state.in_flight))
        yield well
        yield in_flight
