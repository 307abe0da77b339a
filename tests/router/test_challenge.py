"""A second set beside the first: what it answers or looks at, and that it harms nobody."""

from __future__ import annotations

import asyncio
import base64
from collections import deque
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from model_repo import publish
from model_repo.publish import Repository
from model_repo.runtime.engine import EngineBusy, EngineUnavailable
from router.admission import Shed
from router.bootstrap import Gateway, build
from router.budget import Deadline
from router.challenge import Challenge
from router.client import AsyncGrpcGatewayClient
from router.config import Config
from router.engines import StartupError, published_accuracy
from router.errors import EngineFailed, UnknownModel, UnknownOperatingPoint
from router.execution import Answer
from router.wishes import Wishes
from tests.fakes import FakeClock, FakeEngine, tiny_repository
from tests.router.conftest import DOUBTFUL, LARGE, SURE, Bench, http_to, sample
from tests.router.test_grpc_api import serving as serving_grpc
from tests.router.test_oip import PROTOCOLS, talking
from tests.router.test_service import Held, until

pytestmark = pytest.mark.anyio
PNG = {"Content-Type": "image/png"}


@pytest.fixture
def published(tmp_path: Path) -> Repository:
    """A challenger of this test's own: another training of the same three variants and one more."""
    return tiny_repository(tmp_path / "challenger", variants=3, training=1)


def folders(repository: Repository) -> set[str]:
    return {variant.folder for variant in repository.frontier.variants}


def challenged(
    bench: Bench,
    challenger: Repository,
    engine: FakeEngine | None = None,
    clock: FakeClock | None = None,
    **settings: object,
) -> Gateway:
    """Return a gateway with a challenger that is drawn for every second frame, unless told otherwise."""
    shared = {"challenger_share": 0.5} | settings
    return bench(engine, clock=clock, challenger=challenger.root, **shared)


def challenge_of(gateway: Gateway) -> Challenge:
    assert gateway.challenge is not None
    return gateway.challenge


async def ask(gateway: Gateway, frame: bytes, wishes: Wishes | None = None) -> Answer:
    """Ask and expect an answer; what is learnt from it is learnt at once."""
    answer = await gateway.service.detect(frame, Deadline.none(), wishes or Wishes(), arrived_ns=0)
    gateway.service.learn()
    assert isinstance(answer, Answer)
    return answer


def ended(gateway: Gateway, arm: str, outcome: str) -> float:
    return sample(gateway, "paretogate_arm_requests_total", arm=arm, outcome=outcome)


async def test_without_a_challenger_nothing_is_said_of_arms(bench: Bench, frame: bytes) -> None:
    """Neither answers nor metrics nor the administrator's paths know of arms."""
    gateway = bench()
    async with http_to(gateway) as http:
        answer = await http.post("/v1/detect", content=frame, headers={**PNG, "X-Session-Id": "a"})
    assert "arm" not in answer.json()
    assert b"paretogate_arm" not in gateway.metrics.render()
    assert gateway.challenge is None


async def test_a_session_stays_in_its_arm_and_answers_say_which(
    bench: Bench, published: Repository, frame: bytes
) -> None:
    """Sessions are spread over both arms, and every frame of one is answered by the same."""
    gateway = challenged(bench, published)
    arms: dict[str, set[str]] = {}
    async with http_to(gateway) as http:
        for number in range(60):
            session = f"camera-{number % 12}"
            headers = {**PNG, "X-Session-Id": session}
            answer = (await http.post("/v1/detect", content=frame, headers=headers)).json()
            arms.setdefault(session, set()).add(answer["arm"])
    assert all(len(seen) == 1 for seen in arms.values())
    assert {arm for seen in arms.values() for arm in seen} == {"champion", "challenger"}


async def test_requests_without_a_session_are_drawn_one_by_one(
    bench: Bench, published: Repository, frame: bytes
) -> None:
    """About the share of them goes to the challenger, and all of them are counted by arm."""
    gateway = challenged(bench, published, challenger_share=0.25)
    arms = [(await ask(gateway, frame)).arm for _ in range(400)]
    drawn = arms.count("challenger")
    assert 70 < drawn < 130
    assert ended(gateway, "challenger", "answered") == drawn
    assert ended(gateway, "champion", "answered") == 400 - drawn
    assert sample(gateway, "paretogate_arm_request_seconds_count", arm="challenger") == drawn
    assert sample(gateway, "paretogate_arm_service_seconds_count", arm="champion") == 400 - drawn
    for arm, repository in (("champion", gateway.service.serving.repository), ("challenger", published)):
        assert sample(gateway, "paretogate_arm_info", arm=arm, manifest=repository.digest[:12]) == 1


