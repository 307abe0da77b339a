"""A published set takes another one's place while requests go on."""

from __future__ import annotations

import asyncio
from collections import deque
from pathlib import Path

import pytest

from model_repo import publish
from model_repo.frontier import Variant
from model_repo.publish import MANIFEST, Repository
from model_repo.runtime.engine import EngineUnavailable
from router.bootstrap import Gateway
from router.budget import Deadline
from router.errors import EngineFailed
from router.execution import Answer
from router.wishes import Wishes
from tests.fakes import FakeClock, FakeEngine, tiny_repository
from tests.router.conftest import DOUBTFUL, LARGE, SURE, Bench, sample
from tests.router.test_service import Held, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def published(tmp_path: Path) -> Repository:
    """A repository of this test's own, which it may publish into again."""
    return tiny_repository(tmp_path / "repo")


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(rows={"tiny-0": SURE, "tiny-1": LARGE})


@pytest.fixture
def gateway(bench: Bench, published: Repository, engine: FakeEngine, clock: FakeClock) -> Gateway:
    return bench(engine, clock=clock, repo=published.root)


async def ask(gateway: Gateway, frame: bytes, point: str | None = None) -> Answer:
    answer = await gateway.service.detect(frame, Deadline.none(), Wishes(point), arrived_ns=0)
    gateway.service.learn()
    assert isinstance(answer, Answer)
    return answer


def digest(gateway: Gateway) -> str:
    return gateway.service.serving.repository.digest


async def test_a_new_set_takes_over_between_requests(
    gateway: Gateway, engine: FakeEngine, clock: FakeClock, published: Repository, frame: bytes
) -> None:
    """A request that began on the old set ends on it, the next one runs on the new; then the old one goes."""
    held = Held()
    # Only the first frame is held back, not those that warm the new set.
    rows = iter([held])
    engine.rows = {"tiny-0": lambda frames: next(rows, lambda _: SURE)(frames), "tiny-1": LARGE}
    old_folders = set(engine.loaded)
    running = asyncio.create_task(ask(gateway, frame))
    await held.wait_until_busy()
    new = tiny_repository(published.root, training=1)
    await gateway.reloader.look()
    assert digest(gateway) == new.digest
    assert old_folders < set(engine.loaded)
    clock.sleep(1000)
    await gateway.reloader.look()
    assert old_folders < set(engine.loaded), "the request still runs on them"
    held.open()
    await running
    await gateway.reloader.look()
    assert set(engine.loaded) == {variant.folder for variant in new.frontier.variants}
    assert (await ask(gateway, frame)).classes == new.frontier.dataset.classes
    assert sample(gateway, "paretogate_reloads_total", result="taken") == 1


async def test_nothing_is_loaded_twice(
    gateway: Gateway, engine: FakeEngine, clock: FakeClock, published: Repository
) -> None:
    """A set that shares its models with the one before neither loads nor unloads them."""
    before = dict(engine.loaded)
    again = published.frontier.model_copy(
        update={"operating_points": published.frontier.operating_points[:2]}
    )
    publish.publish(published.root, again, {})
    await gateway.reloader.look()
    clock.sleep(1000)
    await gateway.reloader.look()
    assert [point.name for point in gateway.service.points] == ["fast", "balanced"]
    assert {folder: id(variant) for folder, variant in engine.loaded.items()} == {
        folder: id(variant) for folder, variant in before.items()
    }


async def test_a_broken_set_is_refused_until_it_is_whole(
    gateway: Gateway, clock: FakeClock, published: Repository, frame: bytes
) -> None:
    """A file that is not what the manifest says keeps the old set; once mended, the new one comes."""
    old = digest(gateway)
    new = tiny_repository(published.root, training=1)
    path = new.path(new.frontier.variants[1].segments[0])
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    await gateway.reloader.look()
    assert digest(gateway) == old
    await ask(gateway, frame)
    assert sample(gateway, "paretogate_reloads_total", result="refused") == 1
    path.write_bytes(whole)
    clock.sleep(5)
    await gateway.reloader.look()
    assert digest(gateway) == new.digest


