"""Threads that take queued work in order of priority and deadline, so that the event loop only waits.

One request is one piece of work: decoding, resizing, inference and suppression happen in one thread without
a hop between them. Earliest deadline first is the order that misses fewest deadlines while there is
capacity; admission keeps the queue short enough that it is worth ordering. Priorities come before deadlines.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

from router.mailbox import Letter, Mailbox

T = TypeVar("T")


class PoolClosed(RuntimeError):
    """The pool takes no more work."""


class Ticket(Generic[T]):
    """A piece of queued or running work; what comes of it is told on the event loop that submitted it."""

    __slots__ = ("_pool", "_then", "_work", "cancelled", "due_ns", "least_ms", "mailbox", "started")

    def __init__(
        self,
        pool: WorkerPool,
        work: Callable[[Ticket[T]], T],
        then: Callable[[T | Exception], None],
        mailbox: Mailbox,
        due_ns: int | None,
        least_ms: float,
    ) -> None:
        self._pool, self._work, self._then = pool, work, then
        self.due_ns, self.least_ms, self.mailbox = due_ns, least_ms, mailbox
        self.started = False
        self.cancelled = False

    def cancel(self) -> bool:
        """Drop the work if it has not started, and tell nobody; returns whether it had not.

        Work that runs cannot be taken back; it sees `cancelled` and may stop between its steps.
        """
        return self._pool.drop(self)

    def run(self) -> Letter:
        """Do the work; return what tells its value or exception on the event loop. For worker threads."""
        try:
            return partial(self._then, self._work(self))
        except Exception as error:  # noqa: BLE001 - the edge of a worker thread: whoever waits gets it
            return partial(self._then, error)


Order = tuple[int, int]
"""Rank of the priority, 0 first, and the deadline in nanoseconds."""

# Order, number (so that equal ones stay in line), ticket; a queue holds tickets of every type, and what a
# ticket's own type is concerns only whoever submitted it.
_Entry = tuple[Order, int, Ticket[Any]]  # Any: see above


class WorkerPool:
    """A fixed number of threads over one queue ordered by priority and deadline."""

    def __init__(self, threads: int) -> None:
        self._size = threads
        self._lock = threading.Lock()
        self._queue: list[_Entry] = []
        # One token for each entry, taken before it: waiting on a condition costs several times as much.
        self._tokens: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._busy = 0
        self._dropped = 0
        self._closed = False
        self._mailbox: Mailbox | None = None
        self._threads = [
            threading.Thread(target=self._serve, name=f"worker-{index}", daemon=True)
            for index in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def size(self) -> int:
        """Return the number of threads."""
        return self._size

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Return the event loop that submits, once it has."""
        assert self._mailbox is not None, "nothing was submitted yet"
        return self._mailbox.loop

    @property
    def busy(self) -> int:
        """Return how many threads are at work."""
        return self._busy

    @property
    def waiting(self) -> int:
        """Return how many pieces of work are queued."""
        return len(self._queue) - self._dropped

    @property
    def alive(self) -> bool:
        """Return whether every thread runs."""
        return all(thread.is_alive() for thread in self._threads)

    def ahead_of(self, order: Order) -> list[float]:
        """Return the least costs of the queued pieces that would be taken before new work of this order."""
        with self._lock:
            return [
                ticket.least_ms for other, _, ticket in self._queue if other <= order and not ticket.cancelled
            ]

    def queued(self, rank: int) -> list[int | None]:
        """Return when the queued pieces of a priority's rank and before it are due, in the order of turns."""
        if not self._queue:
            return []
        with self._lock:
            entries = sorted(self._queue, key=lambda entry: entry[:2])
            return [
                ticket.due_ns for order, _, ticket in entries if order[0] <= rank and not ticket.cancelled
            ]

    def submit(
        self,
        work: Callable[[Ticket[T]], T],
        order: Order,
        then: Callable[[T | Exception], None],
        *,
        due_ns: int | None = None,
        least_ms: float = 0.0,
    ) -> Ticket[T]:
        """Queue work, lowest `order` first; call on one and the same event loop. Raises PoolClosed.

        then: gets the work's value or its exception on that loop. due_ns: when it is worth nothing any more,
        None for never; least_ms: the least that it may cost.
        """
        if self._closed:
            raise PoolClosed("the worker pool is closed")
        mailbox = self._mailbox
        if mailbox is None:
            mailbox = self._mailbox = Mailbox()
        ticket = Ticket(self, work, then, mailbox, due_ns, least_ms)
        with self._lock:
            if self._closed:
                raise PoolClosed("the worker pool is closed")
            entry: _Entry = (order, next(self._numbers), ticket)
            heapq.heappush(self._queue, entry)
        self._tokens.put(None)
        return ticket

    async def call(self, work: Callable[[Ticket[T]], T], order: Order) -> T:
        """Do work and return its value, or raise its exception; dropped when cancelled. Raises PoolClosed."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        ticket = self.submit(work, order, partial(_settle, future))
        try:
            return await future
        finally:
            ticket.cancel()

    def drop(self, ticket: Ticket[T]) -> bool:
        """Mark a ticket as cancelled; returns whether it was still queued."""
        with self._lock:
            if ticket.cancelled:
                return False
            ticket.cancelled = True
            if not ticket.started:
                self._dropped += 1
            return not ticket.started

    def close(self, timeout_s: float = 10.0) -> None:
        """Take no more work, let queued work finish, and wait for the threads for up to `timeout_s` each."""
        with self._lock:
            self._closed = True
        for _ in self._threads:
            self._tokens.put(None)
        for thread in self._threads:
            thread.join(timeout_s)
        if self._mailbox is not None:
            self._mailbox.close()

    def _serve(self) -> None:
        while True:
            self._tokens.get()
            with self._lock:
                # A token without an entry is one of those that close.
                if not self._queue:
                    return
                _, _, ticket = heapq.heappop(self._queue)
                if ticket.cancelled:
                    self._dropped -= 1
                    continue
                ticket.started = True
                self._busy += 1
            deliver = ticket.run()
            with self._lock:
                self._busy -= 1
            # Last: the event loop goes on as soon as this thread does nothing more.
            ticket.mailbox.post(deliver)
            # An idle worker would keep its last frame.
            del ticket, deliver


def _settle(future: asyncio.Future[T], outcome: T | Exception) -> None:
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
