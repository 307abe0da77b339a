"""Two published sets compared in service, the champion and a challenger beside it, and whose a session is.

A request that says whose it is (`X-Session-Id`) has a place in [0, 1) of its own:

    place = blake2b(session, salt = the challenger's digest) / 2^64,     challenger ⇔ place < share

so that a session that has come to the challenger stays there while the share grows, sessions of one share
stay where they are through restarts and on every replica, and another challenger draws anew.
"""

from __future__ import annotations

import hashlib
from typing import Literal, get_args

ArmName = Literal["champion", "challenger"]
CHAMPION: ArmName = "champion"
CHALLENGER: ArmName = "challenger"
ARMS: tuple[ArmName, ...] = get_args(ArmName)

Mode = Literal["ab", "shadow"]
"""ab: the challenger answers its share. shadow: it looks at its share of what the champion has answered."""


def salt_of(digest: str) -> bytes:
    """Return the salt of a challenger; `digest` is the sha256 of its manifest in hex."""
    return bytes.fromhex(digest)[: hashlib.blake2b.SALT_SIZE]


def place_of(session: str, salt: bytes) -> float:
    """Return a session's place in [0, 1): uniform over sessions, and independent from salt to salt."""
    drawn = hashlib.blake2b(session.encode(), digest_size=8, salt=salt).digest()
    # 53 bits are what a float holds: more could round up to 1.
    return (int.from_bytes(drawn) >> 11) / 2**53
