"""Slow-down, latency alarm, escalation rate."""

from __future__ import annotations

import numpy as np
import pytest

from model_repo.publish import Repository
from model_repo.reference import TRACKED, Reference
from router.drift import ESCALATIONS, DistributionDrift, EscalationRate, LatencyAlarm, SlowDown
from tests.fakes import FakeClock

CASCADE = "tiny-0-then-tiny-1"


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


def drift_of(repository: Repository, clock: FakeClock) -> DistributionDrift:
    """Watch the tiny repository, whose fast answers were all zeros of spread one in calibration."""
    width = len(TRACKED) + 2
    reference = Reference(variant="tiny-0", images=100, mean=(0.0,) * width, spread=(1.0,) * width)
    frontier = repository.frontier
    return DistributionDrift([reference], frontier.plans, frontier.dataset.classes, clock, interval_s=0.2)


def ringing(drift: DistributionDrift) -> set[tuple[str, str]]:
    return {(signal.subject, signal.name) for signal in drift.signals() if signal.rings}


def test_frames_of_another_kind_ring_and_void_what_begins_with_their_variant(repository: Repository) -> None:
    """A lasting change of one feature is named, and voids the certificates of plans that ask it first."""
    clock = FakeClock()
    drift = drift_of(repository, clock)
    darker = np.zeros(len(TRACKED) + 2)
    darker[TRACKED.index("brightness")] = -3.0
    for _ in range(30):
        drift.observe("tiny-0", darker)
        clock.sleep(0.2)
    assert ringing(drift) == {("tiny-0", "brightness")}
    plans = {plan.name: drift.voids(plan) for plan in repository.frontier.plans}
    assert plans == {"tiny-0": True, CASCADE: True, "tiny-1": False}


def test_frames_in_quick_succession_count_once(repository: Repository) -> None:
    """Within the interval only one answer is looked at, and `due` says so beforehand."""
    clock = FakeClock()
    drift = drift_of(repository, clock)
    assert drift.due("tiny-0")
    assert not drift.due("tiny-1"), "it has no reference"
    for _ in range(1000):
        drift.observe("tiny-0", np.full(len(TRACKED) + 2, 3.0))
    assert not drift.due("tiny-0")
    assert ringing(drift) == set()


@pytest.mark.parametrize(("every", "rings"), [(2, False), (1, True), (20, True)])
def test_a_share_of_escalations_unlike_the_calibrated_rings(
    repository: Repository, every: int, rings: bool
) -> None:
    """Half was sent on in calibration: half is fine, all and one in twenty are not."""
    clock = FakeClock()
    drift = drift_of(repository, clock)
    for frame in range(200):
        drift.decided(CASCADE, frame % every == 0)
        clock.sleep(0.2)
    assert ringing(drift) == ({(CASCADE, ESCALATIONS)} if rings else set())
    assert drift.voids(repository.frontier.plan(CASCADE)) == rings
