"""Threads that take queued work in order of priority and deadline, so that the event loop only waits.

One request is one piece of work: decoding, resizing, inference and suppression happen in one thread without
a hop between them. Earliest deadline first is the order that misses fewest deadlines while there is
capacity; admission keeps the queue short enough that it is worth ordering. Priorities come before deadlines.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class PoolClosed(RuntimeError):
    """The pool takes no more work."""


class Ticket(Generic[T]):
    """A piece of queued or running work; `result` is awaited on the event loop that submitted it."""

    __slots__ = ("_loop", "_orphaned", "_pool", "_work", "cancelled", "result", "started")

    def __init__(self, pool: WorkerPool, work: Callable[[Ticket[T]], T]) -> None:
        self._pool, self._work = pool, work
        self._loop = asyncio.get_running_loop()
        self.result: asyncio.Future[T] = self._loop.create_future()
        self.started = False
        self.cancelled = False
        self._orphaned: Callable[[T | None], None] | None = None

    def cancel(self) -> bool:
        """Drop the work if it has not started; returns whether it had not.

        Work that runs cannot be taken back; it sees `cancelled` and may stop between its steps.
        """
        dropped = self._pool.drop(self)
        if dropped:
            self.result.cancel()
        return dropped

    def abandon(self, then: Callable[[T | None], None]) -> None:
        """Wait no more; `then` is called as soon as no worker is held, with the work's value if it has one.

        Work that has not started is dropped, as by `cancel`. Call and callback are on the event loop.
        """
        if self.cancel():
            then(None)
        elif self.result.cancel() or self.result.cancelled():
            self._orphaned = then
        else:
            then(None if self.result.exception() else self.result.result())

    def run(self) -> None:
        """Do the work and hand its result or exception to the event loop; called by a worker thread."""
        try:
            value = self._work(self)
        except Exception as error:  # noqa: BLE001 - the edge of a worker thread: whoever awaits gets it
            self._post(self._fail, error)
        else:
            self._post(self._succeed, value)

    def _post(self, deliver: Callable[..., None], value: object) -> None:
        try:
            self._loop.call_soon_threadsafe(deliver, value)
        except RuntimeError:
            # The loop is closed: the process ends and nobody waits any more.
            return

    def _succeed(self, value: T) -> None:
        if not self.result.done():
            self.result.set_result(value)
        elif self._orphaned is not None:
            self._orphaned(value)

    def _fail(self, error: Exception) -> None:
        if not self.result.done():
            self.result.set_exception(error)
        elif self._orphaned is not None:
            self._orphaned(None)


Order = tuple[int, int]
"""Rank of the priority, 0 first, and the deadline in nanoseconds."""

# Order, number (so that equal ones stay in line), ticket; a queue holds tickets of every type, and what a
# ticket's own type is concerns only whoever submitted it.
_Entry = tuple[Order, int, Ticket[Any]]  # Any: see above


class WorkerPool:
    """A fixed number of threads over one queue ordered by priority and deadline."""

    def __init__(self, threads: int) -> None:
        self._size = threads
        self._ready = threading.Condition()
        self._queue: list[_Entry] = []
        self._numbers = itertools.count()
        self._busy = 0
        self._dropped = 0
        self._closed = False
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

    def ahead_of(self, order: Order) -> int:
        """Return how many queued pieces would be taken before new work of this order."""
        with self._ready:
            return sum(other <= order and not ticket.cancelled for other, _, ticket in self._queue)

    def queued(self) -> tuple[Order, ...]:
        """Return the orders of what is queued, in the order in which it will be taken."""
        if not self._queue:
            return ()
        with self._ready:
            return tuple(sorted(order for order, _, ticket in self._queue if not ticket.cancelled))

    def submit(self, work: Callable[[Ticket[T]], T], order: Order) -> Ticket[T]:
        """Queue work, lowest `order` first; call on the event loop. Raises PoolClosed."""
        ticket = Ticket(self, work)
        with self._ready:
            if self._closed:
                raise PoolClosed("the worker pool is closed")
            entry: _Entry = (order, next(self._numbers), ticket)
            heapq.heappush(self._queue, entry)
            self._ready.notify()
        return ticket

    def drop(self, ticket: Ticket[T]) -> bool:
        """Mark a ticket as cancelled; returns whether it was still queued."""
        with self._ready:
            if ticket.cancelled:
                return False
            ticket.cancelled = True
            if not ticket.started:
                self._dropped += 1
            return not ticket.started

    def close(self, timeout_s: float = 10.0) -> None:
        """Take no more work, let queued work finish, and wait for the threads for up to `timeout_s` each."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()
        for thread in self._threads:
            thread.join(timeout_s)

    def _serve(self) -> None:
        while True:
            with self._ready:
                while not self._queue and not self._closed:
                    self._ready.wait()
                if not self._queue:
                    return
                _, _, ticket = heapq.heappop(self._queue)
                if ticket.cancelled:
                    self._dropped -= 1
                    continue
                ticket.started = True
                self._busy += 1
            try:
                ticket.run()
            finally:
                with self._ready:
                    self._busy -= 1
