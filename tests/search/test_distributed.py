"""Training by several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.search.tiny import CHOICES, tiny_dataset


def train(root: Path, run: str, *launcher: str) -> list[dict[str, float]]:
    """Train a tiny supernet on the data below `root`; return the training curve."""
    arguments = [
        "-m", "search", "train", "--out", str(root / run), "--steps", "5", "--batch-size", "4",
        "--space", str(root / "space.json"), "--seed", "1",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    begin = [sys.executable, "-m", "search", "data", "--run", str(root / run), "--data", str(root / "data")]
    subprocess.run(begin, check=True, capture_output=True, timeout=60)
    done = subprocess.run(
        [sys.executable, *launcher, *arguments],
        capture_output=True, text=True, timeout=200, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    history = root / run / "train" / "history.jsonl"
    return [json.loads(line) for line in history.read_text().splitlines()]


@pytest.mark.timeout(290)
def test_two_processes_train_like_one(tmp_path: Path) -> None:
    """Two processes that share every batch follow the losses of one process at the same global batch."""
    tiny_dataset(tmp_path / "data", {"train": 16, "calib": 2, "valid": 2, "test": 2})
    (tmp_path / "space.json").write_text(json.dumps(CHOICES))
    alone = train(tmp_path, "alone")
    together = train(
        tmp_path, "together", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"
    )
    assert len(together) == len(alone) == 5
    for one, two in zip(alone, together, strict=True):
        for loss in ("classes", "boxes", "others"):
            assert two[loss] == pytest.approx(one[loss], rel=0.02, abs=1e-3)


def test_only_training_is_shared(tmp_path: Path) -> None:
    """Under torchrun other commands are refused with what to do instead."""
    environment = {**os.environ, "WORLD_SIZE": "2", "RANK": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "search", "route", "--run", str(tmp_path)],
        capture_output=True, text=True, timeout=60, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 2
    assert "torchrun" in done.stderr
