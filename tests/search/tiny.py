"""A tiny COCO data set of coloured squares, a tiny search space, and a recorded latency table for it."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from search.predict import LatencyTable, MeasuredLatency
from search.space import Space
from tests.fakes import tiny_repository

COLOURS = ((220, 40, 40), (40, 200, 60))
WH = (160, 128)
CHOICES = {
    "resolutions": [96, 128],
    "depths": [[1], [1, 2], [1], [1]],
    "widths": [[8], [8, 16], [16], [16]],
    "neck_widths": [8, 16],
    "head_depths": [1],
    "stem_width": 8,
}


def tiny_dataset(root: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """Write splits of `counts` frames with one to three squares each; returns `root`."""
    for number, (split, count) in enumerate(counts.items()):
        rng = np.random.default_rng([seed, number])
        folder = root / split
        folder.mkdir(parents=True)
        annotations: list[dict[str, object]] = []
        images = []
        for i in range(count):
            image = rng.integers(90, 140, (WH[1], WH[0], 3)).astype(np.uint8)
            for _ in range(int(rng.integers(1, 4))):
                side = int(rng.integers(18, 48))
                x, y = int(rng.integers(0, WH[0] - side)), int(rng.integers(0, WH[1] - side))
                label = int(rng.integers(len(COLOURS)))
                image[y : y + side, x : x + side] = COLOURS[label]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": i + 1,
                        "category_id": label + 1,
                        "bbox": [x, y, side, side],
                        "area": side * side,
                        "iscrowd": 0,
                    }
                )
            cv2.imwrite(str(folder / f"{i}.png"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
            images.append({"id": i + 1, "file_name": f"{i}.png", "width": WH[0], "height": WH[1]})
        document = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}],
        }
        (folder / "_annotations.coco.json").write_text(json.dumps(document))
    return root


def tiny_space() -> Space:
    """Return the space of CHOICES for the tiny data set."""
    return Space(
        classes=len(COLOURS),
        aspect=(5, 4),
        resolutions=(96, 128),
        depths=((1,), (1, 2), (1,), (1,)),
        widths=((8,), (8, 16), (16,), (16,)),
        neck_widths=(8, 16),
        head_depths=(1,),
        stem_width=8,
    )


def recorded_table(scratch: Path) -> LatencyTable:
    """Return a latency table as if measured: latency grows with the multiply-accumulates."""
    space = tiny_space()
    rng = np.random.default_rng(0)
    subnets = dict.fromkeys([space.smallest, space.largest, *(space.sample(rng) for _ in range(12))])
    return LatencyTable(
        runtime="openvino",
        precision="int8",
        threads=1,
        aspect=space.aspect,
        environment=tiny_repository(scratch / "somewhere").frontier.environment,
        measured=tuple(
            MeasuredLatency(architecture=subnet.name, p50_ms=0.3 + space.cost(subnet).macs * 1e-7)
            for subnet in subnets
        ),
    )