async def test_the_frames_of_one_request_are_answered_by_one_arm(
    bench: Bench, published: Repository, frame: bytes
) -> None:
    """Several frames in JSON never mix two sets in one answer."""
    gateway = challenged(bench, published, max_queue=64)
    seen = set()
    text = base64.b64encode(frame).decode()
    async with http_to(gateway) as http:
        for _ in range(16):
            answer = (await http.post("/v1/detect", json={"images": [text] * 4})).json()
            arms = {one["arm"] for one in answer["answers"]}
            assert len(arms) == 1
            seen |= arms
    assert seen == {"champion", "challenger"}


async def test_the_arm_is_said_over_grpc(bench: Bench, published: Repository, frame: bytes) -> None:
    """The session stands in the call's metadata; the same one gets the same arm as over HTTP."""
    gateway = challenged(bench, published)
    seen = set()
    async with serving_grpc(gateway) as (_, address), AsyncGrpcGatewayClient(address) as client:
        for number in range(12):
            session = f"camera-{number}"
            told = (await client.detect(frame, session_id=session)).arm
            assert told == (await ask(gateway, frame, Wishes(session=session))).arm
            seen.add(told)
    assert seen == {"champion", "challenger"}


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_model_that_one_arm_has_is_answered_by_that_arm(
    bench: Bench, published: Repository, frame: bytes, protocol: str
) -> None:
    """The Open Inference Protocol lists the models of both; a name leads to the arm that has it."""
    gateway = challenged(bench, published, challenger_share=0.01)
    async with talking(gateway, protocol) as talk:
        index = await talk.call(lambda client: client.get_model_repository_index())
        names = [one["name"] for one in index] if protocol == "http" else [one.name for one in index.models]
        assert names == ["paretogate", "tiny-0", "tiny-1", "tiny-2"]
        response = (await talk.infer("tiny-2", [talk.image(frame)])).get_response()
        arm = response["parameters"]["arm"] if protocol == "http" else response.parameters["arm"].string_param
        assert arm == "challenger"


async def test_what_the_challenger_does_not_have_the_champion_answers(
    bench: Bench, published: Repository, frame: bytes
) -> None:
    """A point, model or accuracy that only the champion has is never refused because of the draw."""
    poorer = published.frontier.model_copy(
        update={"operating_points": published.frontier.operating_points[1:]}
    )
    publish.publish(published.root, poorer, {})
    gateway = challenged(bench, published, challenger_share=1.0)
    assert (await ask(gateway, frame, Wishes("fast"))).arm == "champion"
    assert (await ask(gateway, frame, Wishes("accurate"))).arm == "challenger"
    # tiny-2 has 0.7, the champion's best 0.6.
    assert (await ask(gateway, frame, Wishes(min_map=0.65))).arm == "challenger"
    with pytest.raises(UnknownOperatingPoint, match="known are fast, balanced, accurate"):
        await ask(gateway, frame, Wishes("nope"))


async def test_what_one_arm_learns_never_moves_the_other(
    bench: Bench, published: Repository, frame: bytes
) -> None:
    """Variants of the same name are slow in one arm alone: only its own predictions change."""
    clock = FakeClock()
    slow = {variant.folder: 20.0 for variant in published.frontier.variants}
    engine = FakeEngine(rows={"tiny-0": SURE}, latency_ms={"tiny-0": 2.0, **slow}, sleep=clock.sleep)
    gateway = challenged(bench, published, engine, clock=clock, challenger_share=0.5)
    for _ in range(60):
        await ask(gateway, frame, Wishes("fast"))
    champion, challenger = gateway.service.serving, challenge_of(gateway).serving
    assert challenger.policies.slow_down.factor("tiny-0") > 2.0
    assert champion.policies.slow_down.factor("tiny-0") == pytest.approx(1.0, abs=0.01)
    assert challenger.policies.controller is not champion.policies.controller


