"""What the gateway's own page is told, and who is told it."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from model_repo import publish
from model_repo.frontier import Accuracy
from router.bootstrap import Gateway
from router.config import Config
from router.console_documents import FrontierDocument, RecentsDocument, StateDocument
from router.console_view import Served, describe_frontier
from router.recent import EVERY_S, LOOKED_AT_S
from tests.fakes import FakeClock, FakeEngine, tiny_repository
from tests.router.conftest import DOUBTFUL, LARGE, Bench, admin_of, http_to, sample
from tests.router.keyring import Keyring, bearer
from tests.router.test_service import until

pytestmark = pytest.mark.anyio
PNG = {"Content-Type": "image/png"}
BROWSER = {"Host": "127.0.0.1:8080"}
PATHS = ("/console/state", "/console/frontier", "/console/frames")


async def state_of(http: httpx.AsyncClient, clock: FakeClock) -> StateDocument:
    """Return what the page is told next."""
    clock.sleep(1.0)
    return StateDocument.model_validate(
        (await http.get("/console/state", headers=BROWSER)).raise_for_status().json()
    )


async def test_the_page_is_told_how_the_gateway_does(bench: Bench, frame: bytes) -> None:
    """Counts of what was answered, when, by which plan, and the point in force, held or not."""
    clock = FakeClock()
    gateway = bench(FakeEngine(rows={"tiny-0": DOUBTFUL, "tiny-1": LARGE}), clock=clock)
    async with http_to(gateway) as http, admin_of(gateway) as admin:
        before = await state_of(http, clock)
        await http.post("/v1/detect", content=frame, headers=PNG | {"X-Latency-Budget-Ms": "1000"})
        await http.post("/v1/detect", content=b"no image", headers=PNG)
        gateway.service.learn()
        await admin.put("/operating-point", json={"operating_point": "fast"})
        after = await state_of(http, clock)
    outcomes = {one.name: one.count for one in after.totals.outcomes}
    assert (outcomes["answered"], outcomes["rejected"], outcomes["shed"]) == (1, 1, 0)
    assert [(one.name, one.count) for one in after.totals.answers] == [("tiny-0-then-tiny-1", 1)]
    assert (after.totals.budgeted, after.totals.missed) == (1, 0)
    assert (after.totals.decided, after.totals.escalated) == (1, 1)
    assert after.totals.within[-1] == 1
    assert len(after.totals.within) == len(after.totals.bounds_ms) + 1
    assert (before.operating_point, before.plan, before.held) == ("balanced", "tiny-0-then-tiny-1", False)
    assert (after.operating_point, after.plan, after.held) == ("fast", "tiny-0", True)
    assert after.at_s > before.at_s
    assert after.instance == before.instance


async def test_half_a_second_is_told_alike_to_all(bench: Bench, frame: bytes) -> None:
    """However many pages look, the figures are read once; later they are read again."""
    clock = FakeClock()
    gateway = bench(clock=clock)
    async with http_to(gateway) as http:
        first = (await http.get("/console/state", headers=BROWSER)).content
        await http.post("/v1/detect", content=frame, headers=PNG)
        assert (await http.get("/console/state", headers=BROWSER)).content == first
        clock.sleep(0.6)
        assert (await http.get("/console/state", headers=BROWSER)).content != first


def dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Return whether a cost and accuracy are both no worse than another's, and one is better."""
    return one[0] <= other[0] and one[1] >= other[1] and one != other


async def test_the_frontier_says_what_nothing_else_matches(bench: Bench) -> None:
    """Every plan with its accuracy, cost and points, cheapest first; dominated ones are told apart."""
    gateway = bench()
    async with http_to(gateway) as http:
        told = FrontierDocument.model_validate((await http.get("/console/frontier", headers=BROWSER)).json())
    assert told.home == "balanced"
    costs = [one.expected_ms for one in told.plotted]
    assert costs == sorted(costs)
    by_name = {one.name: one for one in told.plotted}
    assert by_name["tiny-0"].points == ["fast"]
    assert by_name["tiny-0-then-tiny-1"].stages == ["tiny-0", "tiny-1"]
    for one in told.plotted:
        assert one.map is not None
        beaten = any(
            dominates((other.expected_ms, other.map or 0.0), (one.expected_ms, one.map))
            for other in told.plotted
        )
        assert one.on_frontier is not beaten


