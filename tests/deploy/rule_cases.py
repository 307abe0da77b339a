"""What Prometheus reads of a gateway that is well, and of one with each fault, for `promtool test rules`.

The healthy gateway is only just well: of everything that may be bad there is nearly as much as may be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Gauge:
    """A value that stays."""

    value: float


@dataclass(frozen=True, slots=True)
class Counter:
    """A count that grows by so much per minute."""

    per_minute: float


Series = Mapping[str, Gauge | Counter]

_REQUESTS = 'paretogate_requests_total{protocol="http", outcome="%s"}'
_STREAMED = 'paretogate_requests_total{protocol="websocket", outcome="%s"}'
_MISSED = 'paretogate_budget_missed_total{operating_point="fast"}'
_UNBUDGETED = 'paretogate_unbudgeted_seconds_bucket{le="%s"}'
_UDP = 'paretogate_udp_frames_total{fate="%s"}'
_REFUSED = 'paretogate_access_refused_total{instance="a", reason="%s"}'

HEALTHY: Series = {
    'up{job="paretogate", instance="a"}': Gauge(1),
    'paretogate_engine_up{instance="a"}': Gauge(1),
    'paretogate_endpoint_up{instance="a", endpoint="b:8001"}': Gauge(1),
    'paretogate_latency_drift{instance="a", variant="small"}': Gauge(0),
    'paretogate_drift_alarm{instance="a", subject="small", signal="brightness"}': Gauge(0),
    'paretogate_drift_alarm{instance="a", subject="small", signal="contrast"}': Gauge(0),
    'paretogate_certificate_valid{instance="a", plan="cascade"}': Gauge(1),
    'paretogate_certificate_valid{instance="a", plan="other"}': Gauge(1),
    'paretogate_challenger_up{instance="a"}': Gauge(1),
    # Of 600 a minute 0.9 % are bad, in five ways.
    _REQUESTS % "answered": Counter(598),
    _REQUESTS % "shed": Counter(1),
    _REQUESTS % "failed": Counter(0.5),
    _REQUESTS % "cancelled": Counter(0.5),
    _REQUESTS % "rejected": Counter(500),
    _MISSED: Counter(2),
    "paretogate_slack_seconds_count": Counter(398),
    _UNBUDGETED % "0.05": Counter(198.6),
    _UNBUDGETED % "+Inf": Counter(200),
    "paretogate_unbudgeted_seconds_count": Counter(200),
    'paretogate_reloads_total{instance="a", result="taken"}': Counter(1),
    'paretogate_reloads_total{instance="a", result="refused"}': Counter(0),
    'paretogate_escalations_total{plan="cascade"}': Counter(60),
    'paretogate_escalation_decisions_total{plan="cascade"}': Counter(150),
    'paretogate_escalation_share_expected{plan="cascade"}': Gauge(0.25),
    _STREAMED % "answered": Counter(0),
    _STREAMED % "superseded": Counter(45),
    'paretogate_arrivals_total{protocol="websocket"}': Counter(100),
    _UDP % "whole": Counter(96),
    _UDP % "incomplete": Counter(4),
    _REFUSED % "unknown key": Counter(1),
    _REFUSED % "no key": Counter(100),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """What is otherwise from some moment on, and the alerts that have to fire then, by name and windows."""

    name: str
    series: Series
    alerts: tuple[str, ...]
    windows: tuple[str, ...] = ("",)
    gone: tuple[str, ...] = field(default=())


_BURNS = ("1h/5m", "6h/30m", "1d/2h", "3d/6h")

# These take days of health before them to be judged fairly.
BURNING = (
    Fault(
        "every request is shed",
        {_REQUESTS % "answered": Counter(0), _REQUESTS % "shed": Counter(600)},
        ("ParetogateShedding", "ParetogateLatencyBurn"),
        _BURNS,
    ),
    Fault(
        "every answer is late",
        {
            _MISSED: Counter(398),
            _UNBUDGETED % "0.05": Counter(0),
        },
        ("ParetogateBudgetMisses", "ParetogateLatencyBurn"),
        _BURNS,
    ),
    Fault(
        "every caller leaves",
        {_REQUESTS % "answered": Counter(0), _REQUESTS % "cancelled": Counter(600)},
        ("ParetogateLatencyBurn",),
        _BURNS,
    ),
    Fault(
        "every inference fails",
        {_REQUESTS % "answered": Counter(0), _REQUESTS % "failed": Counter(600)},
        ("ParetogateLatencyBurn",),
        _BURNS,
    ),
)

FAULTS = (
    Fault("a gateway ends", {'up{job="paretogate", instance="a"}': Gauge(0)}, ("ParetogateDown",)),
    Fault("all are gone", {}, ("ParetogateDown",), gone=('up{job="paretogate", instance="a"}',)),
    Fault("the engine is ill", {'paretogate_engine_up{instance="a"}': Gauge(0)}, ("ParetogateEngineDown",)),
    Fault(
        "a server is ill",
        {'paretogate_endpoint_up{instance="a", endpoint="b:8001"}': Gauge(0)},
        ("ParetogateEndpointDown",),
    ),
    Fault(
        "a variant is slow",
        {'paretogate_latency_drift{instance="a", variant="small"}': Gauge(1)},
        ("ParetogateLatencyDrift",),
    ),
    Fault(
        "40 points more are sent on",
        {'paretogate_escalations_total{plan="cascade"}': Counter(0.65 * 150)},
        ("ParetogateEscalationDrift",),
    ),
    Fault(
        "other frames",
        {
            'paretogate_drift_alarm{instance="a", subject="small", signal="brightness"}': Gauge(1),
            'paretogate_drift_alarm{instance="a", subject="small", signal="contrast"}': Gauge(1),
            'paretogate_certificate_valid{instance="a", plan="cascade"}': Gauge(0),
            'paretogate_certificate_valid{instance="a", plan="other"}': Gauge(0),
        },
        ("ParetogateDrift", "ParetogateCertificateVoid"),
    ),
    Fault(
        "a broken set",
        {'paretogate_reloads_total{instance="a", result="refused"}': Counter(1)},
        ("ParetogateRepublishFailed",),
    ),
    Fault(
        "cameras send too much",
        {_STREAMED % "superseded": Counter(75)},
        ("ParetogateStreamDrops",),
    ),
    Fault(
        "datagrams are lost",
        {_UDP % "whole": Counter(90), _UDP % "incomplete": Counter(10)},
        ("ParetogateUdpFramesLost",),
    ),
    Fault(
        "the challenger is stopped",
        {'paretogate_challenger_up{instance="a"}': Gauge(0)},
        ("ParetogateChallengerStopped",),
    ),
    Fault(
        "a key is tried",
        {_REFUSED % "unknown key": Counter(60)},
        ("ParetogateKeysRefused",),
    ),
)
