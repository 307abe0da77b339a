"""JPEG over RTP, RFC 2435: packets of cameras, ffmpeg and GStreamer, and such packets from a JPEG.

A packet has RTP's head (RFC 3550), a main header of 8 bytes, for types 64 and 65 a restart header of 4, at
offset 0 the quantizers where Q is 128 or more, and a piece of the scan. The packet with the marker bit is
the frame's last. A frame is known by its timestamp, a stream by its SSRC; sequence numbers are not needed,
for offsets say what is missing.

Taken are types 0, 1, 64 and 65, progressive scanning, Q from 1 to 99 and from 128 to 255 with the quantizers
in the packet. Not taken: interlaced fields, sizes beyond 2040 pixels (which the header cannot say),
quantizers that were sent with another frame, and RTCP.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import ClassVar

from router.jpeg import HALF_BOTH, HALF_WIDTH, Baseline, UnsuitableJpeg, quantizers, read, write
from router.pieces import NUMBERS, MalformedDatagram, Piece, UnsupportedDatagram

CLOCK_HZ = 90_000
LONGEST_SIDE = 2040
_RTP = struct.Struct(">BBHII")
_JPEG = struct.Struct(">B3sBBBB")
_RESTART = struct.Struct(">HH")
_QUANTIZERS = struct.Struct(">BBH")
_WITH_RESTARTS = 64
_SAMPLING = {0: HALF_WIDTH, 1: HALF_BOTH}
_STATIC_TYPE, _FIRST_DYNAMIC_TYPE = 26, 96
_OWN_TABLES, _TABLES_OF_THIS_FRAME = 128, 255
# The first and the last packet of a run of whole intervals, numbered as unknown: all packets are waited for.
_ANY_RESTART = 0xFFFF


@dataclass(frozen=True, slots=True)
class Headers:
    """The envelope of a frame over RTP: what its headers say; sizes in pixels.

    tables: the quantizers of the packet at offset 0 where Q is 128 or more.
    """

    kind: int
    q: int
    width: int
    height: int
    restart_interval: int
    tables: tuple[bytes, bytes] | None = field(compare=False)
    budget_ms: ClassVar[None] = None

    def open(self, content: bytes) -> bytes:
        """Return the JFIF file of a whole scan; an end marker that a sender included stands twice then."""
        tables = self.tables or quantizers(self.q)
        sampling = _SAMPLING[self.kind % _WITH_RESTARTS]
        return write(Baseline(self.width, self.height, sampling, tables, self.restart_interval, content))


def parse(packet: bytes) -> Piece:
    """Read a packet; raises MalformedDatagram or UnsupportedDatagram."""
    try:
        return _parse(packet)
    except (struct.error, IndexError) as error:
        raise MalformedDatagram(f"{len(packet)} bytes: an RTP packet that ends in its headers") from error


def _parse(packet: bytes) -> Piece:
    first, second, _, timestamp, ssrc = _RTP.unpack_from(packet)
    marker, payload_type = second >> 7, second & 0x7F
    if first >> 6 != 2:
        raise MalformedDatagram(f"RTP version {first >> 6}, expected 2")
    if payload_type != _STATIC_TYPE and payload_type < _FIRST_DYNAMIC_TYPE:
        raise UnsupportedDatagram(
            f"payload type {payload_type}: neither JPEG (26) nor a dynamic one (96..127)"
        )
    at, end = _payload(packet, first)
    specific, offset_bytes, kind, q, width, height = _JPEG.unpack_from(packet, at)
    at, offset = at + _JPEG.size, int.from_bytes(offset_bytes)
    if kind % _WITH_RESTARTS not in _SAMPLING or kind >= 2 * _WITH_RESTARTS:
        raise UnsupportedDatagram(f"JPEG type {kind}: not one of 0, 1, 64 and 65")
    if specific:
        raise UnsupportedDatagram(f"type-specific {specific}: an interlaced field")
    if not width or not height:
        raise UnsupportedDatagram(f"a side of more than {LONGEST_SIDE} pixels")
    if q == 0 or 99 < q < _OWN_TABLES:
        raise UnsupportedDatagram(f"Q {q}: reserved")
    interval = 0
    if kind >= _WITH_RESTARTS:
        interval, _ = _RESTART.unpack_from(packet, at)
        at += _RESTART.size
    tables = None
    if q >= _OWN_TABLES and offset == 0:
        tables, at = _tables(packet, at)
    data = packet[at:end]
    if not data:
        raise MalformedDatagram("no scan data in it")
    return Piece(
        ssrc,
        timestamp,
        offset,
        data,
        offset + len(data) if marker else None,
        Headers(kind, q, 8 * width, 8 * height, interval, tables),
    )


def _payload(packet: bytes, first: int) -> tuple[int, int]:
    """Return where a packet's payload begins and ends: after sources and extension, before padding."""
    at = _RTP.size + 4 * (first & 0x0F)
    if first & 0x10:
        at += 4 + 4 * int.from_bytes(packet[at + 2 : at + 4])
    padding = packet[-1] if first & 0x20 else 0
    return at, max(len(packet) - padding, 0)


