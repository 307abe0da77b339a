"""Answering a frame of a stream with an earlier one's answer, where both look nearly the same.

Off unless a stream asks for it. Frames are compared block by block, eight by eight pixels each, by the mean
of every colour: the difference of two frames is that of their most different block, in levels of 0 to 255.
A mean over a whole frame would not see a small object enter; one pixel alone would see the sensor's noise.

A frame is always compared with the one that the answer was really made for, so that slow change adds up and
ends the reuse, and an answer is reused for a second at most. One that lacks a stage is not reused: the next
frame may have the time for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from model_repo.frame import FrameError, FrameLimits, decode
from router.execution import Answer

BLOCK = 8
LONGEST_S = 1.0
Levels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Reused:
    """Which frame of the stream an answer was made for, and how different this one is: levels of 0 to 255."""

    number: int
    difference: float


@dataclass(frozen=True, slots=True)
class Look:
    """A decoded frame, RGB uint8 [h, w, 3], and its blocks' means, uint8 [ceil(h / 8), ceil(w / 8), 3]."""

    number: int
    image: NDArray[np.uint8]
    blocks: Levels


@dataclass(frozen=True, slots=True)
class _Kept:
    number: int
    wh: tuple[int, int]
    blocks: Levels
    answer: Answer
    at_ns: int


class Reuse:
    """The last answer that was made for a frame of a stream, and when it may be given again."""

    def __init__(self, within: float) -> None:
        """within: the largest difference at which a frame counts as the same."""
        self._within = within
        self._kept: _Kept | None = None

    def answer_for(self, look: Look, now_ns: int) -> tuple[Answer, Reused] | None:
        """Return the last answer if it may stand for this frame too."""
        kept = self._kept
        if kept is None or now_ns - kept.at_ns > LONGEST_S * 1e9:
            return None
        if kept.wh != (look.image.shape[1], look.image.shape[0]):
            return None
        differs = difference(kept.blocks, look.blocks)
        if differs > self._within:
            return None
        return kept.answer, Reused(kept.number, differs)

    def keep(self, look: Look, answer: Answer, now_ns: int) -> None:
        """Remember the answer that was made for a frame."""
        if answer.cut is not None or (self._kept is not None and self._kept.number > look.number):
            return
        wh = (look.image.shape[1], look.image.shape[0])
        self._kept = _Kept(look.number, wh, look.blocks, answer, now_ns)


def look_at(number: int, frame: bytes, limits: FrameLimits) -> Look | None:
    """Decode a frame and take its blocks' means; None where it cannot be decoded. For worker threads."""
    try:
        image = decode(frame, limits)
    except FrameError:
        return None
    return Look(number, image, blocks_of(image))


def blocks_of(image: NDArray[np.uint8]) -> Levels:
    """Return the means of an image's blocks of eight by eight pixels, each colour apart."""
    height, width = image.shape[:2]
    wh = -(-width // BLOCK), -(-height // BLOCK)
    return np.asarray(cv2.resize(image, wh, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def difference(one: Levels, other: Levels) -> float:
    """Return the largest difference of two images' blocks, in levels of 0 to 255."""
    return float(cv2.norm(one, other, cv2.NORM_INF))
