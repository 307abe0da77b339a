"""What a request may ask for."""

from __future__ import annotations

import pytest

from router.errors import MalformedRequest
from router.wishes import Wishes


def test_wishes_are_read() -> None:
    """Headers become wishes; what is not said is left to the gateway."""
    assert Wishes.of({}) == Wishes(None, None, "normal")
    assert Wishes.of({b"x-operating-point": [b"fast"], b"x-priority": [b"low"]}) == Wishes(
        "fast", None, "low"
    )
    assert Wishes.of({b"x-min-accuracy": [b" 0.75 "], b"x-priority": [b"high"]}) == Wishes(None, 0.75, "high")
    assert Wishes.of({b"x-min-score": [b"0.25"]}) == Wishes(min_score=0.25)
    assert Wishes.of({}, operating_point="fast") == Wishes("fast")
    assert Wishes.of({b"x-session-id": [b" camera-7 "]}) == Wishes(session="camera-7")


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ({b"x-min-accuracy": [b"1.1"]}, "X-Min-Accuracy"),
        ({b"x-min-accuracy": [b"75%"]}, "X-Min-Accuracy"),
        ({b"x-min-accuracy": [b"nan"]}, "X-Min-Accuracy"),
        ({b"x-min-accuracy": [b"0.5", b"0.6"]}, "X-Min-Accuracy stands 2 times"),
        ({b"x-min-accuracy": [b"0.5"], b"x-operating-point": [b"fast"]}, "exclude each other"),
        ({b"x-min-score": [b"-0.1"]}, "X-Min-Score"),
        ({b"x-priority": [b"urgent"]}, "X-Priority: 'urgent' is none of high, normal, low"),
        ({b"x-operating-point": [b"a", b"b"]}, "X-Operating-Point stands 2 times"),
    ],
)
def test_malformed_wishes_are_refused_by_name(headers: dict[bytes, list[bytes]], named: str) -> None:
    """A header that is not of its form is named."""
    with pytest.raises(MalformedRequest, match=named):
        Wishes.of(headers)
