"""How kept subnets share the minutes in which they go on alone."""

from __future__ import annotations

import pytest

from search.finishing import shares_of


def test_minutes_follow_the_root_of_what_a_subnet_computes() -> None:
    """A subnet that computes four times as much gets twice the minutes, and all are given out."""
    shares = shares_of([100, 400, 100])
    assert shares[1] == pytest.approx(2 * shares[0])
    assert sum(shares) == pytest.approx(1.0)
