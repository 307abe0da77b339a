"""Judging subnets of the trained supernet on valid, here or in worker processes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import torch

from search.artifacts import cores
from search.candidates import Objective, slice_sizes
from search.data.coco import read_dataset
from search.evaluate import SubnetEvaluator
from search.explore import Judged
from search.process import end_with_parent
from search.run_folder import RunError
from search.strategies import Task
from search.weights import read_supernet

# A pool that breaks so often without finishing anything breaks for a reason that starting over does not mend.
_MOST_BREAKS = 3


@dataclass(frozen=True, slots=True)
class Judge:
    """What a process needs to judge subnets: data set, weights, the images of valid, objective and seed."""

    data: str
    calibration_share: float
    weights: str
    images: tuple[int, ...]
    seed: int
    nms_iou: float
    objective: Objective = "map"

    def evaluator(self, *, exact: bool, threads: int) -> SubnetEvaluator:
        """Make the evaluator; `exact` computes in float32, as files are exported.

        The number of threads decides how sums are split and so about the last bits: it is set here, whatever
        ran before in this process.
        """
        torch.set_num_threads(threads)
        return SubnetEvaluator(
            read_supernet(Path(self.weights)).supernet(),
            read_dataset(Path(self.data), calibration_share=self.calibration_share),
            seed=self.seed,
            precision="float32" if exact else "bfloat16",
            nms_iou=self.nms_iou,
        )

    def judged(self, evaluator: SubnetEvaluator, task: Task) -> Judged:
        """Take a subnet through growing slices of the images, until it is given up or all are done."""
        start_s = time.monotonic()
        slices: list[float] = []
        sizes = slice_sizes(len(self.images))
        for score in evaluator.on_slices(task.architecture, self.images, sizes):
            slices.append(score.map if self.objective == "map" else score.f1)
            if len(slices) <= len(task.bars) and slices[-1] < task.bars[len(slices) - 1]:
                break
        return Judged(tuple(slices), time.monotonic() - start_s)


class Evaluation:
    """Judge subnets here, or in worker processes of one thread each; results come in the order asked.

    A worker that dies (killed, or out of memory) loses what it was doing and nothing else: what others have
    finished is kept, new workers are started, and the rest is done again.
    """

    def __init__(self, judge: Judge, workers: int) -> None:
        self._judge, self._workers = judge, workers
        self._here: SubnetEvaluator | None = None
        self._pool = self._new_pool() if workers > 1 else None

    def __enter__(self) -> Evaluation:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def __call__(self, tasks: Sequence[Task]) -> Iterator[Judged]:
        """Yield what came out for each task; raises RunError when workers keep dying."""
        if self._pool is not None:
            yield from self._by_workers(tasks)
            return
        for task in tasks:
            if self._here is None:
                self._here = self._judge.evaluator(exact=False, threads=cores())
            yield self._judge.judged(self._here, task)

    def _by_workers(self, tasks: Sequence[Task]) -> Iterator[Judged]:
        futures = [self._submit(task) for task in tasks]
        breaks = 0
        for place in range(len(tasks)):
            while True:
                try:
                    judged = futures[place].result()
                    break
                except BrokenProcessPool:
                    breaks += 1
                    if breaks > _MOST_BREAKS:
                        raise RunError(
                            f"workers: {self._workers} processes that evaluate candidates died {breaks} times"
                            " in a row (out of memory?); try fewer --workers"
                        ) from None
                    self._pool = self._new_pool()
                    futures[place:] = [
                        future if _succeeded(future) else self._submit(task)
                        for future, task in zip(futures[place:], tasks[place:], strict=True)
                    ]
            breaks = 0
            yield judged

    def _submit(self, task: Task) -> Future[Judged]:
        assert self._pool is not None  # only asked for with workers
        try:
            return self._pool.submit(_judged_in_worker, self._judge, task)
        except BrokenProcessPool:  # a worker died while there was nothing to do
            self._pool = self._new_pool()
            return self._pool.submit(_judged_in_worker, self._judge, task)

    def _new_pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self._workers, get_context("spawn"), initializer=end_with_parent)


def _succeeded(future: Future[Judged]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _judged_in_worker(judge: Judge, task: Task) -> Judged:
    return judge.judged(_worker_evaluator(judge), task)


@lru_cache(maxsize=1)
def _worker_evaluator(judge: Judge) -> SubnetEvaluator:
    """Return the worker process's evaluator: made for its first subnet, kept for the others."""
    return judge.evaluator(exact=False, threads=1)
