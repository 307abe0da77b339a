"""What goes wrong with a gateway, done to it from outside: time taken away, frames of another kind."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress

import cv2
import numpy as np

# Of a stand: what lies between two of them, so that others are answered meanwhile.
_BREATHES = 0.1
# Of the time that an answer takes: models run then, neither what is before them nor what is after.
_MIDDLE = 0.6
_PEACEFUL = 5


@contextmanager
def throttled(pid: int, *, runs_s: float, stands_s: float) -> Iterator[None]:
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

    with _meanwhile(pid, over, interrupt):
        yield


@contextmanager
def interrupted(pid: int, ask: Callable[[], float | None], *, stands_s: float) -> Iterator[None]:
    """Ask a process for an answer, let it stand still in the middle of it, and so on: most answers are late.

    ask: asks and waits; returns the milliseconds that the process says it took, None where it refused.
    stands_s: longer than the budget. Where the middle is follows from answers that are left in peace: the
    first, and one after each that was not hit. The quickest of the last few counts: what others take longer
    for comes after their middle.
    """
    over = threading.Event()

    def interrupt() -> None:
        peaceful_s: deque[float] = deque(maxlen=_PEACEFUL)
        aimed = False
        with ThreadPoolExecutor(1) as one, suppress(ProcessLookupError):
            while not over.wait(_BREATHES * stands_s):
                asked = one.submit(_timed, ask)
                if not aimed:
                    waited_s, took_ms = asked.result()
                    if took_ms is not None:
                        peaceful_s.append(waited_s)
                        aimed = True
                    continue
                if not wait((asked,), _MIDDLE * min(peaceful_s)).done:
                    os.kill(pid, signal.SIGSTOP)
                    over.wait(stands_s)
                    os.kill(pid, signal.SIGCONT)
                _, took_ms = asked.result()
                aimed = took_ms is not None and took_ms >= 1e3 * stands_s

    with _meanwhile(pid, over, interrupt):
        yield


def _timed(ask: Callable[[], float | None]) -> tuple[float, float | None]:
    began_s = time.monotonic()
    took_ms = ask()
    return time.monotonic() - began_s, took_ms


@contextmanager
def _meanwhile(pid: int, over: threading.Event, work: Callable[[], None]) -> Iterator[None]:
    """Do something to a process in a thread until the block ends; then the process runs again."""
    thread = threading.Thread(target=work, daemon=True)
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
