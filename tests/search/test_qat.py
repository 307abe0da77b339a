"""Tuning for int8: it wins back what rounding cost, changes nothing where it has no step, and is exported
only where it helped."""

from __future__ import annotations

import json
import os
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from model_repo.frame import Letterbox
from model_repo.latency import Precision
from model_repo.publish import file_digest
from model_repo.runtime.select import make_engine
from model_repo.scoring import score
from search import qat
from search.artifacts import model_files, read_artifacts, some_frames
from search.augment import AugmentConfig
from search.batches import FramePool
from search.candidates import Candidate
from search.data.coco import Dataset, read_dataset
from search.evaluate import SubnetEvaluator
from search.exporting import QUANTIZATION_FRAMES, export
from search.measure import loaded, predictions, unmeasured
from search.pipeline import Context, open_run
from search.qat import TuningConfig, tuned
from search.recipe import TrainConfig
from search.run_folder import Silent
from search.supernet.model import Supernet
from search.supernet.plain import PlainDetector
from search.train import train
from search.weights import read_supernet
from tests.search.tiny import CHOICES, tiny_dataset, tiny_space

OUTLIERS = 200.0


@dataclass(frozen=True)
class Trained:
    """A small detector in which two channels of the first layer are much larger than the others; the layer
    after it takes that back, so that in float nothing has changed."""

    data: Dataset
    detector: PlainDetector
    folder: Path
    weights: Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("qat")
    data = read_dataset(
        tiny_dataset(folder / "data", {"train": 48, "calib": 2, "valid": 32, "test": 2}),
        needed=("train", "valid"),
    )
    space = tiny_space()
    config = TrainConfig(steps=160, batch_size=8, solo_share=0.9, dtype="float32", threads=1)
    made = train(config, space, data, folder / "train")
    evaluator = SubnetEvaluator(read_supernet(made.weights).supernet(), data, precision="float32")
    detector = with_outliers(evaluator.detector(space.largest), OUTLIERS)
    return Trained(data, detector, folder, made.weights)


def with_outliers(detector: PlainDetector, factor: float) -> PlainDetector:
    """Return a copy whose first layer's first two channels are `factor` times what they were, which the next
    layer takes back."""
    bent = deepcopy(detector)
    first = bent.stages.get_submodule("0.0.conv")
    assert isinstance(first, torch.nn.Conv2d)
    assert bent.stem.conv.bias is not None
    with torch.no_grad():
        bent.stem.conv.weight[:2] *= factor
        bent.stem.conv.bias[:2] *= factor
        first.weight[:, :2] /= factor
    return bent


def accuracy(trained: Trained, detector: PlainDetector, precision: Precision) -> float:
    """Return the mAP of a detector's file on the runtime that will serve it."""
    folder = trained.folder / f"{precision}-{os.urandom(4).hex()}"
    folder.mkdir()
    frames = some_frames(trained.data.splits["train"].images, 16, seed=0)
    model = model_files(detector, frames, (precision,), "minmax", folder)[precision]
    variant = unmeasured(
        name="judged", architecture="a", resolution_wh=detector.resolution_wh, precision=precision,
        parameters=1, macs=1, nms_iou=0.6, model=model,
    )  # fmt: skip
    target = folder / variant.segments[0].file
    target.parent.mkdir(parents=True)
    os.link(model, target)
    valid = loaded(trained.data, "valid")
    engine = make_engine("onnxruntime", threads=1, parallelism=1)
    try:
        engine.load(folder, variant)
        answers = predictions(engine, variant, valid.images)
    finally:
        engine.close()
    return score(valid.truths, answers, len(trained.data.classes)).map


def inputs(trained: Trained) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    frames = some_frames(trained.data.splits["train"].images, 16, seed=0)
    wh = trained.detector.resolution_wh
    return np.stack([Letterbox((each.shape[1], each.shape[0]), wh).apply(each) for each in frames])


@pytest.mark.timeout(240)
def test_tuning_wins_back_most_of_what_int8_lost(trained: Trained) -> None:
    """Two channels take the whole range of int8, so the others drown; tuned, the file is nearly as good as in
    float."""
    whole = accuracy(trained, trained.detector, "f32")
    lost = whole - accuracy(trained, trained.detector, "int8")
    assert lost > 0.05
    pool = FramePool(trained.data.splits["train"], long_side=256)
    mild = AugmentConfig().without_mosaic()
    config = TuningConfig(steps=150, learning_rate=1e-3, augment=mild)
    better = tuned(trained.detector, pool, inputs(trained), config, seed=0)
    assert whole - accuracy(trained, better, "int8") < lost / 2


@pytest.mark.parametrize(("factor", "kept"), [(1 / OUTLIERS, "tuned"), (OUTLIERS, "as it was")])
def test_the_better_of_two_int8_files_is_exported(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float, kept: str
) -> None:
    """A tuned file that answers better takes the place of the first one, and one that answers worse does
    not."""
    after = with_outliers(trained.detector, factor)
    monkeypatch.setattr(SubnetEvaluator, "detector", lambda *_: trained.detector)
    monkeypatch.setattr(qat, "tuned", lambda *_, **__: after)
    given = {
        "data": trained.data.root, "space": json.dumps(CHOICES), "weights": trained.weights,
        "precisions": ("f32", "int8"), "runtimes": ("onnxruntime",),
    }  # fmt: skip
    folder, settings = open_run(tmp_path / "run", given)
    candidate = Candidate(
        architecture=trained.detector.arch.name, generation=0, slices=(0.5,), images=1, finished=True,
        latency_ms=1.0, seconds=0.0,
    )  # fmt: skip
    folder.path("explore", "candidates.jsonl").write_text(candidate.model_dump_json() + "\n")
    context = Context(folder, settings, None, Silent(), lambda _: None)
    export(context)
    (made,) = (each for each in read_artifacts(context) if each.precision == "int8")
    assert made.quantized is not None
    assert made.quantized.tuned_lost is not None
    assert (made.quantized.tuned_lost < made.quantized.lost) == (kept == "tuned")
    frames = some_frames(trained.data.splits["train"].images, QUANTIZATION_FRAMES, settings.seed)
    expected = after if kept == "tuned" else trained.detector
    file = model_files(expected, frames, ("int8",), settings.quantization, tmp_path)["int8"]
    assert made.folder.endswith(file_digest(file)[:8])


def test_no_steps_change_no_weight_and_the_detector_given_stays_as_it_is(trained: Trained) -> None:
    """The result is a copy; without a step it is the detector itself."""
    pool = FramePool(trained.data.splits["train"], long_side=256)
    before = [parameter.clone() for parameter in trained.detector.parameters()]
    same = tuned(trained.detector, pool, inputs(trained), TuningConfig(steps=0), seed=0)
    other = tuned(trained.detector, pool, inputs(trained), TuningConfig(steps=1), seed=0)
    changed = False
    for old, now, first, second in zip(
        before, trained.detector.parameters(), same.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(old, now)
        assert torch.equal(old, first)
        changed |= not torch.equal(old, second)
    assert changed


def test_only_a_fused_detector_with_frames_is_tuned(trained: Trained) -> None:
    """Batch norms would be rounded away, and ranges need something to pass."""
    space = tiny_space()
    pool = FramePool(trained.data.splits["train"], long_side=256)
    with pytest.raises(ValueError, match="fused"):
        tuned(Supernet(space).extract(space.largest), pool, inputs(trained), TuningConfig(), seed=0)
    with pytest.raises(ValueError, match="frames"):
        tuned(trained.detector, pool, inputs(trained)[:0], TuningConfig(), seed=0)
