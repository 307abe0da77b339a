"""Accuracy by how hard frames are, for data that says so."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from model_repo.detections import Detections
from model_repo.frontier import Frontier, Variant
from model_repo.latency import RuntimeName
from model_repo.scoring import Truth, score

TENTHS = 10


def map_by_tenth(
    answers: Sequence[Detections], truths: Sequence[Truth], difficulty: Sequence[float], classes: int
) -> list[float]:
    """Return mAP@[.5:.95] in each tenth of the frames, easiest first; ValueError with fewer than ten."""
    if len(difficulty) < TENTHS:
        raise ValueError(f"{len(difficulty)} frames do not make {TENTHS} tenths")
    order = np.argsort(np.asarray(difficulty), kind="stable")
    return [
        score([truths[i] for i in part], [answers[i] for i in part], classes).map
        for part in np.array_split(order, TENTHS)
    ]


def smallest_and_largest(frontier: Frontier, runtime: RuntimeName) -> tuple[Variant, Variant]:
    """Return the fastest and the slowest variant on a runtime."""
    ordered = sorted(
        (variant for variant in frontier.variants if runtime in variant.runtimes),
        key=lambda variant: variant.on(runtime).profile(1).mean_ms,
    )
    return ordered[0], ordered[-1]
