"""Metrics, and what an administrator may change while the gateway runs, on a port of their own.

`GET /operating-point` says which point answers requests that name none, and whether it is held there;
`PUT /operating-point` with `{"operating_point": "fast"}` holds it, with null lets load decide again. Requests
that name a point or a least accuracy get what they ask for, held or not.

Who reaches the port may read. Changing is for this machine, and from elsewhere for an administrator's key.
From this machine the request must be addressed to it as well: a page in a browser that has had its own name
resolve to 127.0.0.1 says that name. Nor may it come from another page, whose browser names the page's origin.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from router import metrics as exposition
from router.access import Access
from router.errors import Forbidden, MalformedRequest, RouterError
from router.http_body import Receive
from router.http_reply import Asgi, Scope, Send, grouped
from router.http_safety import hardened
from router.problems import problem_of
from router.service import Service
from router.tls import loopback

_READING = frozenset({"GET", "HEAD"})


def make_admin_app(
    service: Service,
    metrics: Callable[[], Awaitable[bytes]],
    access: Access | None = None,
    others: Sequence[Route] = (),
) -> Asgi:
    """Return the administrator's application.

    access: whose keys are administrators', None for nobody's. others: paths beside those of this module; what
    they change is for the same people.
    """

    async def read(_: Request) -> Response:
        return JSONResponse(_state(service))

    async def write(request: Request) -> Response:
        try:
            service.hold(_wanted(await request.body()))
        except RouterError as error:
            return told(error)
        return JSONResponse(_state(service))

    async def expose(_: Request) -> Response:
        return Response(await metrics(), media_type=exposition.CONTENT_TYPE)

    app = Starlette(
        routes=[
            Route("/operating-point", read, methods=["GET"]),
            Route("/operating-point", write, methods=["PUT"]),
            Route("/metrics", expose, methods=["GET"]),
            *others,
        ]
    )

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in _READING:
            try:
                _check(Request(scope), access)
            except RouterError as error:
                await told(error)(scope, receive, send)
                return
        await app(scope, receive, send)

    return hardened(checked)


def told(error: RouterError) -> Response:
    """Return the response of an error."""
    problem = problem_of(error)
    headers = {name.decode(): value.decode() for name, value in problem.headers().items()}
    return Response(problem.body(""), problem.status, headers)


def _check(request: Request, access: Access | None) -> None:
    """Raise Unauthorized or Forbidden when a request's sender may not change anything."""
    here = request.client is not None and loopback(request.client.host)
    own = request.headers.get("origin", "") in ("", f"{request.url.scheme}://{request.headers.get('host')}")
    if here and own and loopback(request.url.hostname or ""):
        return
    if access is None:
        raise Forbidden(
            "without --keys only this machine changes the gateway, addressed as 127.0.0.1 or localhost, and"
            " no page of another origin"
        )
    access.administrator(grouped(request.scope["headers"]))


def _state(service: Service) -> dict[str, str | bool]:
    return {"operating_point": service.point_in_force, "held": service.held is not None}


def said(body: bytes, name: str, what: str) -> object:
    """Return the one field of a body; raises MalformedRequest, which says what is expected."""
    try:
        document = json.loads(body)
    except ValueError as error:
        raise MalformedRequest(f"the body is no JSON: {error}") from error
    if not isinstance(document, dict) or set(document) != {name}:
        raise MalformedRequest(f'expected {{"{name}": {what}}}')
    value: object = document[name]
    return value


def _wanted(body: bytes) -> str | None:
    """Read the point to hold, None for none; raises MalformedRequest, which says what is expected."""
    wanted = said(body, "operating_point", "a name, or null")
    if wanted is not None and not isinstance(wanted, str):
        raise MalformedRequest("operating_point: expected a name or null")
    return wanted
