"""Judging subnets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model_repo.detections import Detections
from search.evaluate import FrameStore, SubnetEvaluator, predict, recalibrate
from search.supernet.model import Supernet
from tests.search.rectangles import TINY, tiny_dataset


@pytest.fixture
def supernet() -> Supernet:
    """Return an untrained supernet whose scores spread enough to rank."""
    net = Supernet(TINY, seed=2)
    with torch.no_grad():
        net.head.class_kernel.mul_(50)
    return net


def test_recalibrated_norms_are_the_frames_statistics(supernet: Supernet, tmp_path: Path) -> None:
    """On the frames it was calibrated on, a fused subnet answers as with the batch's own statistics."""
    store = FrameStore(tiny_dataset(tmp_path).splits["train"].images)
    arch = TINY.smallest
    frames = store.batch(range(6), TINY.resolution_wh(arch))
    fused = recalibrate(supernet, arch, frames)
    x = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        own = supernet(x, arch)
        calibrated = fused(x)
    for one, other in zip(own.logits, calibrated.logits, strict=True):
        # running variances are unbiased, a batch's own is not: at 24 values per channel that shows
        assert torch.allclose(one, other, atol=0.3, rtol=0.2)


def test_frames_of_another_size_do_not_calibrate(supernet: Supernet) -> None:
    """Frames that do not fit the subnet's input are refused."""
    with pytest.raises(ValueError, match="calibrate"):
        recalibrate(supernet, TINY.smallest, np.zeros((2, 32, 32, 3), np.uint8))


def test_predictions_repeat_and_lie_in_the_frame(supernet: Supernet, tmp_path: Path) -> None:
    """Two evaluators agree to the bit, and boxes come in the pixels of the labelled frame."""
    dataset = tiny_dataset(tmp_path)
    answers: list[list[Detections]] = []
    for _ in range(2):
        evaluator = SubnetEvaluator(supernet, dataset, precision="float32")
        answers.append(evaluator.predictions(evaluator.detector(TINY.largest)))
    assert len(answers[0]) == 4
    for one, other in zip(*answers, strict=True):
        assert np.array_equal(one.xyxy, other.xyxy)
        assert np.array_equal(one.score, other.score)
        assert one.xyxy.min() >= 0
        assert one.xyxy[:, 2].max() <= 96
        assert one.xyxy[:, 3].max() <= 80


def test_subsets_are_scored_on_their_own_truth(supernet: Supernet, tmp_path: Path) -> None:
    """Scoring some images gives the same as scoring a split of just these."""
    evaluator = SubnetEvaluator(supernet, tiny_dataset(tmp_path))
    score = evaluator.evaluate(TINY.largest, [1, 3])
    assert 0.0 <= score.map <= score.map50 <= 1.0
    assert evaluator.evaluate(TINY.largest, [1, 3]) == score


def test_the_fused_model_answers_in_the_published_layout(supernet: Supernet) -> None:
    """Predictions have 100 rows of six, best first."""
    frames = np.random.default_rng(0).integers(0, 255, (3, 96, 96, 3), dtype=np.uint8)
    rows = predict(recalibrate(supernet, TINY.largest, frames), frames)
    assert rows.shape == (3, 100, 6)
    assert bool((np.diff(rows[:, :, 4], axis=1) <= 0).all())


def test_frames_are_forgotten_beyond_the_limit(tmp_path: Path) -> None:
    """A store keeps what was used last and gives the same frames whether kept or not."""
    images = tiny_dataset(tmp_path).splits["valid"].images
    frugal, generous = FrameStore(images, cache_bytes=30_000), FrameStore(images)
    for index in (0, 1, 2, 0, 3, 1):
        assert np.array_equal(frugal.frame(index, (64, 64)), generous.frame(index, (64, 64)))
