"""What tests see of a page in a browser."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from playwright.sync_api import ConsoleMessage, Locator, Page

# What boxes of the first class are drawn in.
_BLUE = (0x3E, 0xC5, 0xFF)


def drawn(picture: Locator) -> NDArray[np.uint8]:
    """Return a picture as it is shown, RGB uint8 [h, w, 3]."""
    shot = cv2.imdecode(np.frombuffer(picture.screenshot(), np.uint8), cv2.IMREAD_COLOR)
    assert shot is not None
    return np.asarray(shot[..., ::-1], np.uint8)


def blue_pixels(picture: Locator) -> int:
    """Return how many pixels of a picture have the colour of the first class's boxes."""
    return int((np.abs(drawn(picture).astype(int) - _BLUE).max(axis=2) < 24).sum())


def errors_on(page: Page) -> list[str]:
    """Return a list that is filled with the errors that a page reports from now on."""
    errors: list[str] = []

    def told(message: ConsoleMessage) -> None:
        if message.type == "error":
            errors.append(message.text)

    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", told)
    return errors
