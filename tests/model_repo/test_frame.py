"""Decoding survives what is hostile, and the letterbox is undone by its inverse."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from model_repo.frame import (
    FILL,
    BrokenFrame,
    FrameError,
    FrameLimits,
    FrameTooLarge,
    Letterbox,
    UnsupportedFrame,
    decode,
    sniff_wh,
)

relaxed = settings(deadline=None, max_examples=60)


def _picture(wh: tuple[int, int] = (64, 48)) -> NDArray[np.uint8]:
    """Return a smooth picture that JPEG keeps well, different in every channel."""
    x, y = np.meshgrid(np.linspace(0, 255, wh[0]), np.linspace(0, 255, wh[1]))
    return np.stack((x, y, 255 - x), axis=2).astype(np.uint8)


def _encoded(image: NDArray[np.generic], mode: str | None = None, **options: object) -> bytes:
    out = io.BytesIO()
    made = Image.fromarray(image)
    (made.convert(mode) if mode else made).save(out, **{"format": "PNG", **options})  # type: ignore[arg-type]  # Pillow's options differ by format
    return out.getvalue()


JPEG = _encoded(_picture(), format="JPEG", quality=95)
PNG = _encoded(_picture())


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, body: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def test_png_is_exact() -> None:
    """PNG comes out as the RGB pixels that went in."""
    np.testing.assert_array_equal(decode(PNG), _picture())


def test_jpeg_is_close() -> None:
    """JPEG comes out as RGB, within its loss."""
    decoded = decode(JPEG)
    assert decoded.shape == (48, 64, 3)
    assert decoded.dtype == np.uint8
    assert np.abs(decoded.astype(int) - _picture()).mean() < 3


def test_every_kind_becomes_rgb() -> None:
    """Grey, 16-bit, palette and transparent images become RGB uint8 of their own size."""
    grey = _picture()[..., 0]
    deep = grey.astype(np.uint16) * 257
    for data in (
        _encoded(grey),
        _encoded(deep),
        _encoded(_picture(), mode="P"),
        _encoded(_picture(), mode="RGBA"),
        _encoded(_picture(), mode="LA"),
        _encoded(grey, format="JPEG"),
        _encoded(_picture(), format="JPEG", progressive=True),
    ):
        decoded = decode(data)
        assert decoded.shape == (48, 64, 3)
        assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decode(_encoded(grey)), np.stack([grey] * 3, axis=2))
    np.testing.assert_array_equal(decode(_encoded(deep)), np.stack([grey] * 3, axis=2))


def test_cmyk_jpeg_becomes_rgb() -> None:
    """A CMYK JPEG has the colours of its picture, within its loss."""
    decoded = decode(_encoded(_picture(), mode="CMYK", format="JPEG", quality=95))
    assert np.abs(decoded.astype(int) - _picture()).mean() < 6


def test_orientation_is_not_applied() -> None:
    """EXIF orientation does not turn the frame: answers are in the pixels as they were sent."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for options in ({"format": "JPEG"}, {"format": "PNG"}):
        assert decode(_encoded(_picture(), exif=exif, **options)).shape == (48, 64, 3)