async def test_watching_goes_on_after_a_surprise(
    bench: Bench, engine: FakeEngine, published: Repository, caplog: pytest.LogCaptureFixture
) -> None:
    """What nobody foresaw is logged and counted, and the next look is made all the same."""
    gateway = bench(engine, repo=published.root, reload_s=0.01)
    first = digest(gateway)
    surprises = iter([RuntimeError("nobody foresaw it")])
    loads = engine.load

    def load(root: Path, variant: Variant) -> None:
        for surprise in surprises:
            raise surprise
        loads(root, variant)

    engine.load = load  # type: ignore[method-assign]  # for the test's own engine
    tiny_repository(published.root, training=1)
    watching = asyncio.create_task(gateway.reloader.watch())
    await until(lambda: sample(gateway, "paretogate_reloads_total", result="refused") == 1)
    assert "nobody foresaw it" in caplog.text
    tiny_repository(published.root, training=2)
    await until(lambda: digest(gateway) != first)
    watching.cancel()


async def test_refused_sets_are_tried_less_and_less_often(
    gateway: Gateway, clock: FakeClock, published: Repository
) -> None:
    """A set that stays broken is tried again after growing pauses, not at every look."""
    (published.root / MANIFEST).write_text("{}")
    for _ in range(60):
        await gateway.reloader.look()
        clock.sleep(2)
    assert 3 <= sample(gateway, "paretogate_reloads_total", result="refused") <= 7


async def test_a_set_without_the_configured_point_is_refused(
    gateway: Gateway, engine: FakeEngine, published: Repository
) -> None:
    """What cannot serve the configured operating point does not take over, and leaves no model behind."""
    before = set(engine.loaded)
    new = tiny_repository(published.root, training=1)
    kept = [point for point in new.frontier.operating_points if point.name != "balanced"]
    publish.publish(published.root, new.frontier.model_copy(update={"operating_points": tuple(kept)}), {})
    await gateway.reloader.look()
    assert digest(gateway) == published.digest
    assert set(engine.loaded) == before


async def test_a_set_that_does_not_run_is_refused(
    gateway: Gateway, engine: FakeEngine, published: Repository, frame: bytes
) -> None:
    """Models that load and then fail in warming never meet a request."""
    before = set(engine.loaded)
    tiny_repository(published.root, training=1)
    engine.failures = deque([EngineUnavailable("no")])
    await gateway.reloader.look()
    assert digest(gateway) == published.digest
    assert set(engine.loaded) == before
    await ask(gateway, frame)


async def test_an_engine_that_falls_ill_brings_the_old_set_back(
    gateway: Gateway, engine: FakeEngine, clock: FakeClock, published: Repository, frame: bytes
) -> None:
    """Failures soon after a change bring the set before back, and the bad one is not tried again."""
    tiny_repository(published.root, training=1)
    await gateway.reloader.look()
    assert digest(gateway) != published.digest
    for _ in range(3):
        engine.failures = deque([EngineUnavailable("illegal instruction")])
        with pytest.raises(EngineFailed):
            await ask(gateway, frame)
    await gateway.reloader.look()
    assert digest(gateway) == published.digest
    assert sample(gateway, "paretogate_reloads_total", result="rolled back") == 1
    await ask(gateway, frame)
    clock.sleep(1000)
    await gateway.reloader.look()
    assert digest(gateway) == published.digest
    assert set(engine.loaded) == {variant.folder for variant in published.frontier.variants}


async def test_the_point_in_force_survives_a_change(
    gateway: Gateway, engine: FakeEngine, clock: FakeClock, published: Repository, frame: bytes
) -> None:
    """A gateway that gave way under load does not fall back to its home point because of a republish."""
    engine.rows = {"tiny-0": DOUBTFUL, "tiny-1": LARGE}
    controller = gateway.service.serving.policies.controller
    for _ in range(400):
        controller.arrived(clock.now_ns(), waiting=20)
        clock.sleep(0.02)
    assert gateway.service.point_in_force == "fast"
    tiny_repository(published.root, training=1)
    await gateway.reloader.look()
    assert gateway.service.point_in_force == "fast"
