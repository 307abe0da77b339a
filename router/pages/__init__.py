"""The pages that the gateway serves: plain files, no build, nothing from elsewhere.

`/` is the console, `/live` shows boxes on a stream; what they are made of is below `/assets/`. Files are read
once, when the gateway starts. A browser may keep them, and asks each time whether they are still the same, so
that a newer gateway is never shown by parts of an older one's page.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

# What a page may do: its own scripts and styles, its own gateway, pictures that it made itself. Texts never
# become scripts or elements, whatever is done with them.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src blob: data:;"
    " media-src blob: mediastream:; base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'"
)
_PAGES = (("/", "console.html"), ("/live", "live.html"))
_KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_ASSETS = (
    "page.css",
    "console.css",
    "live.css",
    "boxes.js",
    "chart.js",
    "console.js",
    "dom.js",
    "drift.js",
    "frames.js",
    "frontier.js",
    "gateway.js",
    "history.js",
    "live.js",
    "tiles.js",
    "traffic.js",
    "try.js",
)
_FILES = (*_PAGES, *((f"/assets/{name}", name) for name in _ASSETS))
PATHS = tuple(path for path, _ in _FILES)


def routes() -> list[Route]:
    """Return the routes of all pages; their files are read once, here."""
    return [_route(path, name, files(__name__).joinpath(name).read_bytes()) for path, name in _FILES]


def _route(path: str, name: str, content: bytes) -> Route:
    kind = _KINDS[name.rpartition(".")[2]]
    # Weak: it may be sent compressed.
    tag = f'W/"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache", "ETag": tag}

    async def page(request: Request) -> Response:
        known = request.headers.get("if-none-match", "")
        if tag in (one.strip() for one in known.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=kind, headers=headers)

    return Route(path, page, methods=["GET"])
