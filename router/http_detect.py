"""`POST /v1/detect`: decode the request, ask the service, encode the answer. A plain ASGI application.

It stands outside FastAPI's parameter machinery because its cost is paid for every frame; OpenAPI describes
it all the same, see `router.http_api`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import uuid
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Protocol

from router.admission import Shed
from router.budget import Budgets, Clock
from router.encoding import answer_json, server_timing
from router.errors import RouterError
from router.execution import Answer
from router.headers import Headers, only
from router.http_body import Bodies, Receive, SenderLeft
from router.metrics import Arrival, Metrics
from router.problems import Problem, internal_problem, problem_of
from router.service import Begun, Outcome, Service
from router.wishes import Wishes

_LOG = logging.getLogger(__name__)
DETECT_PATH = "/v1/detect"
ID_HEADER = "X-Request-Id"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# Together they are a request's id where its sender gave none.
_PROCESS, _NUMBERS = uuid.uuid4().hex[:16], itertools.count(1)
_ID = ID_HEADER.lower().encode()

Scope = MutableMapping[str, Any]  # Any: as ASGI defines its scope
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]  # Any: as ASGI defines its messages
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]
Lines = list[tuple[bytes, bytes]]
Reply = tuple[int, Lines, bytes]
"""Status, headers and body."""


class Exchange(Protocol):
    """A request that is there as a whole, and its answer, with fewer steps than messages take."""

    @property
    def headers(self) -> Lines:
        """Return the request's headers, names in lower case."""

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
        self, service: Service, bodies: Bodies, budgets: Budgets, metrics: Metrics, clock: Clock
    ) -> None:
        self._service, self._bodies, self._budgets = service, bodies, budgets
        self._metrics, self._clock = metrics, clock

    def begin(self, exchange: Exchange) -> Pending | None:
        """Begin on a request that is there as a whole; None, and nothing done, where `__call__` has to look.

        The clock of its budget starts here. It does what `__call__` does, without a task: that is paid for
        every frame.
        """
        arrived_ns = self._clock.now_ns()
        headers = grouped(exchange.headers)
        frame = self._bodies.at_once(_kind(headers), exchange.body)
        if frame is None:
            return None
        arrival = self._metrics.arrived("http", headers)
        request_id = request_id_of(headers.get(_ID, []))
        letter = _Letter(request_id)

        def answer(outcome: Outcome) -> None:
            problem = problem_in(outcome)
            reply = letter.reply_to(outcome, problem)
            if reply is not None:
                exchange.answer(*reply)
            count(outcome, problem, arrival, request_id)

        pending = Pending(answer)
        try:
            begun = self._service.begin(
                frame,
                self._budgets.deadline(headers, arrived_ns),
                Wishes.of(headers),
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
        request_id = request_id_of(headers.get(_ID, []))
        letter = _Letter(request_id)
        outcome: Outcome
        try:
            outcome = await self._answer(headers, receive, arrived_ns, arrival.traceparent, letter.write)
        except asyncio.CancelledError:
            arrival.end("cancelled")
            raise
        except Exception as error:  # noqa: BLE001 - the edge of a request: whatever it is, it is told
            outcome = error
        problem = problem_in(outcome)
        # Before anything that could be cancelled: every request is counted.
        count(outcome, problem, arrival, request_id)
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
        finish: Callable[[Answer], None],
    ) -> Answer | Shed:
        deadline = self._budgets.deadline(headers, arrived_ns)
        wishes = Wishes.of(headers)
        length = headers.get(b"content-length")
        frame = await self._bodies.read(_kind(headers), length[0] if length else None, receive)
        if isinstance(frame, Shed):
            return frame
        work = self._service.detect(
            frame, deadline, wishes, arrived_ns=arrived_ns, traceparent=traceparent, finish=finish
        )
        # After a whole body the next message can only be that the sender has left.
        left = asyncio.ensure_future(receive())
        try:
            return await unless(left, work)
        finally:
            left.cancel()


