"""What the board shows of every gateway: promises, operating points, latency, load, drift."""

from __future__ import annotations

from deploy.curve_panels import OPERATING_POINTS
from deploy.panel import UP, Panel, Query, Row, mean, named, quantile, rate
from deploy.slo import BURNS

_NOW = Row(
    "Now",
    (
        (
            Panel(
                "stat",
                "Gateway",
                "Whether it takes requests.",
                (Query("min(paretogate_ready)"),),
                4,
                4,
                mappings=UP,
            ),
            Panel(
                "stat",
                "Engine",
                "Whether it answers.",
                (Query("min(paretogate_engine_up)"),),
                4,
                4,
                mappings=UP,
            ),
            Panel(
                "stat",
                "Point in force",
                "Answers requests that name none; the controller moves it with load.",
                (Query("max by (operating_point) (paretogate_operating_point) == 1", "{{operating_point}}"),),
                4,
                4,
                options={"textMode": "name", "colorMode": "none"},
            ),
            Panel(
                "stat",
                "Requests",
                "Arrivals per second.",
                (Query("sum(rate(paretogate_arrivals_total[$__rate_interval]))"),),
                4,
                4,
                "reqps",
            ),
            Panel(
                "stat",
                "Answered in time",
                "Of the last five minutes' requests: within their budget or, without one, the promise.",
                (Query('1 - paretogate:bad_share:5m{slo="latency"}'),),
                4,
                4,
                "percentunit",
            ),
            Panel(
                "stat",
                "Alerts",
                "How many fire; RUNBOOK.md says of each what it means and what to do.",
                (Query('count(ALERTS{alertname=~"Paretogate.*", alertstate="firing"}) or vector(0)'),),
                4,
                4,
                thresholds=((1, "red"),),
            ),
        ),
    ),
)

_PROMISES = Row(
    "Promises",
    (
        (
            Panel(
                "timeseries",
                "Budgets kept",
                "Shares that are good over five minutes: requests answered in time, answers within their"
                " budget, requests not shed.",
                (
                    Query("1 - paretogate:bad_share:5m", "{{slo}}"),
                    Query("paretogate:slo:target", "{{slo}}, promised"),
                ),
                8,
                8,
                "percentunit",
                maximum=1.0,
            ),
            Panel(
                "timeseries",
                "Burn rate",
                "How many times faster than allowed budgets are spent; at 14.4 over an hour it is critical.",
                tuple(
                    Query(
                        f"paretogate:bad_share:{window} / on (slo) (1 - paretogate:slo:target)",
                        f"{{{{slo}}}}, {window}",
                    )
                    for window in dict.fromkeys(
                        each for burn in BURNS[:2] for each in (burn.long, burn.short)
                    )
                ),
                8,
                8,
            ),
            Panel(
                "timeseries",
                "Error budget left",
                "Of what may be bad in thirty days; below zero the promise is broken.",
                (Query("paretogate:slo:budget_left", "{{slo}}"),),
                8,
                8,
                "percentunit",
                maximum=1.0,
                signed=True,
            ),
        ),
    ),
)

_LATENCY = Row(
    "Latency",
    (
        (
            Panel(
                "timeseries",
                "Latency by operating point",
                "From arrival to answer.",
                (
                    Query(
                        quantile(0.5, "paretogate_request_seconds", "operating_point"),
                        "{{operating_point}} p50",
                    ),
                    Query(
                        quantile(0.99, "paretogate_request_seconds", "operating_point"),
                        "{{operating_point}} p99",
                    ),
                    Query("paretogate:slo:promise_seconds", "promised without a budget"),
                ),
                8,
                8,
                "s",
            ),
            Panel(
                "timeseries",
                "Stages",
                "Resize, inference and suppression of one variant; decoding and waiting apart.",
                (
                    Query(quantile(0.5, "paretogate_stage_seconds", "variant"), "{{variant}} p50"),
                    Query(quantile(0.99, "paretogate_stage_seconds", "variant"), "{{variant}} p99"),
                    Query(quantile(0.99, "paretogate_decode_seconds"), "decoding p99"),
                    Query(quantile(0.99, "paretogate_queue_seconds"), "waiting p99"),
                ),
                8,
                8,
                "s",
            ),
            Panel(
                "timeseries",
                "Slack",
                "Budget left when the answer was ready; p1 near zero means that budgets are just met.",
                (
                    Query(quantile(0.01, "paretogate_slack_seconds"), "p1"),
                    Query(quantile(0.5, "paretogate_slack_seconds"), "p50"),
                ),
                8,
                8,
                "s",
            ),
        ),
    ),
)

_LOAD = Row(
    "Load",
    (
        (
            Panel(
                "timeseries",
                "Outcomes",
                "Every request ends in one of them.",
                (Query(rate("paretogate_requests_total", "outcome"), "{{outcome}}"),),
                8,
                8,
                "reqps",
                stacked=True,
            ),
            Panel(
                "timeseries",
                "No answer, or not the whole one",
                "Problems by kind, and stages that were not run.",
                (
                    Query(rate("paretogate_problems_total", "problem"), "{{problem}}"),
                    Query(
                        rate("paretogate_cut_stages_total", "variant, reason"), "{{variant}} cut: {{reason}}"
                    ),
                ),
                8,
                8,
                "reqps",
            ),
            Panel(
                "timeseries",
                "Admission",
                "Requests inside against their limit, waiting, and workers.",
                (
                    Query("sum(paretogate_inside)", "inside"),
                    Query("sum(paretogate_limit)", "limit"),
                    Query("sum(paretogate_queue_length)", "waiting"),
                    Query("sum(paretogate_workers_busy)", "busy workers"),
                    Query("sum(paretogate_workers)", "workers"),
                ),
                8,
                8,
            ),
        ),
    ),
)

_DRIFT = Row(
    "Drift",
    (
        (
            Panel(
                "timeseries",
                "Slow-down",
                "How many times longer than its profile a step takes now; decisions use it.",
                (Query("max by (step) (paretogate_slow_down)", "{{step}}"),),
                12,
                8,
            ),
            Panel(
                "state-timeline",
                "Latency drift",
                "Red where a variant's profile does not hold any more.",
                (Query("max by (variant) (paretogate_latency_drift)", "{{variant}}"),),
                12,
                8,
                mappings=(named(("0", "holds", "green"), ("1", "drifted", "red")),),
            ),
        ),
        (
            Panel(
                "timeseries",
                "Drift of frames and answers",
                "How far the most unlike signals are from calibration; at 1 it is an alarm.",
                (
                    Query(
                        "topk(8, max by (subject, signal) (paretogate_drift_height))",
                        "{{subject}}: {{signal}}",
                    ),
                ),
                8,
                8,
                thresholds=((1, "red"),),
            ),
            Panel(
                "timeseries",
                "Certificates",
                "How many plans' certificates hold, and how many drift voids; then answers carry none.",
                (
                    Query("sum(paretogate_certificate_valid)", "hold"),
                    Query("count(paretogate_certificate_valid) - sum(paretogate_certificate_valid)", "void"),
                ),
                8,
                8,
                stacked=True,
            ),
            Panel(
                "timeseries",
                "What early answers lose",
                "1 - F1 of early answers against their plan's last stage, on a share of them.",
                (Query(mean("paretogate_shadow_disagreement", "plan", "5m"), "{{plan}}"),),
                8,
                8,
            ),
        ),
    ),
)

ROWS = (_NOW, _PROMISES, OPERATING_POINTS, _LATENCY, _LOAD, _DRIFT)
