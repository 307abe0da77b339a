"""Frames in JSON: one as `image`, or several as `images`, base64 each.

One is answered as an encoded body is. Several are asked for at the same moment and answered together, in
their order: `{"answers": [{…an answer…} | {"problem": {…}}, …]}`. A frame that cannot be answered fails
alone; the budget is of the whole request.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import orjson

from router.access import Access, Stay, entered, limited
from router.admission import Shed
from router.budget import Budgets, Clock, Deadline
from router.compression import GZIPPED, WORTH_BYTES, gzipped, takes_gzip
from router.errors import MalformedRequest
from router.headers import Headers
from router.http_body import Bodies, Receive, SenderLeft, parsed
from router.http_reply import (
    Letter,
    Reply,
    Scope,
    Send,
    common,
    count,
    grouped,
    problem_in,
    refusal,
    request_id_in,
    respond,
    unless_left,
)
from router.metrics import Arrival, Metrics
from router.service import Outcome, Service
from router.shapes import Shape, shape_of
from router.wishes import Wishes

JSON_TYPE = b"application/json"
MOST_FRAMES = 64


class FramesEndpoint:
    """Answer `POST /v1/detect` with a JSON body."""

    def __init__(
        self,
        service: Service,
        bodies: Bodies,
        budgets: Budgets,
        metrics: Metrics,
        clock: Clock,
        access: Access | None = None,
    ) -> None:
        self._service, self._bodies, self._budgets = service, bodies, budgets
        self._metrics, self._clock, self._access = metrics, clock, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; every frame of it is counted as one, and a body that is none as one."""
        with ExitStack() as stack:
            await self._handle(scope, receive, send, stack)

    async def _handle(self, scope: Scope, receive: Receive, send: Send, stack: ExitStack) -> None:
        arrived_ns = self._clock.now_ns()
        headers = grouped(scope["headers"])
        request_id = request_id_in(headers)
        arrival = self._metrics.arrived("http", headers)
        try:
            stay = stack.enter_context(entered(self._access, headers))
            asked = await self._read(scope, headers, receive, arrived_ns, stay)
        except asyncio.CancelledError:
            arrival.end("cancelled")
            raise
        except Exception as error:  # noqa: BLE001 - the edge of a request: whatever it is, it is told
            problem = problem_in(error)
            count(error, problem, arrival, request_id)
            if problem is not None:
                await respond(send, *refusal(problem, request_id))
            return
        if isinstance(asked, Shed):
            problem = problem_in(asked)
            assert problem is not None, "a request that is shed gets no answer"
            count(asked, problem, arrival, request_id)
            await respond(send, *refusal(problem, request_id))
            return
        frames, single, shape, deadline, wishes = asked
        if wishes.session is None and not single:
            # Of two sets that are compared, one answers all of them.
            wishes = replace(wishes, session=request_id)
        arrivals = [arrival, *(self._metrics.arrived("http", headers) for _ in frames[1:])]
        compressed = takes_gzip(headers)
        letters = [
            Letter(
                request_id if single else f"{request_id}.{place}",
                Shape(shape.format, shape.render, shape.image_id + place),
                frame,
                gzip=single and compressed,
            )
            for place, frame in enumerate(frames)
        ]
        answers = asyncio.gather(
            *(
                self._answer(letter, deadline, wishes, arrived_ns, arrived)
                for letter, arrived in zip(letters, arrivals, strict=True)
            )
        )
        try:
            replies = await unless_left(receive, answers)
        except SenderLeft:
            return
        reply = replies[0] if single else await _together(replies, shape, request_id, gzip=compressed)
        if reply is not None:
            await respond(send, *reply)

    async def _read(
        self, scope: Scope, headers: Headers, receive: Receive, arrived_ns: int, stay: Stay | None
    ) -> tuple[Sequence[bytes], bool, Shape, Deadline, Wishes] | Shed:
        """Return frames, whether it is one that stands alone, and what is asked for them."""
        shape = shape_of(scope.get("query_string", b""))
        deadline = self._budgets.deadline(headers, arrived_ns)
        wishes = limited(stay, Wishes.of(headers))
        length = headers.get(b"content-length")
        body = await self._bodies.message(length[0] if length else None, receive)
        if isinstance(body, Shed):
            return body
        frames, single = await parsed(_frames, body)
        if shape.render and not single:
            raise MalformedRequest("?render=1: one image at a time")
        if stay is not None and len(frames) > 1:
            stay.more(len(frames) - 1)
        return frames, single, shape, deadline, wishes

    async def _answer(
        self, letter: Letter, deadline: Deadline, wishes: Wishes, arrived_ns: int, arrival: Arrival
    ) -> Reply | None:
        outcome: Outcome
        try:
            outcome = await self._service.detect(
                letter.frame,
                deadline,
                wishes,
                arrived_ns=arrived_ns,
                traceparent=arrival.traceparent,
                finish=letter.write,
            )
        except asyncio.CancelledError:
            arrival.end("cancelled")
            raise
        except Exception as error:  # noqa: BLE001 - the edge of a frame: whatever it is, it is told
            outcome = error
        problem = problem_in(outcome)
        count(outcome, problem, arrival, letter.request_id)
        return letter.reply_to(outcome, problem)


def _frames(body: bytes) -> tuple[list[bytes], bool]:
    """Return the frames of a body, and whether it is one that stands alone; raises MalformedRequest."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedRequest(f"the body is no JSON: {error}") from error
    if not isinstance(document, dict) or len(document) != 1 or not {"image", "images"} & set(document):
        raise MalformedRequest('expected {"image": base64} or {"images": [base64, …]}')
    single = "image" in document
    texts = [document["image"]] if single else document["images"]
    if not isinstance(texts, list) or not 1 <= len(texts) <= MOST_FRAMES:
        raise MalformedRequest(f"images: expected a list of 1 to {MOST_FRAMES}")
    frames = []
    for place, text in enumerate(texts):
        where = "image" if single else f"images[{place}]"
        if not isinstance(text, str):
            raise MalformedRequest(f"{where}: expected base64 text")
        try:
            frames.append(base64.b64decode(text, validate=True))
        except (binascii.Error, ValueError) as error:
            raise MalformedRequest(f"{where}: no base64: {error}") from error
    return frames, single


async def _together(replies: Sequence[Reply | None], shape: Shape, request_id: str, *, gzip: bool) -> Reply:
    """Return one reply for several frames; gzip: whether its reader takes it compressed."""
    told = [reply for reply in replies if reply is not None]
    if shape.format == "coco":
        # Frames without an answer have no results; whoever needs to know which asks for the other format.
        results = (body[1:-1] for status, _, body in told if status == 200 and body != b"[]")
        body = b"[" + b",".join(results) + b"]"
    else:
        parts = [body if status == 200 else b'{"problem":' + body + b"}" for status, _, body in told]
        body = b'{"request_id":' + orjson.dumps(request_id) + b',"answers":[' + b",".join(parts) + b"]}"
    lines = [(b"content-type", b"application/json")]
    if gzip and len(body) >= WORTH_BYTES:
        # In a thread of its own: it may be a megabyte, and the event loop has others to serve.
        lines, body = [*lines, *GZIPPED], await asyncio.to_thread(gzipped, body)
    return 200, [*lines, *common(body, request_id)], body