@pytest.mark.parametrize("whole", [JPEG, PNG], ids=["jpeg", "png"])
def test_truncated_is_broken(whole: bytes) -> None:
    """Half an image is no image, wherever it is cut."""
    for length in (*range(1, len(whole) - 12, max(len(whole) // 40, 1)), len(whole) // 2):
        with pytest.raises(FrameError):
            decode(whole[:length])


def test_empty_and_other_types() -> None:
    """An empty body is broken, other types are unsupported."""
    with pytest.raises(BrokenFrame, match="empty"):
        decode(b"")
    for data in (b"GIF89a" + bytes(50), b"RIFF\0\0\0\0WEBP", b"hello", bytes(100)):
        with pytest.raises(UnsupportedFrame):
            decode(data)


@relaxed
@given(
    st.sampled_from([JPEG, PNG]), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=8)
)
def test_corrupted_is_an_image_or_a_frame_error(whole: bytes, changes: list[tuple[int, int]]) -> None:
    """Whatever bytes change, the outcome is an RGB image or a FrameError."""
    data = bytearray(whole)
    for place, value in changes:
        data[place % len(data)] = value
    try:
        decoded = decode(bytes(data), FrameLimits(max_pixels=100_000))
    except FrameError:
        return
    assert decoded.ndim == 3
    assert decoded.shape[2] == 3


@relaxed
@given(st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"]))
def test_noise_is_a_frame_error(noise: bytes, magic: bytes) -> None:
    """Bytes that are no image never raise anything but a FrameError."""
    with pytest.raises(FrameError):
        decode(magic + noise)


def test_bomb_is_refused_by_its_header() -> None:
    """A small file that claims enormous pixels is refused before they are allocated."""
    bomb = _png(60_000, 60_000, zlib.compress(bytes(10_000)))
    assert sniff_wh(bomb) == (60_000, 60_000)
    with pytest.raises(FrameTooLarge, match="pixels"):
        decode(bomb)
    jpeg = bytearray(JPEG)
    start = bytes(jpeg).index(b"\xff\xc0") + 5
    jpeg[start : start + 4] = struct.pack(">HH", 65_000, 65_000)
    with pytest.raises(FrameTooLarge, match="pixels"):
        decode(bytes(jpeg))


def test_header_that_promises_more_than_the_body_holds() -> None:
    """A PNG whose data end before its pixels do is broken, not half grey."""
    with pytest.raises(BrokenFrame):
        decode(_png(1000, 1000, zlib.compress(bytes(100))))
    with pytest.raises(BrokenFrame):
        decode(_png(0, 10, zlib.compress(b"")))


def test_limits() -> None:
    """Bytes and pixels are each held to their limit, which is itself accepted."""
    assert decode(PNG, FrameLimits(max_bytes=len(PNG), max_pixels=64 * 48)).shape == (48, 64, 3)
    with pytest.raises(FrameTooLarge, match="bytes"):
        decode(PNG, FrameLimits(max_bytes=len(PNG) - 1))
    with pytest.raises(FrameTooLarge, match="pixels"):
        decode(PNG, FrameLimits(max_pixels=64 * 48 - 1))


sizes = st.tuples(st.integers(1, 2000), st.integers(1, 2000))
inputs = st.tuples(st.integers(1, 20), st.integers(1, 20)).map(lambda wh: (32 * wh[0], 32 * wh[1]))


@relaxed
@given(sizes, inputs, st.lists(st.tuples(*[st.floats(0, 1, width=32)] * 4), max_size=10))
def test_letterbox_inverse(
    source_wh: tuple[int, int], resolution_wh: tuple[int, int], shares: list[tuple[float, ...]]
) -> None:
    """Boxes carried to the input and back are the same boxes, and lie in the content there."""
    letterbox = Letterbox(source_wh, resolution_wh)
    size = np.array([*source_wh, *source_wh], dtype=np.float32)
    boxes = np.array(shares, dtype=np.float32).reshape(-1, 4) * size
    there = letterbox.to_input(boxes)
    content = np.array([*letterbox.content_wh, *letterbox.content_wh])
    assert (there <= content * (1 + 1e-5)).all()
    np.testing.assert_allclose(letterbox.to_source(there), boxes, rtol=1e-4, atol=1e-3 * size.max())


@relaxed
@given(sizes, inputs)
def test_content_fits_and_keeps_its_aspect(
    source_wh: tuple[int, int], resolution_wh: tuple[int, int]
) -> None:
    """The content fits the input, fills it one way, and is off the exact scale by a pixel at most."""
    content = Letterbox(source_wh, resolution_wh).content_wh
    assert content[0] <= resolution_wh[0]
    assert content[1] <= resolution_wh[1]
    assert content[0] == resolution_wh[0] or content[1] == resolution_wh[1]
    scale = min(resolution_wh[0] / source_wh[0], resolution_wh[1] / source_wh[1])
    assert abs(content[0] - source_wh[0] * scale) <= 1
    assert abs(content[1] - source_wh[1] * scale) <= 1


def test_letterbox_pixels() -> None:
    """Content stands at the top left, the rest is grey; the image's own size passes through."""
    image = _picture((64, 48))
    out = Letterbox((64, 48), (96, 96)).apply(image)
    assert out.shape == (96, 96, 3)
    np.testing.assert_array_equal(out[:72], cv2.resize(image, (96, 72), interpolation=cv2.INTER_LINEAR))
    assert (out[72:] == FILL).all()
    np.testing.assert_array_equal(Letterbox((64, 48), (64, 48)).apply(image), image)
    with pytest.raises(ValueError, match="letterbox is for"):
        Letterbox((48, 64), (96, 96)).apply(image)
    with pytest.raises(ValueError, match="positive"):
        Letterbox((0, 64), (96, 96))


def test_boxes_are_clipped_to_the_source() -> None:
    """A box that leaves the content, into the padding even, is clipped to the source frame."""
    letterbox = Letterbox((100, 50), (64, 64))
    back = letterbox.to_source(np.array([[-10, -10, 64, 64]], dtype=np.float32))
    np.testing.assert_allclose(back, [[0, 0, 100, 50]], atol=1e-4)


def test_chunk_that_promises_gigabytes_is_broken() -> None:
    """A PNG whose IDAT claims to be longer than the file is refused without reading what is not there."""
    at = PNG.index(b"IDAT") - 4
    with pytest.raises(BrokenFrame, match="longer than the file"):
        decode(PNG[:at] + struct.pack(">I", 3_405_775_328) + PNG[at + 4 :])


def test_wrong_checksum_is_broken() -> None:
    """One flipped bit anywhere in a PNG's chunks is noticed by its checksum, before decoding."""
    at = PNG.index(b"IDAT") + 10
    with pytest.raises(BrokenFrame, match="checksum"):
        decode(PNG[:at] + bytes([PNG[at] ^ 1]) + PNG[at + 1 :])


def test_animation_is_its_still_image() -> None:
    """Chunks of an animation, and all others that a still image does not need, change nothing."""
    after_header = 33
    extra = _chunk(b"acTL", struct.pack(">II", 1000, 0)) + _chunk(b"tEXt", b"Comment\0x")
    assert np.array_equal(decode(PNG[:after_header] + extra + PNG[after_header:]), decode(PNG))


def test_second_header_and_endless_chunks_are_broken() -> None:
    """A PNG has one IHDR, and a bounded number of chunks."""
    header = PNG[8:33]
    with pytest.raises(BrokenFrame, match="one IHDR"):
        decode(PNG[:33] + header + PNG[33:])
    with pytest.raises(BrokenFrame, match="more than"):
        decode(PNG[:33] + _chunk(b"tEXt", b"") * 20_001 + PNG[33:])
