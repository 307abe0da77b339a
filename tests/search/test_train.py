"""Training: resumable to the bit, refusing foreign folders, learning."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from search.augment import AugmentConfig
from search.batches import BatchPlan, FramePool, make_batch, prefetched
from search.recipe import TrainConfig, subnets_of
from search.run_folder import RunError
from search.space import Architecture
from search.train import (
    Progress,
    StepReport,
    TrainError,
    rate_factor,
    train,
)
from search.weights import read_supernet
from tests.search.rectangles import TINY, tiny_dataset

CONFIG = TrainConfig(steps=6, batch_size=2, threads=1, checkpoint_every_s=0.0)


def same_weights(a: Path, b: Path) -> bool:
    first, second = (torch.load(path, weights_only=True)["weights"] for path in (a, b))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class Interrupted(Exception):
    """Stands for whatever ends a process."""


def interrupting(at: int) -> Progress:
    def progress(report: StepReport) -> None:
        if report.step == at:
            raise Interrupted

    return progress


@pytest.mark.parametrize("at", [0, 3, 5])
def test_interrupted_training_ends_with_the_same_bits(tmp_path: Path, at: int) -> None:
    """A training interrupted after any step and started again ends with the weights of an uninterrupted
    one."""
    dataset = tiny_dataset(tmp_path)
    whole = train(CONFIG, TINY, dataset, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(CONFIG, TINY, dataset, tmp_path / "cut", interrupting(at))
    resumed = train(CONFIG, TINY, dataset, tmp_path / "cut")
    assert same_weights(whole.weights, resumed.weights)
    curves = [
        [
            {name: value for name, value in json.loads(line).items() if name != "seconds"}
            for line in result.history.read_text().splitlines()
        ]
        for result in (whole, resumed)
    ]
    assert curves[0] == curves[1]
    assert [row["step"] for row in curves[0]] == list(range(6))


CHILD = """
import sys
from dataclasses import replace
from pathlib import Path
from search.train import train
from tests.search.test_train import CONFIG
from tests.search.rectangles import TINY, tiny_dataset
folder = Path(sys.argv[1])
config = replace(CONFIG, steps=400)
train(config, TINY, tiny_dataset(folder), folder / "cut", lambda report: print(report.step, flush=True))
"""


def test_a_killed_process_leaves_a_resumable_folder(tmp_path: Path) -> None:
    """After SIGKILL at a step boundary or anywhere else the same call goes on from the last checkpoint."""
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)], cwd=root, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) == 3:
                child.send_signal(signal.SIGKILL)
                break
    steps: list[int] = []

    def progress(report: StepReport) -> None:
        steps.append(report.step)
        if len(steps) == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(replace(CONFIG, steps=400), TINY, tiny_dataset(tmp_path), tmp_path / "cut", progress)
    assert steps[0] >= 4


def test_a_finished_training_returns_at_once(tmp_path: Path) -> None:
    """Calling again after the end trains nothing and returns the same result."""
    dataset = tiny_dataset(tmp_path)
    first = train(CONFIG, TINY, dataset, tmp_path / "run")
    again = train(CONFIG, TINY, dataset, tmp_path / "run", interrupting(0))
    assert first == again
    assert first.steps == 6


def test_foreign_folders_are_refused(tmp_path: Path) -> None:
    """A folder of a run with another configuration or data set is not continued; threads do not matter."""
    dataset = tiny_dataset(tmp_path)
    train(CONFIG, TINY, dataset, tmp_path / "run")
    train(replace(CONFIG, workers=2, checkpoint_every_s=9.0), TINY, dataset, tmp_path / "run")
    with pytest.raises(TrainError, match="another"):
        train(replace(CONFIG, seed=1), TINY, dataset, tmp_path / "run")
    with pytest.raises(TrainError, match="another"):
        train(CONFIG, TINY, replace(dataset, fingerprint="other"), tmp_path / "run")


def test_a_budget_in_minutes_ends(tmp_path: Path) -> None:
    """A budget in minutes ends at the first step boundary after it, and is not reopened, not even by a run
    that was killed before it could write its weights."""
    config = replace(CONFIG, steps=None, minutes=0.01, random_subnets=0)
    result = train(config, TINY, tiny_dataset(tmp_path), tmp_path / "run")
    assert result.seconds >= 0.6
    rows = [json.loads(line) for line in result.history.read_text().splitlines()]
    assert len(rows) == result.steps
    assert rows[-1]["share"] < 1.0
    result.weights.unlink()
    assert train(config, TINY, tiny_dataset(tmp_path), tmp_path / "run") == result


def test_training_learns(tmp_path: Path) -> None:
    """Sixty steps without mosaics bring the loss down."""
    config = replace(
        CONFIG,
        steps=60,
        learning_rate=5e-3,
        batch_size=4,
        dtype="float32",
        augment=AugmentConfig(mosaic=0),
        checkpoint_every_s=60.0,
    )
    reports: list[StepReport] = []
    train(config, TINY, tiny_dataset(tmp_path, train=2), tmp_path / "run", reports.append)
    total = [report.classes + report.boxes for report in reports]
    assert np.mean(total[-5:]) < 0.9 * np.mean(total[:5])


def test_weights_load_as_the_space_says(tmp_path: Path) -> None:
    """What training left loads as a supernet of the same space."""
    result = train(CONFIG, TINY, tiny_dataset(tmp_path), tmp_path / "run")
    stored = read_supernet(result.weights)
    assert stored.space == stored.supernet().space == TINY
    assert (stored.steps, stored.seconds) == (result.steps, result.seconds)


def test_another_file_is_no_supernet(tmp_path: Path) -> None:
    """A missing file and one that holds something else are named."""
    with pytest.raises(RunError, match=r"absent\.pt: No such file"):
        read_supernet(tmp_path / "absent.pt")
    (tmp_path / "other.pt").write_bytes(b"no weights")
    with pytest.raises(RunError, match=r"other\.pt: not a trained supernet"):
        read_supernet(tmp_path / "other.pt")


def test_the_sandwich_has_both_ends() -> None:
    """Every step trains the largest first, the smallest, and random subnets, all at the step's resolution."""
    archs = subnets_of(replace(CONFIG, random_subnets=2), TINY, 3, 64, CONFIG.solo_share)
    assert archs[0] == replace(TINY.largest, resolution=64)
    assert archs[1] == replace(TINY.smallest, resolution=64)
    assert len(set(archs)) == len(archs)
    assert {arch.resolution for arch in archs} == {64}


