"""What an administrator may change while the gateway runs, on a port that only this machine reaches.

`GET /operating-point` says which point answers requests that name none, and whether it is held there;
`PUT /operating-point` with `{"operating_point": "fast"}` holds it, with null lets load decide again. Requests
that name a point or a least accuracy get what they ask for, held or not.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from router import metrics as exposition
from router.errors import MalformedRequest, RouterError
from router.problems import problem_of
from router.service import Service

HOST = "127.0.0.1"


def make_admin_app(
    service: Service, metrics: Callable[[], Awaitable[bytes]], others: Sequence[Route] = ()
) -> Starlette:
    """Return the administrator's application; others: paths beside those of this module."""

    async def read(_: Request) -> Response:
        return JSONResponse(_state(service))

    async def write(request: Request) -> Response:
        try:
            service.hold(_wanted(await request.body()))
        except RouterError as error:
            problem = problem_of(error)
            return Response(problem.body(""), problem.status, media_type="application/problem+json")
        return JSONResponse(_state(service))

    async def expose(_: Request) -> Response:
        return Response(await metrics(), media_type=exposition.CONTENT_TYPE)

    return Starlette(
        routes=[
            Route("/operating-point", read, methods=["GET"]),
            Route("/operating-point", write, methods=["PUT"]),
            Route("/metrics", expose, methods=["GET"]),
            *others,
        ]
    )


def _state(service: Service) -> dict[str, str | bool]:
    return {"operating_point": service.point_in_force, "held": service.held is not None}


def _wanted(body: bytes) -> str | None:
    """Read the point to hold, None for none; raises MalformedRequest, which says what is expected."""
    try:
        document = json.loads(body)
    except ValueError as error:
        raise MalformedRequest(f"the body is no JSON: {error}") from error
    if not isinstance(document, dict) or set(document) != {"operating_point"}:
        raise MalformedRequest('expected {"operating_point": a name, or null}')
    wanted = document["operating_point"]
    if wanted is not None and not isinstance(wanted, str):
        raise MalformedRequest("operating_point: expected a name or null")
    return wanted
