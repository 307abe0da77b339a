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
from router.service import Service
from router.wishes import Wishes

_LOG = logging.getLogger(__name__)
ID_HEADER = "X-Request-Id"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# Together they are a request's id where its sender gave none.
_PROCESS, _NUMBERS = uuid.uuid4().hex[:16], itertools.count(1)
_ID = ID_HEADER.lower().encode()

# Where a server has one, the `Exchange` in a request's scope.
EXCHANGE = "paretogate.exchange"
_LINES = b"content-type: application/json\r\nserver-timing: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\n"
Scope = MutableMapping[str, Any]  # Any: as ASGI defines its scope
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]  # Any: as ASGI defines its messages
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]


class Exchange(Protocol):
    """A request and its answer with fewer steps than messages take: they are paid for every frame."""

    @property
    def left(self) -> asyncio.Future[None]:
        """Return what is done when the connection is lost: cheaper than a task that waits for a message."""

    def whole_body(self) -> bytes | None:
        """Return the body where all of it has arrived, otherwise None."""

    def taken(self) -> None:
        """Let go of the body; until then `receive` gives it all the same."""

    def answer(self, headers: bytes, body: bytes) -> bool:
        """Send a 200 with header lines and a body at once; returns False where `send` has to do it."""


class DetectEndpoint:
    """Answer frames over HTTP."""

    def __init__(
        self, service: Service, bodies: Bodies, budgets: Budgets, metrics: Metrics, clock: Clock
    ) -> None:
        self._service, self._bodies, self._budgets = service, bodies, budgets
        self._metrics, self._clock = metrics, clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; the clock of its budget starts here, when its headers have been parsed."""
        arrived_ns = self._clock.now_ns()
        headers = _group(scope["headers"])
        # Taken out: it knows the scope, and a circle would keep every frame until the collector finds it.
        exchange: Exchange | None = scope.pop(EXCHANGE, None)
        arrival = self._metrics.arrived("http", headers)
        request_id = request_id_of(headers.get(_ID, []))
        try:
            answer = await self._answer(exchange, headers, receive, arrived_ns, arrival.traceparent)
        except SenderLeft:
            arrival.end("cancelled")
            return
        except asyncio.CancelledError:
            arrival.end("cancelled")
            raise
        except RouterError as error:
            await self._refuse(problem_of(error), arrival, request_id, send)
        except Exception:  # noqa: BLE001
            # The edge of a request: whatever nobody expected is logged and told as such.
            _LOG.exception("request %s failed", request_id, extra={"request_id": request_id})
            await self._refuse(internal_problem(), arrival, request_id, send)
        else:
            if isinstance(answer, Shed):
                await self._refuse(problem_of(answer), arrival, request_id, send)
                return
            try:
                timing = server_timing(answer).encode()
                body = answer_json(answer, request_id)
                lines = _LINES % (timing, len(body), request_id.encode())
                sent = exchange is not None and exchange.answer(lines, body)
            finally:
                # Whatever happens, and before anything that could be cancelled: every request is counted.
                arrival.end("answered", answer=answer)
            _LOG.debug(
                "request %s answered by %s in %.1f ms", request_id, answer.plan.name, answer.total_ms,
                extra={"request_id": request_id},
            )  # fmt: skip
            if not sent:
                told = [(b"content-type", b"application/json"), (b"server-timing", timing)]
                await respond(send, 200, told, body, request_id)

    async def _answer(
        self,
        exchange: Exchange | None,
        headers: Headers,
        receive: Receive,
        arrived_ns: int,
        traceparent: str | None,
    ) -> Answer | Shed:
        deadline = self._budgets.deadline(headers, arrived_ns)
        wishes = Wishes.of(headers)
        kind = (only(headers, "Content-Type") or "").encode("latin-1")
        whole = None if exchange is None else exchange.whole_body()
        frame = None if whole is None else self._bodies.at_once(kind, whole)
        if frame is None:
            length = headers.get(b"content-length")
            read = await self._bodies.read(kind, length[0] if length else None, receive)
            if isinstance(read, Shed):
                return read
            frame = read
        elif exchange is not None:
            exchange.taken()
        work = self._service.detect(frame, deadline, wishes, arrived_ns=arrived_ns, traceparent=traceparent)
        if exchange is not None:
            return await _unless(exchange.left, work)
        # After a whole body the next message can only be that the sender has left.
        watch = asyncio.ensure_future(receive())
        try:
            return await _unless(watch, work)
        finally:
            watch.cancel()

    async def _refuse(self, problem: Problem, arrival: Arrival, request_id: str, send: Send) -> None:
        arrival.end(problem.outcome, problem.slug)
        level = logging.WARNING if problem.outcome == "failed" else logging.INFO
        _LOG.log(
            level, "request %s: %d %s: %s", request_id, problem.status, problem.slug, problem.detail,
            extra={"request_id": request_id, "problem": problem.slug},
        )  # fmt: skip
        headers = list(problem.headers().items())
        if problem.status in (408, 413):
            # What is left of the body is not wanted.
            headers.append((b"connection", b"close"))
        await respond(send, problem.status, headers, problem.body(request_id), request_id)


async def respond(
    send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes, request_id: str
) -> None:
    """Send a whole response with its length and the request's id."""
    headers.append((b"content-length", b"%d" % len(body)))
    headers.append((b"x-request-id", request_id.encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def request_id_of(values: Sequence[bytes]) -> str:
    """Return the sender's request id if it is one plain word, otherwise a new one."""
    if len(values) == 1:
        text = values[0].decode("latin-1")
        if _REQUEST_ID.fullmatch(text):
            return text
    return f"{_PROCESS}-{next(_NUMBERS):x}"


def _group(raw: list[tuple[bytes, bytes]]) -> Headers:
    headers: dict[bytes, list[bytes]] = {}
    for name, value in raw:
        headers.setdefault(name, []).append(value)
    return headers


async def _unless(left: asyncio.Future[Any], work: Awaitable[Answer | Shed]) -> Answer | Shed:
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
