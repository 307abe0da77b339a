"""`POST /v1/detect`: decode the request, ask the service, encode the answer. A plain ASGI application.

It stands outside FastAPI's parameter machinery because its cost is paid for every frame; OpenAPI describes
it all the same, see `router.http_api`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from router.access import Access, Stay, entered, limited
from router.admission import Shed
from router.budget import Budgets, Clock
from router.compression import takes_gzip
from router.execution import Answer
from router.headers import Headers
from router.http_body import Bodies, Receive, SenderLeft
from router.http_reply import (
    Letter,
    Lines,
    Scope,
    Send,
    content_type,
    count,
    grouped,
    problem_in,
    request_id_in,
    respond,
    unless_left,
)
from router.metrics import Metrics
from router.service import Begun, Outcome, Service
from router.shapes import PLAIN, shape_of
from router.wishes import Wishes

DETECT_PATH = "/v1/detect"


class Exchange(Protocol):
    """A request that is there as a whole, and its answer, with fewer steps than messages take."""

    @property
    def headers(self) -> Lines:
        """Return the request's headers, names in lower case."""

    @property
    def query(self) -> bytes:
        """Return what stands behind the path's question mark."""

    @property
    def body(self) -> bytes:
        """Return its body."""

    def answer(self, status: int, headers: Lines, body: bytes) -> None:
        """Send the answer, at once."""


class Pending:
    """A request that came as a whole, until it is answered or its sender has left."""

    __slots__ = ("_answer", "_begun")

    def __init__(self, answer: Callable[[Outcome], None]) -> None:
        self._answer: Callable[[Outcome], None] | None = answer
        self._begun: Begun | None = None

    def wait_for(self, begun: Begun) -> None:
        """Remember what is to be dropped if the sender leaves."""
        self._begun = begun

    def end(self, outcome: Outcome) -> None:
        """Answer."""
        answer, self._answer, self._begun = self._answer, None, None
        if answer is not None:
            answer(outcome)

    def leave(self) -> None:
        """Drop the work: nobody waits for the answer."""
        begun, self._begun = self._begun, None
        if begun is not None:
            begun.abandon()
            self.end(SenderLeft())


class DetectEndpoint:
    """Answer frames over HTTP."""

    def __init__(
        self,
        service: Service,
        bodies: Bodies,
        budgets: Budgets,
        metrics: Metrics,
        clock: Clock,
        access: Access | None = None,
        *,
        browsers: bool = False,
    ) -> None:
        """access: who is let in, None for everybody. browsers: whether pages of other origins may ask, whose
        requests need headers that only `__call__`'s answers get."""
        self._service, self._bodies, self._budgets = service, bodies, budgets
        self._metrics, self._clock = metrics, clock
        self._access, self._browsers = access, browsers

    def begin(self, exchange: Exchange) -> Pending | None:
        """Begin on a request that is there as a whole; None, and nothing done, where `__call__` has to look.

        The clock of its budget starts here. It does what `__call__` does, without a task: that is paid for
        every frame.
        """
        arrived_ns = self._clock.now_ns()
        headers = grouped(exchange.headers)
        frame = None if exchange.query else self._bodies.at_once(content_type(headers), exchange.body)
        if frame is None or (self._browsers and b"origin" in headers):
            return None
        arrival = self._metrics.arrived("http", headers)
        request_id = request_id_in(headers)
        letter = Letter(request_id, PLAIN, frame, gzip=takes_gzip(headers))
        stay: Stay | None = None

        def answer(outcome: Outcome) -> None:
            if stay is not None:
                stay.leave()
            problem = problem_in(outcome)
            reply = letter.reply_to(outcome, problem)
            if reply is not None:
                exchange.answer(*reply)
            count(outcome, problem, arrival, request_id)

        pending = Pending(answer)
        try:
            if self._access is None:
                wishes = Wishes.of(headers)
            else:
                stay = self._access.enter(headers)
                wishes = stay.limited(Wishes.of(headers))
            begun = self._service.begin(
                frame,
                self._budgets.deadline(headers, arrived_ns),
                wishes,
                pending.end,
                arrived_ns=arrived_ns,
                traceparent=arrival.traceparent,
                finish=letter.write,
            )
        except Exception as error:  # noqa: BLE001 - the edge of a request: whatever it is, it is told
            pending.end(error)
        else:
            if isinstance(begun, Shed):
                pending.end(begun)
            else:
                pending.wait_for(begun)
        return pending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; the clock of its budget starts here, when its headers have been parsed."""
        arrived_ns = self._clock.now_ns()
        headers = grouped(scope["headers"])
        arrival = self._metrics.arrived("http", headers)
        letter = Letter(request_id_in(headers), gzip=takes_gzip(headers))
        outcome: Outcome
        try:
            with entered(self._access, headers) as stay:
                letter.shape = shape_of(scope.get("query_string", b""))
                outcome = await self._answer(headers, receive, arrived_ns, arrival.traceparent, letter, stay)
        except asyncio.CancelledError:
            arrival.end("cancelled")
            raise
        except Exception as error:  # noqa: BLE001 - the edge of a request: whatever it is, it is told
            outcome = error
        problem = problem_in(outcome)
        # Before anything that could be cancelled: every request is counted.
        count(outcome, problem, arrival, letter.request_id)
        reply = letter.reply_to(outcome, problem)
        if reply is not None:
            del outcome  # an exception's traceback knows this frame
            await respond(send, *reply)

    async def _answer(
        self,
        headers: Headers,
        receive: Receive,
        arrived_ns: int,
        traceparent: str | None,
        letter: Letter,
        stay: Stay | None,
    ) -> Answer | Shed:
        deadline = self._budgets.deadline(headers, arrived_ns)
        wishes = limited(stay, Wishes.of(headers))
        length = headers.get(b"content-length")
        frame = await self._bodies.read(content_type(headers), length[0] if length else None, receive)
        if isinstance(frame, Shed):
            return frame
        letter.frame = frame
        work = self._service.detect(
            frame, deadline, wishes, arrived_ns=arrived_ns, traceparent=traceparent, finish=letter.write
        )
        return await unless_left(receive, work)
