"""What browsers are told: headers on replies, and which pages may ask."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.router.conftest import Bench, admin_of, http_to
from tests.router.keyring import Keyring, bearer
from tests.router.test_http_server import server_of

pytestmark = pytest.mark.anyio
PAGE = "https://board.example"
PNG = {"Content-Type": "image/png"}


@pytest.mark.parametrize(
    "path", ["/healthz", "/readyz", "/openapi.json", "/v1/operating-points", "/v2", "/v2/nothing", "/nothing"]
)
async def test_replies_say_how_browsers_treat_them(bench: Bench, path: str) -> None:
    """No sniffing, no referrer, no scripts, no framing, no caching; on errors too."""
    async with http_to(bench()) as http:
        headers = (await http.get(path)).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert headers["cache-control"] == "no-store"


async def test_administration_and_drawn_images_say_so_too(bench: Bench, frame: bytes) -> None:
    """Metrics, images with boxes, and refused frames are not to be sniffed."""
    gateway = bench()
    async with admin_of(gateway) as admin, http_to(gateway) as http:
        assert (await admin.get("/metrics")).headers["cache-control"] == "no-store"
        for path, kind, status in (
            ("/v1/detect?render=1", PNG, 200),
            ("/v1/detect", {"Content-Type": "a/b"}, 415),
        ):
            response = await http.post(path, content=frame, headers=kind)
            assert (response.status_code, response.headers["x-content-type-options"]) == (status, "nosniff")


@pytest.mark.parametrize("path", ["/v1/detect", "/v1/operating-points", "/v2/models/paretogate/infer"])
async def test_pages_of_listed_origins_may_ask(bench: Bench, path: str, tmp_path: Path) -> None:
    """The preflight needs no key and allows the headers that requests have; other origins get nothing."""
    keyring = Keyring(tmp_path / "keys.json")
    keyring.add("good")
    gateway = bench(keys=keyring.path, cors_origin=[PAGE, "https://other.example"])
    asked = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type, x-latency-budget-ms, x-session-id,"
        " inference-header-content-length",
    }
    async with http_to(gateway) as http:
        allowed = await http.options(path, headers={"Origin": PAGE, **asked})
        refused = await http.options(path, headers={"Origin": "https://evil.example", **asked})
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == PAGE
    assert "x-latency-budget-ms" in allowed.headers["access-control-allow-headers"].lower()
    assert refused.status_code == 400
    assert "access-control-allow-origin" not in refused.headers


async def test_answers_are_readable_for_listed_origins_alone(
    bench: Bench, frame: bytes, tmp_path: Path
) -> None:
    """On a real connection, whose frames take the short way: answers and refusals alike."""
    keyring = Keyring(tmp_path / "keys.json")
    token = keyring.add("good")
    gateway = bench(keys=keyring.path, cors_origin=[PAGE])
    async with (
        server_of(gateway) as (_, port),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http,
    ):
        for origin, readable in ((PAGE, PAGE), ("https://evil.example", None), (None, None)):
            for shown, status in ((bearer(token), 200), ({}, 401)):
                headers = PNG | shown | ({} if origin is None else {"Origin": origin})
                response = await http.post("/v1/detect", content=frame, headers=headers)
                assert response.status_code == status
                assert response.headers.get("access-control-allow-origin") == readable
        exposed = (await http.get("/readyz", headers={"Origin": PAGE})).headers[
            "access-control-expose-headers"
        ]
    assert {"Server-Timing", "X-Request-Id", "Retry-After"} <= set(exposed.split(", "))


async def test_without_origins_no_page_may_ask(bench: Bench, frame: bytes) -> None:
    """A preflight is a method that is not there, and answers say nothing of origins."""
    async with http_to(bench()) as http:
        preflight = await http.options(
            "/v1/detect", headers={"Origin": PAGE, "Access-Control-Request-Method": "POST"}
        )
        answer = await http.post("/v1/detect", content=frame, headers=PNG | {"Origin": PAGE})
    assert preflight.status_code == 405
    assert answer.status_code == 200
    assert not any(name.startswith("access-control") for name in (*preflight.headers, *answer.headers))
