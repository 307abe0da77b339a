"""The faults that a watched gateway is put to, in their order, and the alerts that each has to raise.

Nothing here is a number of one machine: how long a process stands still follows from the budget and from the
models' own latencies, and what overloads a gateway is found by asking more and more of it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

from deploy.callers import Traffic, filming, flooding, traffic
from deploy.demo import POINT, stage_s
from deploy.faults import interrupted, shifted, throttled
from deploy.scene import Scene
from model_repo import publish
from router.client import GatewayClient, GatewayError
from tests.e2e.triton_server import TritonServer

BUDGET_MS = 150.0
"""Of most requests. The planner takes no stage for more than four times as slow as its profile says (see
`router.drift.SlowDown`), and four times the first stage's p99 fits this: it goes on answering whatever
interrupts it."""
_STANDS = 1.03
"""How long a process stands still, in budgets."""
_NOBODY_HZ, _MORE = 0.5, 2.0
# What takes long is easily met in its middle.
_LONGEST = "accurate"
# A stage is interrupted at least so often, and of the time so much is left.
_TURNS, _LEFT = 3, 0.2


@dataclass(frozen=True, slots=True)
class Ground:
    """What faults are done to: a scene, frames, and the Triton of a second gateway, where there is one."""

    run: Scene
    frames: Sequence[bytes]
    triton: TritonServer | None


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong while what `make` gives lasts, and the alerts that have to say so."""

    name: str
    alerts: tuple[str, ...]
    make: Callable[[Ground], AbstractContextManager[object]]
    needs_triton: bool = False


def _datagrams_lost(ground: Ground) -> AbstractContextManager[object]:
    return filming(ground.run.udp_address, ground.frames, 5.0, loses=5)


def _wrong_key(ground: Ground) -> AbstractContextManager[object]:
    stranger = Traffic(ground.frames, 10.0, key=f"pg_{'0' * 12}_{'0' * 64}")
    return traffic(ground.run.url, stranger)


@contextmanager
def _otherwise(callers: Traffic, rate_hz: float, frames: Sequence[bytes] | None = None) -> Iterator[None]:
    """Let callers come at another rate, and perhaps with other frames, until the block ends."""
    before = callers.frames, callers.rate_hz
    callers.frames, callers.rate_hz = before[0] if frames is None else frames, rate_hz
    yield
    callers.frames, callers.rate_hz = before


def _other_frames(ground: Ground) -> AbstractContextManager[object]:
    """Send other frames, and more of them: the escalation alert wants so many decisions in its window."""
    callers = ground.run.callers
    return _otherwise(callers, _MORE * callers.rate_hz, tuple(shifted(frame) for frame in callers.frames))


@contextmanager
def _stands_still(ground: Ground) -> Iterator[None]:
    """Let the gateway stand still in the middle of nearly every request of one caller, in place of many.

    Where many ask, whoever waits for a worker meanwhile is shed, not late.
    """
    frames, position = ground.frames, 0
    with GatewayClient(ground.run.url, api_key=ground.run.key) as client:

        def ask() -> float | None:
            nonlocal position
            position += 1
            try:
                answer = client.detect(
                    frames[position % len(frames)], budget_ms=BUDGET_MS, operating_point=_LONGEST
                )
            except GatewayError:
                return None
            return answer.timing.total_ms

        with (
            _otherwise(ground.run.callers, _NOBODY_HZ),
            interrupted(ground.run.pid, ask, stands_s=_STANDS * BUDGET_MS / 1e3),
        ):
            yield


def _crowd(ground: Ground) -> AbstractContextManager[object]:
    crowd = Traffic(ground.frames, 0.0, BUDGET_MS, POINT, key=ground.run.key)
    return traffic(ground.run.url, crowd, clients=48)


@contextmanager
def _a_fifth_left(ground: Ground) -> Iterator[None]:
    """Interrupt every stage of ten answers a second, for which the alert's time is stated."""
    run = ground.run
    runs_s = stage_s(run.served.champion.frontier) / _TURNS
    with (
        _otherwise(run.callers, _MORE * run.callers.rate_hz),
        throttled(run.pid, runs_s=runs_s, stands_s=runs_s * (1.0 / _LEFT - 1.0)),
    ):
        yield


def _flood(ground: Ground) -> AbstractContextManager[object]:
    return flooding(ground.run.grpc_address, ground.run.key, ground.frames, BUDGET_MS)


def _triton_ends(ground: Ground) -> AbstractContextManager[object]:
    assert ground.triton is not None, "the fault says that it needs one"
    return _done(ground.triton.kill)


def _broken_manifest(ground: Ground) -> AbstractContextManager[object]:
    manifest = ground.run.served.champion.root / publish.MANIFEST
    return _done(lambda: manifest.write_text(manifest.read_text()[:1000]))


def _other_classes(ground: Ground) -> AbstractContextManager[object]:
    """Publish the same models under other classes: no challenger of before can be compared with them."""
    champion = ground.run.served.champion
    dataset = champion.frontier.dataset
    renamed = dataset.model_copy(update={"classes": tuple(f"new {name}" for name in dataset.classes)})
    changed = champion.frontier.model_copy(update={"dataset": renamed})
    return _done(lambda: publish.publish(champion.root, changed, {}))


def _gateway_ends(ground: Ground) -> AbstractContextManager[object]:
    return _done(lambda: os.kill(ground.run.pid, signal.SIGKILL))


def _done(act: Callable[[], object]) -> AbstractContextManager[None]:
    """Do what cannot be undone."""
    act()
    return nullcontext()


# Those that leave least behind come first.
FAULTS = (
    Fault("datagrams are lost", ("ParetogateUdpFramesLost",), _datagrams_lost),
    Fault("a wrong key is tried", ("ParetogateKeysRefused",), _wrong_key),
    Fault(
        "frames are dark and blurred",
        ("ParetogateDrift", "ParetogateCertificateVoid", "ParetogateEscalationDrift"),
        _other_frames,
    ),
    # Before what slows down stages that nobody runs afterwards: theirs would not be over.
    Fault("a fifth of the time is left", ("ParetogateLatencyDrift",), _a_fifth_left),
    Fault("it stands still now and then", ("ParetogateLatencyBurn", "ParetogateBudgetMisses"), _stands_still),
    Fault("too many requests", ("ParetogateShedding",), _crowd),
    Fault("a camera sends too much", ("ParetogateStreamDrops",), _flood),
    Fault("Triton ends", ("ParetogateEngineDown", "ParetogateEndpointDown"), _triton_ends, needs_triton=True),
    Fault("a broken manifest", ("ParetogateRepublishFailed",), _broken_manifest),
    Fault("champion and challenger differ in classes", ("ParetogateChallengerStopped",), _other_classes),
    Fault("the gateway ends", ("ParetogateDown",), _gateway_ends),
)
