"""Two detectors that do not exist: their answers on frames whose brightness tells how hard they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_repo.detections import Detections
from model_repo.escalation import FrameView
from model_repo.latency import Histogram
from model_repo.scoring import Truth, match
from search.routing import Artifact

CLASSES = 2
WH = (160, 120)


@dataclass(frozen=True)
class Scene:
    """Views of frames of 160 x 120 pixels, their labels, and their difficulty in [0, 1]."""

    views: tuple[FrameView, ...]
    truths: tuple[Truth, ...]
    difficulty: NDArray[np.float64]


def scene(count: int, seed: int) -> Scene:
    """Draw frames with three boxes each, few of them hard; a harder one is darker."""
    rng = np.random.default_rng([seed, 1])
    difficulty = rng.random(count) ** 3
    views, truths = [], []
    for hard in difficulty:
        level = 200 * (1 - hard) + 20
        image = np.clip(rng.normal(level, 8, (WH[1], WH[0], 3)), 0, 255).astype(np.uint8)
        views.append(FrameView.of(image))
        xy = rng.uniform(0, 90, (3, 2))
        boxes = np.concatenate((xy, xy + rng.uniform(15, 30, (3, 2))), axis=1).astype(np.float32)
        truths.append(Truth(boxes, rng.integers(CLASSES, size=3), np.zeros(3, np.bool_)))
    return Scene(tuple(views), tuple(truths), difficulty)


def artifact(
    name: str, scene_: Scene, *, weakness: float, ms: float, seed: int, boast: float = 1.0
) -> Artifact:
    """Answer a scene: boxes are off and missing by weakness times difficulty; scores become score**boast."""
    rng = np.random.default_rng([seed, 2])
    answers = []
    for truth, hard in zip(scene_.truths, scene_.difficulty, strict=True):
        trouble = weakness * hard
        seen = rng.random(3) > 0.6 * trouble
        boxes = truth.xyxy[seen] + rng.normal(0, 0.6 + 4 * trouble, (int(seen.sum()), 4)).astype(np.float32)
        score = np.clip(0.95 - 0.6 * trouble + rng.normal(0, 0.08, int(seen.sum())), 0.02, 1)
        false = int(rng.poisson(0.3 + 2 * trouble))
        xy = rng.uniform(0, 100, (false, 2))
        boxes = np.concatenate((boxes, np.concatenate((xy, xy + 20), axis=1)))
        score = np.concatenate((score, rng.uniform(0.02, 0.5, false))) ** boast
        label = np.concatenate((truth.label[seen], rng.integers(CLASSES, size=false)))
        answers.append(Detections.make(boxes, score, label))
    samples = ms * np.exp(rng.normal(0, 0.05, 200))
    return Artifact(
        name, tuple(answers), match(scene_.truths, answers, CLASSES), Histogram.of(samples), ("openvino",)
    )
