"""Worker threads and their queue."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from router.workers import PoolClosed, Ticket, WorkerPool

pytestmark = pytest.mark.anyio


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    """A pool of one thread."""
    pool = WorkerPool(1)
    yield pool
    pool.close()


class Gate:
    """Work that holds its worker until it is opened."""

    def __init__(self) -> None:
        self.began, self._open = threading.Event(), threading.Event()

    def __call__(self, ticket: Ticket[Any]) -> bool:  # Any: it is not looked at
        self.began.set()
        assert self._open.wait(30)
        return ticket.cancelled

    def open(self) -> None:
        """Let the worker go on."""
        self._open.set()


class Told:
    """What is told of a piece of work."""

    def __init__(self) -> None:
        self.outcomes: list[object] = []
        self._first: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    def __call__(self, outcome: object) -> None:
        self.outcomes.append(outcome)
        if not self._first.done():
            self._first.set_result(outcome)

    async def once(self) -> object:
        """Wait for the first outcome and return it."""
        return await self._first


def ignore(outcome: object) -> None:
    """Is told what a test does not look at."""
    del outcome


async def began(gate: Gate) -> None:
    """Wait until a worker holds the gate."""
    assert await asyncio.to_thread(gate.began.wait, 30)


async def test_work_runs_in_another_thread_and_its_result_comes_back(pool: WorkerPool) -> None:
    """The event loop's thread does no work."""
    thread = await pool.call(lambda _: threading.current_thread().name, (0, 0))
    assert thread == "worker-0"


async def test_an_exception_comes_back_and_the_worker_lives_on(pool: WorkerPool) -> None:
    """Whoever awaits failed work gets its exception; the next work runs."""

    def fail(_: Ticket[int]) -> int:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await pool.call(fail, (0, 0))
    assert await pool.call(lambda _: 3, (0, 0)) == 3
    assert pool.alive


async def test_the_earliest_deadline_goes_first(pool: WorkerPool) -> None:
    """Queued work is taken by deadline, equal deadlines in the order of arrival."""
    gate = Gate()
    pool.submit(gate, (0, 0), ignore)
    await began(gate)
    order: list[str] = []
    for name, deadline in (("late", 30), ("soon", 10), ("also soon", 10), ("between", 20)):
        pool.submit(lambda _, name=name: order.append(name), (0, deadline), ignore)  # type: ignore[misc]  # mypy loses T here
    assert pool.waiting == 4
    assert len(pool.ahead_of((0, 10))) == 2
    gate.open()
    await pool.call(lambda _: None, (0, 99))
    assert order == ["soon", "also soon", "between", "late"]


async def test_priority_goes_before_deadlines(pool: WorkerPool) -> None:
    """Work of a higher priority is taken first, however late its deadline."""
    gate = Gate()
    pool.submit(gate, (0, 0), ignore)
    await began(gate)
    ran: list[str] = []
    for name, rank in (("low", (2, 1)), ("normal", (1, 5)), ("high", (0, 99))):
        pool.submit(lambda _, name=name: ran.append(name), rank, ignore)  # type: ignore[misc]  # mypy loses T here
    assert len(pool.ahead_of((1, 7))) == 2
    gate.open()
    await pool.call(lambda _: None, (2, 99))
    assert ran == ["high", "normal", "low"]


async def test_queued_work_can_be_dropped(pool: WorkerPool) -> None:
    """Cancelled work that has not begun never runs, tells nobody, and does not count as waiting."""
    gate, told = Gate(), Told()
    pool.submit(gate, (0, 0), ignore)
    await began(gate)
    ran: list[int] = []
    queued = pool.submit(lambda _: ran.append(1), (0, 1), told)
    assert queued.cancel()
    assert not queued.cancel()
    assert (pool.waiting, pool.ahead_of((0, 5))) == (0, [])
    gate.open()
    await pool.call(lambda _: None, (0, 2))
    assert (ran, told.outcomes) == ([], [])


async def test_running_work_is_not_taken_back_but_told(pool: WorkerPool) -> None:
    """Work that has begun ends by itself and can see that it was cancelled."""
    gate, told = Gate(), Told()
    running = pool.submit(gate, (0, 0), told)
    await began(gate)
    assert not running.cancel()
    gate.open()
    assert await told.once() is True


async def test_a_call_that_is_cancelled_drops_its_work(pool: WorkerPool) -> None:
    """Whoever is cancelled while waiting for a worker leaves the queue."""
    gate = Gate()
    pool.submit(gate, (0, 0), ignore)
    await began(gate)
    ran: list[int] = []
    waiting = asyncio.create_task(pool.call(lambda _: ran.append(1), (0, 1)))
    await asyncio.sleep(0)
    assert pool.waiting == 1
    waiting.cancel()
    await asyncio.wait([waiting])
    assert pool.waiting == 0
    gate.open()
    await pool.call(lambda _: None, (0, 2))
    assert ran == []


async def test_a_closed_pool_finishes_its_queue_and_takes_no_more() -> None:
    """Closing lets queued work finish; later work is refused."""
    pool = WorkerPool(2)
    calls = [asyncio.create_task(pool.call(lambda _: 1, (0, index))) for index in range(20)]
    await asyncio.sleep(0)
    await asyncio.to_thread(pool.close)
    assert sum(await asyncio.gather(*calls)) == 20
    with pytest.raises(PoolClosed):
        pool.submit(lambda _: 1, (0, 0), ignore)


async def test_those_queued_are_told_in_the_order_of_their_turns(pool: WorkerPool) -> None:
    """Priority, then deadline, up to a rank; neither what runs nor what was cancelled."""
    gate = Gate()
    told = Told()
    pool.submit(gate, (0, 1), told)
    await began(gate)
    orders = ((1, 5), (0, 9), (1, 3), (0, 7))
    tickets = [
        pool.submit(
            lambda _: None,
            order,
            ignore,
            due_ns=None if order == (1, 3) else order[1],
            least_ms=float(order[1]),
        )
        for order in orders
    ]
    assert pool.queued(1) == [7, 9, None, 5]
    assert pool.queued(0) == [7, 9]
    assert sorted(pool.ahead_of((1, 4))) == [3.0, 7.0, 9.0]
    tickets[1].cancel()
    assert pool.queued(1) == [7, None, 5]
    gate.open()
    await told.once()
