"""Judging subnets in worker processes."""

from __future__ import annotations

from multiprocessing import active_children
from pathlib import Path
from threading import Event, Thread

import pytest
import torch

from search.explore import Judged
from search.judging import Evaluation, Judge
from search.run_folder import RunError
from search.strategies import Task
from search.supernet.model import Supernet
from search.weights import StoredSupernet, write_supernet
from tests.search.tiny import tiny_dataset, tiny_space


@pytest.fixture
def judge(tmp_path: Path) -> Judge:
    """A judge over an untrained supernet whose scores spread enough to rank."""
    tiny_dataset(tmp_path / "data", {"train": 4, "calib": 2, "valid": 40, "test": 2})
    net = Supernet(tiny_space(), seed=2)
    with torch.no_grad():
        net.head.class_kernel.mul_(50)
    weights = tmp_path / "weights.pt"
    write_supernet(weights, StoredSupernet(net.space, net.state_dict(), 0, 0.0))
    return Judge(
        data=str(tmp_path / "data"),
        calibration_share=0.2,
        weights=str(weights),
        images=tuple(range(40)),
        seed=0,
        nms_iou=0.6,
    )


def tasks(bars: tuple[float, ...] = ()) -> list[Task]:
    space = tiny_space()
    return [Task(architecture, bars) for architecture in (space.smallest, space.largest)] * 3


def slices(judged: list[Judged]) -> list[tuple[float, ...]]:
    return [one.slices for one in judged]


def test_a_subnet_is_taken_as_far_as_it_clears_the_bars(judge: Judge) -> None:
    """Without bars a subnet runs on all slices; one below a bar runs no further; the slices agree."""
    with Evaluation(judge, 1) as evaluate:
        whole = list(evaluate(tasks()))
        stopped = list(evaluate(tasks((1.1,))))
    assert [len(one) for one in slices(whole)] == [2] * 6
    assert slices(stopped) == [one[:1] for one in slices(whole)]


def test_killed_workers_lose_no_finished_evaluation(judge: Judge) -> None:
    """When all workers are killed between two results, the others follow as if nothing had happened."""
    with Evaluation(judge, 2) as evaluate:
        undisturbed = slices(list(evaluate(tasks())))
        results = evaluate(tasks())
        first = next(results)
        for process in active_children():
            process.kill()
        disturbed = [first.slices, *slices(list(results))]
    assert disturbed == undisturbed


def test_workers_that_keep_dying_end_the_search_with_advice(judge: Judge) -> None:
    """A fault that kills every new worker ends the search with what to try, and does not loop for ever."""
    over = Event()

    def kill_all() -> None:
        while not over.wait(0.05):
            for process in active_children():
                process.kill()

    killer = Thread(target=kill_all)
    killer.start()
    try:
        with Evaluation(judge, 2) as evaluate, pytest.raises(RunError, match="workers: 2 processes"):
            list(evaluate(tasks()))
    finally:
        over.set()
        killer.join()
