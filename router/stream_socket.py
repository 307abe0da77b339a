"""`/v1/stream`: a stream of frames over a WebSocket, as browsers speak it. See `router.stream`.

A binary message is an encoded frame. A text message before it is a JSON object that speaks of that frame:
`{"name": "…", "budget_ms": 40}`, both optional. Every result is a text message:
`{"number": 12, "name": "…", "dropped": 3, "age_ms": 41.2, "answer": {…} | "problem": {…}}`, with `reused`
where an earlier frame's answer is given.

What holds for all frames stands in the query, because a browser cannot set headers: `budget_ms`,
`operating_point`, `min_accuracy`, `min_score`, `priority`, `in_flight` and `reuse_within`, each what the
header of the same meaning is. An API key goes as one of the protocols that the socket offers, `key.pg_…`
beside `paretogate`: in an address it would be logged on the way. A page of an origin that is neither the
gateway's own nor one that was configured is refused: browsers let any page open a socket.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

import orjson

from router.access import KEY_HEADER
from router.budget import BUDGET_HEADER
from router.encoding import answer_json
from router.errors import Forbidden, MalformedRequest, NotReady, RouterError, Unauthorized
from router.headers import Headers, only
from router.http_body import Receive, SenderLeft
from router.http_reply import Scope, Send, grouped, refusal, request_id_in
from router.problems import Problem, problem_of
from router.shapes import fields_of
from router.stream import FrameStream, Result, Streams
from router.wishes import (
    ACCURACY_HEADER,
    IN_FLIGHT_HEADER,
    POINT_HEADER,
    PRIORITY_HEADER,
    REUSE_HEADER,
    SCORE_HEADER,
)

STREAM_PATH = "/v1/stream"
SUBPROTOCOL = "paretogate"
_KEY = "key."
_PARAMETERS: Mapping[str, str] = {
    "budget_ms": BUDGET_HEADER,
    "operating_point": POINT_HEADER,
    "min_accuracy": ACCURACY_HEADER,
    "min_score": SCORE_HEADER,
    "priority": PRIORITY_HEADER,
    "in_flight": IN_FLIGHT_HEADER,
    "reuse_within": REUSE_HEADER,
}
_NORMAL, _UNSUPPORTED_DATA = 1000, 1003
# Going away, and against the policy: RFC 6455, 7.4.1.
_CODES: Sequence[tuple[type[RouterError], int]] = ((NotReady, 1001), (Unauthorized, 1008))
_LONGEST_TEXT = 4096


class StreamSocket:
    """Answer frames over WebSockets; an ASGI application of one path."""

    def __init__(self, streams: Streams, origins: Sequence[str] = ()) -> None:
        """origins: whose pages may stream beside the gateway's own, `*` for all."""
        self._streams, self._origins = streams, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one socket."""
        await receive()  # websocket.connect
        headers = grouped(scope["headers"])
        request_id = request_id_in(headers)

        async def tell(result: Result[bytes]) -> None:
            try:
                await send({"type": "websocket.send", "text": encode_result(result, request_id).decode()})
            except OSError as error:
                raise SenderLeft from error

        try:
            self._check_origin(headers)
            shown = _with_key(headers, scope["subprotocols"])
            asked = self._streams.wishes(with_query(shown, scope["query_string"]))
            stream = self._streams.open("websocket", asked, answer_json, tell, request_id)
        except RouterError as error:
            await _refuse(send, problem_of(error), request_id)
            return
        # A browser that has offered a protocol and is told none hangs up.
        protocol = SUBPROTOCOL if SUBPROTOCOL in scope["subprotocols"] else None
        told = [(b"x-request-id", request_id.encode())]

        async def read() -> None:
            # Here, so that a sender who has left by now ends the stream as later.
            try:
                await send({"type": "websocket.accept", "headers": told, "subprotocol": protocol})
            except OSError as error:
                raise SenderLeft from error
            await _read(receive, stream)

        try:
            await stream.run(read())
        except SenderLeft:
            return
        except MalformedRequest as error:
            await send({"type": "websocket.close", "code": _UNSUPPORTED_DATA, "reason": str(error)[:120]})
            return
        why = stream.ended_by
        code = next((code for kind, code in _CODES if isinstance(why, kind)), _NORMAL)
        await send({"type": "websocket.close", "code": code, "reason": str(why or "")[:120]})

    def _check_origin(self, headers: Headers) -> None:
        """Refuse a page that comes from elsewhere; raises Forbidden. Who is no browser says none."""
        origin = only(headers, "Origin")
        if origin is None or "*" in self._origins or origin in self._origins:
            return
        try:
            place = urlsplit(origin).netloc
        except ValueError:
            place = None
        if place != only(headers, "Host"):
            raise Forbidden(f"Origin: {origin[:100]} is not where this gateway is reached; see --cors-origin")


def _with_key(headers: Headers, protocols: Sequence[str]) -> Headers:
    """Return the headers with the key that stands among the protocols, where they have none."""
    shown = [name.removeprefix(_KEY) for name in protocols if name.startswith(_KEY)]
    key = KEY_HEADER.lower().encode()
    if not shown or key in headers or b"authorization" in headers:
        return headers
    return {**headers, key: [name.encode() for name in shown]}


async def _read(receive: Receive, stream: FrameStream[bytes]) -> None:
    """Offer what comes; raises SenderLeft, or MalformedRequest on a text that is none of ours."""
    name, budget_ms = "", None
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            raise SenderLeft
        frame = message.get("bytes")
        if frame is None:
            name, budget_ms = _about(message["text"])
        else:
            stream.offer(frame, name=name, budget_ms=budget_ms)
            name, budget_ms = "", None


def _about(text: str) -> tuple[str, float | None]:
    """Read what a text message says of the next frame: its name and its budget."""
    try:
        said = orjson.loads(text) if len(text) <= _LONGEST_TEXT else None
    except orjson.JSONDecodeError:
        said = None
    if not isinstance(said, dict) or set(said) - {"name", "budget_ms"}:
        raise MalformedRequest('a text message is a JSON object: {"name": "…", "budget_ms": 40}')
    name, budget_ms = said.get("name", ""), said.get("budget_ms")
    if not isinstance(name, str) or len(name) > 200:
        raise MalformedRequest("name: expected a text of at most 200 characters")
    if budget_ms is not None and (isinstance(budget_ms, bool) or not isinstance(budget_ms, int | float)):
        raise MalformedRequest("budget_ms: expected a number of milliseconds")
    return name, None if budget_ms is None else float(budget_ms)


def encode_result(result: Result[bytes], request_id: str) -> bytes:
    """Return the JSON of a result."""
    said: dict[str, object] = {
        "number": result.number,
        "name": result.name,
        "dropped": result.dropped,
        "age_ms": round(result.age_ms, 3),
    }
    if result.reused is not None:
        said["reused"] = {
            "number": result.reused.number,
            "difference": round(result.reused.difference, 3),
        }
    body = result.written
    if result.problem is not None:
        kind, body = b"problem", result.problem.body(f"{request_id}.{result.number}")
    else:
        kind = b"answer"
    assert body is not None, "a result without a problem has an answer"
    return orjson.dumps(said)[:-1] + b',"' + kind + b'":' + body + b"}"


def with_query(headers: Headers, query: bytes) -> Headers:
    """Return the headers with what the query says; raises MalformedRequest, which names the parameter."""
    both: dict[bytes, list[bytes]] = {name: list(values) for name, values in headers.items()}
    for name, value in fields_of(query):
        header = _PARAMETERS.get(name)
        if header is None:
            raise MalformedRequest(f"?{name[:40]}: unknown; there are {', '.join(_PARAMETERS)}")
        both.setdefault(header.lower().encode(), []).append(value.encode("latin-1", "replace"))
    return both


async def _refuse(send: Send, problem: Problem, request_id: str) -> None:
    status, headers, body = refusal(problem, request_id)
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})