async def test_models_that_are_no_plan_are_on_the_frontier_too(bench: Bench) -> None:
    """A model that only cascades use has its own accuracy, of the split that plans were scored on."""
    gateway = bench()
    serving = gateway.service.serving
    cascades = tuple(plan for plan in serving.fleet.plans if len(plan.stages) > 1)
    serving.fleet = type(serving.fleet)(
        serving.fleet.classes, cascades, serving.fleet.variants, (), serving.fleet.profiles,
        serving.fleet.source, serving.fleet.measured_here,
    )  # fmt: skip
    told = describe_frontier(serving, Served("1", "openvino", "1"))
    alone = {one.name: one for one in told.plotted if len(one.stages) == 1}
    assert set(alone) == {"tiny-0-alone", "tiny-1-alone"}
    measured: tuple[Accuracy, ...] = serving.frontier.variant("tiny-0").on("openvino").accuracy
    split = alone["tiny-0-alone"].split
    assert alone["tiny-0-alone"].map == next(one.map for one in measured if one.split == split)
    assert split == next(one.split for one in told.plotted if one.name == "tiny-0-then-tiny-1")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "said",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Host": "evil.example:8080"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": ""},
    ],
)
async def test_pages_of_other_origins_are_told_nothing(bench: Bench, path: str, said: dict[str, str]) -> None:
    """Even where --cors-origin lets them ask for detections, and where a name was made to resolve to here."""
    gateway = bench(cors_origin=["*"], console_frames=4)
    async with http_to(gateway) as http:
        answer = await http.get(path, headers=BROWSER | said)
    assert answer.status_code == 403
    assert set(answer.json()) >= {"type", "title", "detail"}


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost:1", "localhost", "[::1]:8080", "10.1.2.3"])
async def test_its_own_page_is_told_everything(bench: Bench, host: str) -> None:
    """Addressed by number or as localhost, whatever the port; nothing may be kept or embedded elsewhere."""
    gateway = bench()
    async with http_to(gateway) as http:
        for path in PATHS:
            own = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
            answer = await http.get(path, headers=own)
            assert answer.status_code == 200
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize("path", PATHS)
async def test_with_keys_one_that_may_watch_is_needed(bench: Bench, path: str, tmp_path: Path) -> None:
    """No key is 401, one for detections alone 403; a watcher's and an administrator's do, under any name."""
    keyring = Keyring(tmp_path / "keys.json")
    plain, watcher = keyring.add("belt-7"), keyring.add("wall", watch=True)
    boss = keyring.add("boss", admin=True)
    gateway = bench(keys=keyring.path)
    async with http_to(gateway) as http:
        host = {"Host": "gateway.example"}
        assert (await http.get(path, headers=host)).status_code == 401
        assert (await http.get(path, headers=host | bearer(plain))).status_code == 403
        assert sample(gateway, "paretogate_access_refused_total", reason="watching") == 1
        for token in (watcher, boss):
            assert (await http.get(path, headers=host | bearer(token))).status_code == 200
            foreign = host | bearer(token) | {"Origin": "https://evil.example"}
            assert (await http.get(path, headers=foreign)).status_code == 403


async def test_the_page_changes_nothing(bench: Bench) -> None:
    """Its paths take no other method than GET, and holding a point is not among them."""
    gateway = bench()
    async with http_to(gateway) as http:
        for path in PATHS:
            for method in ("POST", "PUT", "DELETE"):
                assert (await http.request(method, path, headers=BROWSER)).status_code == 405
        assert (await http.put("/operating-point", headers=BROWSER)).status_code == 404


async def recents(http: httpx.AsyncClient, after: int = 0) -> RecentsDocument:
    """Return the recent frames after one."""
    answer = await http.get(f"/console/frames?after={after}", headers=BROWSER)
    return RecentsDocument.model_validate(answer.raise_for_status().json())


async def answered(gateway: Gateway, http: httpx.AsyncClient, frame: bytes, clock: FakeClock) -> None:
    """Have a frame answered at a moment when one is due, and wait until it may have been kept."""
    clock.sleep(EVERY_S)
    (await http.post("/v1/detect", content=frame, headers=PNG)).raise_for_status()
    assert gateway.recent is not None
    await until(lambda: not gateway.recent.busy)  # type: ignore[union-attr]  # asserted above


