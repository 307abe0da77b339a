"""The alerts that are not burn rates: each a condition, how long it has to hold, and what it asks of people.

An alert is here only where somebody has something to do; `RUNBOOK.md` says what, under the alert's name.
Ranges stand in angle brackets, `<30m>`, so that `deploy.rules` can shorten them all by one factor.
"""

from __future__ import annotations

from dataclasses import dataclass

from deploy.shares import Share

FEWEST_DECISIONS = 200
_STREAMED = 'protocol=~"websocket|grpc-stream|udp"'

_SENT_ON = Share(
    "30m",
    limit=0.2,
    fault=0.4,
    bad="sum by (plan) (rate(paretogate_escalations_total[<w>]))",
    total="sum by (plan) (rate(paretogate_escalation_decisions_total[<w>]))",
    expected="max by (plan) (paretogate_escalation_share_expected)",
)
_DROPPED = Share(
    "15m",
    limit=0.5,
    fault=0.75,
    bad=f'sum by (protocol) (rate(paretogate_requests_total{{outcome="superseded", {_STREAMED}}}[<w>]))',
    total=f"sum by (protocol) (rate(paretogate_arrivals_total{{{_STREAMED}}}[<w>]))",
)
_LOST = Share(
    "15m",
    limit=0.05,
    fault=0.1,
    bad='sum(rate(paretogate_udp_frames_total{fate="incomplete"}[<w>]))',
    total="sum(rate(paretogate_udp_frames_total[<w>]))",
)


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition of PromQL, for how long it has to hold, and how soon it is known.

    fault: for which fault the stated time is. share: what `expr` watches, where that is a share in a window;
    settles_s: what the gateway's own averages need, which no shorter window makes shorter.
    """

    alert: str
    severity: str
    expr: str
    for_s: float
    summary: str
    description: str
    fault: str
    share: Share | None = None
    settles_s: float = 0.0


CONDITIONS = (
    Condition(
        "ParetogateDown",
        "critical",
        'up{job="paretogate"} == 0 or absent(up{job="paretogate"})',
        30,
        "{{ with $labels.instance }}Gateway {{ . }} does{{ else }}All gateways do{{ end }} not answer"
        " Prometheus.",
        "Its metrics have not been read for half a minute (up is"
        " {{ if $labels.instance }}{{ $value }}{{ else }}absent{{ end }}).",
        "the process ends",
    ),
    Condition(
        "ParetogateEngineDown",
        "critical",
        "paretogate_engine_up == 0",
        15,
        "The engine behind {{ $labels.instance }} does not answer; callers get 503.",
        "Three inferences in a row failed (engine_up is {{ $value }}); the gateway asks again every second.",
        "the inference server ends",
        settles_s=5,
    ),
    Condition(
        "ParetogateEndpointDown",
        "warning",
        "paretogate_endpoint_up == 0",
        60,
        "Inference server {{ $labels.endpoint }} is left alone by {{ $labels.instance }}; it keeps failing.",
        "Its circuit is open (endpoint_up is {{ $value }}). Others answer in its place while there are any.",
        "the inference server ends",
        settles_s=5,
    ),
    Condition(
        "ParetogateLatencyDrift",
        "warning",
        "paretogate_latency_drift == 1",
        60,
        "{{ $labels.variant }} on {{ $labels.instance }} does not run as its profile says.",
        "The median of its last inferences is more than 1.3 times its profile's (latency_drift is"
        " {{ $value }}): plans are chosen on numbers that do not hold.",
        "a variant with ten answers a second slows down to twice its time",
        settles_s=20,
    ),
    Condition(
        "ParetogateEscalationDrift",
        "warning",
        "abs("
        f"paretogate:escalation:share{_SENT_ON.window}"
        f" - on (plan) group_left () {_SENT_ON.expected}"
        f") > {_SENT_ON.limit:g} and on (plan)"
        f" sum by (plan) (increase(paretogate_escalation_decisions_total[<30m>])) > {FEWEST_DECISIONS}",
        300,
        "Plan {{ $labels.plan }} sends on a share of frames that is {{ $value | humanizePercentage }} away"
        " from calibration's.",
        "Over half an hour, with 200 decisions at least: costs and accuracy are not those published.",
        "a plan's share moves by 0.4",
        share=_SENT_ON,
    ),
    Condition(
        "ParetogateDrift",
        "warning",
        "sum by (instance, subject) (paretogate_drift_alarm) > 0",
        60,
        "What {{ $labels.subject }} sees on {{ $labels.instance }} is not like calibration's.",
        "{{ $value }} of its signals ring; alignments and thresholds may not fit these frames.",
        "frames differ from calibration's by a spread",
        settles_s=20,
    ),
    Condition(
        "ParetogateCertificateVoid",
        "warning",
        "count by (instance) (paretogate_certificate_valid == 0)",
        60,
        "Drift voids certificates on {{ $labels.instance }}; answers carry none.",
        "{{ $value }} certified plans are concerned until the drift is over or they are calibrated anew.",
        "frames differ from calibration's by a spread",
        settles_s=20,
    ),
    Condition(
        "ParetogateRepublishFailed",
        "warning",
        "sum by (instance, result)"
        ' (increase(paretogate_reloads_total{result=~"refused|rolled back"}[<10m>])) > 0',
        0,
        "A new published set was {{ $labels.result }} by {{ $labels.instance }}; the old one is served.",
        "{{ $value | humanize }} times in ten minutes.",
        "a manifest that cannot be read is published",
        settles_s=5,
    ),
    Condition(
        "ParetogateStreamDrops",
        "warning",
        f"{_DROPPED.expr} > {_DROPPED.limit:g}",
        300,
        "{{ $value | humanizePercentage }} of the frames over {{ $labels.protocol }} are not looked at.",
        "On a stream the newest frame wins, so results are fresh, but cameras send more than twice what can"
        " be answered.",
        "three of four frames are dropped",
        share=_DROPPED,
    ),
    Condition(
        "ParetogateUdpFramesLost",
        "warning",
        f"{_LOST.expr} > {_LOST.limit:g}",
        300,
        "{{ $value | humanizePercentage }} of the frames over UDP lack datagrams.",
        "Datagrams were lost between the cameras and the gateway; a frame that lacks one is not looked at.",
        "one frame in ten loses a datagram",
        share=_LOST,
    ),
    Condition(
        "ParetogateChallengerStopped",
        "warning",
        "paretogate_challenger_up == 0",
        60,
        "The challenger on {{ $labels.instance }} is stopped; the champion answers everything.",
        "Its models failed three times in a row, or its classes are not the champion's (challenger_up is"
        " {{ $value }}). The comparison has ended.",
        "the challenger's models fail",
        settles_s=5,
    ),
    Condition(
        "ParetogateKeysRefused",
        "warning",
        "sum by (instance, reason)"
        ' (increase(paretogate_access_refused_total{reason=~"unknown key|expired"}[<15m>])) > 20',
        0,
        "Callers with keys that do not hold ({{ $labels.reason }}) ask {{ $labels.instance }}.",
        "{{ $value | humanize }} requests were refused in a quarter of an hour: a client that was not told of"
        " a new key, or somebody who tries keys.",
        "one such request a second",
        settles_s=30,
    ),
)
