"""Frames in datagrams, the format of this gateway: any JPEG or PNG, whole and unchanged.

Every datagram has a head of 28 bytes, big-endian, and a piece of the frame:

    bytes   what
    0-2     "PGF"
    3       version, 1
    4-7     stream: chosen at random by who begins one
    8-11    frame: counts up, modulo 2^32
    12-15   offset of the piece in the frame, bytes
    16-19   total: bytes of the frame
    20-23   CRC-32 of the frame
    24-27   the frame's budget in microseconds, 0 for none; it begins when the last piece arrives

Every head says all there is to know of its frame, so that any piece may be the first to arrive; the sum
tells that the pieces are of one frame, and whole.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from router.pieces import NUMBERS, MalformedDatagram, Piece

MAGIC = b"PGF\x01"
_HEAD = struct.Struct(">4s6I")


@dataclass(frozen=True, slots=True)
class Sealed:
    """The envelope of a frame in this format."""

    crc32: int
    budget_us: int

    @property
    def budget_ms(self) -> float | None:
        """Return the frame's budget, None without one."""
        return self.budget_us / 1e3 or None

    def open(self, content: bytes) -> bytes:
        """Return the frame; raises MalformedDatagram unless its sum is right."""
        if zlib.crc32(content) != self.crc32:
            raise MalformedDatagram("the frame's CRC-32 is wrong")
        return content


def parse(datagram: bytes) -> Piece:
    """Read a datagram; raises MalformedDatagram."""
    if len(datagram) <= _HEAD.size:
        raise MalformedDatagram(f"{len(datagram)} bytes: no more than a head")
    magic, stream, frame, offset, total, crc32, budget_us = _HEAD.unpack_from(datagram)
    if magic != MAGIC:
        raise MalformedDatagram(f"begins with {magic.hex()}, expected {MAGIC.hex()}")
    data = datagram[_HEAD.size :]
    if offset + len(data) > total:
        raise MalformedDatagram(f"bytes {offset}..{offset + len(data)} of a frame of {total}")
    return Piece(stream, frame, offset, data, total, Sealed(crc32, budget_us))


def datagrams(
    image: bytes, *, stream: int, frame: int, budget_ms: float | None = None, most_bytes: int = 1400
) -> list[bytes]:
    """Cut an encoded image into datagrams of at most `most_bytes`.

    frame is taken modulo 2^32. Raises ValueError when there is nothing to send, or a budget that the head
    cannot hold (up to an hour).
    """
    step = most_bytes - _HEAD.size
    budget_us = 0 if budget_ms is None else round(budget_ms * 1e3)
    if not image or step < 1:
        raise ValueError(f"an image of {len(image)} bytes in datagrams of {most_bytes}: nothing to send")
    if budget_ms is not None and not 0 < budget_us < NUMBERS:
        raise ValueError(f"budget_ms: {budget_ms:g} is not between a microsecond and an hour")
    crc32 = zlib.crc32(image)
    return [
        _HEAD.pack(MAGIC, stream, frame % NUMBERS, at, len(image), crc32, budget_us) + image[at : at + step]
        for at in range(0, len(image), step)
    ]
