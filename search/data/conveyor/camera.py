"""From light to bytes: lens and motion blur, exposure, sensor noise, JPEG."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from search.data.conveyor.factors import Factors

JPEG_QUALITY: Final = 90
NOISE_SIDE: Final = 1280
_NOISE_SEED: Final = 20242


def build_noise() -> NDArray[np.float32]:
    """Make a [1280, 1280, 3] tile of unit noise, its colours a little correlated, as by demosaicing."""
    rng = np.random.default_rng(_NOISE_SEED)
    fine = rng.standard_normal((NOISE_SIDE, NOISE_SIDE, 3), dtype=np.float32)
    shared = rng.standard_normal((NOISE_SIDE, NOISE_SIDE, 1), dtype=np.float32)
    mixed = cv2.GaussianBlur(0.6 * fine + 0.8 * shared, (0, 0), 0.55)
    return (mixed / mixed.std()).astype(np.float32)


def expose(
    radiance: NDArray[np.float32],
    factors: Factors,
    noise: NDArray[np.float32],
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """Take the picture of `radiance` ([h, w, 3] RGB float32, 255: white at gain 1) and return it as uint8.

    Motion blur is a box of `blur_px` along x with fractional ends, on top of a lens blur that grows with it;
    the noise has the standard deviation `noise_dn` at middle grey and grows with the root of the signal.
    """
    height, width = radiance.shape[:2]
    blurred = cv2.sepFilter2D(radiance, -1, _box(1.0 + factors.blur_px), np.ones(1, np.float32))
    lens = 0.45 + 0.10 * factors.blur_px
    taps = 3 if lens < 0.6 else 5 if lens < 1.1 else 9
    signal = cv2.GaussianBlur(blurred, (taps, taps), lens) * np.float32(factors.light)
    y0, x0 = (int(v) for v in rng.integers(0, (NOISE_SIDE - height, NOISE_SIDE - width)))
    level = np.sqrt(np.maximum(signal, np.float32(0)) * np.float32(1 / 128) + np.float32(0.12))
    signal += cv2.multiply(noise[y0 : y0 + height, x0 : x0 + width], level, scale=factors.noise_dn)
    return np.clip(signal + np.float32(0.5), 0, 255).astype(np.uint8)


def encode_jpeg(rgb: NDArray[np.uint8]) -> bytes:
    """Encode an RGB frame as JPEG of quality 90.

    Raises:
        RuntimeError: if the encoder refuses, which no valid frame makes it do.
    """
    done, buffer = cv2.imencode(
        ".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    )
    if not done:
        raise RuntimeError("the JPEG encoder refused a frame")
    return buffer.tobytes()


def _box(length_px: float) -> NDArray[np.float32]:
    """Return a normalised box kernel of odd size whose outermost taps carry the fraction."""
    side = max(0, int(np.ceil((length_px - 1) / 2)))
    kernel = np.ones(2 * side + 1, np.float32)
    if side:
        kernel[[0, -1]] = (length_px - (2 * side - 1)) / 2
    return (kernel / kernel.sum()).astype(np.float32)
