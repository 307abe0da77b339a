"""Whose a session is, of two sets that are compared."""

from __future__ import annotations

import hashlib
import statistics

from hypothesis import given
from hypothesis import strategies as st

from router.arms import place_of, salt_of

digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
shares = st.floats(0.0, 1.0)


@given(session=st.text(), digest=digests, one=shares, other=shares)
def test_a_session_stays_with_the_challenger_while_the_share_grows(
    session: str, digest: str, one: float, other: float
) -> None:
    """Who is drawn for a share is drawn for every larger one; nobody is for 0, and everybody for 1."""
    place = place_of(session, salt_of(digest))
    assert 0.0 <= place < 1.0
    less, more = sorted((one, other))
    assert place < more or not place < less


def test_a_share_of_all_sessions_is_drawn() -> None:
    """Places are spread evenly: of ten thousand sessions a tenth is drawn for a share of a tenth."""
    salt = salt_of("ab" * 32)
    places = [place_of(f"camera-{number}", salt) for number in range(10_000)]
    assert 0.09 < statistics.mean(place < 0.1 for place in places) < 0.11
    assert 0.48 < statistics.mean(places) < 0.52


def test_another_challenger_draws_anew() -> None:
    """Whom one challenger drew says nothing about whom the next one draws."""
    salts = [salt_of(hashlib.sha256(name).hexdigest()) for name in (b"one", b"two")]
    sessions = [f"camera-{number}" for number in range(4_000)]
    both = sum(all(place_of(session, salt) < 0.5 for salt in salts) for session in sessions)
    assert 900 < both < 1100