async def test_both_arms_hear_of_every_arrival(bench: Bench, published: Repository, frame: bytes) -> None:
    """Load that fills the machine moves both arms down, though each answers only half of it."""
    clock = FakeClock()
    engine = FakeEngine(rows={"tiny-0": SURE}, latency_ms={"tiny-0": 2.0}, sleep=clock.sleep)
    gateway = challenged(bench, published, engine, clock=clock)
    for _ in range(400):
        await ask(gateway, frame)
        clock.sleep(0.003)
    assert gateway.service.serving.policies.controller.point == "fast"
    assert challenge_of(gateway).serving.policies.controller.point == "fast"


async def test_the_champion_answers_where_the_challenger_fails(
    bench: Bench, published: Repository, frame: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """No sender sees a failure; after three in a row the challenger is stopped until its share is set."""
    engine = FakeEngine(rows={"tiny-0": SURE})
    gateway = challenged(bench, published, engine, challenger_share=1.0)
    challenge = challenge_of(gateway)
    engine.broken |= folders(published)
    for _ in range(6):
        assert (await ask(gateway, frame)).arm == "champion"
    assert ended(gateway, "challenger", "failed") == 3
    assert challenge.share == 0.0
    assert challenge.stopped
    assert sample(gateway, "paretogate_challenger_up") == 0
    assert sample(gateway, "paretogate_challenger_share") == 0
    assert "the challenger is stopped" in caplog.text
    assert gateway.service.ready
    assert gateway.service.state().inside == 0
    engine.broken.clear()
    challenge.set_share(1.0)
    assert (await ask(gateway, frame)).arm == "challenger"
    assert sample(gateway, "paretogate_challenger_up") == 1


async def test_an_ill_engine_is_not_the_challengers_fault(
    bench: Bench, published: Repository, frame: bytes
) -> None:
    """Where the champion fails on the frame as well, the sender is told and the challenger goes on."""
    engine = FakeEngine(rows={"tiny-0": SURE}, failures=deque())
    gateway = challenged(bench, published, engine, challenger_share=1.0)
    engine.failures = deque([EngineUnavailable("gone")] * 8)
    for _ in range(4):
        with pytest.raises(EngineFailed, match="gone"):
            await ask(gateway, frame)
    assert not gateway.service.well
    assert challenge_of(gateway).well
    assert (await ask(gateway, frame)).arm == "challenger"


async def test_a_full_queue_does_not_stop_the_challenger(
    bench: Bench, published: Repository, frame: bytes
) -> None:
    """However often the challenger's queue is full the champion answers those frames, and the share stays."""
    full = EngineBusy("queue full")
    engine = FakeEngine(rows={"tiny-0": SURE}, failures=deque([full, None] * 6))
    gateway = challenged(bench, published, engine, challenger_share=1.0)
    for _ in range(6):
        assert (await ask(gateway, frame)).arm == "champion"
    assert ended(gateway, "challenger", "failed") == 6
    engine.failures = deque([full] * 4)
    for _ in range(4):
        with pytest.raises(EngineFailed, match="queue full"):
            await ask(gateway, frame, Wishes(model="tiny-2"))
    assert challenge_of(gateway).share == 1.0
    assert (await ask(gateway, frame)).arm == "challenger"


async def test_a_full_queue_does_not_stop_a_shadow(bench: Bench, published: Repository, frame: bytes) -> None:
    """A frame that it could not look at for want of room is dropped, not failed."""
    engine = FakeEngine(rows={"tiny-0": SURE}, failures=deque([None, EngineBusy("queue full")] * 5))
    gateway = challenged(bench, published, engine, challenger_mode="shadow", challenger_share=1.0)
    for number in range(1, 6):
        assert (await ask(gateway, frame)).arm == "champion"
        await until(lambda: challenge_of(gateway).serving.inside == 0)
        assert ended(gateway, "challenger", "dropped") == number
    assert ended(gateway, "challenger", "failed") == 0
    assert not challenge_of(gateway).stopped


async def test_a_model_of_the_challenger_alone_fails_for_its_sender(
    bench: Bench, published: Repository, frame: bytes
) -> None:
    """Nobody can take its place: the sender is told, and the champion is as well as before."""
    engine = FakeEngine()
    gateway = challenged(bench, published, engine)
    engine.broken |= folders(published)
    for _ in range(3):
        with pytest.raises(EngineFailed, match="broken"):
            await ask(gateway, frame, Wishes(model="tiny-2"))
    assert gateway.service.well
    with pytest.raises(UnknownModel, match="tiny-0, tiny-1"):
        await ask(gateway, frame, Wishes(model="tiny-2"))


async def test_a_sender_who_left_is_not_answered_by_the_champion(
    bench: Bench, published: Repository, frame: bytes
) -> None:
    """Work whose sender has gone is not done again, and every permit comes back."""
    held = Held()
    engine = FakeEngine(rows={"tiny-0": held})
    gateway = challenged(bench, published, engine, challenger_share=1.0)
    running = asyncio.create_task(ask(gateway, frame))
    await held.wait_until_busy()
    engine.broken |= folders(published)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    held.open()
    await until(lambda: gateway.service.state().inside == 0)
    assert engine.calls == ["tiny-0"]
    assert challenge_of(gateway).serving.inside == 0


async def test_a_budget_that_the_challenger_cannot_keep_is_counted_as_its_own(
    bench: Bench, tmp_path: Path, frame: bytes
) -> None:
    """Slower models refuse what the champion would answer: that is what a comparison has to show."""
    slower = tiny_repository(tmp_path / "slower", training=1, mean_ms=40.0)
    clock = FakeClock()
    gateway = challenged(bench, slower, clock=clock, challenger_share=1.0)
    deadline = Deadline.after(clock.now_ns(), 20.0)
    with pytest.raises(Exception, match="fastest plan needs"):
        await gateway.service.detect(frame, deadline, Wishes(), arrived_ns=clock.now_ns())
    assert ended(gateway, "challenger", "refused") == 1
    challenge_of(gateway).set_share(0.0)
    answer = await gateway.service.detect(frame, deadline, Wishes(), arrived_ns=clock.now_ns())
    assert isinstance(answer, Answer)


async def test_in_shadow_the_champion_answers_and_idle_workers_compare(
    bench: Bench, published: Repository, frame: bytes
) -> None:
    """Answers are the champion's; metrics tell how far the challenger's differ, and both latencies."""
    engine = FakeEngine(rows={"tiny-0": SURE, "tiny-1": LARGE})
    gateway = challenged(bench, published, engine, challenger_mode="shadow", challenger_share=1.0)
    challenger = challenge_of(gateway).serving
    for number in range(1, 4):
        assert (await ask(gateway, frame)).arm == "champion"
        await until(lambda: challenger.inside == 0)
        assert sample(gateway, "paretogate_arm_disagreement_count") == number
    assert sample(gateway, "paretogate_arm_disagreement_sum") == 0
    other = next(v.folder for v in published.frontier.variants if v.name == "tiny-0")
    engine.rows = {"tiny-0": SURE, other: LARGE}
    await ask(gateway, frame)
    await until(lambda: challenger.inside == 0)
    assert sample(gateway, "paretogate_arm_disagreement_sum") == 1
    for arm in ("champion", "challenger"):
        assert sample(gateway, "paretogate_arm_service_seconds_count", arm=arm) == 4
        assert ended(gateway, arm, "answered") == 4
    assert sample(gateway, "paretogate_requests_total", protocol="http", outcome="answered") == 0
    with pytest.raises(UnknownModel):
        await ask(gateway, frame, Wishes(model="tiny-2"))


async def test_in_shadow_the_challenger_has_the_same_budget(
    bench: Bench, tmp_path: Path, frame: bytes
) -> None:
    """What it could not have answered in time counts as refused, though nobody waits for it."""
    slower = tiny_repository(tmp_path / "slower", training=1, mean_ms=40.0)
    clock = FakeClock()
    gateway = challenged(bench, slower, clock=clock, challenger_mode="shadow", challenger_share=1.0)
    deadline = Deadline.after(clock.now_ns(), 20.0)
    answer = await gateway.service.detect(frame, deadline, Wishes(), arrived_ns=clock.now_ns())
    assert isinstance(answer, Answer)
    await until(lambda: ended(gateway, "challenger", "refused") == 1)
    assert ended(gateway, "champion", "refused") == 0


async def test_while_workers_are_busy_no_shadow_run_begins(
    bench: Bench, published: Repository, frame: bytes
) -> None:
    """A frame that was drawn, and answered while another one kept the only worker busy, is not looked at."""
    held = Held()
    first = iter([SURE])

    def rows(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        at_once = next(first, None)
        return held(frames) if at_once is None else at_once

    engine = FakeEngine(rows={"tiny-0": rows})
    gateway = challenged(
        bench, published, engine, challenger_mode="shadow", challenger_share=1.0, operating_point="fast"
    )
    both = [asyncio.create_task(ask(gateway, frame)) for _ in range(2)]
    await until(both[0].done)
    assert ended(gateway, "challenger", "dropped") == 1
    held.open()
    await asyncio.gather(*both)
    await until(lambda: ended(gateway, "challenger", "answered") == 1)
    assert ended(gateway, "champion", "answered") == 2


async def test_a_shadow_run_ends_between_its_stages_once_a_request_waits(
    bench: Bench, published: Repository, frame: bytes
) -> None:
    """The challenger's second stage is not begun while somebody waits for the worker."""
    first = next(v.folder for v in published.frontier.variants if v.name == "tiny-0")
    held = Held(DOUBTFUL)
    engine = FakeEngine(rows={"tiny-0": SURE, "tiny-1": LARGE, first: held})
    gateway = challenged(bench, published, engine, challenger_mode="shadow", challenger_share=1.0)
    await ask(gateway, frame)
    await held.wait_until_busy()
    challenge_of(gateway).set_share(0.0)
    waiting = asyncio.create_task(ask(gateway, frame))
    await until(lambda: gateway.service.state().waiting == 1)
    held.open()
    await waiting
    assert engine.calls == ["tiny-0", "tiny-0", "tiny-0"]
    assert ended(gateway, "challenger", "dropped") == 1


async def test_a_shadow_that_fails_is_stopped_and_harms_nobody(
    bench: Bench, published: Repository, frame: bytes
) -> None:
    """Three failures in a row stop it; answers and readiness stay as they are."""
    engine = FakeEngine(rows={"tiny-0": SURE})
    gateway = challenged(bench, published, engine, challenger_mode="shadow", challenger_share=1.0)
    engine.broken |= folders(published)
    for number in range(1, 6):
        assert (await ask(gateway, frame)).arm == "champion"
        await until(lambda: challenge_of(gateway).serving.inside == 0)
        assert ended(gateway, "challenger", "failed") == min(number, 3)
    assert challenge_of(gateway).stopped
    assert gateway.service.ready


async def test_other_classes_are_refused_at_the_start(repository: Repository, tmp_path: Path) -> None:
    """Both sets must find the same things: the message has both lists."""
    other = tiny_repository(tmp_path / "other")
    dataset = other.frontier.dataset.model_copy(update={"classes": ("green", "red")})
    publish.publish(other.root, other.frontier.model_copy(update={"dataset": dataset}), {})
    engine = FakeEngine()
    with pytest.raises(StartupError, match=r"green, red, the champion .* red, green"):
        build(Config(repo=repository.root, challenger=other.root, measure="never"), engine=engine)
    assert engine.closed


async def test_a_champion_of_other_classes_stops_the_challenger(
    bench: Bench, published: Repository, tmp_path: Path, frame: bytes
) -> None:
    """The champion goes its own way; the challenger is stopped until it is published alike."""
    champion = tiny_repository(tmp_path / "champion")
    engine = FakeEngine(rows={"tiny-0": SURE})
    gateway = challenged(bench, published, engine, repo=champion.root, challenger_share=1.0)
    turned = {"dataset": champion.frontier.dataset.model_copy(update={"classes": ("green", "red")})}
    publish.publish(champion.root, champion.frontier.model_copy(update=turned), {})
    await gateway.reloader.look()
    assert (await ask(gateway, frame)).classes == ("green", "red")
    assert challenge_of(gateway).stopped
    publish.publish(published.root, published.frontier.model_copy(update=turned), {})
    await gateway.reloaders[1].look()
    assert (await ask(gateway, frame)).arm == "challenger"


async def test_one_folder_of_two_contents_is_refused(repository: Repository, tmp_path: Path) -> None:
    """A challenger whose folder has the name of a champion's, but other files, is not served as that one."""
    other = tiny_repository(tmp_path / "other", training=1)
    ours, theirs = repository.frontier.variants[0], other.frontier.variants[0]
    (other.root / "models" / theirs.folder).rename(other.root / "models" / ours.folder)
    segment = theirs.segments[0].model_copy(update={"file": f"models/{ours.folder}/1/model.onnx"})
    renamed = theirs.model_copy(update={"folder": ours.folder, "segments": (segment,)})
    variants = (renamed, *other.frontier.variants[1:])
    publish.publish(other.root, other.frontier.model_copy(update={"variants": variants}), {})
    with pytest.raises(StartupError, match=f"models/{ours.folder} is loaded already with other files"):
        build(Config(repo=repository.root, challenger=other.root, measure="never"), engine=FakeEngine())


async def test_a_new_challenger_takes_over_and_may_try_again(
    bench: Bench, published: Repository, frame: bytes
) -> None:
    """Its manifest is watched as well; the next one is not blamed for the one before."""
    clock, engine = FakeClock(), FakeEngine(rows={"tiny-0": SURE})
    gateway = challenged(bench, published, engine, clock=clock, challenger_share=1.0)
    engine.broken |= folders(published)
    for _ in range(3):
        await ask(gateway, frame)
    assert challenge_of(gateway).stopped
    new = tiny_repository(published.root, training=2)
    await gateway.reloaders[1].look()
    assert (await ask(gateway, frame)).arm == "challenger"
    assert challenge_of(gateway).serving.repository.digest == new.digest
    assert sample(gateway, "paretogate_arm_info", arm="challenger", manifest=new.digest[:12]) == 1
    assert sample(gateway, "paretogate_arm_info", arm="challenger", manifest=published.digest[:12]) == 0
    clock.sleep(1000)
    await gateway.reloaders[1].look()
    champion = gateway.service.serving.repository
    assert set(engine.loaded) == folders(champion) | folders(new)


async def test_what_the_other_arm_needs_stays_loaded(
    bench: Bench, repository: Repository, tmp_path: Path, frame: bytes
) -> None:
    """A challenger of the champion's own models loads none, and takes none along when it goes."""
    same = publish.copy(repository, tmp_path / "same")
    clock, engine = FakeClock(), FakeEngine(rows={"tiny-0": SURE})
    gateway = challenged(bench, same, engine, clock=clock)
    assert set(engine.loaded) == folders(repository)
    new = tiny_repository(same.root, training=1)
    await gateway.reloaders[1].look()
    clock.sleep(1000)
    await gateway.reloaders[1].look()
    assert set(engine.loaded) == folders(repository) | folders(new)
    challenge_of(gateway).set_share(0.0)
    assert (await ask(gateway, frame)).arm == "champion"


async def test_shed_is_not_the_challengers(bench: Bench, published: Repository, frame: bytes) -> None:
    """A full gateway sheds before an arm has anything to do with a frame."""
    held = Held()
    gateway = challenged(
        bench, published, FakeEngine(rows={"tiny-0": held}), challenger_share=1.0, max_queue=0
    )
    running = asyncio.create_task(ask(gateway, frame))
    await held.wait_until_busy()
    shed = await gateway.service.detect(frame, Deadline.none(), Wishes(), arrived_ns=0)
    assert isinstance(shed, Shed)
    held.open()
    await running
    assert ended(gateway, "challenger", "refused") == 0


async def test_a_key_for_certain_points_is_drawn_only_where_those_suffice(bench: Bench) -> None:
    """An accuracy that only points beyond the key reach does not draw a frame to a set."""
    serving = bench().service.serving
    reached = {
        point.name: accuracy.map
        for point in serving.fleet.points
        if (accuracy := published_accuracy(point.plan)) is not None
    }
    wanted = (reached["fast"] + reached["accurate"]) / 2
    assert reached["fast"] < wanted
    assert serving.grants(Wishes(min_map=wanted))
    assert serving.grants(Wishes(min_map=wanted, allowed=frozenset({"accurate"})))
    assert not serving.grants(Wishes(min_map=wanted, allowed=frozenset({"fast"})))
    assert not serving.grants(Wishes(allowed=frozenset({"elsewhere"})))