def _tables(packet: bytes, at: int) -> tuple[tuple[bytes, bytes], int]:
    """Return the quantizers of Y, and of Cb and Cr, and where they end; one alone is for all."""
    _, precision, length = _QUANTIZERS.unpack_from(packet, at)
    at += _QUANTIZERS.size
    if precision:
        raise UnsupportedDatagram("quantizers of 16 bits")
    if length not in (64, 128):
        raise UnsupportedDatagram(f"{length} bytes of quantizers: expected 64 or 128, with every frame")
    if at + length > len(packet):
        raise MalformedDatagram("the quantizers are cut off")
    return (packet[at : at + 64], packet[at + length - 64 : at + length]), at + length


def packets(jpeg: bytes, *, ssrc: int, timestamp: int, sequence: int, most_bytes: int = 1400) -> list[bytes]:
    """Cut a baseline JPEG into packets of at most `most_bytes`; timestamp in ticks of 90 kHz.

    timestamp and sequence are taken modulo 2^32 and 2^16. The header counts in blocks of 8 pixels: another
    size arrives rounded up, its edge as the encoder padded it. Raises UnsuitableJpeg where RTP cannot carry
    the image, ValueError where `most_bytes` leaves no room for it.
    """
    image = read(jpeg)
    if not 0 < image.width <= LONGEST_SIDE or not 0 < image.height <= LONGEST_SIDE:
        raise UnsuitableJpeg(f"{image.width}x{image.height}: sides are from 1 to {LONGEST_SIDE} pixels")
    if len(image.scan) >= 1 << 24:
        raise UnsuitableJpeg(f"{len(image.scan)} bytes: offsets reach to 2^24")
    if not image.scan:
        raise UnsuitableJpeg("its scan is empty")
    kind = 0 if image.sampling == HALF_WIDTH else 1
    restart = b""
    if image.restart_interval:
        kind += _WITH_RESTARTS
        restart = _RESTART.pack(image.restart_interval, _ANY_RESTART)
    both = b"".join(image.quantizers)
    tables = _QUANTIZERS.pack(0, 0, len(both)) + both
    made: list[bytes] = []
    at = 0
    while at < len(image.scan):
        head = _JPEG.pack(
            0, at.to_bytes(3), kind, _TABLES_OF_THIS_FRAME, -(-image.width // 8), -(-image.height // 8)
        )
        head += restart + (b"" if at else tables)
        room = most_bytes - _RTP.size - len(head)
        if room < 1:
            raise ValueError(f"{most_bytes} bytes are too few for a packet's headers")
        data = image.scan[at : at + room]
        at += len(data)
        marker = 0x80 if at == len(image.scan) else 0
        number = (sequence + len(made)) % (1 << 16)
        made.append(_RTP.pack(0x80, marker | _STATIC_TYPE, number, timestamp % NUMBERS, ssrc) + head + data)
    return made
