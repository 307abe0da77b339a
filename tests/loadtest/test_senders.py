"""One schedule shared by several processes, against a server that does next to nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.frames import Frame
from loadtest.gateway import connect
from loadtest.process import free_port, printed_port, running
from loadtest.runner import Limits, Request
from loadtest.schedule import arrivals_ns
from loadtest.senders import send_together, shares
from loadtest.session import Job, Run, carry_out
from loadtest.target import TargetError
from loadtest.timetable import Timetable
from loadtest.verdict import Conditions

FRAMES = tuple(Frame(f"{name}.jpg", name.encode() * 50, ()) for name in "abc")
PATIENT = Conditions(budget_ms=60_000.0, issue_delay_ms=60_000.0)


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Run the trivial server."""
    log = tmp_path_factory.mktemp("trivial") / "trivial.log"
    with running(["loadtest.trivial"], log) as process:
        yield printed_port(process, log)


def load(port: int, *, senders: int, early_stop: bool = False, count: int = 60) -> Run:
    """Send `count` requests within half a second or so."""
    due_ns = arrivals_ns("constant", 2.0 * count, 0.5, np.random.default_rng(0))
    job = Job(
        connect=partial(connect, f"http://127.0.0.1:{port}", "http", timeout_s=60.0),
        frames=FRAMES,
        timetable=Timetable.of(due_ns, len(FRAMES)),
        request=Request(),
        limits=Limits(timeout_s=60.0),
        conditions=PATIENT,
        senders=senders,
        early_stop=early_stop,
    )
    return asyncio.run(carry_out(job, "test"))


@given(count=st.integers(0, 50), senders=st.integers(1, 7))
def test_every_request_goes_to_one_sender(count: int, senders: int) -> None:
    """The parts of a schedule are the schedule, each request once, in order within each part."""
    timetable = Timetable.of(np.arange(count) * 1000, 3)
    parts = shares(
        partial(connect, "http://127.0.0.1:1", "http", timeout_s=1.0),
        [b"a", b"b", b"c"], timetable, Request(), Limits(), senders=senders, warm_up=0,
    )  # fmt: skip
    dealt = sorted(due for part in parts for due in part.timetable.due_ns.tolist())
    assert dealt == timetable.due_ns.tolist()
    for part in parts:
        assert part.timetable.due_ns.tolist() == timetable.due_ns[part.number :: senders].tolist()


def test_two_senders_send_what_one_would(port: int) -> None:
    """Frames and moments are those of the schedule, all answered, merged in its order."""
    alone, together = load(port, senders=1), load(port, senders=2)
    for run in (alone, together):
        assert [sample.reply.outcome for sample in run.samples] == ["answered"] * 60
        assert len(run.samples[0].reply.detections) == 20
    assert [(s.scheduled_ns, s.frame) for s in together.samples] == [
        (s.scheduled_ns, s.frame) for s in alone.samples
    ]
    assert together.verdict.planned == 60


@pytest.mark.parametrize("senders", [1, 2])
def test_a_decided_run_ends_early_and_says_so(port: int, senders: int) -> None:
    """With early stopping not all requests are sent, and those that were are judged more strictly."""
    run = load(port, senders=senders, early_stop=True, count=3_000)
    assert run.verdict.planned == 3_000
    assert run.verdict.conditions.confidence > 0.99
    assert run.verdict.valid
    assert run.verdict.conditions.minimum_samples <= run.verdict.requests <= 3_000


def test_a_sender_that_cannot_go_on_ends_the_run() -> None:
    """What keeps a sender from connecting is raised here, and no process is left waiting."""
    parts = shares(
        partial(connect, "nowhere", "http", timeout_s=1.0),
        [b"a"], Timetable.of(np.array([0, 1]), 1), Request(), Limits(), senders=2, warm_up=1,
    )  # fmt: skip
    with pytest.raises(TargetError, match="expected an address"):
        asyncio.run(send_together(parts, lambda _, __: None, lambda: False))


def test_numbers_without_sense_are_refused() -> None:
    """No sender at all is a ValueError."""
    with pytest.raises(ValueError, match="at least one sender"):
        shares(
            partial(connect, f"http://127.0.0.1:{free_port()}", "http", timeout_s=1.0),
            [b"a"], Timetable.of(np.array([0]), 1), Request(), Limits(), senders=0, warm_up=0,
        )  # fmt: skip
