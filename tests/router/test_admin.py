"""What an administrator may change while the gateway runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes import tiny_repository
from tests.router.conftest import Bench, admin_of, http_to

pytestmark = pytest.mark.anyio


PNG = {"Content-Type": "image/png"}


async def test_a_point_is_held_and_let_go(bench: Bench, frame: bytes) -> None:
    """Held, it answers what names no point, whatever the load; requests that name one get theirs."""
    gateway = bench()
    async with admin_of(gateway) as admin, http_to(gateway) as users:
        assert (await admin.get("/operating-point")).json() == {"operating_point": "balanced", "held": False}
        held = await admin.put("/operating-point", json={"operating_point": "fast"})
        assert held.json() == {"operating_point": "fast", "held": True}
        assert (await users.post("/v1/detect", content=frame, headers=PNG)).json()[
            "operating_point"
        ] == "fast"
        named = await users.post(
            "/v1/detect", content=frame, headers={**PNG, "X-Operating-Point": "accurate"}
        )
        assert named.json()["operating_point"] == "accurate"
        assert (await users.get("/v1/operating-points")).json()["in_force"] == "fast"
        await admin.put("/operating-point", json={"operating_point": None})
        assert (await users.post("/v1/detect", content=frame, headers=PNG)).json()[
            "operating_point"
        ] == "balanced"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"fast", "no JSON"),
        (b"[]", "expected"),
        (b'{"operating_point": 3}', "a name or null"),
        (b'{"operating_point": "fast", "for": 5}', "expected"),
        (b'{"operating_point": "nope"}', "known are fast, balanced, accurate"),
    ],
)
async def test_what_is_not_understood_changes_nothing(bench: Bench, body: bytes, said: str) -> None:
    """A body of another form or an unknown name is a problem that says what is expected."""
    gateway = bench()
    async with admin_of(gateway) as admin:
        answer = await admin.put("/operating-point", content=body)
        assert answer.status_code == 400
        assert said in answer.json()["detail"]
        assert not (await admin.get("/operating-point")).json()["held"]


async def test_users_do_not_reach_it(bench: Bench) -> None:
    """The users' port has no such path."""
    async with http_to(bench()) as users:
        assert (await users.put("/operating-point", json={"operating_point": None})).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/operating-point", {"operating_point": "fast"}),
        ("PUT", "/challenger", {"share": 1.0}),
        ("POST", "/challenger/promote", None),
        ("DELETE", "/operating-point", None),
    ],
)
@pytest.mark.parametrize("host", ["192.168.1.9", "10.0.0.7"])
async def test_from_elsewhere_nothing_is_changed_without_an_administrators_key(
    bench: Bench, tmp_path: Path, method: str, path: str, body: object, host: str
) -> None:
    """Whatever the path, one that only a challenger brings among them; reading is free."""
    challenger = tiny_repository(tmp_path / "challenger", training=1)
    gateway = bench(challenger=challenger.root, challenger_share=0.0)
    assert gateway.challenge is not None
    async with admin_of(gateway, host=host) as admin:
        refused = await admin.request(method, path, json=body)
        assert refused.status_code == 403
        assert refused.json()["type"] == "urn:paretogate:problem:forbidden"
        assert (await admin.get("/challenger")).status_code == 200
    assert gateway.challenge.share == 0.0
    assert gateway.service.held is None


@pytest.mark.parametrize(("method", "path"), [("POST", "/challenger/promote"), ("PUT", "/operating-point")])
async def test_a_page_of_another_origin_changes_nothing(
    bench: Bench, tmp_path: Path, method: str, path: str
) -> None:
    """From this machine's browser: a request without a body needs no leave to be sent."""
    challenger = tiny_repository(tmp_path / "challenger", training=1)
    gateway = bench(challenger=challenger.root, challenger_share=0.0)
    before = gateway.service.serving.repository.digest
    async with admin_of(gateway) as admin:
        for origin in ("https://elsewhere.example", "http://127.0.0.1:3000", "null"):
            refused = await admin.request(method, path, headers={"Origin": origin})
            assert refused.status_code == 403
        own = await admin.put(
            "/operating-point",
            json={"operating_point": "fast"},
            headers={"Origin": "http://127.0.0.1:8082"},
        )
        assert own.status_code == 200
    assert gateway.service.serving.repository.digest == before
