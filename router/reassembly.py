"""Whole frames from pieces that come late, twice, in any order, or not at all.

A frame is whole when its pieces cover it from its first byte to its last, none over another. Once it is,
older frames of its stream are given up: what comes of them is late, and results never go back in time. A
frame is given up as well when it has not become whole within half a second, when three newer ones of its
stream have begun, or when it is the oldest where memory is short. No piece is ever asked for again.

What senders do cannot make this grow: there are only so many streams, so many senders that have not sent a
whole frame yet (the one that was heard least recently makes room), and so many bytes, each piece counted with
what it costs to keep. A stream that has had no whole frame for ten seconds is forgotten; whoever counts from
the beginning again, without choosing a new stream, is late until then.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Literal

from router.pieces import MalformedDatagram, Piece, newer

DatagramFate = Literal["taken", "duplicate", "late", "malformed", "unsupported", "refused", "foreign"]
FrameFate = Literal["whole", "incomplete", "damaged", "refused"]
UNFINISHED = 3
FRAME_NS = 500_000_000
IDLE_NS = 10_000_000_000
# What a piece of one byte takes: the objects around it.
PIECE_BYTES = 600


@dataclass(frozen=True, slots=True)
class Whole:
    """A frame whose pieces have all come; image: encoded."""

    key: Hashable
    frame: int
    image: bytes
    budget_ms: float | None


@dataclass(slots=True)
class _Unfinished:
    begun_ns: int
    pieces: dict[int, Piece] = field(default_factory=dict)
    total: int | None = None
    bytes: int = 0

    @property
    def cost(self) -> int:
        return self.bytes + PIECE_BYTES * len(self.pieces)


@dataclass(slots=True)
class _Source:
    since_ns: int
    last: int | None = None
    unfinished: dict[int, _Unfinished] = field(default_factory=dict)


class Reassembly:
    """The frames of all senders that are not whole yet.

    A stream's key is whatever tells it from all others, as its sender's address and number do.
    """

    def __init__(
        self,
        count: Callable[[FrameFate], None],
        *,
        most_streams: int,
        most_strangers: int = 64,
        most_bytes: int = 64 * 1024 * 1024,
        frame_bytes: int = 16 * 1024 * 1024,
    ) -> None:
        """count: is told how each frame ended. most_streams: that have had a whole frame; most_strangers:
        that have not. most_bytes: of all pieces together; frame_bytes: of one frame.
        """
        self._count = count
        self._most_streams, self._most_strangers = most_streams, most_strangers
        self._most_bytes, self._frame_bytes = most_bytes, frame_bytes
        self._streams: dict[Hashable, _Source] = {}
        # The least recently heard first.
        self._strangers: dict[Hashable, _Source] = {}
        # The first begun first.
        self._unfinished: dict[tuple[Hashable, int], _Unfinished] = {}
        self._held = 0

    @property
    def held_bytes(self) -> int:
        """Return what all pieces take together."""
        return self._held

    def take(self, key: Hashable, piece: Piece, now_ns: int) -> tuple[DatagramFate, Whole | None]:
        """Take a piece of a stream; returns what became of it, and the frame if it is whole now."""
        self._give_up_old(now_ns)
        if piece.offset + len(piece.data) > self._frame_bytes or (piece.total or 0) > self._frame_bytes:
            return "refused", None
        source = self._source(key, now_ns)
        if source.last is not None and not newer(piece.frame, source.last):
            return "late", None
        unfinished = source.unfinished.get(piece.frame)
        if unfinished is None:
            unfinished = self._begin(key, source, piece.frame, now_ns)
            if unfinished is None:
                return "late", None
        fate = self._add(unfinished, piece)
        if fate != "taken":
            return fate, None
        # Pieces that lie over one another may be more than any frame.
        enough = self._frame_bytes if unfinished.total is None else unfinished.total
        if unfinished.bytes >= enough:
            return fate, self._finish(key, source, piece.frame, now_ns)
        while self._held > self._most_bytes:
            self._give_up(*next(iter(self._unfinished)), "incomplete")
        return fate, None

    def sweep(self, now_ns: int) -> list[Hashable]:
        """Give up what is too old; returns the keys of streams that have been forgotten."""
        self._give_up_old(now_ns)
        for key in [key for key, source in self._strangers.items() if now_ns - source.since_ns > IDLE_NS]:
            self._forget(key)
        idle = [key for key, source in self._streams.items() if now_ns - source.since_ns > IDLE_NS]
        for key in idle:
            self._forget(key)
        return idle

    def _source(self, key: Hashable, now_ns: int) -> _Source:
        source = self._streams.get(key)
        if source is not None:
            return source
        source = self._strangers.pop(key, None)
        if source is None:
            if len(self._strangers) >= self._most_strangers:
                self._forget(next(iter(self._strangers)))
            source = _Source(now_ns)
        self._strangers[key] = source
        return source

    def _begin(self, key: Hashable, source: _Source, frame: int, now_ns: int) -> _Unfinished | None:
        """Return the place of a new frame, None where three newer ones have begun."""
        if len(source.unfinished) >= UNFINISHED:
            oldest = next(iter(source.unfinished))
            for other in source.unfinished:
                if newer(oldest, other):
                    oldest = other
            if not newer(frame, oldest):
                return None
            self._give_up(key, oldest, "incomplete")
        unfinished = source.unfinished[frame] = self._unfinished[key, frame] = _Unfinished(now_ns)
        return unfinished

    def _add(self, unfinished: _Unfinished, piece: Piece) -> DatagramFate:
        total = unfinished.total if piece.total is None else piece.total
        known = next(iter(unfinished.pieces.values()), None)
        if known is not None and known.envelope != piece.envelope:
            return "malformed"
        if unfinished.total not in (None, total):
            return "malformed"
        if piece.offset in unfinished.pieces:
            return "duplicate"
        unfinished.total = total
        unfinished.pieces[piece.offset] = piece
        unfinished.bytes += len(piece.data)
        self._held += PIECE_BYTES + len(piece.data)
        return "taken"

    def _finish(self, key: Hashable, source: _Source, frame: int, now_ns: int) -> Whole | None:
        """Return a frame of which enough bytes have come, None where they do not make one."""
        unfinished = source.unfinished[frame]
        pieces = [unfinished.pieces[offset] for offset in sorted(unfinished.pieces)]
        content = b"".join(piece.data for piece in pieces)
        reached = 0
        for piece in pieces:
            if piece.offset != reached:
                break
            reached += len(piece.data)
        try:
            if not reached == len(content) == unfinished.total:
                raise MalformedDatagram("pieces of it lie over one another")
            image = pieces[0].envelope.open(content)
        except MalformedDatagram:
            self._give_up(key, frame, "damaged")
            return None
        if source.last is None:
            if len(self._streams) >= self._most_streams:
                self._give_up(key, frame, "refused")
                return None
            self._streams[key] = self._strangers.pop(key)
        self._give_up(key, frame, "whole")
        source.last, source.since_ns = frame, now_ns
        for other in [other for other in source.unfinished if not newer(other, frame)]:
            self._give_up(key, other, "incomplete")
        return Whole(key, frame, image, pieces[0].envelope.budget_ms)

    def _give_up_old(self, now_ns: int) -> None:
        while self._unfinished:
            (key, frame), unfinished = next(iter(self._unfinished.items()))
            if now_ns - unfinished.begun_ns <= FRAME_NS:
                return
            self._give_up(key, frame, "incomplete")

    def _give_up(self, key: Hashable, frame: int, fate: FrameFate) -> None:
        """Let go of a frame's pieces and count how it ended."""
        source = self._streams.get(key) or self._strangers[key]
        del source.unfinished[frame]
        self._held -= self._unfinished.pop((key, frame)).cost
        self._count(fate)

    def _forget(self, key: Hashable) -> None:
        source = self._streams.get(key) or self._strangers[key]
        for frame in list(source.unfinished):
            self._give_up(key, frame, "incomplete")
        self._streams.pop(key, None)
        self._strangers.pop(key, None)
