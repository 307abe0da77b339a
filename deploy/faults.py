"""What goes wrong with a gateway, done to it from outside: time taken away, frames of another kind."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import cv2
import numpy as np


@contextmanager
def throttled(pid: int, *, runs_s: float = 0.005, stands_s: float = 0.03) -> Iterator[None]:
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
