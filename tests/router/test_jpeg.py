"""Taking baseline JPEGs apart and putting them together."""

from __future__ import annotations

import contextlib
import io

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from router.jpeg import UnsuitableJpeg, quantizers, read, write


def picture(wh: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    """Return smooth colours, uint8 [h, w, 3]."""
    noise = np.random.default_rng(seed).integers(0, 256, (wh[1], wh[0], 3), dtype=np.uint8)
    return np.asarray(cv2.GaussianBlur(noise, (0, 0), 3) * 2 - 128, dtype=np.uint8)


def jpeg_of(image: NDArray[np.uint8], *options: int) -> bytes:
    """Encode, with pairs of OpenCV's options."""
    return cv2.imencode(".jpg", image, options)[1].tobytes()


def pixels(jpeg: bytes) -> NDArray[np.uint8]:
    """Decode to uint8 [h, w, 3]."""
    return np.asarray(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR))


SAMPLINGS = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("restarts", [0, 4])
def test_a_jpeg_put_together_again_has_the_same_pixels(sampling: int, restarts: int) -> None:
    """Whatever its sampling and its restart markers."""
    image = picture((100, 52))
    jpeg = jpeg_of(image, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling, cv2.IMWRITE_JPEG_RST_INTERVAL, restarts)
    parts = read(jpeg)
    assert (parts.width, parts.height, parts.restart_interval) == (100, 52, restarts)
    assert np.array_equal(pixels(write(parts)), pixels(jpeg))


@given(quality=st.integers(1, 99))
def test_quantizers_are_those_of_the_reference_encoder(quality: int) -> None:
    """For every quality that RTP has a number for."""
    jpeg = jpeg_of(picture((16, 16)), cv2.IMWRITE_JPEG_QUALITY, quality)
    assert read(jpeg).quantizers == quantizers(quality)


def test_motion_jpeg_without_tables_has_the_standard_ones() -> None:
    """Webcams leave the Huffman tables out."""
    jpeg = jpeg_of(picture((32, 32)))
    bare = jpeg
    while (at := bare.find(b"\xff\xc4")) >= 0:
        bare = bare[:at] + bare[at + 2 + int.from_bytes(bare[at + 2 : at + 4]) :]
    assert len(bare) < len(jpeg)
    assert np.array_equal(pixels(write(read(bare))), pixels(jpeg))


def pillow(image: NDArray[np.uint8], mode: str = "RGB", **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).convert(mode).save(out, "JPEG", **options)
    return out.getvalue()


@pytest.mark.parametrize(
    ("jpeg", "words"),
    [
        (jpeg_of(picture((32, 32)), cv2.IMWRITE_JPEG_PROGRESSIVE, 1), "no progressive one"),
        (jpeg_of(picture((32, 32)), cv2.IMWRITE_JPEG_OPTIMIZE, 1), "without optimizing"),
        (pillow(picture((32, 32)), subsampling=0), "expected 4:2:0"),
        (pillow(picture((32, 32)), "L"), "three components"),
        (b"", "no JPEG"),
        (b"\x89PNG\r\n\x1a\n", "no JPEG"),
        (b"\xff\xd8\xff", "no segment at byte 2"),
        (b"\xff\xd8\xff\xdb\x00\x43", "longer than the file"),
        (b"\xff\xd8\xff\xdb\x00\x01", "longer than the file"),
        (b"\xff\xd8\xff\xdb\x00\x03\x00", "cut off"),
    ],
)
def test_what_rtp_cannot_carry_is_refused_by_its_reason(jpeg: bytes, words: str) -> None:
    """Progressive, optimized, other colours, and what is no whole JPEG."""
    with pytest.raises(UnsuitableJpeg, match=words):
        read(jpeg)


@given(at=st.integers(0, 700), to=st.integers(0, 255), end=st.integers(0, 2000))
def test_a_damaged_jpeg_is_taken_apart_or_refused(at: int, to: int, end: int) -> None:
    """Nothing else is raised, whichever byte is wrong and wherever it ends."""
    damaged = bytearray(jpeg_of(picture((32, 32)))[:end])
    if at < len(damaged):
        damaged[at] = to
    with contextlib.suppress(UnsuitableJpeg):
        write(read(bytes(damaged)))
