"""What stands before and behind HTTP's applications: keys, headers for browsers, and origins.

Frames do not pass here: `router.http_detect` asks for a key itself, and a JSON answer needs no such headers.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

from starlette.middleware.cors import CORSMiddleware

from router import pages
from router.access import KEY_HEADER, Access
from router.budget import BUDGET_HEADER
from router.errors import RouterError
from router.http_body import Receive
from router.http_reply import (
    ID_HEADER,
    NO_SNIFFING,
    Asgi,
    Lines,
    Reply,
    Scope,
    Send,
    grouped,
    request_id_in,
    respond,
)
from router.problems import Problem, problem_of
from router.wishes import ACCURACY_HEADER, POINT_HEADER, PRIORITY_HEADER, SCORE_HEADER, SESSION_HEADER

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", *pages.PATHS})
"""What is answered without a key: orchestrators have none, and a page asks for one itself."""
HEADERS: Lines = [
    NO_SNIFFING,
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
]
"""What every reply but a frame's answer says, where it says nothing else; a page sets a policy of its own."""
# Of the Open Inference Protocol's binary tensors.
TENSOR_LENGTH = "Inference-Header-Content-Length"
_ASKED = (
    "Authorization", KEY_HEADER, "Content-Type", BUDGET_HEADER, POINT_HEADER, ACCURACY_HEADER, SCORE_HEADER,
    PRIORITY_HEADER, SESSION_HEADER, ID_HEADER, TENSOR_LENGTH, "traceparent",
)  # fmt: skip
_SHOWN = ("Server-Timing", ID_HEADER, "Retry-After", TENSOR_LENGTH)
_PREFLIGHT_S = 600


def guarded(app: Asgi, access: Access | None, refusal: Callable[[Problem, str], Reply]) -> Asgi:
    """Return an application that asks for a key on every path but those of health.

    refusal: writes the reply to who has none, given the request's id.
    """
    if access is None:
        return app

    async def ask(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] not in OPEN_PATHS:
            headers = grouped(scope["headers"])
            try:
                access.account(headers)
            except RouterError as error:
                await respond(send, *refusal(problem_of(error), request_id_in(headers)))
                return
        await app(scope, receive, send)

    return ask


def hardened(app: Asgi) -> Asgi:
    """Return an application whose replies carry `HEADERS`."""

    async def harden(scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: MutableMapping[str, Any]) -> None:  # Any: as ASGI defines its messages
            if message["type"] == "http.response.start":
                said = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(line for line in HEADERS if line[0] not in said),
                ]
            await send(message)

        await app(scope, receive, sent)

    return harden


def shared_with(app: Asgi, origins: Sequence[str]) -> Asgi:
    """Return an application that pages of these origins may ask and read, `*` for all; of none as it is.

    Keys are in headers that a page has to set itself: no cookies go along.
    """
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "POST"),
        allow_headers=_ASKED,
        expose_headers=_SHOWN,
        max_age=_PREFLIGHT_S,
    )
