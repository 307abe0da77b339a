"""From encoded bytes to a model's input and back: the one decoder and the one letterbox.

Training, measuring and serving all pass here, so that a frame looks the same to a model everywhere.
What comes over the wire is hostile: sizes are read from the header and refused before pixels are allocated.

JPEG goes through simplejpeg (libjpeg-turbo), about twice as fast as OpenCV; PNG through OpenCV. Colours are
upsampled the plain way: about a third less time, one grey level of difference on
average, and training sees the same. EXIF orientation is not applied: answers are in the pixels of the image
as it was sent.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

FILL = 114
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNKS = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})
_MAX_PNG_CHUNKS = 20_000
_JPEG_MAGIC = b"\xff\xd8\xff"


class FrameError(ValueError):
    """A frame that cannot be used; the message can be shown to the sender."""


class UnsupportedFrame(FrameError):
    """The bytes are not of a type that is decoded here (JPEG and PNG are)."""


class BrokenFrame(FrameError):
    """The bytes claim a type and break its rules."""


class FrameTooLarge(FrameError):
    """The frame exceeds the limit in bytes or in pixels."""


@dataclass(frozen=True, slots=True)
class FrameLimits:
    """State what is accepted: encoded size in bytes, decoded size in pixels."""

    max_bytes: int = 16 * 1024 * 1024
    max_pixels: int = 40_000_000


def sniff_wh(data: bytes) -> tuple[int, int]:
    """Return width and height from the header alone.

    Raises UnsupportedFrame when neither JPEG nor PNG, BrokenFrame when the header is broken.
    """
    if data.startswith(_JPEG_MAGIC):
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(data, strict=False)
        except (ValueError, KeyError) as error:
            # KeyError: simplejpeg looks an unreadable colour space up in a table.
            raise BrokenFrame(f"broken JPEG header: {error}") from error
        return int(width), int(height)
    if data.startswith(_PNG_MAGIC):
        if len(data) < 33 or data[12:16] != b"IHDR":
            raise BrokenFrame("broken PNG header: no IHDR chunk")
        width, height = struct.unpack(">II", data[16:24])
        return int(width), int(height)
    if not data:
        raise BrokenFrame("empty body: expected the bytes of a JPEG or PNG image")
    raise UnsupportedFrame("neither JPEG nor PNG")


def decode(data: bytes, limits: FrameLimits | None = None) -> NDArray[np.uint8]:
    """Decode JPEG or PNG bytes to RGB uint8 [height, width, 3].

    Raises FrameTooLarge, UnsupportedFrame or BrokenFrame. A truncated image is broken, not half an image.
    """
    limits = limits or FrameLimits()
    if len(data) > limits.max_bytes:
        raise FrameTooLarge(f"{len(data)} bytes, the limit is {limits.max_bytes}")
    width, height = sniff_wh(data)
    if width * height > limits.max_pixels:
        raise FrameTooLarge(f"{width}x{height} pixels, the limit is {limits.max_pixels} in all")
    if width == 0 or height == 0:
        raise BrokenFrame(f"{width}x{height} pixels: an image needs at least one")
    if data.startswith(_JPEG_MAGIC):
        try:
            image = simplejpeg.decode_jpeg(data, colorspace="RGB", fastupsample=True, strict=True)
            return np.asarray(image, dtype=np.uint8)
        except (ValueError, KeyError) as error:
            raise BrokenFrame(f"broken JPEG: {error}") from error
    still = _still_png(data)
    try:
        image = cv2.imdecode(
            np.frombuffer(still, dtype=np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        )
    except cv2.error as error:
        raise BrokenFrame("broken PNG") from error
    if image is None:
        raise BrokenFrame("broken PNG")
    return np.asarray(image, dtype=np.uint8)


def _still_png(data: bytes) -> bytes:
    """Return a PNG's chunks that a still image needs; raises BrokenFrame on a wrong length or checksum.

    OpenCV's own reader believes a chunk's length, so that four corrupted bytes make it work on gigabytes for
    minutes, and it plays animations, whose frames no pixel limit has seen.
    """
    view = memoryview(data)
    kept: list[memoryview] = [view[: len(_PNG_MAGIC)]]
    at = len(_PNG_MAGIC)
    for number in range(_MAX_PNG_CHUNKS):
        if at + 12 > len(data):
            raise BrokenFrame("broken PNG: it ends before its IEND chunk")
        (length,) = struct.unpack_from(">I", data, at)
        kind, end = data[at + 4 : at + 8], at + 12 + length
        if end > len(data):
            raise BrokenFrame("broken PNG: a chunk is longer than the file")
        if zlib.crc32(view[at + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise BrokenFrame("broken PNG: a chunk's checksum is wrong")
        if (kind == b"IHDR") != (number == 0):
            raise BrokenFrame("broken PNG: it needs one IHDR chunk, which comes first")
        if kind in _PNG_CHUNKS:
            kept.append(view[at:end])
        if kind == b"IEND":
            return b"".join(kept)
        at = end
    raise BrokenFrame(f"broken PNG: more than {_MAX_PNG_CHUNKS} chunks")


@dataclass(frozen=True, slots=True)
class Letterbox:
    """Map a source frame into a model's input: one scale, content at the top left, grey elsewhere.

    Content starts at the corner and not in the middle, so that the inverse is a division, and one rule
    (bilinear) serves all scales. `source_wh` and `resolution_wh` are in pixels.
    """

    source_wh: tuple[int, int]
    resolution_wh: tuple[int, int]

    def __post_init__(self) -> None:
        if min(*self.source_wh, *self.resolution_wh) < 1:
            raise ValueError(f"sizes must be positive: source {self.source_wh}, input {self.resolution_wh}")

    @property
    def content_wh(self) -> tuple[int, int]:
        """Return the size in input pixels that the source covers."""
        scale = min(self.resolution_wh[0] / self.source_wh[0], self.resolution_wh[1] / self.source_wh[1])
        return (
            min(max(round(self.source_wh[0] * scale), 1), self.resolution_wh[0]),
            min(max(round(self.source_wh[1] * scale), 1), self.resolution_wh[1]),
        )

    @property
    def _scale_xyxy(self) -> NDArray[np.float32]:
        content_w, content_h = self.content_wh
        x, y = content_w / self.source_wh[0], content_h / self.source_wh[1]
        return np.array([x, y, x, y], dtype=np.float32)

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize and pad an image [h, w, 3] of the source size; returns uint8 [rh, rw, 3]."""
        height, width = image.shape[:2]
        if (width, height) != self.source_wh:
            raise ValueError(f"image is {width}x{height}, this letterbox is for {self.source_wh}")
        content_wh = self.content_wh
        if content_wh == self.source_wh:
            content = image
        else:
            content = np.asarray(
                cv2.resize(image, content_wh, interpolation=cv2.INTER_LINEAR), dtype=np.uint8
            )
        if content_wh == self.resolution_wh:
            return np.ascontiguousarray(content)
        out = np.full((self.resolution_wh[1], self.resolution_wh[0], 3), FILL, dtype=np.uint8)
        out[: content_wh[1], : content_wh[0]] = content
        return out

    def to_input(self, xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
        """Carry boxes [n, 4] from source pixels to input pixels."""
        return np.asarray(xyxy * self._scale_xyxy, dtype=np.float32)

    def to_source(self, xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
        """Carry boxes [n, 4] from input pixels to source pixels, clipped to the source frame."""
        width, height = self.source_wh
        boxes = xyxy / self._scale_xyxy
        return np.clip(boxes, 0, np.array([width, height, width, height], dtype=np.float32)).astype(
            np.float32
        )
