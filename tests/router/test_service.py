"""The use case: what a frame is answered with, within time that a test controls."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from model_repo import publish
from model_repo.frontier import Certificate, Stage
from model_repo.reference import TRACKED, Reference
from model_repo.runtime.engine import EngineBusy, EngineTimeout, EngineUnavailable
from router.admission import Shed
from router.bootstrap import Gateway
from router.budget import Deadline
from router.errors import (
    BrokenImage,
    EngineFailed,
    NotReady,
    TooLarge,
    UnknownOperatingPoint,
    UnmeetableAccuracy,
    UnmeetableBudget,
    UnsupportedType,
)
from router.execution import Answer
from router.wishes import Wishes
from tests.fakes import FakeClock, FakeEngine, encode_image, rows_of, tiny_repository
from tests.router.conftest import DOUBTFUL, LARGE, SURE, Bench, sample

pytestmark = pytest.mark.anyio


class Held:
    """An engine's rows that a test holds back, to keep a worker busy."""

    def __init__(self, rows: NDArray[np.float32] = SURE) -> None:
        self._rows = rows
        self.began, self._open = threading.Event(), threading.Event()

    def __call__(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        del frames
        self.began.set()
        assert self._open.wait(30)
        return self._rows

    def open(self) -> None:
        """Let the worker go on."""
        self._open.set()

    async def wait_until_busy(self) -> None:
        """Wait until a worker is held."""
        assert await asyncio.to_thread(self.began.wait, 30)


CASCADE, CASCADE_POINT = "tiny-0-then-tiny-1", "balanced"


async def until(reached: Callable[[], bool]) -> None:
    """Let the event loop run until something is so."""
    for _ in range(1000):
        if reached():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came to be")


async def ask(
    gateway: Gateway,
    frame: bytes,
    budget_ms: float | None = None,
    point: str | None = None,
    *,
    min_map: float | None = None,
    now_ns: int = 0,
) -> Answer | Shed:
    """Ask the service at `now_ns`."""
    deadline = Deadline.none() if budget_ms is None else Deadline.after(now_ns, budget_ms)
    found = await gateway.service.detect(frame, deadline, Wishes(point, min_map), arrived_ns=now_ns)
    gateway.service.learn()
    return found


async def answer(
    gateway: Gateway,
    frame: bytes,
    budget_ms: float | None = None,
    point: str | None = None,
    *,
    now_ns: int = 0,
) -> Answer:
    """Ask the service and expect an answer."""
    given = await ask(gateway, frame, budget_ms, point, now_ns=now_ns)
    assert isinstance(given, Answer)
    return given


async def test_a_sure_fast_answer_is_the_answer(bench: Bench, frame: bytes) -> None:
    """The cascade stops after its first stage when its rule says so; scores are aligned."""
    gateway = bench(FakeEngine(rows={"tiny-0": SURE, "tiny-1": LARGE}))
    given = await answer(gateway, frame)
    assert given.operating_point == "balanced"
    assert [stage.variant for stage in given.stages] == ["tiny-0"]
    assert given.escalated is False
    assert given.cut is None
    # The curve of the tiny repository: 0.5 → 0.4, 1 → 0.9.
    assert given.detections.score.tolist() == pytest.approx([0.4 + 0.45 / 0.5 * 0.5])


async def test_a_doubtful_fast_answer_is_sent_on(bench: Bench, frame: bytes) -> None:
    """The larger model's answer replaces the fast one, scaled back to the sent frame's pixels."""
    gateway = bench(FakeEngine(rows={"tiny-0": DOUBTFUL, "tiny-1": LARGE}))
    given = await answer(gateway, frame)
    assert [stage.variant for stage in given.stages] == ["tiny-0", "tiny-1"]
    assert given.escalated is True
    # tiny-1 sees 128x128, the frame is 64x64.
    assert given.detections.xyxy.tolist() == [[0, 0, 16, 16]]
    assert sample(gateway, "paretogate_escalations_total", plan="tiny-0-then-tiny-1") == 1


@pytest.fixture(scope="module")
def three_stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose balanced point asks up to three variants, one after the other."""
    repository = tiny_repository(tmp_path_factory.mktemp("three") / "repo", variants=3)
    frontier = repository.frontier
    cascade = frontier.plan_of("balanced")
    rule = cascade.stages[0].rule
    stages = (
        *(Stage(variant=name, rule=rule) for name in ("tiny-0", "tiny-1")),
        Stage(variant="tiny-2"),
    )
    longer = cascade.model_copy(
        update={
            "stages": stages,
            "accuracy": tuple(
                accuracy.model_copy(update={"escalated": (0.4, 0.2)}) for accuracy in cascade.accuracy
            ),
        }
    )
    plans = tuple(longer if plan.name == cascade.name else plan for plan in frontier.plans)
    publish.publish(repository.root, frontier.model_copy(update={"plans": plans}), {})
    return repository.root


@pytest.mark.parametrize(
    ("rows", "asked"),
    [
        ((SURE, SURE), ["tiny-0"]),
        ((DOUBTFUL, SURE), ["tiny-0", "tiny-1"]),
        ((DOUBTFUL, DOUBTFUL), ["tiny-0", "tiny-1", "tiny-2"]),
    ],
)
async def test_a_plan_of_three_stages_stops_where_an_answer_is_sure(
    three_stages: Path, frame: bytes, rows: tuple[NDArray[np.float32], ...], asked: list[str]
) -> None:
    """Each stage's rule looks at its own answer; the last stage is asked only when both before it doubt."""
    engine = FakeEngine(rows={"tiny-0": rows[0], "tiny-1": rows[1], "tiny-2": LARGE})
    bench = Bench(three_stages)
    given = await answer(bench(engine), frame)
    assert [stage.variant for stage in given.stages] == asked == engine.calls
    assert given.escalated is (len(asked) > 1)
    bench.built[0].close()


async def test_the_third_stage_alone_is_cut_when_time_is_short(three_stages: Path, frame: bytes) -> None:
    """After two stages 8 ms are left and the third needs 18: the second answer goes out, marked."""
    clock = FakeClock()
    engine = FakeEngine(
        rows={"tiny-0": DOUBTFUL, "tiny-1": DOUBTFUL, "tiny-2": LARGE},
        latency_ms={"tiny-0": 2.0, "tiny-1": 6.0, "tiny-2": 18.0},
        sleep=clock.sleep,
    )
    bench = Bench(three_stages)
    given = await answer(bench(engine, clock=clock), frame, budget_ms=16.0, now_ns=clock.now_ns())
    assert engine.calls == ["tiny-0", "tiny-1"]
    assert given.cut is not None
    assert (given.cut.stage, given.cut.reason) == ("tiny-2", "deadline")
    assert given.left_ms == pytest.approx(8.0)
    bench.built[0].close()


async def test_a_named_operating_point_is_honoured(bench: Bench, frame: bytes) -> None:
    """Whoever asks for the accurate point gets its plan."""
    given = await answer(bench(), frame, point="accurate")
    assert (given.operating_point, given.plan.name) == ("accurate", "tiny-1")


async def test_an_unknown_operating_point_is_named_with_those_known(bench: Bench, frame: bytes) -> None:
    """The error lists what is published."""
    with pytest.raises(UnknownOperatingPoint, match="'nope'; known are fast, balanced, accurate"):
        await ask(bench(), frame, point="nope")


async def test_a_stage_that_does_not_fit_is_cut_and_the_answer_marked(bench: Bench, frame: bytes) -> None:
    """A slow first stage leaves too little for the second: the answer in hand goes out in time."""
    clock = FakeClock()
    engine = FakeEngine(
        rows={"tiny-0": DOUBTFUL, "tiny-1": LARGE},
        latency_ms={"tiny-0": 6.0, "tiny-1": 6.0},
        sleep=clock.sleep,
    )
    gateway = bench(engine, clock=clock)
    given = await answer(gateway, frame, budget_ms=12.0, now_ns=clock.now_ns())
    assert engine.calls == ["tiny-0"]
    assert given.cut is not None
    assert (given.cut.stage, given.cut.reason) == ("tiny-1", "deadline")
    assert given.left_ms == pytest.approx(6.0)
    assert given.certificate is None
    assert sample(gateway, "paretogate_cut_stages_total", variant="tiny-1", reason="deadline") == 1


async def test_a_plan_that_cannot_start_is_replaced_by_a_cheaper_one(bench: Bench, frame: bytes) -> None:
    """The accurate plan needs more than 6 ms; with 5 ms left the fast model answers, marked."""
    given = await answer(bench(clock=FakeClock()), frame, 5.0, "accurate", now_ns=FakeClock().now_ns())
    assert given.operating_point == "accurate"
    assert given.stages[0].variant == "tiny-0"
    assert given.cut is not None
    assert given.cut.plan == "tiny-1"


async def test_a_hopeless_budget_is_refused_before_any_work(bench: Bench, frame: bytes) -> None:
    """What even the fastest plan cannot answer in time is refused at once."""
    clock, engine = FakeClock(), FakeEngine()
    with pytest.raises(UnmeetableBudget, match=r"1\.0 ms are left"):
        await ask(bench(engine, clock=clock), frame, 1.0, now_ns=clock.now_ns())
    assert engine.calls == []


@pytest.mark.parametrize(
    ("point", "min_map", "waiting_ms", "expected"),
    [
        (None, None, 15.0, "tiny-0"),
        (None, None, 500.0, CASCADE),
        (CASCADE_POINT, None, 15.0, CASCADE),
        (None, 0.55, 15.0, CASCADE),
    ],
)
async def test_a_frame_gives_way_to_those_behind_it(
    bench: Bench, frame: bytes, point: str | None, min_map: float | None, waiting_ms: float, expected: str
) -> None:
    """At its turn, when who waits has little time, and unless its sender asked for more."""
    clock, held = FakeClock(), Held()
    gateway = bench(FakeEngine(rows={"tiny-0": held, "tiny-1": LARGE}), clock=clock)
    running = asyncio.create_task(ask(gateway, frame, point="fast"))
    await held.wait_until_busy()
    now_ns = clock.now_ns()
    first = asyncio.create_task(ask(gateway, frame, 14.0, point, min_map=min_map, now_ns=now_ns))
    await asyncio.sleep(0)
    behind = asyncio.create_task(ask(gateway, frame, waiting_ms, "fast", now_ns=now_ns))
    await asyncio.sleep(0)
    held.open()
    given, *_ = await asyncio.gather(first, running, behind)
    assert isinstance(given, Answer)
    assert given.plan.name == expected


async def test_a_budget_that_the_queue_eats_is_shed(bench: Bench, frame: bytes) -> None:
    """Behind a busy worker a tight budget is load's fault: shed at once, with a time to come back."""
    clock, held = FakeClock(), Held()
    gateway = bench(FakeEngine(rows={"tiny-0": held}), clock=clock)
    running = asyncio.create_task(ask(gateway, frame, point="fast"))
    await held.wait_until_busy()
    shed = await ask(gateway, frame, budget_ms=5.0, now_ns=clock.now_ns())
    assert isinstance(shed, Shed)
    assert shed.retry_after_s > 0
    held.open()
    assert isinstance(await running, Answer)


async def test_a_wait_longer_than_predicted_ends_in_shedding_not_in_a_late_answer(
    bench: Bench, frame: bytes
) -> None:
    """Work whose budget was spent in the queue is not begun."""
    clock, held = FakeClock(), Held()
    engine = FakeEngine(rows={"tiny-0": held})
    gateway = bench(engine, clock=clock)
    running = asyncio.create_task(ask(gateway, frame, point="fast"))
    await held.wait_until_busy()
    queued = asyncio.create_task(ask(gateway, frame, budget_ms=50.0, now_ns=clock.now_ns()))
    await asyncio.sleep(0)
    clock.sleep(0.049)
    held.open()
    await running
    assert isinstance(await queued, Shed)
    assert engine.calls == ["tiny-0"]


async def test_a_full_gateway_sheds(bench: Bench, frame: bytes) -> None:
    """With no room to wait, a second request is shed while the first one runs."""
    held = Held()
    gateway = bench(FakeEngine(rows={"tiny-0": held}), max_queue=0)
    running = asyncio.create_task(ask(gateway, frame, point="fast"))
    await held.wait_until_busy()
    assert isinstance(await ask(gateway, frame), Shed)
    held.open()
    assert isinstance(await running, Answer)
    assert gateway.service.state().inside == 0


async def test_a_sender_who_leaves_the_queue_costs_no_work(bench: Bench, frame: bytes) -> None:
    """Cancelled while queued: the engine never sees it, and its place is free."""
    held = Held()
    engine = FakeEngine(rows={"tiny-0": held})
    gateway = bench(engine)
    running = asyncio.create_task(ask(gateway, frame, point="fast"))
    await held.wait_until_busy()
    queued = asyncio.create_task(ask(gateway, frame, point="fast"))
    await asyncio.sleep(0)
    queued.cancel()
    with pytest.raises(asyncio.CancelledError):
        await queued
    assert gateway.service.state().inside == 1
    held.open()
    await running
    assert engine.calls == ["tiny-0"]


async def test_a_sender_who_leaves_a_running_request_keeps_its_place_until_it_ends(
    bench: Bench, frame: bytes
) -> None:
    """A running inference is not taken back, but the next stage is not begun, and the permit comes back."""
    held = Held()
    engine = FakeEngine(rows={"tiny-0": held, "tiny-1": LARGE})
    gateway = bench(engine)
    running = asyncio.create_task(ask(gateway, frame, point="fast"))
    await held.wait_until_busy()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert gateway.service.state().inside == 1
    held.open()
    # The pool has one worker: once this is answered, the one before has ended.
    await answer(gateway, frame, point="accurate")
    assert gateway.service.state().inside == 0


async def test_later_stage_failure_leaves_the_answer_in_hand(bench: Bench, frame: bytes) -> None:
    """When the larger model fails, the fast answer goes out, marked with the engine as reason."""
    engine = FakeEngine(rows={"tiny-0": DOUBTFUL}, failures=deque([None, EngineUnavailable("gone")]))
    given = await answer(bench(engine), frame)
    assert given.cut is not None
    assert (given.cut.stage, given.cut.reason) == ("tiny-1", "engine")
    assert len(given.detections) == 2


async def test_first_stage_failures_make_the_engine_ill_until_a_probe_succeeds(
    bench: Bench, frame: bytes
) -> None:
    """Three failures in a row end readiness; a probe that runs restores it."""
    engine = FakeEngine(failures=deque([EngineUnavailable("gone")] * 4))
    gateway = bench(engine)
    for _ in range(3):
        with pytest.raises(EngineFailed, match="gone"):
            await ask(gateway, frame, point="fast")
    assert not gateway.service.ready
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    assert not await gateway.service.probe(image)
    assert await gateway.service.probe(image)
    assert gateway.service.ready


async def test_a_busy_engine_is_well(bench: Bench, frame: bytes) -> None:
    """An engine whose queue is full fails a request and cuts a stage, however often, and readiness stays."""
    full = EngineBusy("queue full")
    engine = FakeEngine(rows={"tiny-0": DOUBTFUL}, failures=deque([full] * 4 + [None, full] * 4))
    gateway = bench(engine)
    for _ in range(4):
        with pytest.raises(EngineFailed, match="queue full"):
            await ask(gateway, frame, point="fast")
    assert gateway.service.ready, "after failures alone"
    for _ in range(4):
        given = await answer(gateway, frame)
        assert given.cut is not None
        assert given.cut.reason == "engine"
    assert gateway.service.ready, "after stages cut in a row"


async def test_an_engine_that_uses_up_the_budget_is_load(bench: Bench, frame: bytes) -> None:
    """A first stage that times out with the budget spent is shed, not failed."""
    clock = FakeClock()

    def slow(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        del frames
        clock.sleep(1.0)
        raise EngineTimeout("too slow")

    shed = await ask(
        bench(FakeEngine(rows={"tiny-0": slow}), clock=clock), frame, 50.0, "fast", now_ns=clock.now_ns()
    )
    assert isinstance(shed, Shed)


async def test_drift_voids_the_certificate(tmp_path: Path, bench: Bench, frame: bytes) -> None:
    """While frames are not like those of calibration, answers carry no certificate and metrics say so."""
    repository = tiny_repository(tmp_path / "repo")
    certificate = Certificate(loss="misses", images=99, epsilon=0.1, delta=0.05, bound=0.1, empirical=0.0)
    width = len(TRACKED) + len(repository.frontier.dataset.classes)
    frontier = repository.frontier.model_copy(
        update={
            "plans": tuple(
                plan.model_copy(update={"certificate": certificate}) for plan in repository.frontier.plans
            ),
            "references": (
                Reference(variant="tiny-0", images=9, mean=(50.0,) * width, spread=(1.0,) * width),
            ),
        }
    )
    publish.publish(repository.root, frontier, {})
    clock = FakeClock()
    gateway = bench(repo=repository.root, clock=clock)
    certified: list[bool] = []
    for _ in range(30):
        found = await ask(gateway, frame, point="fast")
        assert isinstance(found, Answer)
        certified.append(found.certificate is not None)
        clock.sleep(1.0)
    assert certified[0]
    assert not certified[-1]
    assert sample(gateway, "paretogate_certificate_valid", plan="tiny-0") == 0
    assert sample(gateway, "paretogate_drift_alarm", subject="tiny-0", signal="score_0") == 1
    uncertain = await ask(gateway, frame, point="accurate")
    assert isinstance(uncertain, Answer)
    assert uncertain.certificate is not None, "it does not begin with the variant that drifts"


async def test_idle_workers_check_a_share_of_early_answers(bench: Bench, frame: bytes) -> None:
    """The last stage looks at early answers when nobody waits; how far they differ is told to metrics."""
    same = rows_of((0, 0, 32, 32, 0.95, 0))  # the larger model sees the frame at twice the size
    engine = FakeEngine(rows={"tiny-0": SURE, "tiny-1": same})
    gateway = bench(engine, shadow_share=1.0)
    for _ in range(3):
        found = await ask(gateway, frame, point="balanced")
        assert isinstance(found, Answer)
        assert [stage.variant for stage in found.stages] == ["tiny-0"]
        await until(lambda: gateway.service.serving.inside == 0)
    assert engine.calls == ["tiny-0", "tiny-1"] * 3
    assert sample(gateway, "paretogate_shadow_disagreement_count", plan=CASCADE) == 3
    assert sample(gateway, "paretogate_shadow_disagreement_sum", plan=CASCADE) == 0
    engine.rows = {"tiny-0": SURE, "tiny-1": LARGE}
    await ask(gateway, frame, point="balanced")
    await until(lambda: gateway.service.serving.inside == 0)
    assert sample(gateway, "paretogate_shadow_disagreement_sum", plan=CASCADE) == 1


async def test_a_shadow_run_that_fails_harms_nobody(bench: Bench, frame: bytes) -> None:
    """An engine error in a shadow run leaves answers and readiness as they are."""
    engine = FakeEngine(rows={"tiny-0": SURE}, failures=deque([None, EngineUnavailable("no")]))
    gateway = bench(engine, shadow_share=1.0)
    assert isinstance(await ask(gateway, frame, point="balanced"), Answer)
    await until(lambda: gateway.service.serving.inside == 0)
    assert sample(gateway, "paretogate_shadow_disagreement_count", plan=CASCADE) == 0
    assert gateway.service.ready


async def test_a_least_accuracy_chooses_the_cheapest_point_that_has_it(bench: Bench, frame: bytes) -> None:
    """The point in force if it is accurate enough, else the cheapest that is; more than there is: refused."""
    gateway = bench(operating_point="fast")
    for least, expected in ((0.4, "fast"), (0.55, "accurate")):
        found = await ask(gateway, frame, min_map=least)
        assert isinstance(found, Answer)
        assert found.operating_point == expected
    with pytest.raises(UnmeetableAccuracy, match=r"with 0\.6"):
        await ask(gateway, frame, min_map=0.7)


async def test_bad_frames_are_the_senders_fault(bench: Bench, frame: bytes) -> None:
    """Truncated, foreign and oversized images are rejected and leave no permit behind."""
    gateway = bench(max_pixels=64 * 64)
    large = encode_image(np.zeros((65, 64, 3), dtype=np.uint8))
    for content, error in (
        (frame[:40], BrokenImage),
        (b"", BrokenImage),
        (b"GIF89a", UnsupportedType),
        (large, TooLarge),
    ):
        with pytest.raises(error):
            await ask(gateway, content)
    assert gateway.service.state().inside == 0


async def test_a_closing_gateway_refuses(bench: Bench, frame: bytes) -> None:
    """After its pool is closed the service is not ready and says so."""
    gateway = bench()
    gateway.service.drain()
    assert not gateway.service.ready
    assert isinstance(await ask(gateway, frame), Answer)
    await asyncio.to_thread(gateway.pool.close)
    with pytest.raises(NotReady):
        await ask(gateway, frame)


async def test_non_square_frames_are_answered_in_their_own_pixels(bench: Bench) -> None:
    """Boxes come back in the pixels of the sent image, clipped to it."""
    wide = encode_image(np.zeros((32, 128, 3), dtype=np.uint8))
    given = await answer(bench(FakeEngine(rows={"tiny-0": SURE})), wide, point="fast")
    assert given.image_wh == (128, 32)
    assert given.detections.xyxy.tolist() == [[0, 0, 32, 32]]


async def test_what_waits_to_be_learnt_is_learnt_though_nobody_else_is_answered(
    bench: Bench, frame: bytes
) -> None:
    """It is put off until there is more of it, but not for ever."""
    gateway = bench()
    await gateway.service.detect(frame, Deadline.none(), Wishes("fast"), arrived_ns=0)
    assert sample(gateway, "paretogate_decode_seconds_count") == 0
    await until(lambda: sample(gateway, "paretogate_decode_seconds_count") == 1)
    assert gateway.service.serving.inside == 0
