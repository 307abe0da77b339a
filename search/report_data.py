"""What a report says about the data set, and the tables that it is made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from search.data.coco import Dataset, Split


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return an HTML table; cells are HTML already."""
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    titles = "".join(f"<th>{cell}</th>" for cell in head)
    return f'<div class="wide"><table><tr>{titles}</tr>{body}</table></div>'


def data_summary(dataset: Dataset) -> str:
    """Count images and boxes per split and class, give box sizes, and repeat what reading has mended."""
    splits = list(dataset.splits.values())
    counts = [_boxes_by_class(split, len(dataset.classes)) for split in splits]
    rows: list[tuple[str, ...]] = [
        ("images", *(str(len(split.images)) for split in splits)),
        (
            "images without a box",
            *(str(sum(not len(image.labels) for image in split.images)) for split in splits),
        ),
        ("boxes", *(str(int(count.sum())) for count in counts)),
        ("crowd regions", *(str(sum(int(image.crowd.sum()) for image in split.images)) for split in splits)),
    ]
    rows += [
        (f"boxes of {escape(label)}", *(str(int(count[k])) for count in counts))
        for k, label in enumerate(dataset.classes)
    ]
    rows.append(("side of a box in px: 5 %, half, 95 %", *map(_sides, splits)))
    notes = "".join(f"<li>{escape(note)}</li>" for note in dataset.notes)
    mended = f"<p>Mended while reading:</p><ul>{notes}</ul>" if notes else ""
    return table(("", *(escape(split.name) for split in splits)), rows) + mended


def _boxes_by_class(split: Split, classes: int) -> NDArray[np.int64]:
    labels = np.concatenate([image.labels for image in split.images])
    return np.bincount(labels, minlength=classes).astype(np.int64)


def _sides(split: Split) -> str:
    """Return quantiles of the geometric mean of width and height."""
    boxes = np.concatenate([image.boxes_xyxy for image in split.images])
    if not len(boxes):
        return ""
    sides = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
    return ", ".join(f"{side:.0f}" for side in np.quantile(sides, (0.05, 0.5, 0.95)))
