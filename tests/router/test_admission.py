"""The limit, the limiter, and predicted waits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.admission import Limiter, LittleLimit, Permit, Shed
from router.wishes import Priority


def limit_of(**changes: float) -> LittleLimit:
    settings = {"workers": 2, "service_ms": 10.0, "max_wait_ms": 100.0, "max_queue": 64, **changes}
    return LittleLimit(
        int(settings["workers"]),
        service_ms=settings["service_ms"],
        max_wait_ms=settings["max_wait_ms"],
        max_queue=int(settings["max_queue"]),
    )


def test_the_limit_is_littles_law() -> None:
    """Two workers at 10 ms and 100 ms of wait admit 2·(1 + 10) requests."""
    assert limit_of().value == 22


def test_the_limit_stays_between_the_workers_and_the_queue() -> None:
    """However long or short a request takes, every worker may work and the queue stays bounded."""
    assert limit_of(service_ms=1e6).value == 2
    assert limit_of(service_ms=0.01).value == 2 + 64
    assert limit_of(max_queue=0).value == 2


@given(st.lists(st.floats(0, 1e4), max_size=50))
def test_any_history_keeps_the_limit_in_bounds(observed: list[float]) -> None:
    """No service time moves the limit out of [w, w + max_queue]."""
    limit = limit_of()
    for service_ms in observed:
        limit.observe(service_ms)
        assert 2 <= limit.value <= 66


def test_a_slower_machine_lowers_the_limit_and_a_faster_one_raises_it() -> None:
    """The limit follows the service time by itself."""
    limit = limit_of()
    for _ in range(100):
        limit.observe(50.0)
    slow = limit.value
    for _ in range(100):
        limit.observe(5.0)
    assert slow < 22 < limit.value


def test_requests_above_the_limit_are_shed_until_one_leaves() -> None:
    """A full limiter sheds with a time to come back, and admits again after a release."""
    limiter = Limiter(limit_of(max_queue=0), workers=2)
    permits = [limiter.acquire(), limiter.acquire()]
    shed = limiter.acquire()
    assert isinstance(shed, Shed)
    assert shed.retry_after_s > 0
    first = permits[0]
    assert isinstance(first, Permit)
    first.release(10.0)
    assert isinstance(limiter.acquire(), Permit)
    assert limiter.inside == 2


def test_low_priority_fills_only_a_part_of_the_queue() -> None:
    """When requests of low priority are shed others are still let in, the high ones last of all."""
    limiter = Limiter(limit_of(max_queue=10), workers=2)
    order: tuple[Priority, ...] = ("low", "normal", "high")
    let_in = dict.fromkeys(order, 0)
    for priority in order:
        while isinstance(limiter.acquire(priority), Permit):
            let_in[priority] += 1
    assert let_in == {"low": 2 + 5, "normal": 4, "high": 1}


def test_a_permit_is_given_back_once() -> None:
    """Releasing twice is a bug and says so."""
    permit = Limiter(limit_of(), workers=2).acquire()
    assert isinstance(permit, Permit)
    permit.release()
    with pytest.raises(RuntimeError, match="twice"):
        permit.release()


def test_waits_grow_with_what_is_ahead() -> None:
    """A free worker means no wait; otherwise half a service time and a share for everyone ahead."""
    limiter = Limiter(limit_of(), workers=2)
    assert limiter.wait_ms([], busy=1) == 0.0
    assert limiter.wait_ms([], busy=2) == pytest.approx(5.0)
    assert limiter.wait_ms([10.0, 10.0, 4.0, 4.0], busy=2) == pytest.approx(14.0 + 5.0)
