"""The challenger becomes the champion, by the administrator's word."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from model_repo import publish
from model_repo.publish import MANIFEST, Repository
from router.bootstrap import Gateway
from tests.fakes import FakeClock, FakeEngine, tiny_repository
from tests.router.conftest import LARGE, SURE, Bench, admin_of
from tests.router.test_challenge import ask, challenge_of, challenged, folders
from tests.router.test_service import Held

pytestmark = pytest.mark.anyio


@pytest.fixture
def champion(tmp_path: Path) -> Repository:
    return tiny_repository(tmp_path / "champion")


@pytest.fixture
def challenger(tmp_path: Path) -> Repository:
    return tiny_repository(tmp_path / "challenger", training=1)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(rows={"tiny-0": SURE, "tiny-1": LARGE})


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def gateway(
    bench: Bench, champion: Repository, challenger: Repository, engine: FakeEngine, clock: FakeClock
) -> Gateway:
    return challenged(bench, challenger, engine, clock, repo=champion.root, challenger_share=1.0)


async def test_an_administrator_sees_both_arms_and_sets_the_share(
    gateway: Gateway, champion: Repository, challenger: Repository, frame: bytes
) -> None:
    """Share, mode, manifests and counts are told; the share holds from the next request on."""
    async with admin_of(gateway) as admin:
        assert (await ask(gateway, frame)).arm == "challenger"
        told = (await admin.put("/challenger", json={"share": 0})).json()
        assert (told["share"], told["mode"], told["stopped"]) == (0.0, "ab", False)
        assert (await ask(gateway, frame)).arm == "champion"
        told = (await admin.get("/challenger")).json()
    nothing = {"refused": 0, "failed": 0, "dropped": 0}
    assert told["champion"] == {"manifest": champion.digest, "answered": 1, **nothing}
    assert told["challenger"] == {"manifest": challenger.digest, "answered": 1, **nothing}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"half", "no JSON"),
        (b"[]", "expected"),
        (b'{"share": "0.5"}', "no number from 0 to 1"),
        (b'{"share": true}', "no number from 0 to 1"),
        (b'{"share": 1.5}', "no number from 0 to 1"),
        (b'{"share": NaN}', "no number from 0 to 1"),
        (b'{"share": 0.5, "for": 5}', "expected"),
    ],
)
async def test_what_is_no_share_changes_nothing(gateway: Gateway, body: bytes, said: str) -> None:
    """A body of another form is a problem that says what is expected."""
    async with admin_of(gateway) as admin:
        answer = await admin.put("/challenger", content=body)
    assert answer.status_code == 400
    assert said in answer.json()["detail"]
    assert challenge_of(gateway).share == 1.0


async def test_without_a_challenger_there_is_nothing_to_set(bench: Bench) -> None:
    """The paths are not there."""
    async with admin_of(bench()) as admin:
        assert (await admin.get("/challenger")).status_code == 404
        assert (await admin.post("/challenger/promote")).status_code == 404


async def test_the_promoted_set_takes_over_without_a_failed_request(
    gateway: Gateway,
    engine: FakeEngine,
    clock: FakeClock,
    champion: Repository,
    challenger: Repository,
    frame: bytes,
) -> None:
    """On disk and in force at once; what began before ends on its set; no model is loaded a second time."""
    challenge_of(gateway).set_share(0.0)
    held = Held()
    old = next(v.folder for v in champion.frontier.variants if v.name == "tiny-0")
    engine.rows = {"tiny-0": SURE, "tiny-1": LARGE, old: held}
    loaded = {folder: id(variant) for folder, variant in engine.loaded.items()}
    running = asyncio.create_task(ask(gateway, frame))
    await held.wait_until_busy()
    async with admin_of(gateway) as admin:
        # It is measured, warmed and published while the one worker is at a request of the old set.
        promoted = await admin.post("/challenger/promote")
    assert promoted.status_code == 200
    assert promoted.json()["share"] == 0.0
    assert promoted.json()["champion"]["manifest"] == challenger.digest
    assert publish.read(champion.root).frontier == challenger.frontier
    held.open()
    await running
    assert (await ask(gateway, frame)).arm == "champion"
    assert gateway.service.serving.repository.root == champion.root
    assert {folder: id(variant) for folder, variant in engine.loaded.items()} == loaded
    clock.sleep(1000)
    await gateway.reloader.look()
    assert set(engine.loaded) == folders(challenger)


async def test_a_promoted_set_on_which_the_engine_falls_ill_is_rolled_back(
    gateway: Gateway, engine: FakeEngine, champion: Repository, challenger: Repository, frame: bytes
) -> None:
    """The old champion takes its place back, as after every change."""
    async with admin_of(gateway) as admin:
        await admin.post("/challenger/promote")
    engine.broken |= folders(challenger)
    for _ in range(3):
        with pytest.raises(Exception, match="broken"):
            await ask(gateway, frame)
    await gateway.reloader.look()
    assert gateway.service.serving.repository.digest == champion.digest
    assert (await ask(gateway, frame)).arm == "champion"


async def test_what_cannot_be_published_leaves_everything_as_it_was(
    gateway: Gateway, champion: Repository, challenger: Repository, frame: bytes
) -> None:
    """A damaged file of the challenger is named; disk, arms and share stay."""
    before = (champion.root / MANIFEST).read_bytes()
    path = challenger.path(challenger.frontier.variants[1].segments[0])
    path.write_bytes(path.read_bytes()[:-1])
    async with admin_of(gateway) as admin:
        refused = await admin.post("/challenger/promote")
    assert refused.status_code == 500
    assert "bytes, the manifest says" in refused.json()["detail"]
    assert (champion.root / MANIFEST).read_bytes() == before
    assert publish.read(champion.root) == champion
    assert gateway.service.serving.repository.digest == champion.digest
    assert challenge_of(gateway).share == 1.0


async def test_a_stopped_challenger_is_not_promoted(
    gateway: Gateway, engine: FakeEngine, champion: Repository, challenger: Repository, frame: bytes
) -> None:
    """Models that fail do not become the champion's."""
    engine.broken |= folders(challenger)
    for _ in range(3):
        await ask(gateway, frame)
    async with admin_of(gateway) as admin:
        refused = await admin.post("/challenger/promote")
    assert "stopped" in refused.json()["detail"]
    assert publish.read(champion.root) == champion


