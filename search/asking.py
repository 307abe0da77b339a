"""Asking models about frames, one frame after the other: each is decoded once and let go.

A calibration split of thousands of frames does not fit into memory decoded. What is kept of a frame are the
models' answers and the few numbers that features need of it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from model_repo.detections import Detections
from model_repo.escalation import FrameView
from model_repo.frontier import Variant
from model_repo.runtime.engine import Engine, answer_frame
from search.data.coco import ImageRecord
from search.run_folder import Progress, Silent

Frame = NDArray[np.uint8]
Result = TypeVar("Result")


class FrameFiles(Sequence[Frame]):
    """Frames RGB uint8 [h, w, 3] that are decoded whenever they are read, and not kept.

    Reading one raises DataError when its file cannot be decoded.
    """

    def __init__(self, records: Sequence[ImageRecord]) -> None:
        self._records = tuple(records)

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> Frame: ...

    @overload
    def __getitem__(self, index: slice) -> FrameFiles: ...

    def __getitem__(self, index: int | slice) -> Frame | FrameFiles:
        if isinstance(index, slice):
            return FrameFiles(self._records[index])
        return self._records[index].frame()


@dataclass(frozen=True, slots=True, eq=False)
class Replies:
    """What variants answered, by name, raw scores, one answer per frame; and the views of the frames."""

    detections: dict[str, list[Detections]]
    views: tuple[FrameView, ...]


def ask(
    engine: Engine, variants: Sequence[Variant], frames: Sequence[Frame], progress: Progress | None = None
) -> Replies:
    """Answer every frame with loaded variants, as many frames at once as the engine usefully takes."""
    progress = progress or Silent()

    def reply(i: int) -> tuple[list[Detections], FrameView]:
        frame = frames[i]
        answers = [answer_frame(engine, variant, frame).detections for variant in variants]
        return answers, FrameView.of(frame)

    found: dict[str, list[Detections]] = {variant.name: [] for variant in variants}
    views: list[FrameView] = []
    with closing(_in_order(reply, len(frames), engine.parallelism)) as replies:
        for answers, view in replies:
            for name, answer in zip(found, answers, strict=True):
                found[name].append(answer)
            views.append(view)
            progress.advance(1)
    return Replies(found, tuple(views))


def look(frames: Sequence[Frame], *, threads: int, progress: Progress | None = None) -> tuple[FrameView, ...]:
    """Return the views of frames, for answers that were given before."""
    progress = progress or Silent()
    views: list[FrameView] = []
    with closing(_in_order(lambda i: FrameView.of(frames[i]), len(frames), threads)) as seen:
        for view in seen:
            views.append(view)
            progress.advance(1)
    return tuple(views)


def _in_order(work: Callable[[int], Result], count: int, threads: int) -> Generator[Result, None, None]:
    """Yield work(0), work(1) … from threads; closing it drops what has not begun, so that Ctrl-C ends it."""
    pool = ThreadPoolExecutor(threads)
    try:
        yield from pool.map(work, range(count))
    finally:
        pool.shutdown(cancel_futures=True)
