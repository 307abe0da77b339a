"""What the page at `/` asks for, and who may have it.

`GET /console/frontier` is what may answer, `GET /console/state` how the gateway does, and
`GET /console/frames?after=7` what of the recent frames came after the seventh, see `router.recent`. All of it
is for reading: what changes the gateway is on the administrator's port, out of this page's reach.

Frames are of whoever sent them, and how much there is to do is nobody else's business. So with keys a
request needs one that may watch. Without keys whoever reaches the gateway may, but no page of another origin,
whatever `--cors-origin` says: a browser names the origin, or what the request has to do with the site it goes
to. A page whose own name was made to resolve to the gateway's address is of the same origin to the browser,
and is told by that name: the gateway has to be addressed by number or as localhost.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from router.access import Access
from router.console_documents import RecentsDocument
from router.console_view import ConsoleView
from router.errors import Forbidden, MalformedRequest, RouterError
from router.headers import Headers, only
from router.http_reply import grouped, refusal, request_id_in
from router.problems import problem_of

# What a browser says of a request that another site had no part in: "none" is one that its user typed.
_OWN_SITES = (None, "same-origin", "none")
# Not to be taken into pages of other origins, in whatever way.
_KEPT = {"Cross-Origin-Resource-Policy": "same-origin"}


def console_routes(view: ConsoleView, access: Access | None) -> list[Route]:
    """Return the paths below /console.

    access: whose keys may watch, None where there are no keys.
    """

    async def state(_: Request) -> bytes:
        return await view.state()

    async def frontier(_: Request) -> bytes:
        return view.frontier().model_dump_json().encode()

    async def frames(request: Request) -> bytes:
        return RecentsDocument(frames=list(view.frames(_after(request)))).model_dump_json().encode()

    def watched(look: Callable[[Request], Awaitable[bytes]]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            headers = grouped(request.scope["headers"])
            try:
                check_watcher(headers, access)
                body = await look(request)
            except RouterError as error:
                status, lines, body = refusal(problem_of(error), request_id_in(headers))
                return Response(body, status, {name.decode(): value.decode() for name, value in lines})
            return Response(body, media_type="application/json", headers=_KEPT)

        return answer

    return [
        Route("/console/state", watched(state), methods=["GET"]),
        Route("/console/frontier", watched(frontier), methods=["GET"]),
        Route("/console/frames", watched(frames), methods=["GET"]),
    ]


def check_watcher(headers: Headers, access: Access | None) -> None:
    """Raise Unauthorized or Forbidden when a request's sender may not watch the gateway."""
    host, origin = only(headers, "Host") or "", only(headers, "Origin")
    if only(headers, "Sec-Fetch-Site") not in _OWN_SITES or (origin is not None and _place(origin) != host):
        raise Forbidden("the console is for the gateway's own page, and for no page of another origin")
    if access is not None:
        access.watcher(headers)
    elif not _is_number(host):
        raise Forbidden(
            f"without --keys the console is for who addresses the gateway by number or as localhost:"
            f" {host[:100]!r} may be the name of anybody's page"
        )


def _place(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _is_number(host: str) -> bool:
    """Return whether a host with or without its port is an address, or localhost."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def _after(request: Request) -> int:
    """Read the number of the last frame that the page has; raises MalformedRequest."""
    text = request.query_params.get("after", "0")
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise MalformedRequest(f"?after={text[:40]}: expected a whole number")
    return int(text)
