"""Judging subnets of the trained supernet on valid, here or in worker processes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from multiprocessing import get_context, parent_process
from pathlib import Path

import torch

from search.artifacts import cores
from search.data.coco import read_dataset
from search.evaluate import SubnetEvaluator
from search.space import Architecture
from search.train import load_supernet


@dataclass(frozen=True, slots=True)
class Judge:
    """What a process needs to judge subnets: data set, weights, the images of valid, and the seed."""

    data: str
    calibration_share: float
    weights: str
    images: tuple[int, ...]
    seed: int
    nms_iou: float

    def evaluator(self, *, exact: bool, threads: int) -> SubnetEvaluator:
        """Make the evaluator; `exact` computes in float32, as files are exported.

        The number of threads decides how sums are split and so about the last bits: it is set here, whatever
        ran before in this process.
        """
        torch.set_num_threads(threads)
        return SubnetEvaluator(
            load_supernet(Path(self.weights)),
            read_dataset(Path(self.data), calibration_share=self.calibration_share),
            seed=self.seed,
            precision="float32" if exact else "bfloat16",
            nms_iou=self.nms_iou,
        )

    def judged(self, evaluator: SubnetEvaluator, architecture: Architecture) -> tuple[float, float]:
        """Return a subnet's mAP on the images, and the seconds it took."""
        start_s = time.monotonic()
        return evaluator.evaluate(architecture, self.images).map, time.monotonic() - start_s


class Evaluation:
    """Judge subnets here, or in worker processes of one thread each; results come in the order asked."""

    def __init__(self, judge: Judge, workers: int) -> None:
        self._judge = judge
        self._here: SubnetEvaluator | None = None
        self._pool = (
            ProcessPoolExecutor(workers, get_context("spawn"), initializer=_end_with_parent)
            if workers > 1
            else None
        )

    def __enter__(self) -> Evaluation:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def __call__(self, architectures: Sequence[Architecture]) -> Iterable[tuple[float, float]]:
        """Yield (mAP, seconds) for each architecture."""
        if self._pool is not None:
            yield from self._pool.map(partial(_judged_in_worker, self._judge), architectures)
            return
        for architecture in architectures:
            if self._here is None:
                self._here = self._judge.evaluator(exact=False, threads=cores())
            yield self._judge.judged(self._here, architecture)


def _end_with_parent() -> None:
    """End this worker when the search is killed: it would wait for work for ever."""
    parent = parent_process()
    assert parent is not None  # a pool's worker has one

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _judged_in_worker(judge: Judge, architecture: Architecture) -> tuple[float, float]:
    return judge.judged(_worker_evaluator(judge), architecture)


@lru_cache(maxsize=1)
def _worker_evaluator(judge: Judge) -> SubnetEvaluator:
    """Return the worker process's evaluator: made for its first subnet, kept for the others."""
    return judge.evaluator(exact=False, threads=1)
