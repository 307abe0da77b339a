"""One run as one HTML page that needs nothing else, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape

from loadtest.baseline import Machine
from loadtest.charts import delays, outcomes_over_time, over_time, plans_over_time, tail
from loadtest.latencies import Latencies
from loadtest.page import facts, milliseconds, page, table, tiles
from loadtest.sample import Sample
from loadtest.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Load:
    """What was asked of the gateway, for the head of a report; rate_hz is what multiples refer to."""

    url: str
    protocol: str
    frames: str
    schedule: str
    rate_hz: float
    seed: int
    operating_point: str | None
    request_budget_ms: float | None
    senders: int
    machine: Machine


def to_json(load: Load, verdict: Verdict) -> str:
    """Return load and verdict as an indented JSON document."""
    said = {
        "load": {**asdict(load), "machine": load.machine.model_dump()},
        "verdict": {"valid": verdict.valid, "reasons": verdict.reasons, **asdict(verdict)},
    }
    return json.dumps(said, indent=2) + "\n"


def to_html(load: Load, verdict: Verdict, samples: Sequence[Sample]) -> str:
    """Return the page: verdict, figures, latency over time and its tail, outcomes, plans, the generator."""
    asked = verdict.conditions
    state = "VALID" if verdict.valid else "INVALID"
    claim = f"{asked.percentile} within {asked.budget_ms:g} ms at {load.rate_hz:g} requests/s"
    body = (
        f'<header><h1><span class="badge {state.lower()}">{state}</span> {escape(claim)}</h1>'
        f"{_checks(verdict)}</header>"
        f"{_tiles(verdict)}"
        f"<h2>Latency over time</h2>{over_time(samples, asked.budget_ms)}"
        f"<h2>The slowest requests</h2>{tail(samples, asked.budget_ms, asked.quantile)}"
        f"<h2>Percentiles</h2>{_percentiles(verdict)}"
        f"<h2>Outcomes</h2>{outcomes_over_time(samples, asked.budget_ms)}"
        f"<h2>Plans and the stages that ran</h2>{plans_over_time(samples)}{_groups(verdict)}"
        f"{_details(verdict)}"
        f"<h2>The generator</h2>{delays(samples, asked.issue_delay_ms)}"
        f"<h2>Conditions</h2>{_conditions(load, verdict)}"
    )
    return page(f"{state}: {load.rate_hz:g} requests/s at {load.url}", body)


def _checks(verdict: Verdict) -> str:
    # What was missed first: it is what the page is opened for.
    ordered = sorted(verdict.checks, key=lambda check: check.passed)
    items = "".join(
        f'<li class="{"kept" if check.passed else "missed"}">{escape(check.says)}</li>' for check in ordered
    )
    return f'<ul class="checks">{items}</ul>'


def _tiles(verdict: Verdict) -> str:
    asked = verdict.conditions
    estimate = verdict.estimate_ms
    shown = [
        ("SLO attainment", f"{verdict.attainment:.2%}", f"{asked.quantile * 100:.10g}% is asked for"),
        ("p99", f"{milliseconds(verdict.latency.p99_ms)} ms" if verdict.latency else "–", "of the answers"),
        (
            f"{asked.percentile}, at most",
            f"{milliseconds(estimate)} ms" if estimate is not None else "–",
            f"of all requests, {asked.confidence:.2%} sure",
        ),
        ("answered", f"{verdict.answered_hz:.1f} /s", f"{verdict.offered_hz:.1f} /s offered"),
        ("escalated", f"{verdict.escalated:.1%}", "of the answers"),
    ]
    if verdict.accuracy is not None and verdict.effective is not None:
        shown.append(("mAP", f"{verdict.accuracy.map:.3f}", f"mAP@.5 {verdict.accuracy.map50:.3f}"))
        shown.append(("effective mAP", f"{verdict.effective.map:.3f}", "late and missing count as empty"))
    return tiles(shown)


def _conditions(load: Load, verdict: Verdict) -> str:
    budget, asked = load.request_budget_ms, verdict.conditions
    sent = f"{verdict.requests} of {verdict.planned} requests" + (
        ", then it was decided" if verdict.requests < verdict.planned else ""
    )
    allowed = "too few to say" if verdict.allowed is None else f"{verdict.allowed} might have been"
    return facts(
        (
            ("gateway", f"{load.url} over {load.protocol}"),
            ("load from", f"{load.machine.cpu}, {load.machine.cores} cores, {load.senders} sending"),
            ("frames", load.frames),
            ("schedule", f"{load.schedule}, {load.rate_hz:g} /s, seed {load.seed}; {sent}"),
            ("operating point", load.operating_point or "the gateway's choice"),
            ("budget sent along", f"{budget:g} ms" if budget is not None else "none"),
            ("late or missing", f"{verdict.late}; {allowed}, with {asked.confidence:.2%} confidence"),
            ("bound on p99 issue delay", f"{asked.issue_delay_ms:g} ms"),
        )
    )


def _percentiles(verdict: Verdict) -> str:
    named: tuple[tuple[str, Latencies | None], ...] = (
        ("latency (from the moment due)", verdict.latency),
        ("service (from the moment sent)", verdict.service),
        ("issue delay (the generator's own)", verdict.issue_delay),
    )
    rows = [
        (
            name,
            str(t.count),
            *(milliseconds(v) for v in (t.mean_ms, t.p50_ms, t.p90_ms, t.p99_ms, t.p999_ms, t.max_ms)),
        )
        for name, t in named
        if t is not None
    ]
    return table(("ms", "requests", "mean", "p50", "p90", "p99", "p99.9", "max"), rows)


def _groups(verdict: Verdict) -> str:
    rows = [
        (
            group.plan,
            "alone" if group.stages == (group.plan,) else " → ".join(group.stages) or "(not said)",
            str(group.latency.count),
            f"{group.share:.1%}",
            milliseconds(group.latency.p50_ms),
            milliseconds(group.latency.p99_ms),
        )
        for group in verdict.groups
    ]
    return table(("plan", "stages run", "requests", "share", "p50 ms", "p99 ms"), rows)


def _details(verdict: Verdict) -> str:
    parts = []
    if verdict.cuts:
        rows = [(reason, str(count)) for reason, count in verdict.cuts]
        parts.append("<h2>Answers cut short</h2>" + table(("why", "requests"), rows))
    if verdict.details:
        rows = [(reason, str(count)) for reason, count in verdict.details]
        parts.append("<h2>Requests without an answer</h2>" + table(("why", "requests"), rows))
    return "".join(parts)
