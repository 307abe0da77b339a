"""What HTTP's endpoints share: ids, replies, how a request ended, and senders who leave."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import uuid
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, TypeVar

from router.admission import Shed
from router.compression import GZIPPED, WORTH_BYTES, gzipped
from router.encoding import server_timing
from router.errors import RouterError
from router.execution import Answer
from router.headers import Headers, only
from router.http_body import Receive, SenderLeft
from router.metrics import Arrival
from router.problems import Problem, internal_problem, problem_of
from router.service import Outcome
from router.shapes import PLAIN, Shape

T = TypeVar("T")
_LOG = logging.getLogger(__name__)
ID_HEADER = "X-Request-Id"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# Together they are a request's id where its sender gave none.
_PROCESS, _NUMBERS = uuid.uuid4().hex[:16], itertools.count(1)
_ID = ID_HEADER.lower().encode()
NO_SNIFFING = (b"x-content-type-options", b"nosniff")

Scope = MutableMapping[str, Any]  # Any: as ASGI defines its scope
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]  # Any: as ASGI defines its messages
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]
Lines = list[tuple[bytes, bytes]]
Reply = tuple[int, Lines, bytes]
"""Status, headers and body."""


async def unless_left(receive: Receive, work: Awaitable[T]) -> T:
    """Await work on a request whose body is there; raises SenderLeft, and cancels it, if its sender does."""
    # After a whole body the next message can only be that.
    left = asyncio.ensure_future(receive())
    try:
        return await _unless(left, work)
    finally:
        left.cancel()


class Letter:
    """The answer to a frame as it is sent; a worker writes it."""

    __slots__ = ("_gzip", "_reply", "frame", "request_id", "shape")

    def __init__(
        self, request_id: str, shape: Shape = PLAIN, frame: bytes = b"", *, gzip: bool = False
    ) -> None:
        """gzip: whether its reader takes it compressed."""
        self.request_id, self.shape, self.frame = request_id, shape, frame
        self._gzip = gzip
        self._reply: Reply | None = None

    def write(self, answer: Answer) -> None:
        """Write it."""
        kind, body = self.shape.written(answer, self.request_id, self.frame)
        timing = (b"server-timing", server_timing(answer).encode())
        more: Lines = []
        if kind != b"application/json":
            # A browser is not to guess what an image is.
            more = [NO_SNIFFING]
        elif self._gzip and len(body) >= WORTH_BYTES:
            more, body = GZIPPED, gzipped(body)
        self._reply = 200, [(b"content-type", kind), timing, *more, *common(body, self.request_id)], body

    def reply_to(self, outcome: Outcome, problem: Problem | None) -> Reply | None:
        """Return what the sender gets, None where nobody waits for it."""
        if problem is not None:
            return refusal(problem, self.request_id)
        return self._reply if isinstance(outcome, Answer) else None


def problem_in(outcome: Outcome) -> Problem | None:
    """Return what a sender is told who gets no answer; None where there is one, or nobody to be told."""
    if isinstance(outcome, Answer | SenderLeft):
        return None
    return problem_of(outcome) if isinstance(outcome, Shed | RouterError) else internal_problem()


def refusal(problem: Problem, request_id: str) -> Reply:
    """Return the reply that tells a problem."""
    headers = [*problem.headers().items(), NO_SNIFFING]
    if problem.status in (408, 413):
        # What is left of the body is not wanted.
        headers.append((b"connection", b"close"))
    body = problem.body(request_id)
    return problem.status, [*headers, *common(body, request_id)], body


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


def common(body: bytes, request_id: str) -> Lines:
    """Return the headers of every reply."""
    return [(b"content-length", b"%d" % len(body)), (_ID, request_id.encode())]


def content_type(headers: Headers) -> bytes:
    """Return what a request says that its body is."""
    return (only(headers, "Content-Type") or "").encode("latin-1")


def request_id_in(headers: Headers) -> str:
    """Return the id that a request's headers give it, see `request_id_of`."""
    return request_id_of(headers.get(_ID, ()))


def request_id_of(values: Sequence[bytes]) -> str:
    """Return the sender's request id if it is one plain word, otherwise a new one."""
    if len(values) == 1:
        text = values[0].decode("latin-1")
        if _REQUEST_ID.fullmatch(text):
            return text
    return f"{_PROCESS}-{next(_NUMBERS):x}"


def grouped(raw: Lines) -> Headers:
    """Return all values of headers by name."""
    headers: dict[bytes, list[bytes]] = {}
    for name, value in raw:
        headers.setdefault(name, []).append(value)
    return headers


async def _unless(left: asyncio.Future[Any], work: Awaitable[T]) -> T:
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
