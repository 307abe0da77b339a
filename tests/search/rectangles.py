"""A search space and a data set small enough that a test trains on them in a second."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from search.data.coco import Dataset, ImageRecord, Split
from search.space import Space

TINY = Space(
    classes=2,
    aspect=(1, 1),
    resolutions=(64, 96),
    depths=((1,), (1, 2), (1,), (1, 2)),
    widths=((8, 16), (16,), (16, 24), (16,)),
    neck_widths=(8, 16),
    head_depths=(1,),
    stem_width=8,
)


def tiny_dataset(folder: Path, *, train: int = 6, valid: int = 4, seed: int = 0) -> Dataset:
    """Write frames of 96x80 pixels with one or two rectangles each, class 0 red and class 1 green."""
    rng = np.random.default_rng(seed)
    splits: dict[str, Split] = {}
    for name, count in (("train", train), ("valid", valid)):
        records: list[ImageRecord] = []
        for index in range(count):
            image = np.full((80, 96, 3), 60, np.uint8)
            boxes: list[tuple[int, int, int, int]] = []
            labels: list[int] = []
            for slot in range(int(rng.integers(1, 3))):
                width, height = (int(side) for side in rng.integers(18, 36, 2))
                x = slot * 48 + int(rng.integers(0, 48 - width))
                y = int(rng.integers(0, 80 - height))
                label = int(rng.integers(2))
                image[y : y + height, x : x + width] = (220, 40, 40) if label == 0 else (40, 220, 40)
                boxes.append((x, y, x + width, y + height))
                labels.append(label)
            path = folder / f"{name}{index}.png"
            assert cv2.imwrite(str(path), image[:, :, ::-1])
            records.append(
                ImageRecord(
                    id=index + 1,
                    path=path,
                    width=96,
                    height=80,
                    boxes_xyxy=np.array(boxes, np.float32).reshape(-1, 4),
                    labels=np.array(labels, np.int64),
                    crowd=np.zeros(len(labels), np.bool_),
                )
            )
        splits[name] = Split(name, tuple(records))
    return Dataset("tiny", folder, ("red", "green"), splits, f"tiny-{train}-{valid}-{seed}")
