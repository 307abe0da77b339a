"""A real Prometheus beside a running gateway: alerts fire on their faults in time, and the board has data."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from deploy.board import every_panel
from deploy.callers import Traffic, traffic
from deploy.live import Key, Seen, find_prometheus, prometheus
from deploy.rules import Scale
from deploy.scene import Scene, Served, scene
from deploy.slo import BURNS
from model_repo import publish, triton
from model_repo.detections import Detections
from model_repo.escalation import features
from model_repo.frame import decode
from model_repo.frontier import Certificate
from model_repo.reference import TRACKED, Reference, observation
from tests.e2e.gateway_process import gateway_process
from tests.e2e.paced_gateway import PACE_FILE
from tests.e2e.test_router_server import wait_until
from tests.e2e.triton_server import run_triton
from tests.fakes import CLASSES, Square, encode_image, squares_frame, tiny_repository

pytestmark = [
    pytest.mark.skipif(
        find_prometheus() is None,
        reason="prometheus is not installed (tests/install_system.sh installs it on Debian)",
    ),
    pytest.mark.timeout(600),
]

SCALE = Scale(1 / 60, 1.0)
WINDOW = "10s"
PACE_MS, CROWDED_MS, SLOW_MS, BUDGET_MS = 20, 400, 1_200, 1_000.0
# A square that is no doubt one, and two of which the tiny cascade asks its second stage: half of each.
SURE = encode_image(squares_frame([Square(0, 0, 1)]))
DOUBTFUL = encode_image(squares_frame([Square(0, 0, 1, 120), Square(2, 1, 1, 120)]))
# In no order that a look now and then could fall in step with, and in a number that no client's steps divide.
MIXED = tuple(random.Random(0).sample((SURE, DOUBTFUL) * 20 + (SURE,), 41))
# Brighter than both, and all of it doubtful.
SHIFTED = encode_image(squares_frame([Square(place, row, 1, 120) for place in range(4) for row in range(2)]))


def queries(*, triton: bool) -> tuple[str, ...]:
    """Return what the board asks of inference servers, or of everything else."""
    return tuple(
        query.expr
        for row, panel in every_panel()
        for query in panel.queries
        if (row.feature == "Triton") == triton
    )


def burning(name: str) -> tuple[Key, ...]:
    """Return an objective's alerts of all windows."""
    return tuple((name, f"{burn.long}/{burn.short}") for burn in BURNS)


def fire_in_time(seen: tuple[Seen, ...]) -> None:
    """Fail unless every alert fired within its stated time."""
    assert all(one.holds for one in seen), [one for one in seen if not one.holds]


@contextmanager
def paced(folder: Path) -> Iterator[tuple[Scene, Path]]:
    """Run a gateway with every feature, and the file that says how long its inferences take."""
    pace = folder / "pace"
    pace.write_text(str(PACE_MS))
    certificate = Certificate(loss="misses", images=99, epsilon=0.1, delta=0.05, bound=0.1, empirical=0.0)
    published = []
    for name in ("champion", "challenger"):
        # Published as slower than it is: a shared machine is late now and then.
        frontier = tiny_repository(folder / name, mean_ms=2.0 * PACE_MS).frontier
        changed = {
            "plans": tuple(plan.model_copy(update={"certificate": certificate}) for plan in frontier.plans),
            "references": (light_of("tiny-0"),),
        }
        published.append(publish.publish(folder / name, frontier.model_copy(update=changed), {}))
    champion, challenger = published
    served = Served(
        champion,
        challenger,
        ("--threads", "1", "--workers", "48", "--max-queue", "8"),
        module="tests.e2e.paced_gateway",
    )
    callers = Traffic(MIXED, 8.0, BUDGET_MS, "balanced")
    before = os.environ.get(PACE_FILE)
    os.environ[PACE_FILE] = str(pace)
    try:
        with scene(served, callers, SCALE, folder) as running:
            yield running, pace
    finally:
        del os.environ[PACE_FILE]
        if before is not None:
            os.environ[PACE_FILE] = before


