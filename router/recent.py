"""Recent frames, made small, for the page that somebody is looking at.

Nothing is kept unless the gateway was started with `--console-frames`, and then only while somebody asks:
`LOOKED_AT_S` after the last look everything is forgotten. One frame in `EVERY_S` at most is made small, in a
thread that is no worker's, and one that took long is followed by a pause of `REST` times as long. Frames that
are not due cost a comparison. Lives on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
import simplejpeg

from model_repo.frame import FrameLimits, decode
from router.budget import Clock
from router.execution import Answer, Frame

_LOG = logging.getLogger(__name__)
EVERY_S = 0.5
LOOKED_AT_S = 5.0
REST = 20
_SIDE = 320
_QUALITY = 75
_NEVER_NS = 2**63
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RecentFrame:
    """A frame that was answered, made small; `number` counts those that were kept, at_ns is of the clock."""

    number: int
    at_ns: int
    jpeg: bytes
    answer: Answer


class RecentFrames:
    """Keep the latest of the frames that were answered while somebody looks.

    most: how many. limits: what frames were accepted under.
    """

    def __init__(self, clock: Clock, most: int, limits: FrameLimits) -> None:
        self._clock, self._limits = clock, limits
        self._kept: deque[RecentFrame] = deque(maxlen=most)
        self._number = 0
        self._looked_ns: int | None = None
        self._due_ns = _NEVER_NS
        self._making: asyncio.Task[None] | None = None

    @property
    def most(self) -> int:
        """Return how many are kept."""
        return self._kept.maxlen or 0

    @property
    def busy(self) -> bool:
        """Return whether a frame is being made small."""
        return self._making is not None

    def __len__(self) -> int:
        return len(self._kept)

    def since(self, number: int) -> tuple[RecentFrame, ...]:
        """Return those kept after the one of this number, oldest first; somebody looks from now on."""
        self._looked_ns = self._clock.now_ns()
        if self._due_ns == _NEVER_NS and self._making is None:
            self._due_ns = self._looked_ns
        return tuple(frame for frame in self._kept if frame.number > number)

    def sweep(self) -> None:
        """Forget everything when nobody looks any more; now and then called."""
        if self._looked_ns is not None and self._clock.now_ns() - self._looked_ns > LOOKED_AT_S * 1e9:
            self._looked_ns, self._due_ns = None, _NEVER_NS
            self._kept.clear()

    def due(self, now_ns: int) -> bool:
        """Return whether the answer to a frame that comes now would be kept."""
        return now_ns >= self._due_ns

    def keeping(self, frame: Frame, then: Callable[[T], None]) -> Callable[[T], None]:
        """Return what tells `then` what came of a frame, and keeps it where it was answered."""

        def told(outcome: T) -> None:
            then(outcome)
            # Several may have begun before the first of them was answered.
            if isinstance(outcome, Answer) and self.due(self._clock.now_ns()):
                self._due_ns = _NEVER_NS
                self._making = asyncio.get_running_loop().create_task(self._keep(frame, outcome))

        return told

    async def _keep(self, frame: Frame, answer: Answer) -> None:
        began_ns = self._clock.now_ns()
        try:
            jpeg = await asyncio.to_thread(_small, frame, self._limits)
        except Exception:  # noqa: BLE001 - a task of its own: the next frame may do
            _LOG.exception("a recent frame could not be made small")
            jpeg = None
        ended_ns = self._clock.now_ns()
        self._making = None
        if self._looked_ns is None:
            return
        self._due_ns = max(began_ns + round(EVERY_S * 1e9), ended_ns + REST * (ended_ns - began_ns))
        if jpeg is not None:
            self._number += 1
            self._kept.append(RecentFrame(self._number, ended_ns, jpeg, answer))


def _small(frame: Frame, limits: FrameLimits) -> bytes:
    """Return a frame as a small JPEG."""
    # It was decoded before, so it can be again.
    image = decode(frame, limits) if isinstance(frame, bytes) else frame
    height, width = image.shape[:2]
    scale = min(1.0, _SIDE / max(width, height))
    wh = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(image, wh, interpolation=cv2.INTER_AREA)
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(small), quality=_QUALITY, colorspace="RGB"))
