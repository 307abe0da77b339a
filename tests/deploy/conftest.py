"""What the gateway really exposes."""

from __future__ import annotations

import asyncio
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from model_repo.frontier import Certificate
from model_repo.publish import publish
from router.arm_metrics import ArmMetrics
from router.bootstrap import build
from router.budget import Deadline
from router.config import Config
from router.endpoints import EndpointState
from router.wishes import Wishes
from tests.fakes import FakeEngine, encode_image, squares_frame, tiny_repository


@pytest.fixture(scope="session")
def exposed_metrics(tmp_path_factory: pytest.TempPathFactory) -> frozenset[str]:
    """Return the names of all series of a wired gateway that has seen every kind of event once.

    Series with labels exist only from the first event on: a frame is answered, and what is hard to provoke
    is told to the metrics directly.
    """
    repository = tiny_repository(tmp_path_factory.mktemp("exposed") / "repository")
    certificate = Certificate(loss="misses", images=99, epsilon=0.1, delta=0.05, bound=0.1, empirical=0.0)
    plans = [plan.model_copy(update={"certificate": certificate}) for plan in repository.frontier.plans]
    publish(repository.root, repository.frontier.model_copy(update={"plans": tuple(plans)}), {})
    gateway = build(Config(repo=repository.root, measure="never"), engine=FakeEngine())
    try:
        metrics, now_ns = gateway.metrics, time.monotonic_ns()
        frame = encode_image(squares_frame([]))
        deadline = Deadline.after(now_ns, 60_000.0)
        asyncio.run(gateway.service.detect(frame, deadline, Wishes("balanced"), arrived_ns=now_ns))
        gateway.service.learn()
        metrics.arrived("http").end("shed", "overloaded")
        metrics.answered("fast", "tiny-0", total_ms=3.0, queue_ms=0.1, decode_ms=0.5, left_ms=-1.0)
        metrics.cut("tiny-1", "deadline")
        metrics.shadowed("tiny-0-then-tiny-1", 0.1)
        metrics.streaming("websocket", 1)
        metrics.streamed("websocket", 5.0, reused=True)
        metrics.told("sent")
        metrics.let_in("belt-7", 1)
        arms = ArmMetrics(metrics.registry)
        arms.compared(0.1)
        metrics.watch_endpoints(lambda: (EndpointState("127.0.0.1:8001", True, 0),))
        exposition = metrics.render().decode()
    finally:
        gateway.close()
    return frozenset(
        sample.name for family in text_string_to_metric_families(exposition) for sample in family.samples
    )