async def test_a_published_set_that_does_not_take_over_is_told(
    gateway: Gateway, engine: FakeEngine, champion: Repository, challenger: Repository
) -> None:
    """Where the models fail in warming, the answer says what is in force and what is on disk."""
    engine.broken |= folders(challenger)
    async with admin_of(gateway) as admin:
        refused = await admin.post("/challenger/promote")
    detail = refused.json()["detail"]
    assert f"{challenger.digest[:12]} is published" in detail
    assert f"{champion.digest[:12]} stays in force" in detail
    assert challenge_of(gateway).share == 1.0


_KILLED = """
import os, sys
from pathlib import Path
from model_repo import publish

left = int(sys.argv[3])

def counted(real):
    def call(*arguments):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return real(*arguments)
    return call

for name in ("rename", "replace", "fsync"):
    setattr(os, name, counted(getattr(os, name)))
publish.copy(publish.read(Path(sys.argv[1])), Path(sys.argv[2]))
"""


async def test_killed_half_way_nothing_is_lost(champion: Repository, challenger: Repository) -> None:
    """Killed before any step of its way to the disk, the repository is the old one or the new one, whole."""
    digests = []
    for step in range(100):
        command = [sys.executable, "-c", _KILLED, str(challenger.root), str(champion.root), str(step)]
        done = await asyncio.to_thread(subprocess.run, command, check=False)
        digests.append(publish.read(champion.root).digest)
        if done.returncode == 0:
            break
    assert len(digests) > 5
    assert digests == sorted(digests, key=[champion.digest, challenger.digest].index)
    assert digests[-1] == challenger.digest