def light_of(variant: str) -> Reference:
    """Return what calibration saw of the two frames' light; of all else it says nothing."""
    nothing = Detections.make([], [], [])
    seen = np.array(
        [observation(features(nothing, decode(frame)), nothing, len(CLASSES)) for frame in (SURE, DOUBTFUL)]
    )
    light = TRACKED.index("brightness")
    spread = np.full(seen.shape[1], 1e6)
    # A few frames of one kind in a row are no drift.
    spread[light] = 4.5 * seen[:, light].std()
    return Reference(
        variant=variant, images=2, mean=tuple(seen.mean(axis=0).tolist()), spread=tuple(spread.tolist())
    )


def test_alerts_fire_on_their_faults_in_time_and_the_board_has_data(tmp_path: Path) -> None:
    """Healthy load raises nothing and fills every panel; then each fault raises what it is stated to."""
    with paced(tmp_path) as (running, pace):
        watching, callers = running.prometheus, running.callers
        time.sleep(8)
        assert watching.firing() == (), callers.outcomes
        wait_until(lambda: not watching.without_data(queries(triton=False), WINDOW))
        assert watching.failed_rules() == ()

        pace.write_text(str(SLOW_MS))
        slow = (
            *burning("ParetogateLatencyBurn"),
            *burning("ParetogateBudgetMisses"),
            ("ParetogateLatencyDrift", ""),
        )
        fire_in_time(watching.watch(slow))
        pace.write_text(str(PACE_MS))
        callers.frames, callers.rate_hz = (SHIFTED,), 25.0
        shifted = ("ParetogateDrift", "ParetogateCertificateVoid", "ParetogateEscalationDrift")
        fire_in_time(watching.watch((name, "") for name in shifted))

        # The slow engine may have shed some itself: a pair of long windows would remember that for minutes.
        shedding = burning("ParetogateShedding")[:1]
        watching.quiet(shedding, 60)
        pace.write_text(str(CROWDED_MS))
        # More at once than may be inside.
        crowd = Traffic(MIXED, 200.0, BUDGET_MS, "balanced", key=running.key)
        fire_in_time(watching.watch(shedding, lambda: traffic(running.url, crowd, clients=96)))

        os.kill(running.pid, signal.SIGKILL)
        fire_in_time(watching.watch([("ParetogateDown", "")]))
        said = [text for firing in watching.firing() for text in (firing.summary, firing.description)]
        assert not [text for text in said if "<" in text or "{{" in text or "no value" in text]


def test_a_dead_inference_server_is_told(triton_env: Path, tmp_path: Path) -> None:
    """With Triton gone the engine's and the server's alerts fire in time; before, its panels have data."""
    repository = tiny_repository(tmp_path / "repository", variants=1)
    rendered = triton.render_repository(repository, "python", tmp_path / "rendered")
    frames = Traffic((SURE, DOUBTFUL), 10.0, operating_point="fast")
    with run_triton(triton_env, rendered, tmp_path / "triton.log") as server:
        options = ("--runtime", "triton", "--triton-url", server.url, "--triton-runs", "openvino")
        with (
            gateway_process(repository.root, *options) as gateway,
            prometheus([gateway.admin_url.removeprefix("http://")], SCALE, tmp_path / "watch") as watching,
            traffic(gateway.url, frames),
        ):
            queries = [
                query.expr
                for row, panel in every_panel()
                if row.feature == "Triton"
                for query in panel.queries
            ]
            wait_until(lambda: not watching.without_data(queries, WINDOW))
            down = [("ParetogateEngineDown", ""), ("ParetogateEndpointDown", "")]
            assert not {firing.key for firing in watching.firing()} & set(down)
            server.kill()
            fire_in_time(watching.watch(down))
