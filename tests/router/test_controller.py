"""The operating point under load."""

from __future__ import annotations

import pytest

from router.controller import Controller, ControllerSettings, Rung

RUNGS = [Rung("accurate", 40.0), Rung("fast", 4.0), Rung("balanced", 12.0)]
_S = 1_000_000_000


def load(
    controller: Controller, start_ns: int, seconds: float, per_s: int, waiting: int, slow_down: float = 1.0
) -> int:
    """Send evenly spaced arrivals that each see `waiting` queued; return the time after them."""
    step_ns = _S // per_s
    now_ns = start_ns
    for _ in range(int(seconds * per_s)):
        controller.arrived(now_ns, waiting, slow_down)
        now_ns += step_ns
    return now_ns


def test_it_starts_at_home() -> None:
    """Without load the configured point is in force."""
    controller = Controller(RUNGS, "balanced", workers=2)
    assert controller.point == controller.home == "balanced"


def test_an_unknown_home_is_refused() -> None:
    """Home must be one of the points."""
    with pytest.raises(ValueError, match="nope"):
        Controller(RUNGS, "nope", workers=2)


def test_a_queue_moves_it_down_to_the_cheapest_and_calm_back_home() -> None:
    """Pressure goes from accurate to fast; calm goes back as far as the rate allows, and then home."""
    controller = Controller(RUNGS, "accurate", workers=2)
    now_ns = load(controller, 0, 3.0, 100, waiting=20)
    assert controller.point == "fast"
    now_ns = load(controller, now_ns, 10.0, 40, waiting=0)
    assert controller.point == "balanced"
    load(controller, now_ns, 10.0, 10, waiting=0)
    assert controller.point == "accurate"


def test_a_rate_that_fills_the_machine_moves_it_before_a_queue_does() -> None:
    """160 a second at 12 ms would take 96 % of two workers: down at once, to what leaves headroom."""
    controller = Controller(RUNGS, "balanced", workers=2)
    now_ns = load(controller, 0, 5.0, 60, waiting=0)
    assert controller.point == "balanced"
    load(controller, now_ns, 5.0, 160, waiting=0)
    assert controller.point == "fast"


def test_it_never_goes_above_home() -> None:
    """Calm does not make answers costlier than what was configured."""
    controller = Controller(RUNGS, "balanced", workers=2)
    load(controller, 0, 60.0, 10, waiting=0)
    assert controller.point == "balanced"


def test_a_short_burst_does_not_move_it() -> None:
    """A queue that is gone within a fraction of the horizon is no reason."""
    controller = Controller(RUNGS, "balanced", workers=2)
    now_ns = load(controller, 0, 5.0, 50, waiting=0)
    now_ns = load(controller, now_ns, 0.05, 100, waiting=10)
    load(controller, now_ns, 5.0, 50, waiting=0)
    assert controller.point == "balanced"


def test_it_does_not_climb_to_a_rung_that_the_load_would_break() -> None:
    """An empty queue on the cheap rung is not enough: 150 a second at 12 ms would need 1.8 of 2 workers."""
    controller = Controller(RUNGS, "balanced", workers=2)
    now_ns = load(controller, 0, 2.0, 150, waiting=20)
    assert controller.point == "fast"
    now_ns = load(controller, now_ns, 30.0, 150, waiting=0)
    assert controller.point == "fast"
    load(controller, now_ns, 10.0, 50, waiting=0)
    assert controller.point == "balanced"


def test_a_slow_machine_counts_when_it_wants_to_climb() -> None:
    """A slow-down of 3 makes the next rung three times as costly."""
    controller = Controller(RUNGS, "balanced", workers=2)
    now_ns = load(controller, 0, 2.0, 80, waiting=20)
    load(controller, now_ns, 20.0, 80, waiting=0, slow_down=3.0)
    assert controller.point == "fast"


def moves_in_a_minute(per_s: int) -> list[str]:
    """Return the points visited when every one but fast builds a queue."""
    controller = Controller(RUNGS, "accurate", workers=2)
    seen = [controller.point]
    now_ns = 0
    for _ in range(600):
        waiting = 20 if controller.point != "fast" else 0
        now_ns = load(controller, now_ns, 0.1, per_s, waiting)
        if controller.point != seen[-1]:
            seen.append(controller.point)
    return seen


def test_constant_load_does_not_make_it_swing() -> None:
    """At one rate it settles: one move per rung."""
    assert moves_in_a_minute(per_s=150) == ["accurate", "balanced", "fast"]


def test_wrong_costs_make_it_swing_less_and_less() -> None:
    """When published costs promise what the machine does not keep, climbs become rare.

    They wait 2, 4, 8, 16 and 32 s, which is more than a minute: down twice, then four climbs and falls.
    """
    assert len(moves_in_a_minute(per_s=100)) <= 1 + 2 + 2 * 4


def test_settings_that_contradict_each_other_are_refused() -> None:
    """Calm must lie below crowded."""
    with pytest.raises(ValueError, match="calm"):
        ControllerSettings(crowded=0.1, calm=0.2)


def test_headroom_lies_below_full() -> None:
    """Where it goes down to must be below where it goes down from."""
    with pytest.raises(ValueError, match="headroom"):
        ControllerSettings(full=0.5, headroom=0.5)
