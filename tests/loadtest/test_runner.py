"""The open loop, in virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from loadtest.runner import Limits, Request, run_open_loop, warm_up
from loadtest.sample import Reply, Sample
from loadtest.schedule import constant_ns
from tests.loadtest.conftest import RunVirtually
from tests.loadtest.scripted import ScriptedTarget

FRAMES = [b"a", b"b", b"c"]


def test_requests_leave_on_schedule_whatever_the_answers_do(run_virtually: RunVirtually[Any]) -> None:
    """A target that stalls for a second still meets an arrival every 10 ms."""
    target = ScriptedTarget(delay_s=lambda _: 1.0)
    samples = run_virtually(run_open_loop(target, FRAMES, constant_ns(100.0, 20), Request(), Limits()))
    gaps_s = [b - a for a, b in zip(target.sent_s, target.sent_s[1:], strict=False)]
    assert gaps_s == pytest.approx([0.01] * 19, abs=1e-4)
    assert [round(s.latency_ms) for s in samples] == [1000] * 20
    assert all(s.issue_delay_ms < 0.1 for s in samples)


def test_latency_counts_from_the_scheduled_time(run_virtually: RunVirtually[Any]) -> None:
    """What the generator loses by being late counts as latency, and stands apart as issue delay."""

    async def blocked() -> tuple[Sample, ...]:
        loop = asyncio.get_running_loop()
        target = ScriptedTarget(delay_s=lambda _: 0.005)
        # Something holds the loop's clock back by 30 ms just before the second request is due.
        loop.call_at(loop.time() + 0.055, _advance, loop, 0.030)
        return await run_open_loop(target, FRAMES, constant_ns(100.0, 2), Request(), Limits())

    first, second = run_virtually(blocked())
    assert first.issue_delay_ms == pytest.approx(0.0, abs=0.01)
    assert second.issue_delay_ms == pytest.approx(25.0, abs=0.1)
    assert second.service_ms == pytest.approx(5.0, abs=0.1)
    assert second.latency_ms == pytest.approx(30.0, abs=0.1)


def _advance(loop: asyncio.AbstractEventLoop, seconds: float) -> None:
    loop._jumping.now_s += seconds  # type: ignore[attr-defined]  # the virtual loop's own clock


def test_frames_go_round_and_the_request_is_carried_along(run_virtually: RunVirtually[Any]) -> None:
    """Frame i mod n is sent at arrival i, with the budget and operating point asked for."""
    target = ScriptedTarget()
    samples = run_virtually(
        run_open_loop(target, FRAMES, constant_ns(10.0, 5), Request(40.0, "fast"), Limits())
    )
    assert target.frames == [b"a", b"b", b"c", b"a", b"b"]
    assert [s.frame for s in samples] == [0, 1, 2, 0, 1]
    assert set(target.asked) == {(40.0, "fast")}


def test_a_silent_target_times_out(run_virtually: RunVirtually[Any]) -> None:
    """A request without an answer ends as timed out after the limit, and the run ends."""
    target = ScriptedTarget(delay_s=lambda i: 0.0 if i else 3600.0)
    samples = run_virtually(
        run_open_loop(target, FRAMES, constant_ns(10.0, 3), Request(), Limits(timeout_s=2.0))
    )
    assert [s.reply.outcome for s in samples] == ["timed_out", "answered", "answered"]
    assert samples[0].latency_ms == pytest.approx(2000.0, abs=1.0)


def test_open_requests_are_bounded(run_virtually: RunVirtually[Any]) -> None:
    """Beyond the bound on open requests one is recorded as unsent instead of sent."""
    target = ScriptedTarget(delay_s=lambda _: 1.0)
    samples = run_virtually(
        run_open_loop(target, FRAMES, constant_ns(100.0, 5), Request(), Limits(in_flight=3))
    )
    assert [s.reply.outcome for s in samples] == ["answered"] * 3 + ["unsent"] * 2
    assert len(target.sent_s) == 3


def test_samples_come_in_schedule_order_and_progress_in_the_order_of_answers(
    run_virtually: RunVirtually[Any],
) -> None:
    """The result is sorted by arrival though answers overtake one another."""
    seen: list[int] = []
    target = ScriptedTarget(delay_s=lambda i: 0.5 - 0.1 * i, reply=lambda i: Reply("answered", plan=str(i)))
    samples = run_virtually(
        run_open_loop(
            target,
            FRAMES,
            constant_ns(100.0, 4),
            Request(),
            Limits(),
            lambda _, s: seen.append(s.scheduled_ns),
        )
    )
    assert [s.reply.plan for s in samples] == ["0", "1", "2", "3"]
    assert seen == sorted(seen, reverse=True)


def test_a_fault_of_the_generator_ends_the_run(run_virtually: RunVirtually[Any]) -> None:
    """An error that is no reply is not counted against the gateway: it is raised."""

    def broken(_: int) -> Reply:
        raise KeyError("a bug")

    with pytest.raises(ExceptionGroup):
        run_virtually(
            run_open_loop(ScriptedTarget(reply=broken), FRAMES, constant_ns(10.0, 1), Request(), Limits())
        )
    with pytest.raises(ValueError, match="at least one frame"):
        run_virtually(run_open_loop(ScriptedTarget(), [], constant_ns(10.0, 1), Request(), Limits()))


def test_warming_up_sends_one_after_another(run_virtually: RunVirtually[Any]) -> None:
    """A warm-up waits for each answer before the next request."""
    target = ScriptedTarget(delay_s=lambda _: 0.5)
    run_virtually(warm_up(target, FRAMES, Request(), 3))
    assert target.sent_s[2] - target.sent_s[0] == pytest.approx(1.0, abs=1e-4)
