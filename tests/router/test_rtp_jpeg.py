"""JPEG over RTP: our packets and those of a real sender."""

from __future__ import annotations

import shutil
import socket
import struct
import subprocess
from collections.abc import Sequence

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.jpeg import UnsuitableJpeg
from router.pieces import MalformedDatagram, UnsupportedDatagram
from router.reassembly import Reassembly
from router.rtp_jpeg import packets, parse
from tests.router.test_jpeg import SAMPLINGS, jpeg_of, picture, pixels

JPEG = jpeg_of(picture((128, 96)))


def cut(jpeg: bytes = JPEG, most_bytes: int = 1400) -> list[bytes]:
    return packets(jpeg, ssrc=7, timestamp=1000, sequence=65_535, most_bytes=most_bytes)


def frames_of(datagrams: Sequence[bytes]) -> list[bytes]:
    """Return the frames that become whole."""
    reassembly = Reassembly(lambda _: None, most_streams=1)
    taken = [reassembly.take("camera", parse(datagram), 0)[1] for datagram in datagrams]
    return [whole.image for whole in taken if whole is not None]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("restarts", [0, 3])
@pytest.mark.parametrize("wh", [(640, 480), (100, 52), (2040, 8), (17, 9)])
def test_a_jpeg_arrives_with_the_same_pixels(sampling: int, restarts: int, wh: tuple[int, int]) -> None:
    """Sides that are no multiple of eight are rounded up, and the pixels within are the same."""
    jpeg = jpeg_of(
        picture(wh), cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling, cv2.IMWRITE_JPEG_RST_INTERVAL, restarts
    )
    (arrived,) = frames_of(cut(jpeg))
    image, expected = pixels(arrived), pixels(jpeg)
    height, width = expected.shape[:2]
    assert image.shape == (-(-height // 8) * 8, -(-width // 8) * 8, 3)
    # Colours are spread across the edge when they are upsampled, which begins where the image ends.
    assert np.array_equal(image[: height - 2, : width - 2], expected[: height - 2, : width - 2])


def test_heads_are_those_of_the_rfc() -> None:
    """Byte for byte, the first and the last packet of a frame: version, marker, type 26, numbers, Q 255."""
    made = cut()
    first, last = made[0], made[-1]
    assert len(made) > 2
    assert first[:12] == struct.pack(">BBHII", 0x80, 26, 65_535, 1000, 7)
    assert last[:12] == struct.pack(">BBHII", 0x80, 0x80 | 26, len(made) - 2, 1000, 7)
    assert first[12:20] == bytes((0, 0, 0, 0, 1, 255, 16, 12))
    assert first[20:24] == struct.pack(">BBH", 0, 0, 128)
    assert int.from_bytes(made[1][13:16]) == len(first) - 12 - 8 - 132
    assert max(map(len, made)) == 1400


@given(quality=st.integers(1, 99))
def test_quantizers_by_number_are_the_encoders(quality: int) -> None:
    """A sender that says Q from 1 to 99 sends none; the picture is the encoder's of that quality."""
    jpeg = jpeg_of(picture((64, 64)), cv2.IMWRITE_JPEG_QUALITY, quality)
    made = cut(jpeg)
    said = [packet[:17] + bytes((quality,)) + packet[18:20] + packet[20:] for packet in made]
    said[0] = said[0][:20] + said[0][20 + 132 :]
    (arrived,) = frames_of(said)
    assert np.array_equal(pixels(arrived), pixels(jpeg))


def test_sources_extension_and_padding_are_passed_over() -> None:
    """What RTP allows around a payload does not end up in the picture."""
    dressed = [
        bytes((0x80 | 0x20 | 0x10 | 2,)) + packet[1:12] + b"source01" + b"\xbe\xde\0\x01" + b"more"
        + packet[12:] + b"\0\0\x03"
        for packet in cut()
    ]  # fmt: skip
    (arrived,) = frames_of(dressed)
    assert np.array_equal(pixels(arrived), pixels(JPEG))


def test_one_quantizer_stands_for_all_and_an_end_marker_may_come_along() -> None:
    """Both are what some senders do."""
    jpeg = jpeg_of(picture((64, 64)), cv2.IMWRITE_JPEG_QUALITY, 100)
    first, *more = cut(jpeg)
    first = first[:20] + struct.pack(">BBH", 0, 0, 64) + first[24 : 24 + 64] + first[24 + 128 :]
    (arrived,) = frames_of([first, *more[:-1], more[-1] + b"\xff\xd9"])
    assert np.array_equal(pixels(arrived), pixels(jpeg))


def with_byte(at: int, value: int) -> bytes:
    first = cut()[0]
    return first[:at] + bytes((value,)) + first[at + 1 :]


@pytest.mark.parametrize(
    ("packet", "words"),
    [
        (with_byte(1, 0), "payload type 0"),
        (with_byte(1, 200), "payload type 72"),
        (with_byte(12, 1), "interlaced"),
        (with_byte(16, 2), "type 2"),
        (with_byte(16, 129), "type 129"),
        (with_byte(17, 0), "Q 0"),
        (with_byte(17, 100), "Q 100"),
        (with_byte(18, 0), "2040"),
        (with_byte(19, 0), "2040"),
        (with_byte(21, 1), "16 bits"),
        (with_byte(23, 0), "0 bytes of quantizers"),
        (with_byte(23, 192), "192 bytes of quantizers"),
    ],
)
def test_what_is_not_taken_is_told_apart(packet: bytes, words: str) -> None:
    """RTCP, other payloads, interlacing, reserved numbers, quantizers that were sent earlier."""
    with pytest.raises(UnsupportedDatagram, match=words):
        parse(packet)


@given(length=st.integers(0, 20 + 132))
def test_a_packet_that_ends_in_its_headers_is_malformed(length: int) -> None:
    """Wherever it ends."""
    with pytest.raises(MalformedDatagram):
        parse(cut()[0][:length])


@given(packet=st.binary(max_size=200), first=st.integers(0x80, 0xBF), offset=st.sampled_from([0, 9]))
def test_no_packet_raises_anything_else(packet: bytes, first: int, offset: int) -> None:
    """Arbitrary bytes under a head that could be right."""
    head = bytes((first, 26)) + bytes(10) + bytes((0, 0, 0, offset, 65, 255, 8, 8))
    for candidate in (packet, head + packet):
        try:
            piece = parse(candidate)
        except (MalformedDatagram, UnsupportedDatagram):
            continue
        assert piece.data
        assert piece.data in candidate


@pytest.mark.parametrize(("wh", "words"), [((2041, 16), "2041x16"), ((16, 2048), "16x2048")])
def test_sides_that_the_header_cannot_say_are_refused(wh: tuple[int, int], words: str) -> None:
    """More than 2040 pixels."""
    with pytest.raises(UnsuitableJpeg, match=words):
        cut(jpeg_of(picture(wh)))


def test_datagrams_too_small_for_their_headers_are_refused() -> None:
    """Rather than cut for ever."""
    with pytest.raises(ValueError, match="too few"):
        cut(most_bytes=152)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed: apt-get install ffmpeg")
def test_what_ffmpeg_sends_is_what_ffmpeg_would_have_written() -> None:
    """Frames of its test picture over RTP decode to the pixels of the same frames in a file."""
    source = ["-f", "lavfi", "-i", "testsrc=size=320x240:rate=25", "-frames:v", "5",
              "-c:v", "mjpeg", "-huffman", "default", "-pix_fmt", "yuvj420p", "-q:v", "5"]  # fmt: skip
    ffmpeg = ["ffmpeg", "-hide_banner", "-loglevel", "error", *source]
    written = subprocess.run([*ffmpeg, "-f", "mjpeg", "-"], check=True, capture_output=True).stdout
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        receiver.bind(("127.0.0.1", 0))
        port = receiver.getsockname()[1]
        subprocess.run(
            [*ffmpeg, "-f", "rtp", f"rtp://127.0.0.1:{port}"],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        receiver.setblocking(False)
        sent = []
        while True:
            try:
                sent.append(receiver.recv(65_536))
            except BlockingIOError:
                break
    arrived = frames_of(sent)
    expected = [b"\xff\xd8" + part for part in written.split(b"\xff\xd8")[1:]]
    assert len(arrived) == len(expected) == 5
    for one, other in zip(arrived, expected):
        assert np.array_equal(pixels(one), pixels(other))