class _Letter:
    """The answer to a request as it is sent; a worker writes it."""

    __slots__ = ("_reply", "_request_id")

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self._reply: Reply | None = None

    def write(self, answer: Answer) -> None:
        """Write it."""
        body = answer_json(answer, self._request_id)
        timing = (b"server-timing", server_timing(answer).encode())
        lines = [(b"content-type", b"application/json"), timing, *_common(body, self._request_id)]
        self._reply = 200, lines, body

    def reply_to(self, outcome: Outcome, problem: Problem | None) -> Reply | None:
        """Return what the sender gets, None where nobody waits for it."""
        if problem is not None:
            return _refusal(problem, self._request_id)
        return self._reply if isinstance(outcome, Answer) else None


def problem_in(outcome: Outcome) -> Problem | None:
    """Return what a sender is told who gets no answer; None where there is one, or nobody to be told."""
    if isinstance(outcome, Answer | SenderLeft):
        return None
    return problem_of(outcome) if isinstance(outcome, Shed | RouterError) else internal_problem()


def _refusal(problem: Problem, request_id: str) -> Reply:
    headers = list(problem.headers().items())
    if problem.status in (408, 413):
        # What is left of the body is not wanted.
        headers.append((b"connection", b"close"))
    body = problem.body(request_id)
    return problem.status, [*headers, *_common(body, request_id)], body


def count(outcome: Outcome, problem: Problem | None, arrival: Arrival, request_id: str) -> None:
    """Count and log how a request ended."""
    if isinstance(outcome, Answer):
        arrival.end("answered", answer=outcome)
        _LOG.debug(
            "request %s answered by %s in %.1f ms", request_id, outcome.plan.name, outcome.total_ms,
            extra={"request_id": request_id},
        )  # fmt: skip
    elif problem is None:
        arrival.end("cancelled")
    else:
        arrival.end(problem.outcome, problem.slug)
        failed = problem.outcome == "failed"
        # Whatever nobody expected is logged with where it came from.
        unexpected = None if isinstance(outcome, Shed | RouterError) else outcome
        _LOG.log(
            logging.WARNING if failed else logging.INFO,
            "request %s: %d %s: %s", request_id, problem.status, problem.slug, problem.detail,
            exc_info=unexpected, extra={"request_id": request_id, "problem": problem.slug},
        )  # fmt: skip


async def respond(send: Send, status: int, headers: Lines, body: bytes) -> None:
    """Send a whole response."""
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _common(body: bytes, request_id: str) -> Lines:
    return [(b"content-length", b"%d" % len(body)), (_ID, request_id.encode())]


def _kind(headers: Headers) -> bytes:
    return (only(headers, "Content-Type") or "").encode("latin-1")


def request_id_of(values: Sequence[bytes]) -> str:
    """Return the sender's request id if it is one plain word, otherwise a new one."""
    if len(values) == 1:
        text = values[0].decode("latin-1")
        if _REQUEST_ID.fullmatch(text):
            return text
    return f"{_PROCESS}-{next(_NUMBERS):x}"


def grouped(raw: list[tuple[bytes, bytes]]) -> Headers:
    headers: dict[bytes, list[bytes]] = {}
    for name, value in raw:
        headers.setdefault(name, []).append(value)
    return headers


async def unless(left: asyncio.Future[Any], work: Awaitable[Answer | Shed]) -> Answer | Shed:
    """Await work; raises SenderLeft, with the work cancelled, when `left` is done first."""
    # With the loop at hand: looking for it asks for the process's number, a system call.
    task = asyncio.current_task(left.get_loop())
    assert task is not None, "a request is handled in a task"
    cancelled = False

    def leave(_: asyncio.Future[Any]) -> None:  # Any: what it was that told is not looked at
        nonlocal cancelled
        cancelled = True
        task.cancel()

    left.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if cancelled and task.uncancel() == 0:
            raise SenderLeft from None
        raise
    finally:
        left.remove_done_callback(leave)
