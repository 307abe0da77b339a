"""A contact sheet: frames from easy to hard with their boxes, to look at before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from model_repo.frame import decode
from search.data.conveyor.dataset import ANNOTATIONS, RenderError

_SCALE = 0.5
_BOX_RGB = (255, 225, 60)


def contact_sheet(split_folder: Path, out_png: Path, *, columns: int = 4, rows: int = 4) -> None:
    """Write a PNG of frames spread evenly over the difficulties in a rendered split, boxes drawn.

    Raises RenderError when the folder is no rendered split or the PNG cannot be written.
    """
    annotations = split_folder / ANNOTATIONS
    if not annotations.is_file():
        raise RenderError(f"{annotations}: missing; render the split first")
    document = json.loads(annotations.read_text())
    names = {row["id"]: row["name"] for row in document["categories"]}
    images = sorted(document["images"], key=lambda row: row["difficulty"])
    picked = [
        images[i] for i in np.linspace(0, len(images) - 1, min(columns * rows, len(images))).astype(int)
    ]
    tiles = []
    for row in picked:
        tile = cv2.resize(
            decode((split_folder / row["file_name"]).read_bytes()), None, fx=_SCALE, fy=_SCALE,
            interpolation=cv2.INTER_AREA,
        )  # fmt: skip
        for part in document["annotations"]:
            if part["image_id"] == row["id"]:
                x, y, w, h = (round(v * _SCALE) for v in part["bbox"])
                cv2.rectangle(tile, (x, y), (x + w, y + h), _BOX_RGB, 1, cv2.LINE_AA)
                cv2.putText(
                    tile, names[part["category_id"]], (x, max(y - 3, 9)), cv2.FONT_HERSHEY_SIMPLEX, 0.33,
                    _BOX_RGB, 1, cv2.LINE_AA,
                )  # fmt: skip
        label = f"difficulty {row['difficulty']:.2f}"
        cv2.putText(tile, label, (6, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1, cv2.LINE_AA)
        tiles.append(tile)
    blank = np.zeros_like(tiles[0])
    tiles += [blank] * (-len(tiles) % columns)
    lines = [np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
    sheet = cv2.cvtColor(np.vstack(lines), cv2.COLOR_RGB2BGR)
    if not cv2.imwrite(str(out_png), sheet):
        raise RenderError(f"{out_png}: cannot be written")
