"""A baseline JPEG as what its headers say and its scan, for carriers that leave the headers out.

Only what RTP can carry (RFC 2435): three components, Y at twice the width of Cb and Cr or at twice both
sides, 8-bit quantizers, and the Huffman tables that ITU-T T.81 gives as examples in Annex K.3, which every
camera and nearly every encoder uses unless told to optimize.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

HALF_WIDTH, HALF_BOTH = 0x21, 0x22
"""Sampling factors of Y: 4:2:2, Cb and Cr at half the width; 4:2:0, at half of both."""

_SOI, _EOI, _SOF0, _DHT, _DQT, _DRI, _SOS, _APP0 = 0xD8, 0xD9, 0xC0, 0xC4, 0xDB, 0xDD, 0xDA, 0xE0
_OTHER_FRAMES = frozenset(range(0xC0, 0xD0)) - {_SOF0, _DHT, 0xC8, 0xCC}
_END = bytes((0xFF, _EOI))
_JFIF = b"JFIF\0\x01\x01\0\0\x01\0\x01\0\0"
_WHOLE_BLOCK = b"\0\x3f\0"

# How many codes there are of each length 1..16, then their values.
_DC_VALUES = bytes(range(12))
_DC_LUMA = bytes.fromhex("00010501010101010100000000000000") + _DC_VALUES
_DC_CHROMA = bytes.fromhex("00030101010101010101010000000000") + _DC_VALUES
_AC_LUMA = bytes.fromhex(
    "0002010303020403050504040000017d"
    "01020300041105122131410613516107227114328191a1082342b1c11552d1f02433627282090a161718191a"
    "25262728292a3435363738393a434445464748494a535455565758595a636465666768696a737475767778797a"
    "838485868788898a92939495969798999aa2a3a4a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5c6c7c8c9ca"
    "d2d3d4d5d6d7d8d9dae1e2e3e4e5e6e7e8e9eaf1f2f3f4f5f6f7f8f9fa"
)
_AC_CHROMA = bytes.fromhex(
    "00020102040403040705040400010277"
    "000102031104052131061241510761711322328108144291a1b1c109233352f0156272d10a162434e125f1"
    "1718191a262728292a35363738393a434445464748494a535455565758595a636465666768696a737475767778797a"
    "82838485868788898a92939495969798999aa2a3a4a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5c6c7c8c9ca"
    "d2d3d4d5d6d7d8d9dae2e3e4e5e6e7e8e9eaf2f3f4f5f6f7f8f9fa"
)
# By class (0: DC, 1: AC) in the upper four bits and place in the lower.
_HUFFMAN: Mapping[int, bytes] = {0x00: _DC_LUMA, 0x10: _AC_LUMA, 0x01: _DC_CHROMA, 0x11: _AC_CHROMA}

# Tables K.1 and K.2 in zigzag order, as a JPEG holds them.
_LUMA = bytes.fromhex(
    "100b0c0e0c0a100e0d0e1211101318281a181616183123251d283a333d3c3933"
    "383740485c4e404457453738506d51575f626768673e4d71797064785c656763"
)
_CHROMA = bytes.fromhex("1112121815182f1a1a2f634238426363" + "63" * 48)


class UnsuitableJpeg(ValueError):
    """A JPEG that is broken, or not of the kind that is handled here; the message says in what."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """A baseline JPEG; sizes in pixels.

    sampling: HALF_WIDTH or HALF_BOTH. quantizers: of Y, and of Cb and Cr, 64 bytes each in zigzag order.
    restart_interval: blocks (MCUs) between restart markers, 0 without. scan: the coded data between the
    headers and the end marker.
    """

    width: int
    height: int
    sampling: int
    quantizers: tuple[bytes, bytes]
    restart_interval: int
    scan: bytes


def quantizers(quality: int) -> tuple[bytes, bytes]:
    """Return the quantizers of a quality of 1 to 99, as RFC 2435 (and the IJG's library) scales them."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    luma, chroma = (
        bytes(min(max((value * scale + 50) // 100, 1), 255) for value in table) for table in (_LUMA, _CHROMA)
    )
    return luma, chroma


def write(image: Baseline) -> bytes:
    """Return the image as a JFIF file."""
    frame = struct.pack(">BHHB", 8, image.height, image.width, 3)
    frame += bytes((1, image.sampling, 0, 2, 0x11, 1, 3, 0x11, 1))
    parts = [
        bytes((0xFF, _SOI)),
        _segment(_APP0, _JFIF),
        *(_segment(_DQT, bytes((place,)) + table) for place, table in enumerate(image.quantizers)),
        _segment(_SOF0, frame),
        *(_segment(_DHT, bytes((place,)) + table) for place, table in _HUFFMAN.items()),
    ]
    if image.restart_interval:
        parts.append(_segment(_DRI, struct.pack(">H", image.restart_interval)))
    parts.append(_segment(_SOS, bytes((3, 1, 0x00, 2, 0x11, 3, 0x11)) + _WHOLE_BLOCK))
    return b"".join((*parts, image.scan, _END))


def read(jpeg: bytes) -> Baseline:
    """Take a JPEG apart; raises UnsuitableJpeg."""
    frame: bytes | None = None
    tables: dict[int, bytes] = {}
    codes: dict[int, bytes] = {}
    interval = 0
    for marker, body, end in _segments(jpeg):
        if marker == _DQT:
            tables.update(_quantizers_in(body))
        elif marker == _DHT:
            codes.update(_codes_in(body))
        elif marker == _DRI:
            interval = int.from_bytes(body[:2])
        elif marker == _SOF0:
            frame = body
        elif marker in _OTHER_FRAMES:
            raise UnsuitableJpeg(f"marker FF{marker:02X}: only baseline JPEG can be sent, no progressive one")
        elif marker == _SOS:
            if frame is None:
                raise UnsuitableJpeg("its scan comes before its size (SOF0)")
            (height, width), sampling, used = _frame_in(frame)
            _check_codes(body, codes)
            stop = jpeg.find(_END, end)
            if stop < 0:
                raise UnsuitableJpeg("it ends before its end marker (EOI)")
            try:
                luma, blue, red = (tables[place] for place in used)
            except KeyError as error:
                raise UnsuitableJpeg(f"quantizer {error} is missing (DQT)") from error
            if blue != red:
                raise UnsuitableJpeg("Cb and Cr have quantizers of their own, expected one for both")
            return Baseline(width, height, sampling, (luma, blue), interval, jpeg[end:stop])
    raise UnsuitableJpeg("it has no scan (SOS)")


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _segments(jpeg: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Yield the marker and body of every segment before the scan's data, and where the segment ends."""
    if not jpeg.startswith(bytes((0xFF, _SOI))):
        raise UnsuitableJpeg("no JPEG: it does not begin with FFD8")
    at = 2
    while True:
        if at + 4 > len(jpeg) or jpeg[at] != 0xFF:
            raise UnsuitableJpeg(f"no segment at byte {at}")
        marker = jpeg[at + 1]
        if marker == 0xFF:  # fill
            at += 1
            continue
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4])
        if end < at + 4 or end > len(jpeg):
            raise UnsuitableJpeg(f"the segment at byte {at} is longer than the file")
        yield marker, jpeg[at + 4 : end], end
        at = end


def _quantizers_in(body: bytes) -> Iterator[tuple[int, bytes]]:
    for at in range(0, len(body), 65):
        if body[at] > 3 or at + 65 > len(body):
            raise UnsuitableJpeg("a quantizer (DQT) is not of 8 bits, or cut off")
        yield body[at], body[at + 1 : at + 65]


def _codes_in(body: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(body):
        end = at + 17 + sum(body[at + 1 : at + 17])
        if end > len(body):
            raise UnsuitableJpeg("a Huffman table (DHT) is cut off")
        yield body[at], body[at + 1 : end]
        at = end


def _frame_in(body: bytes) -> tuple[tuple[int, int], int, tuple[int, int, int]]:
    """Return height and width, the sampling of Y, and the places of the components' quantizers."""
    if len(body) != 15 or body[0] != 8 or body[5] != 3:
        raise UnsuitableJpeg("SOF0: expected three components of 8 bits")
    height, width = struct.unpack_from(">HH", body, 1)
    sampling = body[7]
    if sampling not in (HALF_WIDTH, HALF_BOTH) or body[10] != 0x11 or body[13] != 0x11:
        raise UnsuitableJpeg(
            f"sampling {sampling:02x}, {body[10]:02x}, {body[13]:02x}: expected 4:2:0 (22, 11, 11)"
            " or 4:2:2 (21, 11, 11)"
        )
    return (height, width), sampling, (body[8], body[11], body[14])


def _check_codes(scan: bytes, codes: Mapping[int, bytes]) -> None:
    """Raise UnsuitableJpeg unless Y, Cb and Cr are coded together, by the standard's tables."""
    if len(scan) != 10 or scan[0] != 3:
        raise UnsuitableJpeg("its components come in scans of their own, expected one scan of all three")
    for place, (dc, ac) in enumerate(
        ((_DC_LUMA, _AC_LUMA), (_DC_CHROMA, _AC_CHROMA), (_DC_CHROMA, _AC_CHROMA))
    ):
        used = scan[2 + 2 * place]
        # Motion JPEG may leave the tables out: they are the standard's then.
        if codes and (codes.get(used >> 4), codes.get(0x10 | used & 0x0F)) != (dc, ac):
            raise UnsuitableJpeg("its Huffman tables are its own: encode without optimizing them")
