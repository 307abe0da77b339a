"""What a datagram holds, whatever its format: a piece of an encoded frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

NUMBERS = 1 << 32


class Envelope(Protocol):
    """What every piece of one frame says alike; pieces whose envelopes differ are not of one frame."""

    @property
    def budget_ms(self) -> float | None:
        """Return the frame's own budget in milliseconds, None where it has none."""

    def open(self, content: bytes) -> bytes:
        """Return the encoded image of a frame whose pieces are all there; raises MalformedDatagram.

        Asked of the envelope of the piece at offset 0.
        """


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a frame, at an offset in bytes.

    stream: whose frames it belongs to, among the sender's; frame: a serial number, modulo 2^32; total: bytes
    of the whole frame, None where this piece does not say it.
    """

    stream: int
    frame: int
    offset: int
    data: bytes
    total: int | None
    envelope: Envelope


class MalformedDatagram(ValueError):
    """A datagram that breaks its format's rules; the message says where."""


class UnsupportedDatagram(ValueError):
    """A datagram of a format, or of a part of one, that is not taken here."""


def newer(one: int, other: int) -> bool:
    """Return whether a serial number comes after another, modulo 2^32 (RFC 1982): by less than half."""
    return 0 < (one - other) % NUMBERS < NUMBERS // 2
