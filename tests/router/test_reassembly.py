"""Whole frames from pieces: what is lost, doubled, late or hostile."""

from __future__ import annotations

import random
import tracemalloc
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.datagrams import datagrams, parse
from router.pieces import NUMBERS, MalformedDatagram, newer
from router.reassembly import FRAME_NS, IDLE_NS, DatagramFate, Reassembly
from router.rtp_jpeg import packets
from router.rtp_jpeg import parse as parse_rtp
from tests.router.test_jpeg import jpeg_of, picture

MS = 1_000_000


class Receiver:
    """A reassembly on its own clock, what became of datagrams, and the frames that became whole."""

    def __init__(self, **limits: int) -> None:
        self.ended: Counter[str] = Counter()
        self.frames: list[bytes] = []
        self.now_ns = 0
        self.reassembly = Reassembly(lambda fate: self.ended.update([fate]), **{"most_streams": 4, **limits})

    def take(self, datagram: bytes, sender: str = "camera") -> DatagramFate:
        """Take a datagram of our format, as of a sender."""
        piece = parse(datagram)
        fate, whole = self.reassembly.take((sender, piece.stream), piece, self.now_ns)
        if whole is not None:
            self.frames.append(whole.image)
        return fate


def content(number: int, size: int = 100) -> bytes:
    return random.Random(number).randbytes(size)


