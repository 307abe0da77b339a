"""What the board shows of features that a gateway may have turned on; such rows are folded at first."""

from __future__ import annotations

from deploy.panel import UP, Panel, Query, Row, mean, quantile, rate

_STREAMED = 'protocol=~"websocket|grpc-stream|udp"'

_STREAMS = Row(
    "Streams",
    (
        (
            Panel(
                "timeseries",
                "Frames of streams",
                "By how they ended; superseded: a newer one came before its turn.",
                (
                    Query(
                        rate("paretogate_requests_total", "protocol, outcome", _STREAMED),
                        "{{protocol}}: {{outcome}}",
                    ),
                ),
                8,
                8,
                "reqps",
                stacked=True,
            ),
            Panel(
                "timeseries",
                "Age of answers",
                "From a frame's arrival to its answer, waiting included.",
                tuple(
                    Query(
                        quantile(q, "paretogate_stream_age_seconds", "protocol"),
                        f"{{{{protocol}}}} p{100 * q:g}",
                    )
                    for q in (0.5, 0.99)
                ),
                8,
                8,
                "s",
            ),
            Panel(
                "timeseries",
                "Open streams",
                "And the frames per second that hardly differed and were answered with an earlier answer.",
                (
                    Query("sum by (protocol) (paretogate_streams)", "{{protocol}}"),
                    Query(rate("paretogate_reused_total", "protocol"), "{{protocol}}, reused/s"),
                ),
                8,
                8,
            ),
        ),
    ),
    feature="streams",
)

_UDP = Row(
    "Cameras over UDP",
    (
        tuple(
            Panel(
                "timeseries",
                title,
                text,
                (Query(rate(metric, "fate"), "{{fate}}"),),
                8,
                8,
                unit,
                stacked=True,
            )
            for title, text, metric, unit in (
                (
                    "Frames in datagrams",
                    "Incomplete ones lack a datagram that never came.",
                    "paretogate_udp_frames_total",
                    "reqps",
                ),
                (
                    "Datagrams",
                    "By what became of them; foreign: from a network that is not heard.",
                    "paretogate_udp_datagrams_total",
                    "pps",
                ),
                (
                    "Results",
                    "For cameras and callbacks, by what became of them.",
                    "paretogate_udp_results_total",
                    "reqps",
                ),
            )
        ),
    ),
    feature="UDP",
)

_ARMS = Row(
    "Champion and challenger",
    (
        (
            Panel(
                "stat",
                "Challenger",
                "Whether it runs.",
                (Query("min(paretogate_challenger_up)"),),
                4,
                8,
                mappings=UP,
            ),
            Panel(
                "stat",
                "Challenger's share",
                "Of frames, those drawn for it.",
                (Query("max(paretogate_challenger_share)"),),
                4,
                8,
                "percentunit",
            ),
            Panel(
                "timeseries",
                "Frames by arm",
                "By how they ended in it.",
                (Query(rate("paretogate_arm_requests_total", "arm, outcome"), "{{arm}}: {{outcome}}"),),
                8,
                8,
                "reqps",
            ),
            Panel(
                "timeseries",
                "Latency by arm",
                "From arrival to answer; of a shadow run from its turn. Work: decoding and stages alone.",
                (
                    *(
                        Query(
                            quantile(q, "paretogate_arm_request_seconds", "arm"), f"{{{{arm}}}} p{100 * q:g}"
                        )
                        for q in (0.5, 0.99)
                    ),
                    Query(mean("paretogate_arm_service_seconds", "arm", "5m"), "{{arm}} work, mean"),
                ),
                8,
                8,
                "s",
            ),
        ),
        (
            Panel(
                "timeseries",
                "Escalated by arm",
                "Of uncut answers, those that their first rule sent on.",
                (
                    Query(
                        f"{rate('paretogate_arm_escalations_total', 'arm')}"
                        f" / ({rate('paretogate_arm_escalation_decisions_total', 'arm')} > 0)",
                        "{{arm}}",
                    ),
                ),
                8,
                8,
                "percentunit",
                maximum=1.0,
            ),
            Panel(
                "timeseries",
                "Budgets missed by arm",
                "Answers per second after their deadline.",
                (Query(rate("paretogate_arm_budget_missed_total", "arm"), "{{arm}}"),),
                8,
                8,
                "reqps",
            ),
            Panel(
                "timeseries",
                "Disagreement",
                "1 - F1 of the challenger's answers against the champion's; where frames are shadowed.",
                (
                    Query(
                        "sum(rate(paretogate_arm_disagreement_sum[5m]))"
                        " / (sum(rate(paretogate_arm_disagreement_count[5m])) > 0)",
                        "mean",
                    ),
                ),
                8,
                8,
            ),
        ),
    ),
    feature="a challenger",
)

_KEYS = Row(
    "Keys and connections",
    (
        (
            Panel(
                "timeseries",
                "Frames by key",
                "Those that a key let in.",
                (Query(rate("paretogate_key_frames_total", "key"), "{{key}}"),),
                8,
                8,
                "reqps",
            ),
            Panel(
                "timeseries",
                "Refused",
                "Who was not let in, by reason.",
                (Query(rate("paretogate_access_refused_total", "reason"), "{{reason}}"),),
                8,
                8,
                "reqps",
            ),
            Panel(
                "timeseries",
                "Connections",
                "Closed at once because there were too many, or cut because they were too slow.",
                (
                    Query(
                        "sum(rate(paretogate_connections_refused_total[$__rate_interval]))", "one too many"
                    ),
                    Query(rate("paretogate_connections_cut_total", "waiting_for"), "slow: {{waiting_for}}"),
                ),
                8,
                8,
                "cps",
            ),
        ),
    ),
    feature="keys",
)

_SERVERS = Row(
    "Inference servers",
    (
        (
            Panel(
                "state-timeline",
                "Servers",
                "Red while a server is left alone because it keeps failing.",
                (Query("min by (endpoint) (paretogate_endpoint_up)", "{{endpoint}}"),),
                12,
                8,
                mappings=UP,
            ),
            Panel(
                "timeseries",
                "Calls at servers",
                "In flight.",
                (Query("sum by (endpoint) (paretogate_endpoint_in_flight)", "{{endpoint}}"),),
                12,
                8,
            ),
        ),
    ),
    feature="Triton",
)

ROWS = (_STREAMS, _UDP, _ARMS, _KEYS, _SERVERS)
