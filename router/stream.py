"""A stream of frames, of which the newest wins.

A camera goes on whether or not its frames can be answered. So a stream lets one frame wait and no more: a
newer one takes its place, and the one that it replaces is dropped and counted. Whatever the load, a frame
whose turn comes is at most one frame's interval old, and a stream holds a bounded amount of memory. A result
is sent before its place takes the next frame: whoever reads slowly has fewer frames answered, and nothing
piles up.

Frames are numbered from 0 as they arrive. Each has a budget of its own, which begins when it arrives, waiting
included. Where several are in flight, a result that a newer frame's has overtaken is dropped as well.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from model_repo.frame import FrameLimits
from router.access import Access, Account
from router.budget import MAX_BUDGET_MS, Budgets, Clock, Deadline
from router.errors import (
    MalformedBudget,
    MalformedRequest,
    NotReady,
    RateLimited,
    RouterError,
    StreamIdle,
    Unauthorized,
)
from router.execution import Answer, Frame
from router.headers import Headers, only
from router.http_reply import count, problem_in
from router.metrics import Arrival, Metrics, Protocol
from router.problems import Problem
from router.reuse import Look, Reuse, Reused, look_at
from router.service import Outcome, Service
from router.wishes import IN_FLIGHT_HEADER, REUSE_HEADER, Wishes
from router.workers import PoolClosed, WorkerPool

MOST_IN_FLIGHT = 8
_LEVELS = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3})?")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Result(Generic[T]):
    """What came of a frame: an answer as the edge writes it, or a problem.

    name: what the sender called the frame, empty where it did not. dropped: how many frames of this stream
    have been dropped so far. age_ms: from the frame's arrival until now. reused: the earlier frame whose
    answer this is, None where it is the frame's own.
    """

    number: int
    name: str
    written: T | None
    problem: Problem | None
    dropped: int
    age_ms: float
    reused: Reused | None


@dataclass(frozen=True, slots=True)
class StreamWishes:
    """What a stream asks for all of its frames; headers: where their budgets stand.

    reuse_within: the largest difference between frames that may share an answer, see `router.reuse`; None for
    an answer to each. account: of the sender's key, None where none is needed.
    """

    headers: Headers
    wishes: Wishes
    in_flight: int
    reuse_within: float | None
    account: Account | None = None


@dataclass(frozen=True, slots=True)
class _Waiting:
    number: int
    name: str
    frame: bytes
    budget_ms: float | None
    arrived_ns: int
    arrival: Arrival


class FrameStream(Generic[T]):
    """One stream; lives on the event loop. Made by `Streams.open`, and ends with `run`."""

    def __init__(
        self,
        streams: Streams,
        protocol: Protocol,
        asked: StreamWishes,
        write: Callable[[Answer, str], T],
        send: Callable[[Result[T]], Awaitable[None]],
        request_id: str,
    ) -> None:
        self._streams, self._protocol, self._asked = streams, protocol, asked
        self._write, self._send = write, send
        self._id = request_id
        self._reuse = None if asked.reuse_within is None else Reuse(asked.reuse_within)
        self._arrived = self._dropped = 0
        self._newest = -1
        self._waiting: _Waiting | None = None
        self._wake = asyncio.Event()
        self._closed = False
        self._since_ns = streams.clock.now_ns()
        self.ended_by: RouterError | None = None

    @property
    def arrived(self) -> int:
        """Return how many frames have arrived so far."""
        return self._arrived

    @property
    def dropped(self) -> int:
        """Return how many of them have been dropped."""
        return self._dropped

    def offer(self, frame: bytes, *, name: str = "", budget_ms: float | None = None) -> None:
        """Take an encoded frame that has just arrived; the one that waits is dropped.

        budget_ms: of this frame alone; the smallest of it and the stream's wins.
        """
        number, self._arrived = self._arrived, self._arrived + 1
        arrival = self._streams.metrics.arrived(self._protocol, self._asked.headers)
        if self._closed:
            self._drop(arrival)
            return
        if self._waiting is not None:
            self._drop(self._waiting.arrival)
        self._since_ns = self._streams.clock.now_ns()
        self._waiting = _Waiting(number, name, frame, budget_ms, self._since_ns, arrival)
        self._wake.set()

    def close(self, why: RouterError | None = None) -> None:
        """Take no more frames; what has been taken is answered, and `run` returns.

        why: what the sender is told, as `ended_by`, where it is not he who ends the stream.
        """
        self.ended_by = self.ended_by or why
        self._closed = True
        self._wake.set()

    def sweep(self, now_ns: int, idle_s: float) -> None:
        """Close the stream when its key does not hold any more, or when no frame has come for too long."""
        if self._closed:
            return
        try:
            if self._asked.account is not None:
                self._asked.account.check()
        except Unauthorized as error:
            self.close(error)
        else:
            if now_ns - self._since_ns > idle_s * 1e9:
                self.close(StreamIdle(f"no frame came for {idle_s:g} s"))

    @property
    def account(self) -> Account | None:
        """Return the account of the sender's key."""
        return self._asked.account

    async def run(self, read: Coroutine[None, None, None]) -> None:
        """Answer the frames that `read` offers until it returns, or the gateway drains.

        read: may raise SenderLeft, as `send` may; that drops what is queued, and is raised.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                reader = tasks.create_task(self._read(read))
                places = [tasks.create_task(self._answer_frames()) for _ in range(self._asked.in_flight)]
                await asyncio.wait(places)
                reader.cancel()
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        finally:
            self._closed = True
            if self._waiting is not None:
                self._waiting.arrival.end("cancelled")
                self._waiting = None
            self._streams.left(self)

    async def _read(self, read: Coroutine[None, None, None]) -> None:
        await read
        self.close()

    async def _answer_frames(self) -> None:
        while (waiting := await self._next()) is not None:
            result = await self._answer(waiting)
            if result.number < self._newest:
                self._dropped += 1
                continue
            self._newest = result.number
            await self._send(result)

    async def _next(self) -> _Waiting | None:
        while self._waiting is None:
            if self._closed:
                return None
            self._wake.clear()
            await self._wake.wait()
        waiting, self._waiting = self._waiting, None
        return waiting

    async def _answer(self, waiting: _Waiting) -> Result[T]:
        request_id = f"{self._id}.{waiting.number}"
        written: list[T] = []
        reused: Reused | None = None
        outcome: Outcome
        account = self._asked.account
        try:
            with nullcontext() if account is None else account.enter():
                outcome, reused = await self._outcome(waiting, request_id, written)
        except asyncio.CancelledError:
            waiting.arrival.end("cancelled")
            raise
        except Exception as error:  # noqa: BLE001 - the edge of a frame: whatever it is, it is told
            outcome = error
        if isinstance(outcome, Unauthorized):
            # The key does not hold any more: that is told once.
            self.close(outcome)
        problem = problem_in(outcome)
        count(outcome, problem, waiting.arrival, request_id)
        age_ms = (self._streams.clock.now_ns() - waiting.arrived_ns) / 1e6
        if problem is None:
            self._streams.metrics.streamed(self._protocol, age_ms, reused=reused is not None)
        return Result(
            waiting.number,
            waiting.name,
            written[0] if problem is None else None,
            problem,
            self._dropped,
            age_ms,
            reused,
        )

    async def _outcome(
        self, waiting: _Waiting, request_id: str, written: list[T]
    ) -> tuple[Outcome, Reused | None]:
        streams, clock = self._streams, self._streams.clock
        deadline = streams.deadline(self._asked.headers, waiting.arrived_ns, waiting.budget_ms)
        frame: Frame = waiting.frame
        look: Look | None = None
        if self._reuse is not None:
            look = await streams.look(waiting.number, waiting.frame, deadline)
            known = None if look is None else self._reuse.answer_for(look, clock.now_ns())
            if known is not None:
                written.append(self._write(known[0], request_id))
                return known
            # What cannot be decoded is told as it is without reuse.
            frame = waiting.frame if look is None else look.image
        account, wishes = self._asked.account, self._asked.wishes
        outcome = await streams.service.detect(
            frame,
            deadline,
            wishes if account is None else account.limited(wishes),
            arrived_ns=waiting.arrived_ns,
            traceparent=waiting.arrival.traceparent,
            finish=lambda answer: written.append(self._write(answer, request_id)),
        )
        if self._reuse is not None and look is not None and isinstance(outcome, Answer):
            self._reuse.keep(look, outcome, clock.now_ns())
        return outcome, None

    def _drop(self, arrival: Arrival) -> None:
        self._dropped += 1
        arrival.end("superseded")


class Streams:
    """What all streams share, and how many there may be; lives on the event loop."""

    def __init__(
        self,
        service: Service,
        pool: WorkerPool,
        budgets: Budgets,
        metrics: Metrics,
        clock: Clock,
        limits: FrameLimits,
        access: Access | None = None,
        *,
        most: int,
        idle_s: float,
    ) -> None:
        """limits: of a frame. access: who is let in, None for everybody. most: streams open at once, half of
        them with one key. idle_s: how long one may be without a frame.
        """
        self.service, self.metrics, self.clock = service, metrics, clock
        self._pool, self._budgets, self._limits, self._most = pool, budgets, limits, most
        self._access, self._idle_s = access, idle_s
        self._open: dict[FrameStream[Any], Protocol] = {}  # Any: what each sends is its edge's concern
        self._draining = False
        self._none_open = asyncio.Event()
        self._none_open.set()

    def wishes(self, headers: Headers, *, trusted: bool = False) -> StreamWishes:
        """Read what a stream asks for.

        trusted: ask for no key. Raises Unauthorized or Forbidden, MalformedRequest, which names the header,
        or UnknownOperatingPoint.
        """
        account = None if self._access is None or trusted else self._access.account(headers)
        wishes = Wishes.of(headers)
        if account is not None:
            wishes = account.limited(wishes)
        name = wishes.operating_point
        if name is not None and not any(serving.publishes(name) for serving in self.service.answering):
            self.service.serving.point(name)  # says what there is
        self._budgets.deadline(headers, 0)
        in_flight = only(headers, IN_FLIGHT_HEADER) or "1"
        if in_flight not in {str(number) for number in range(1, MOST_IN_FLIGHT + 1)}:
            raise MalformedRequest(
                f"{IN_FLIGHT_HEADER}: {in_flight[:40]!r} is no whole number from 1 to {MOST_IN_FLIGHT}"
            )
        within = only(headers, REUSE_HEADER)
        if within is not None and not (_LEVELS.fullmatch(within) and float(within) <= 255):
            raise MalformedRequest(f"{REUSE_HEADER}: {within[:40]!r} is no decimal between 0 and 255")
        return StreamWishes(
            headers, wishes, int(in_flight), None if within is None else float(within), account
        )

    def open(
        self,
        protocol: Protocol,
        asked: StreamWishes,
        write: Callable[[Answer, str], T],
        send: Callable[[Result[T]], Awaitable[None]],
        request_id: str | None = None,
    ) -> FrameStream[T]:
        """Begin a stream, which `run` ends; raises NotReady when there are too many, or the gateway drains.

        write: turns an answer into what the edge sends, given the frame's request id; called by workers and
        on the event loop. send: awaited for every result; for as many at once as are in flight. It may raise
        SenderLeft. request_id: its frames' ids begin with it.
        """
        if self._draining:
            raise NotReady("the gateway is shutting down")
        if len(self._open) >= self._most:
            raise NotReady(f"{self._most} streams are open, which is the limit")
        if asked.account is not None:
            theirs = sum(stream.account is asked.account for stream in self._open)
            if theirs >= max(self._most // 2, 1):
                raise RateLimited(f"{theirs} streams are open with this API key, which is its limit", 1.0)
        identity = request_id or uuid.uuid4().hex[:16]
        if asked.wishes.session is None:
            # All of its frames are answered by the same of two sets that are compared.
            asked = replace(asked, wishes=replace(asked.wishes, session=identity))
        stream = FrameStream(self, protocol, asked, write, send, identity)
        self._open[stream] = protocol
        self._none_open.clear()
        self.metrics.streaming(protocol, 1)
        return stream

    def left(self, stream: FrameStream[T]) -> None:
        """Forget a stream that has ended; called by `FrameStream.run` alone."""
        self.metrics.streaming(self._open.pop(stream), -1)
        if not self._open:
            self._none_open.set()

    def sweep(self) -> None:
        """Close the streams whose keys do not hold any more, and those without a frame for long."""
        now_ns = self.clock.now_ns()
        for stream in self._open:
            stream.sweep(now_ns, self._idle_s)

    def drain(self) -> None:
        """Close every stream, and open none any more."""
        self._draining = True
        for stream in self._open:
            stream.close(NotReady("the gateway is shutting down"))

    async def drained(self, drain_s: float) -> None:
        """Wait until every stream has ended, or `drain_s` is over."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._none_open.wait(), drain_s)

    def deadline(self, headers: Headers, arrived_ns: int, budget_ms: float | None) -> Deadline:
        """Return a frame's deadline, its stream's or its own, the sooner; raises MalformedBudget."""
        if budget_ms is not None and not 0.0 < budget_ms <= MAX_BUDGET_MS:
            raise MalformedBudget(f"budget_ms: {budget_ms:g} lies outside (0, {MAX_BUDGET_MS:.0f}]")
        return self._budgets.deadline(
            headers, arrived_ns, call_s=None if budget_ms is None else budget_ms / 1e3
        )

    async def look(self, number: int, frame: bytes, deadline: Deadline) -> Look | None:
        """Have a worker look at a frame, see `router.reuse.look_at`; raises NotReady."""
        due_ns = deadline.at_ns if deadline.at_ns is not None else self.clock.now_ns()
        try:
            return await self._pool.call(lambda _: look_at(number, frame, self._limits), (1, due_ns))
        except PoolClosed as error:
            raise NotReady("the gateway is shutting down") from error
