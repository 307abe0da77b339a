"""The pages that the gateway serves: plain files, no build, nothing from elsewhere."""

from __future__ import annotations

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

# What a page may do: its own scripts and styles, its own gateway, pictures that it made itself.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src blob: data:;"
    " media-src blob: mediastream:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FILES = (
    ("/live", "live.html", "text/html"),
    ("/live.js", "live.js", "text/javascript"),
    ("/live.css", "live.css", "text/css"),
)
PATHS = tuple(path for path, _, _ in _FILES)


def routes() -> list[Route]:
    """Return the routes of all pages; their files are read once, here."""
    return [_route(path, files(__name__).joinpath(name).read_bytes(), kind) for path, name, kind in _FILES]


def _route(path: str, content: bytes, kind: str) -> Route:
    async def page(_: Request) -> Response:
        return Response(content, media_type=kind, headers={"Content-Security-Policy": _POLICY})

    return Route(path, page, methods=["GET"])
