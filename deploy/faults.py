"""What goes wrong with a gateway, done from outside: time taken away, other frames, too many requests."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from model_repo import publish
from router.client import GatewayClient, GatewayError


@contextmanager
def throttled(pid: int, *, runs_s: float = 0.005, stands_s: float = 0.045) -> Iterator[None]:
    """Let a process run and stand still in turn, as a CPU quota that is too small does.

    Whatever takes longer than `runs_s` is interrupted; on leaving, the process runs again.
    """
    over = threading.Event()

    def interrupt() -> None:
        with suppress(ProcessLookupError):
            while not over.wait(runs_s):
                os.kill(pid, signal.SIGSTOP)
                over.wait(stands_s)
                os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def shifted(frame: bytes) -> bytes:
    """Return an encoded frame as a camera with a dirty lens would give it at dusk: dark and blurred."""
    image = cv2.imdecode(np.frombuffer(frame, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError("not an image")
    dark = (cv2.GaussianBlur(image, (0, 0), 6.0) * 0.3).astype(np.uint8)
    done, encoded = cv2.imencode(".jpg", dark)
    assert done, "JPEG takes every image of 8 bits"
    return bytes(encoded)


def slower_profiles(source: Path, target: Path, factor: float) -> publish.Repository:
    """Copy a repository as if it had been measured on a machine that is `factor` times as slow.

    On a machine that is shared a stage may take longer than it was published to; a fault has to stand out
    from that.
    """
    copied = publish.copy(publish.read(source), target)
    frontier = copied.frontier
    variants = tuple(
        variant.model_copy(
            update={
                "measurements": tuple(
                    measurement.model_copy(
                        update={
                            "latency": tuple(
                                profile.model_copy(update={"histogram": profile.histogram.scaled(factor)})
                                for profile in measurement.latency
                            )
                        }
                    )
                    for measurement in variant.measurements
                )
            }
        )
        for variant in frontier.variants
    )
    return publish.publish(target, frontier.model_copy(update={"variants": variants}), {})


@dataclass
class Traffic:
    """Requests that go on in the background; what they carry may be changed meanwhile.

    rate_hz: of all together, evenly; 0 for as fast as answers come. outcomes: how many ended how.
    """

    frames: Sequence[bytes]
    rate_hz: float
    budget_ms: float | None
    operating_point: str | None = None
    outcomes: dict[str, int] = field(default_factory=dict)


@contextmanager
def traffic(url: str, carried: Traffic, *, clients: int = 4) -> Iterator[Traffic]:
    """Send frames to a gateway until the block ends; what was due while another was open is sent late."""
    over = threading.Event()
    lock = threading.Lock()

    def send(number: int) -> None:
        due_s = time.monotonic() + number / max(carried.rate_hz, 1.0)
        position = number
        with GatewayClient(url, timeout_s=60) as client:
            while not over.wait(max(due_s - time.monotonic(), 0.0)):
                frames = carried.frames
                try:
                    client.detect(
                        frames[position % len(frames)],
                        budget_ms=carried.budget_ms,
                        operating_point=carried.operating_point,
                    )
                    outcome = "answered"
                except GatewayError as error:
                    outcome = error.slug
                with lock:
                    carried.outcomes[outcome] = carried.outcomes.get(outcome, 0) + 1
                position += clients
                now_s = time.monotonic()
                # Who has fallen behind by more than a second does not catch up.
                due_s = max(due_s + clients / carried.rate_hz, now_s - 1.0) if carried.rate_hz > 0 else now_s

    threads = [threading.Thread(target=send, args=(number,), daemon=True) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield carried
    finally:
        over.set()
        for thread in threads:
            thread.join()
