"""Detections drawn on their frame."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from model_repo.detections import Detections

# RGB, by class.
_BOX_COLOURS = ((11, 97, 164), (209, 73, 91), (46, 139, 87), (230, 159, 0), (123, 80, 178), (0, 158, 158))


def drawn(
    image: NDArray[np.uint8], detections: Detections, classes: Sequence[str], threshold: float
) -> NDArray[np.uint8]:
    """Return a copy of a frame with the boxes of at least `threshold` drawn on it."""
    out = image.copy()
    for box, score, label in zip(detections.xyxy, detections.score, detections.label, strict=True):
        if score < threshold:
            continue
        colour = _BOX_COLOURS[int(label) % len(_BOX_COLOURS)]
        x1, y1, x2, y2 = (round(float(value)) for value in box)
        cv2.rectangle(out, (x1, y1), (x2, y2), colour, 2)
        text = f"{classes[int(label)]} {score:.2f}"
        cv2.putText(
            out, text, (x1, max(y1 - 4, 10)), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 3, cv2.LINE_AA
        )
        cv2.putText(out, text, (x1, max(y1 - 4, 10)), cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, 1, cv2.LINE_AA)
    return out