def cut(number: int, size: int = 100, *, stream: int = 1, pieces: int = 5) -> list[bytes]:
    """Return a frame's datagrams."""
    step = -(-size // pieces)
    return datagrams(content(number, size), stream=stream, frame=number, most_bytes=28 + step)


@given(
    image=st.binary(min_size=1, max_size=300),
    stream=st.integers(0, NUMBERS - 1),
    frame=st.integers(0, 2 * NUMBERS),
    budget_ms=st.none() | st.floats(0.01, 3_600_000),
    most_bytes=st.integers(29, 100),
    order=st.randoms(),
)
def test_a_frame_arrives_as_it_was_sent(
    image: bytes, stream: int, frame: int, budget_ms: float | None, most_bytes: int, order: random.Random
) -> None:
    """In whatever order, with its numbers and its budget, to a microsecond."""
    made = datagrams(image, stream=stream, frame=frame, budget_ms=budget_ms, most_bytes=most_bytes)
    assert max(map(len, made)) <= most_bytes
    order.shuffle(made)
    reassembly = Reassembly(lambda _: None, most_streams=1)
    taken = [reassembly.take("camera", parse(datagram), 0) for datagram in made]
    assert [fate for fate, _ in taken] == ["taken"] * len(made)
    assert [whole is not None for _, whole in taken] == [False] * (len(made) - 1) + [True]
    whole = taken[-1][1]
    assert whole is not None
    assert (whole.image, whole.frame) == (image, frame % NUMBERS)
    assert whole.budget_ms == (None if budget_ms is None else pytest.approx(budget_ms, abs=0.001))
    assert reassembly.held_bytes == 0


@given(
    base=st.sampled_from([0, NUMBERS - 3, NUMBERS // 2 - 3]),
    seed=st.integers(0, 2**32),
    lost=st.floats(0, 0.5),
    doubled=st.floats(0, 0.5),
    far=st.integers(0, 12),
)
def test_whatever_the_network_does_a_frame_is_whole_or_nothing(
    base: int, seed: int, lost: float, doubled: float, far: int
) -> None:
    """Losses, doubles and any order, across the end of the numbers: frames as sent, newer ones only."""
    rng = random.Random(seed)
    sent = [datagram for number in range(8) for datagram in cut(base + number)]
    sent = [
        datagram for datagram in sent if rng.random() >= lost for _ in range(1 + (rng.random() < doubled))
    ]
    arriving = [sent[at] for at in sorted(range(len(sent)), key=lambda at: at + rng.uniform(0, far))]
    receiver = Receiver()
    for datagram in arriving:
        receiver.take(datagram)
        receiver.now_ns += MS
    of = {content(base + number): number for number in range(8)}
    numbers = [of[frame] for frame in receiver.frames]
    assert numbers == sorted(set(numbers))
    if not lost and not far:
        assert len(numbers) == 8
    receiver.now_ns += FRAME_NS + 1
    receiver.reassembly.sweep(receiver.now_ns)
    assert receiver.reassembly.held_bytes == 0
    assert receiver.ended["whole"] == len(numbers)


@given(seed=st.integers(0, 2**32), lost=st.floats(0, 0.3))
def test_pieces_of_two_pictures_are_never_one(seed: int, lost: float) -> None:
    """Over RTP, which has no sum: frames that come whole are byte for byte those of one picture."""
    rng = random.Random(seed)
    made = [
        packets(
            jpeg_of(picture((48, 48), number)), ssrc=1, timestamp=number * 3000, sequence=0, most_bytes=400
        )
        for number in range(4)
    ]
    whole = {_whole(frame) for frame in made}
    sent = [packet for frame in made for packet in frame if rng.random() >= lost]
    rng.shuffle(sent)
    reassembly = Reassembly(lambda _: None, most_streams=1)
    for packet in sent:
        frame = reassembly.take("camera", parse_rtp(packet), 0)[1]
        assert frame is None or frame.image in whole


def _whole(frame: list[bytes]) -> bytes:
    reassembly = Reassembly(lambda _: None, most_streams=1)
    (image,) = [w.image for p in frame if (w := reassembly.take(0, parse_rtp(p), 0)[1]) is not None]
    return image


@given(one=st.integers(0, NUMBERS - 1), step=st.integers(1, NUMBERS // 2 - 1))
def test_numbers_go_round(one: int, step: int) -> None:
    """Less than half of all numbers further on is newer, from anywhere, and never both ways."""
    other = (one + step) % NUMBERS
    assert newer(other, one)
    assert not newer(one, other)
    assert not newer(one, one)


def test_each_datagram_has_its_fate() -> None:
    """Doubles, what is late, and what contradicts the pieces before it are told apart."""
    receiver = Receiver()
    first, *more = cut(5)
    assert receiver.take(first) == "taken"
    assert receiver.take(first) == "duplicate"
    other = datagrams(content(6), stream=1, frame=5, most_bytes=48)
    assert receiver.take(other[1]) == "malformed"
    assert [receiver.take(datagram) for datagram in more] == ["taken"] * 4
    assert receiver.take(first) == "late"
    assert receiver.take(cut(4)[0]) == "late"
    assert receiver.take(cut(6)[0]) == "taken"
    assert receiver.frames == [content(5)]


def test_a_whole_frame_ends_older_ones() -> None:
    """What is missing of them is not waited for; a newer one goes on."""
    receiver = Receiver()
    for number in (1, 3):
        receiver.take(cut(number)[0])
    for datagram in cut(2):
        receiver.take(datagram)
    assert receiver.ended == {"incomplete": 1, "whole": 1}
    for datagram in cut(3)[1:]:
        receiver.take(datagram)
    assert receiver.frames == [content(2), content(3)]


def test_a_frame_has_half_a_second() -> None:
    """Then what has come of it is let go, by the next datagram of anybody."""
    receiver = Receiver()
    receiver.take(cut(1)[0])
    receiver.now_ns = FRAME_NS
    receiver.take(cut(1)[1], "other")
    assert receiver.ended == {}
    receiver.now_ns += 1
    receiver.take(cut(1)[2], "other")
    assert receiver.ended == {"incomplete": 1}


def test_three_frames_of_a_stream_are_waited_for() -> None:
    """A fourth takes the oldest one's place, unless it is older still."""
    receiver = Receiver()
    for number in (4, 2, 3):
        receiver.take(cut(number)[0])
    assert receiver.take(cut(1)[0]) == "late"
    assert receiver.take(cut(5)[0]) == "taken"
    assert receiver.ended == {"incomplete": 1}
    assert receiver.take(cut(2)[1]) == "late"


def test_a_sum_that_is_wrong_makes_no_frame() -> None:
    """A byte that was changed on the way is noticed."""
    receiver = Receiver()
    *most, last = cut(1)
    for datagram in (*most, last[:-1] + bytes((last[-1] ^ 1,))):
        receiver.take(datagram)
    assert (receiver.frames, receiver.ended) == ([], {"damaged": 1})


def test_pieces_over_one_another_make_no_frame() -> None:
    """Though their sizes add up."""
    receiver = Receiver()
    one, other = cut(1, 100, pieces=2)
    moved = other[:12] + (49).to_bytes(4) + other[16:]
    receiver.take(one)
    receiver.take(moved)
    assert (receiver.frames, receiver.ended) == ([], {"damaged": 1})


def test_a_stream_is_forgotten_after_ten_seconds_without_a_whole_frame() -> None:
    """Late datagrams do not keep it; then whoever counts from the beginning is heard again."""
    receiver = Receiver()
    (whole,) = cut(1000, pieces=1)
    receiver.take(whole)
    (again,) = cut(1, pieces=1)
    receiver.now_ns = IDLE_NS
    assert receiver.take(again) == "late"
    assert receiver.reassembly.sweep(receiver.now_ns) == []
    receiver.now_ns += 1
    assert receiver.reassembly.sweep(receiver.now_ns) == [("camera", 1)]
    assert receiver.take(again) == "taken"
    assert len(receiver.frames) == 2


def test_strangers_make_room_for_one_another_and_not_for_streams() -> None:
    """Who has had a whole frame keeps its place; of the others the one heard least recently goes."""
    receiver = Receiver(most_streams=2, most_strangers=2)
    for sender in ("a", "b", "c"):
        receiver.take(cut(1, pieces=1)[0], sender)
    assert receiver.ended == {"whole": 2, "refused": 1}
    for sender in ("d", "e", "d", "f"):
        receiver.take(cut(1)[3], sender)
    # Of c and e, who went, there is nothing left to double.
    assert [receiver.take(cut(1)[3], sender) for sender in ("d", "f", "e")] == [
        "duplicate", "duplicate", "taken",
    ]  # fmt: skip
    assert receiver.take(cut(1, pieces=1)[0], "a") == "late"


def test_too_large_a_frame_is_refused_at_its_first_piece() -> None:
    """By what its head says."""
    receiver = Receiver(frame_bytes=99)
    assert receiver.take(cut(1)[0]) == "refused"
    assert receiver.reassembly.held_bytes == 0


def test_memory_is_bounded_whatever_is_sent() -> None:
    """A hundred thousand pieces of a byte, of frames that never end, take what they are counted for."""
    most = 2_000_000
    receiver = Receiver(most_bytes=most, frame_bytes=1 << 30)
    made = datagrams(bytes(200), stream=1, frame=1, most_bytes=29)[1:]
    tracemalloc.start()
    try:
        for sender in range(100):
            for number in range(3):
                for datagram in made:
                    receiver.take(datagram[:8] + number.to_bytes(4) + datagram[12:], f"camera {sender}")
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert receiver.reassembly.held_bytes <= most
    assert held < 1.2 * most
    assert receiver.ended.keys() == {"incomplete"}


@given(datagram=st.binary(max_size=80), head=st.booleans())
def test_no_datagram_raises_anything_else(datagram: bytes, head: bool) -> None:
    """Arbitrary bytes, with and without what ours begin with, are a piece or malformed."""
    receiver = Receiver()
    try:
        receiver.take(b"PGF\x01" * head + datagram)
    except MalformedDatagram:
        return


@pytest.mark.parametrize(
    ("image", "budget_ms", "most_bytes"),
    [(b"", None, 1400), (b"image", None, 28), (b"image", 0.0, 1400), (b"image", 4.3e6, 1400)],
)
def test_what_cannot_be_said_is_not_sent(image: bytes, budget_ms: float | None, most_bytes: int) -> None:
    """No frame, no room, no such budget."""
    with pytest.raises(ValueError):
        datagrams(image, stream=1, frame=1, budget_ms=budget_ms, most_bytes=most_bytes)
