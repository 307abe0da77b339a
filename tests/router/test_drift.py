"""Slow-down, latency alarm, escalation rate."""

from __future__ import annotations

import pytest

from router.drift import EscalationRate, LatencyAlarm, SlowDown
from tests.fakes import FakeClock


def test_a_step_that_was_never_seen_has_factor_one() -> None:
    """Nothing known means as measured."""
    assert SlowDown(FakeClock()).factor("tiny-0") == 1.0


def test_the_factor_approaches_what_is_measured() -> None:
    """A machine that takes twice as long is twice as slow."""
    slow_down = SlowDown(FakeClock())
    for _ in range(100):
        slow_down.observe("tiny-0", 4.0, 2.0)
    assert slow_down.factor("tiny-0") == pytest.approx(2.0, rel=0.01)
    assert slow_down.factor("tiny-1") == 1.0


def test_one_hiccup_moves_it_little() -> None:
    """A single measurement a thousand times too long does not stop a stage."""
    slow_down = SlowDown(FakeClock())
    slow_down.observe("tiny-0", 2000.0, 2.0)
    assert slow_down.factor("tiny-0") < 1.5


def test_it_forgets_without_samples() -> None:
    """A stage that is not started any more is believed to be fast again after a while."""
    clock = FakeClock()
    slow_down = SlowDown(clock)
    for _ in range(100):
        slow_down.observe("tiny-0", 8.0, 2.0)
    clock.sleep(30.0)
    assert slow_down.factor("tiny-0") == pytest.approx(1.0, abs=0.02)


def test_the_alarm_rings_on_a_shifted_median_and_clears() -> None:
    """Half as slow again rings once there is enough evidence; the baseline's own pace clears it."""
    alarm = LatencyAlarm()
    for _ in range(63):
        assert not alarm.observe("tiny-0", 3.0, 2.0)
    alarm.observe("tiny-0", 3.0, 2.0)
    assert alarm.ringing == {"tiny-0"}
    for _ in range(256):
        alarm.observe("tiny-0", 2.0, 2.0)
    assert not alarm.ringing


def test_the_alarm_is_not_fooled_by_outliers() -> None:
    """A third of the measurements may be ten times too long without a shifted median."""
    alarm = LatencyAlarm()
    for index in range(300):
        alarm.observe("tiny-0", 20.0 if index % 3 == 0 else 2.0, 2.0)
    assert not alarm.ringing


def test_the_escalation_share_is_a_plain_mean_at_first() -> None:
    """Four decisions, three to go on: three quarters."""
    rate = EscalationRate()
    assert rate.shares() == {}
    for escalated in (True, False, True, True):
        rate.observe("cascade", escalated)
    assert rate.shares() == {"cascade": pytest.approx(0.75)}