async def test_recent_frames_come_with_boxes_and_stages(bench: Bench, frame: bytes) -> None:
    """Small pictures of what was answered since somebody looks, each with what made its answer."""
    clock = FakeClock()
    gateway = bench(FakeEngine(rows={"tiny-0": DOUBTFUL, "tiny-1": LARGE}), clock=clock, console_frames=4)
    async with http_to(gateway) as http:
        await answered(gateway, http, frame, clock)
        assert (await recents(http)).frames == []
        await answered(gateway, http, frame, clock)
        (one,) = (await recents(http)).frames
        assert [stage.variant for stage in one.stages] == ["tiny-0", "tiny-1"]
        assert (one.width, one.height, one.operating_point) == (64, 64, "balanced")
        assert one.boxes
        assert all(0 <= box.x1 < box.x2 <= 1 and box.score >= 0.25 for box in one.boxes)
        assert (await recents(http, one.number)).frames == []
        for _ in range(6):
            await answered(gateway, http, frame, clock)
        assert [each.number for each in (await recents(http, one.number)).frames] == [4, 5, 6, 7]


async def test_frames_are_forgotten_when_nobody_looks(bench: Bench, frame: bytes) -> None:
    """A while after the last look nothing is left, and nothing is kept until the next."""
    clock = FakeClock()
    gateway = bench(clock=clock, console_frames=4)
    recent = gateway.recent
    assert recent is not None
    async with http_to(gateway) as http:
        await recents(http)
        await answered(gateway, http, frame, clock)
        recent.sweep()
        assert len(recent) == 1
        clock.sleep(LOOKED_AT_S + 0.1)
        recent.sweep()
        assert len(recent) == 0
        await answered(gateway, http, frame, clock)
        assert len(recent) == 0


async def test_frames_are_shown_only_where_it_was_asked_for(bench: Bench, frame: bytes) -> None:
    """Without --console-frames there are none, and the page is told so."""
    clock = FakeClock()
    gateway = bench(clock=clock)
    async with http_to(gateway) as http:
        await recents(http)
        await http.post("/v1/detect", content=frame, headers=PNG)
        assert (await recents(http)).frames == []
        assert (await state_of(http, clock)).frames == 0
    assert gateway.recent is None


@pytest.mark.parametrize("after", ["-1", "x", "1e3", "9" * 16])
async def test_a_number_that_is_none_is_refused(bench: Bench, after: str) -> None:
    """The problem names the parameter."""
    gateway = bench(console_frames=4)
    async with http_to(gateway) as http:
        answer = await http.get(f"/console/frames?after={after}", headers=BROWSER)
    assert answer.status_code == 400
    assert "?after" in answer.json()["detail"]


def test_beyond_loopback_frames_are_for_keys(tmp_path: Path) -> None:
    """Whoever reaches a gateway without keys would see the frames of all others."""
    given = {"repo": tmp_path, "console_frames": 4}
    with pytest.raises(ValidationError, match="needs --keys"):
        Config.model_validate({**given, "host": "0.0.0.0", "insecure": True})
    assert (
        Config.model_validate({**given, "host": "0.0.0.0", "keys": tmp_path / "keys.json"}).console_frames
        == 4
    )
    assert Config.model_validate(given).console_frames == 4


async def test_a_republished_set_is_another_frontier(bench: Bench, tmp_path: Path) -> None:
    """The state names the manifest in force, by which the page sees that there is another."""
    clock = FakeClock()
    root = tmp_path / "repo"
    tiny_repository(root)
    bench.root = root
    gateway = bench(clock=clock)
    async with http_to(gateway) as http:
        before = await state_of(http, clock)
        tiny_repository(root, variants=3)
        await gateway.reloader.look()
        after = await state_of(http, clock)
        told = FrontierDocument.model_validate((await http.get("/console/frontier", headers=BROWSER)).json())
    assert before.manifest != after.manifest == publish.read(root).digest == told.manifest
    assert any(one.name == "tiny-2" for one in told.plotted)