def test_favoured_subnets_are_drawn_more_often() -> None:
    """As often as asked, a random subnet is a favoured one of the nearest resolution; else it is any."""
    low, high = "r64-d1.1.1.1-w16.16.24.16-n16-h1", "r96-d1.2.1.1-w8.16.24.16-n16-h1"
    favouring = replace(CONFIG, random_subnets=1, favoured=(low, high), favoured_share=0.5)
    drawn = [subnets_of(favouring, TINY, step, 64, 1.0)[2:] for step in range(400)]
    assert 150 < sum(archs == [Architecture.parse(low)] for archs in drawn) < 250
    always = replace(favouring, favoured_share=1.0)
    assert subnets_of(always, TINY, 0, 96, 1.0)[2:] == [Architecture.parse(high)]


def test_polishing_trains_the_favoured_at_their_own_resolutions() -> None:
    """Every step has the largest as the teacher and favoured subnets of its resolution, nothing else."""
    low = tuple(f"r64-d1.{depth}.1.1-w16.16.24.16-n16-h1" for depth in (1, 2))
    high = "r96-d1.2.1.1-w8.16.24.16-n16-h1"
    config = replace(CONFIG, favoured=(*low, high), polish=True, solo_share=0.0, random_subnets=1)
    drawn = [subnets_of(config, TINY, step, 64, 0.5) for step in range(20)]
    assert {archs[0] for archs in drawn} == {replace(TINY.largest, resolution=64)}
    assert {arch.name for archs in drawn for arch in archs[1:]} == set(low)
    assert all(len(archs) == 2 for archs in drawn)
    assert [arch.name for arch in subnets_of(config, TINY, 0, 96, 0.5)[1:]] == [high]
    with pytest.raises(ValueError, match="polish needs favoured"):
        replace(CONFIG, polish=True)


def test_the_largest_learns_alone_at_first(tmp_path: Path) -> None:
    """The first share of the budget trains the largest subnet alone, the rest the whole sandwich."""
    reports: list[StepReport] = []
    config = replace(CONFIG, steps=5, solo_share=0.4)
    train(config, TINY, tiny_dataset(tmp_path), tmp_path / "run", reports.append)
    assert [report.others > 0 for report in reports] == [False, False, True, True, True]


def test_batches_are_pure_and_threads_keep_order(tmp_path: Path) -> None:
    """A batch depends on seed and step alone; worker threads neither reorder nor change batches."""
    pool = FramePool(tiny_dataset(tmp_path).splits["train"], long_side=96)
    plans = [BatchPlan(step, (64, 64), AugmentConfig()) for step in range(8)]
    alone = [make_batch(pool, plan, seed=1, size=3) for plan in plans]
    shared = list(prefetched(iter(plans), lambda p: make_batch(pool, p, seed=1, size=3), workers=3))
    assert [batch.plan.step for batch in shared] == list(range(8))
    for one, other in zip(alone, shared, strict=True):
        assert np.array_equal(one.frames, other.frames)
        assert np.array_equal(one.boxes_xyxy, other.boxes_xyxy)
    assert not np.array_equal(alone[0].frames, alone[1].frames)


def test_large_frames_are_kept_small(tmp_path: Path) -> None:
    """Frames beyond the pool's long side are scaled down with their boxes; nothing changes when none are
    kept."""
    split = tiny_dataset(tmp_path).splits["train"]
    small = FramePool(split, long_side=48).sample(0)
    full = FramePool(split, long_side=96, cache_bytes=0).sample(0)
    assert small.image.shape == (40, 48, 3)
    assert np.allclose(small.boxes_xyxy * 2, full.boxes_xyxy)


def test_the_rate_warms_up_and_falls() -> None:
    """The learning rate rises over the warm-up and falls to a hundredth."""
    factors = [rate_factor(share, 0.1) for share in np.linspace(0, 1, 101)]
    assert int(np.argmax(factors)) == 10
    assert factors[-1] == pytest.approx(0.01)


@pytest.mark.parametrize(("steps", "minutes"), [(None, None), (1, 1.0), (0, None), (None, -1.0)])
def test_one_budget_is_needed(steps: int | None, minutes: float | None) -> None:
    """Exactly one positive budget must be given."""
    with pytest.raises(ValueError, match=r"budget|exactly"):
        TrainConfig(steps=steps, minutes=minutes)
