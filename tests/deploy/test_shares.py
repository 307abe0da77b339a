"""When a share in a sliding window comes to its limit."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from deploy.rules import INTERVAL_S, Scale, alerts
from deploy.shares import Made, reached_s

WINDOW_S = 900.0
limits = st.floats(0.01, 0.9)
rates = st.floats(0.1, 100.0)


def shown(after_s: float, made: Made) -> float:
    """Return the share that a window shows so long after a fault: its bad events counted one by one."""
    old, new = WINDOW_S - after_s, made.rate * after_s
    return (old * made.before + new * made.since) / (old + new)


@given(limits, st.floats(0.0, 1.0), st.floats(0.0, 1.0), rates)
def test_the_window_shows_the_limit_then(limit: float, before: float, since: float, rate: float) -> None:
    """At the moment that is reckoned the share is the limit, inside the window."""
    assume(before < limit and since > limit + 1e-3)
    made = Made(before, since, rate)
    after_s = reached_s(WINDOW_S, limit, made)
    assert 0.0 <= after_s <= WINDOW_S
    assert shown(after_s, made) == pytest.approx(limit, rel=1e-6)


@given(limits, st.floats(0.01, 1.0), rates)
def test_more_of_a_fault_is_seen_sooner(limit: float, more: float, rate: float) -> None:
    """A larger share, or more events than before, come to the limit sooner."""
    since = limit + 0.05
    assume(since + more <= 1.0)
    less = reached_s(WINDOW_S, limit, Made(0.0, since, rate))
    assert reached_s(WINDOW_S, limit, Made(0.0, since + more, rate)) < less
    assert reached_s(WINDOW_S, limit, Made(0.0, since, 2.0 * rate)) < less


def test_a_fault_below_the_limit_never_comes_to_it() -> None:
    """What is no more than allowed raises nothing."""
    assert reached_s(WINDOW_S, 0.2, Made(0.0, 0.2)) == math.inf


def test_without_anything_bad_before_it_is_the_window_times_limit_by_share() -> None:
    """At the same rate of events and from nothing it is W·L/e, what the runbook says."""
    assert reached_s(WINDOW_S, 0.1, Made(0.0, 0.5)) == pytest.approx(WINDOW_S * 0.1 / 0.5)


@pytest.mark.parametrize("factor", [1.0, 1 / 60])
def test_what_is_stated_follows_from_what_the_fault_makes(factor: float) -> None:
    """A fault like the described one has the stated time, a weaker one a longer one."""
    for alert in alerts(Scale(factor, INTERVAL_S * factor)):
        if alert.share is None:
            continue
        stated = alert.share.stated
        assert alert.within_s(stated) == pytest.approx(alert.fires_within_s)
        half = Made(0.0, (alert.share.limit + stated.since) / 2)
        longer_s = alert.within_s(half) - alert.fires_within_s
        window_s = alert.window_s * alert.share.limit
        assert longer_s == pytest.approx(window_s * (1 / half.since - 1 / stated.since))


def test_a_shortened_for_still_takes_several_scrapes() -> None:
    """Production's `for` is as it is written; a shortened one outlasts a scrape that fails, or two."""
    production, short = Scale(), Scale(1 / 60, 1.0)
    for for_s in (15.0, 30.0, 60.0, 300.0):
        assert production.held_s(for_s) == for_s
        assert short.held_s(for_s) == max(for_s / 60, 3.0)
    assert short.held_s(0.0) == 0.0
