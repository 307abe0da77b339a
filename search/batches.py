"""Batches for training: which frames, at which resolution, varied how, as a pure function of (seed, step,
slot).

Worker threads make batches ahead of time (OpenCV lets go of the interpreter lock); because nothing depends on
the order in which they run, neither their number nor an interruption changes a batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_repo.frame import Letterbox
from search.augment import AugmentConfig, Sample, augmented
from search.data.coco import ImageRecord, Split
from search.process import free_memory

_ORDER, _CONTENT, _RESOLUTION = 1, 2, 3
"""Names of the random streams, so that none repeats another's numbers."""


class FramePool:
    """A split's frames, decoded once and kept, up to `cache_bytes`; beyond that they are decoded when asked
    for, which a mosaic of four pays four times: on small subnets it then costs more than the step.

    Args:
        split: the frames and their labels.
        long_side: frames whose long side is larger are scaled down to it, in pixels.
        cache_bytes: how much memory decoded frames may take; None is half of what is free.

    Raises:
        ValueError: when the split is empty.
    """

    def __init__(self, split: Split, *, long_side: int, cache_bytes: int | None = None) -> None:
        if not split.images:
            raise ValueError(f"split {split.name!r} has no images")
        self._records = tuple(split.images)
        self._long_side = long_side
        self._room = free_memory() // 2 if cache_bytes is None else cache_bytes
        self._kept: dict[int, NDArray[np.uint8]] = {}

    def __len__(self) -> int:
        return len(self._records)

    def sample(self, index: int) -> Sample:
        """Return frame `index` with its objects; regions labelled as crowds are no objects to learn.

        Raises:
            search.data.coco.DataError: when the file cannot be read or decoded.
        """
        record = self._records[index]
        image = self._image(index, record)
        scale = np.array([image.shape[1] / record.width, image.shape[0] / record.height] * 2, np.float32)
        single = ~record.crowd
        return Sample(image, record.boxes_xyxy[single] * scale, record.labels[single])

    def _image(self, index: int, record: ImageRecord) -> NDArray[np.uint8]:
        kept = self._kept.get(index)
        if kept is not None:
            return kept
        image = record.frame()
        height, width = image.shape[:2]
        if max(width, height) > self._long_side:
            shrink = self._long_side / max(width, height)
            target = max(1, round(width * shrink)), max(1, round(height * shrink))
            image = Letterbox((width, height), target).apply(image)
        if self._room >= image.nbytes:  # two threads may both decode a frame: harmless, they decode the same
            self._room -= image.nbytes
            self._kept[index] = image
        return image


@dataclass(frozen=True)
class BatchPlan:
    """What a step asks for: everything that decides its batch beside the pool and the seed."""

    step: int
    resolution_wh: tuple[int, int]
    augment: AugmentConfig


@dataclass(frozen=True)
class Batch:
    """A step's frames, uint8 [N, H, W, 3], and their objects as one list: position in the batch, box,
    class."""

    plan: BatchPlan
    frames: NDArray[np.uint8]
    image: NDArray[np.int64]
    boxes_xyxy: NDArray[np.float32]
    labels: NDArray[np.int64]


def resolution_of(seed: int, step: int, resolutions: tuple[int, ...]) -> int:
    """Draw the step's resolution, a long side in pixels, uniformly."""
    rng = np.random.default_rng((seed, _RESOLUTION, step))
    return resolutions[int(rng.integers(len(resolutions)))]


def make_batch(
    pool: FramePool, plan: BatchPlan, *, seed: int, size: int, part: tuple[int, int] = (0, 1)
) -> Batch:
    """Make the batch of a step: frames in an order reshuffled every epoch, each varied by a stream of its
    own.

    part: (k, n) makes only every n-th frame of it, from the k-th on.
    """
    samples: list[Sample] = []
    for slot in range(part[0], size, part[1]):
        epoch, place = divmod(plan.step * size + slot, len(pool))
        order = np.random.default_rng((seed, _ORDER, epoch)).permutation(len(pool))
        rng = np.random.default_rng((seed, _CONTENT, plan.step, slot))
        source = pool.sample(int(order[place]))
        samples.append(
            augmented(
                source,
                lambda r: pool.sample(int(r.integers(len(pool)))),
                plan.augment,
                plan.resolution_wh,
                rng,
            )
        )
    counts = [len(sample.labels) for sample in samples]
    return Batch(
        plan=plan,
        frames=np.stack([sample.image for sample in samples]),
        image=np.repeat(np.arange(len(samples), dtype=np.int64), counts),
        boxes_xyxy=np.concatenate([sample.boxes_xyxy for sample in samples]),
        labels=np.concatenate([sample.labels for sample in samples]),
    )


def prefetched(
    plans: Iterator[BatchPlan], make: Callable[[BatchPlan], Batch], *, workers: int, ahead: int = 4
) -> Iterator[Batch]:
    """Yield the batches of `plans` in order, made by `workers` threads up to `ahead` steps early.

    Plans are drawn only as far ahead as batches are made.  Closing the iterator drops what was made early.
    """
    executor = ThreadPoolExecutor(workers, thread_name_prefix="batches")
    pending: deque[Future[Batch]] = deque()
    try:
        for plan in plans:
            pending.append(executor.submit(make, plan))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
