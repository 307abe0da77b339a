"""Faults are made whatever the machine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event

import pytest

from deploy.callers import Pace, Traffic, Turns
from deploy.faults import interrupted
from tests.e2e.test_router_server import wait_until

STANDS_S = 0.2
# Answers every line with the milliseconds that it took.
_SERVER = """
import sys, time
for line in sys.stdin:
    began = time.monotonic()
    time.sleep(float(sys.argv[1]))
    print(1e3 * (time.monotonic() - began), flush=True)
"""


@contextmanager
def server(takes_s: float) -> Iterator[subprocess.Popen[str]]:
    """Run a process that takes so long for an answer."""
    command = [sys.executable, "-c", _SERVER, str(takes_s)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("takes_s", [0.003, 0.06])
def test_the_middle_of_an_answer_is_found(takes_s: float) -> None:
    """Whether answers are quick or slow, soon they are late, by the process's own account."""
    took_ms: list[float] = []
    with server(takes_s) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        to, come_from = process.stdin, process.stdout

        def ask() -> float:
            to.write("?\n")
            took_ms.append(float(come_from.readline()))
            return took_ms[-1]

        with interrupted(process.pid, ask, stands_s=STANDS_S):
            wait_until(lambda: sum(one >= 1e3 * STANDS_S for one in took_ms) >= 3)
        ask()
        assert took_ms[-1] > 0, "it runs again"


def test_a_flood_grows_until_most_of_it_is_dropped() -> None:
    """The rate doubles while a gateway keeps up, and stays once it drops four fifths."""
    pace = Pace()
    first_hz = pace.rate_hz
    pace.saw(1, 0)
    assert pace.rate_hz == first_hz, "one frame says nothing"
    pace.saw(100, 0)
    assert pace.rate_hz == 2 * first_hz
    pace.saw(200, 30)
    assert pace.rate_hz == 4 * first_hz
    pace.saw(1000, 790)
    assert pace.rate_hz == 4 * first_hz, "it drops nearly all that has come since"


def test_a_rate_that_is_changed_holds_from_the_next_frame_on() -> None:
    """Nobody waits out turns that were dealt at the old rate."""
    carried = Traffic((b"",), 1_000.0)
    turns, over = Turns(carried), Event()
    assert [turns.take(over) for _ in range(3)] == [0, 1, 2]
    carried.rate_hz = 0.0
    assert [turns.take(over) for _ in range(50)] == list(range(3, 53)), "as fast as it goes"
    over.set()
    assert turns.take(over) is None
