"""What the gateway really exposes."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from router.metrics import Metrics, State
from tests.fakes import tiny_repository


@pytest.fixture(scope="session")
def exposed_metrics(tmp_path_factory: pytest.TempPathFactory) -> frozenset[str]:
    """Return the names of all series of a gateway that has seen every kind of event once."""
    folder: Path = tmp_path_factory.mktemp("exposed")
    frontier = tiny_repository(folder / "repository").frontier
    metrics = Metrics()
    metrics.publish(
        frontier.plans,
        [("fast", frontier.plans[0])],
        version="1",
        runtime="openvino",
        runtime_version="1",
        manifest="0",
        profiles="published",
    )
    metrics.watch(_state)
    metrics.arrived("http").end("shed", "overloaded")
    metrics.answered("fast", "tiny-0", total_ms=3.0, queue_ms=0.1, decode_ms=0.5, left_ms=-1.0)
    metrics.stage("tiny-0", 2.0)
    metrics.cut("tiny-1", "deadline")
    metrics.decided("tiny-0-then-tiny-1", True)
    return frozenset(
        sample.name
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    )


def _state() -> State:
    return State(
        ready=True,
        engine_up=True,
        inside=1,
        waiting=0,
        busy=1,
        workers=2,
        limit=8,
        operating_point="fast",
        operating_points=("fast", "accurate"),
        slow_down=(("tiny-0", 1.0),),
        escalated=(),
        drifting=frozenset(),
        variants=("tiny-0",),
    )
