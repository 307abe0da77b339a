"""What Prometheus sees."""

from __future__ import annotations

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from router.metrics import Metrics
from tests.router.conftest import Bench, admin_of, http_to, sample

pytestmark = pytest.mark.anyio


def test_a_request_ends_once() -> None:
    """Ending twice is a bug and says so."""
    arrival = Metrics().arrived("http")
    arrival.end("answered")
    with pytest.raises(RuntimeError, match="twice"):
        arrival.end("failed")


async def test_every_arrival_has_one_outcome(bench: Bench, frame: bytes) -> None:
    """Whatever is sent, arrivals and outcomes add up."""
    gateway = bench()
    async with http_to(gateway) as http:
        for content, headers in (
            (frame, {"Content-Type": "image/png"}),
            (frame[:50], {"Content-Type": "image/png"}),
            (frame, {"Content-Type": "text/plain"}),
            (frame, {"Content-Type": "image/png", "X-Latency-Budget-Ms": "0.1"}),
        ):
            await http.post("/v1/detect", content=content, headers=headers)
    ended = {
        outcome: sample(gateway, "paretogate_requests_total", protocol="http", outcome=outcome)
        for outcome in ("answered", "shed", "cancelled", "rejected", "failed")
    }
    assert ended == {"answered": 1, "shed": 0, "cancelled": 0, "rejected": 3, "failed": 0}
    assert sample(gateway, "paretogate_arrivals_total", protocol="http") == 4
    assert sample(gateway, "paretogate_problems_total", problem="unmeetable-budget") == 1


async def test_the_exposition_parses_and_shows_the_state(bench: Bench, frame: bytes) -> None:
    """Prometheus' own parser reads /metrics, on its own port, which has every family that operators need."""
    gateway = bench()
    async with http_to(gateway) as http:
        headers = {"Content-Type": "image/png", "X-Latency-Budget-Ms": "500"}
        await http.post("/v1/detect", content=frame, headers=headers)
        assert (await http.get("/metrics")).status_code == 404
    async with admin_of(gateway) as admin:
        response: httpx.Response = await admin.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(response.text)}
    for name in (
        "requests", "arrivals", "answers", "request_seconds", "stage_seconds", "queue_seconds",
        "slack_seconds", "decode_seconds", "cut_stages", "escalations", "escalation_decisions",
        "budget_missed", "build_info",
        "ready", "engine_up", "inside", "queue_length", "workers_busy", "limit", "operating_point",
        "slow_down", "latency_drift", "access_refused", "connections_refused", "connections_cut",
    ):  # fmt: skip
        assert f"paretogate_{name}" in families, name
    points = {s.labels["operating_point"]: s.value for s in families["paretogate_operating_point"].samples}
    assert points == {"fast": 0, "balanced": 1, "accurate": 0}
    assert families["paretogate_ready"].samples[0].value == 1


async def test_answers_without_a_budget_are_timed_apart(bench: Bench, frame: bytes) -> None:
    """A request's time goes into `unbudgeted_seconds` or its slack into `slack_seconds`, never both."""
    gateway = bench()
    async with http_to(gateway) as http:
        for headers in ({}, {"X-Latency-Budget-Ms": "500"}, {"X-Latency-Budget-Ms": "600"}):
            response = await http.post(
                "/v1/detect", content=frame, headers={"Content-Type": "image/png", **headers}
            )
            assert response.status_code == 200
    gateway.service.learn()
    assert sample(gateway, "paretogate_unbudgeted_seconds_count") == 1
    assert sample(gateway, "paretogate_slack_seconds_count") == 2


def test_what_alerts_count_is_there_before_its_first_event(bench: Bench) -> None:
    """A rate over a series that begins with its first event would not see that event."""
    gateway = bench()
    for point in ("fast", "balanced", "accurate"):
        assert sample(gateway, "paretogate_budget_missed_total", operating_point=point) == 0
    for fate in ("whole", "incomplete"):
        assert sample(gateway, "paretogate_udp_frames_total", fate=fate) == 0
    assert sample(gateway, "paretogate_udp_datagrams_total", fate="malformed") == 0
