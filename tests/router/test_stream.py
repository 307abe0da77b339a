"""Streams: the newest frame wins, and nothing piles up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from router.bootstrap import Gateway
from router.errors import MalformedRequest, NotReady, UnknownOperatingPoint
from router.execution import Answer
from router.http_body import SenderLeft
from router.reuse import blocks_of, difference
from router.stream import FrameStream, Result
from tests.fakes import FakeClock, FakeEngine, Square, encode_image, squares_frame
from tests.router.conftest import DOUBTFUL, LARGE, SURE, Bench, sample
from tests.router.test_service import Held, until

pytestmark = pytest.mark.anyio
FAST = {"X-Operating-Point": "fast"}


class Camera:
    """A stream of a gateway, its results, and the end of its frames."""

    def __init__(
        self,
        gateway: Gateway,
        said: Mapping[str, str] = FAST,
        send: Callable[[Result[Answer]], Awaitable[None]] | None = None,
    ) -> None:
        headers = {name.lower().encode(): [value.encode()] for name, value in said.items()}
        streams = gateway.streams
        self.results: list[Result[Answer]] = []
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def keep(result: Result[Answer]) -> None:
            self.results.append(result)

        self.stream: FrameStream[Answer] = streams.open(
            "grpc-stream", streams.wishes(headers), lambda answer, _: answer, send or keep
        )
        self.running = asyncio.create_task(self.stream.run(self._read()))

    def end(self) -> None:
        """Have no more frames."""
        self._end.set_result(None)

    def leave(self) -> None:
        """Lose the connection."""
        self._end.set_exception(SenderLeft())

    async def after(self, results: int) -> Result[Answer]:
        """Return the last of so many results."""
        await until(lambda: len(self.results) >= results)
        return self.results[-1]

    async def ended(self) -> list[Result[Answer]]:
        """End, and return all results."""
        self.end()
        await self.running
        return self.results

    async def _read(self) -> None:
        await self._end


def ended(gateway: Gateway, outcome: str) -> float:
    return sample(gateway, "paretogate_requests_total", protocol="grpc-stream", outcome=outcome)


async def test_the_newest_frame_takes_the_place_of_the_one_that_waits(bench: Bench, frame: bytes) -> None:
    """Of ten frames that come while the first is answered the last is answered next; eight are dropped."""
    held = Held()
    gateway = bench(FakeEngine(rows={"tiny-0": held}))
    camera = Camera(gateway)
    camera.stream.offer(frame, name="first")
    await held.wait_until_busy()
    for number in range(1, 10):
        camera.stream.offer(frame, name=str(number))
    held.open()
    results = await camera.ended()
    assert [(result.number, result.name, result.dropped) for result in results] == [
        (0, "first", 8),
        (9, "9", 8),
    ]
    assert (ended(gateway, "answered"), ended(gateway, "superseded")) == (2, 8)
    assert sample(gateway, "paretogate_streams", protocol="grpc-stream") == 0


async def test_nothing_is_begun_for_a_reader_who_does_not_read(bench: Bench, frame: bytes) -> None:
    """While a result cannot be sent the engine is asked for nothing more, and then for the newest frame."""
    engine = FakeEngine(rows={"tiny-0": SURE})
    gateway = bench(engine)
    readable, sent = asyncio.Event(), []

    async def send(result: Result[Answer]) -> None:
        await readable.wait()
        sent.append(result.number)

    camera = Camera(gateway, send=send)
    camera.stream.offer(frame)
    await until(lambda: ended(gateway, "answered") == 1)
    for _ in range(20):
        camera.stream.offer(frame)
        await asyncio.sleep(0)
    assert (len(engine.calls), camera.stream.dropped) == (1, 19)
    readable.set()
    await camera.ended()
    assert sent == [0, 20]
    assert len(engine.calls) == 2


@pytest.mark.parametrize(("content", "slug"), [(b"", "broken-image"), (b"GIF89a", "unsupported-type")])
async def test_a_broken_frame_fails_alone(bench: Bench, frame: bytes, content: bytes, slug: str) -> None:
    """Its result is a problem; the next frame is answered, with and without reuse."""
    for said in (FAST, {**FAST, "X-Reuse-Within": "4"}):
        camera = Camera(bench(), said)
        camera.stream.offer(content)
        await camera.after(1)
        camera.stream.offer(frame)
        broken, whole = await camera.ended()
        assert broken.problem is not None
        assert broken.problem.slug == slug
        assert whole.problem is None
        assert whole.written is not None


@pytest.mark.parametrize(
    ("stream_ms", "own_ms", "left_ms"), [("50", 20.0, 20), ("20", 50.0, 20), ("", None, None)]
)
async def test_the_smaller_of_two_budgets_wins(
    bench: Bench, frame: bytes, stream_ms: str, own_ms: float | None, left_ms: int | None
) -> None:
    """A frame's own and its stream's; both begin when the frame arrives."""
    clock = FakeClock()
    gateway = bench(clock=clock)
    camera = Camera(gateway, FAST | ({"X-Latency-Budget-Ms": stream_ms} if stream_ms else {}))
    clock.sleep(5.0)
    camera.stream.offer(frame, budget_ms=own_ms)
    answer = (await camera.ended())[0].written
    assert answer is not None
    assert answer.left_ms == (float("inf") if left_ms is None else left_ms)


async def test_the_budget_of_a_frame_counts_while_it_waits(bench: Bench, frame: bytes) -> None:
    """One whose budget was spent waiting is refused; its age is told."""
    clock, held = FakeClock(), Held()
    gateway = bench(FakeEngine(rows={"tiny-0": held}), clock=clock)
    camera = Camera(gateway)
    camera.stream.offer(frame)
    await held.wait_until_busy()
    camera.stream.offer(frame, budget_ms=30.0)
    clock.sleep(0.04)
    held.open()
    _, late = await camera.ended()
    assert late.problem is not None
    assert late.problem.slug == "unmeetable-budget"
    assert late.age_ms == 40


@pytest.mark.parametrize("budget_ms", [0.0, -1.0, float("nan"), float("inf"), 1e12])
async def test_an_impossible_budget_is_told(bench: Bench, frame: bytes, budget_ms: float) -> None:
    """Of that frame alone."""
    camera = Camera(bench())
    camera.stream.offer(frame, budget_ms=budget_ms)
    (result,) = await camera.ended()
    assert result.problem is not None
    assert (result.problem.slug, result.problem.status) == ("malformed-budget", 400)


async def test_a_sender_who_leaves_takes_his_frames_along(bench: Bench, frame: bytes) -> None:
    """What waits and what is queued never reaches the engine; each frame ends in one outcome."""
    held = Held()
    engine = FakeEngine(rows={"tiny-0": held})
    gateway = bench(engine)
    other, camera = Camera(gateway), Camera(gateway)
    other.stream.offer(frame)
    await held.wait_until_busy()
    camera.stream.offer(frame)
    await until(lambda: gateway.service.state().waiting == 1)
    camera.stream.offer(frame)
    camera.leave()
    with pytest.raises(SenderLeft):
        await camera.running
    held.open()
    await other.ended()
    assert engine.calls == ["tiny-0"]
    assert (ended(gateway, "cancelled"), ended(gateway, "answered")) == (2, 1)
    assert gateway.service.state().inside == 0


async def test_a_reader_who_is_gone_ends_the_stream(bench: Bench, frame: bytes) -> None:
    """What `send` raises comes out, and the stream does not count any more."""
    gateway = bench(max_streams=1)

    async def send(_: Result[Answer]) -> None:
        raise SenderLeft

    camera = Camera(gateway, send=send)
    camera.stream.offer(frame)
    with pytest.raises(SenderLeft):
        await camera.running
    assert (await Camera(gateway).ended()) == []


async def test_a_result_that_a_newer_one_has_overtaken_is_dropped(bench: Bench, frame: bytes) -> None:
    """With two frames in flight the older one's result is not sent after the newer one's."""
    held = Held()
    engine = FakeEngine(rows={"tiny-0": held, "tiny-1": LARGE})
    gateway = bench(engine, workers=2)
    camera = Camera(gateway, {"X-Stream-In-Flight": "2", "X-Operating-Point": "fast"})
    camera.stream.offer(frame)
    await held.wait_until_busy()
    engine.rows = {"tiny-0": SURE}
    camera.stream.offer(frame)
    assert (await camera.after(1)).number == 1
    held.open()
    results = await camera.ended()
    assert [result.number for result in results] == [1]
    assert camera.stream.dropped == 1


async def test_there_are_only_so_many_streams_and_none_when_the_gateway_stops(
    bench: Bench, frame: bytes
) -> None:
    """One more is refused; on draining, what was taken is answered and the stream ends by itself."""
    held = Held()
    gateway = bench(FakeEngine(rows={"tiny-0": held}), max_streams=1)
    camera = Camera(gateway)
    with pytest.raises(NotReady, match="1 streams are open, which is the limit"):
        Camera(gateway)
    camera.stream.offer(frame)
    await held.wait_until_busy()
    camera.stream.offer(frame)
    gateway.streams.drain()
    camera.stream.offer(frame)
    held.open()
    await camera.running
    assert [result.number for result in camera.results] == [0, 1]
    assert camera.stream.dropped == 1
    with pytest.raises(NotReady, match="shutting down"):
        Camera(gateway)


async def test_a_stream_without_frames_ends(bench: Bench, frame: bytes) -> None:
    """After a while, counted from its last frame; the one in flight is not disturbed."""
    clock = FakeClock()
    gateway = bench(clock=clock, stream_idle_s=10.0)
    camera = Camera(gateway)
    clock.sleep(9.0)
    camera.stream.offer(frame)
    await camera.after(1)
    clock.sleep(9.0)
    gateway.streams.sweep()
    await asyncio.sleep(0)
    assert not camera.running.done()
    clock.sleep(2.0)
    gateway.streams.sweep()
    await camera.running
    assert str(camera.stream.ended_by) == "no frame came for 10 s"


async def test_draining_waits_for_what_was_taken(bench: Bench, frame: bytes) -> None:
    """And no longer than it is told to."""
    held = Held()
    gateway = bench(FakeEngine(rows={"tiny-0": held}))
    camera = Camera(gateway)
    camera.stream.offer(frame)
    await held.wait_until_busy()
    gateway.streams.drain()
    await gateway.streams.drained(0.01)
    assert not camera.running.done()
    held.open()
    await gateway.streams.drained(30.0)
    assert [result.number for result in camera.results] == [0]


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        ({"X-Stream-In-Flight": "0"}, MalformedRequest, "X-Stream-In-Flight"),
        ({"X-Stream-In-Flight": "9"}, MalformedRequest, "X-Stream-In-Flight"),
        ({"X-Reuse-Within": "256"}, MalformedRequest, "X-Reuse-Within"),
        ({"X-Reuse-Within": "-1"}, MalformedRequest, "X-Reuse-Within"),
        ({"X-Operating-Point": "nope"}, UnknownOperatingPoint, "nope"),
        ({"X-Latency-Budget-Ms": "soon"}, MalformedRequest, "X-Latency-Budget-Ms"),
    ],
)
async def test_what_a_stream_cannot_ask_for_is_refused_at_once(
    bench: Bench, said: Mapping[str, str], error: type[Exception], words: str
) -> None:
    """Before its first frame; the message names the header."""
    with pytest.raises(error, match=words):
        Camera(bench(), said)


def scene(x: int = 0, level: int = 200) -> bytes:
    return encode_image(squares_frame([Square(x, 0, 0, level)]))


async def test_a_frame_that_looks_the_same_is_answered_without_the_engine(bench: Bench) -> None:
    """When the stream allows it; the result names the earlier frame and the difference, and it is counted."""
    engine = FakeEngine(rows={"tiny-0": SURE})
    gateway = bench(engine)
    camera = Camera(gateway, {**FAST, "X-Reuse-Within": "4"})
    for place, content in enumerate([scene(), scene(), scene(x=3), scene(x=3)]):
        camera.stream.offer(content)
        await camera.after(place + 1)
    results = await camera.ended()
    assert [None if r.reused is None else (r.reused.number, r.reused.difference) for r in results] == [
        None, (0, 0.0), None, (2, 0.0),
    ]  # fmt: skip
    assert all(result.written is not None for result in results)
    assert engine.calls == ["tiny-0", "tiny-0"]
    assert sample(gateway, "paretogate_reused_total", protocol="grpc-stream") == 2
    assert ended(gateway, "answered") == 4


async def test_no_answer_is_reused_unasked(bench: Bench) -> None:
    """Equal frames are all looked at."""
    engine = FakeEngine(rows={"tiny-0": SURE})
    camera = Camera(bench(engine))
    for place in range(3):
        camera.stream.offer(scene())
        await camera.after(place + 1)
    assert [result.reused for result in await camera.ended()] == [None] * 3
    assert len(engine.calls) == 3


async def test_slow_change_adds_up(bench: Bench) -> None:
    """A frame is compared with the one that was answered for, not with the one before."""
    engine = FakeEngine(rows={"tiny-0": SURE})
    camera = Camera(bench(engine), {**FAST, "X-Reuse-Within": "5"})
    for place, level in enumerate([200, 197, 194, 191, 188]):
        camera.stream.offer(scene(level=level))
        await camera.after(place + 1)
    reused = [None if result.reused is None else result.reused.number for result in await camera.ended()]
    assert reused == [None, 0, None, 2, None]


async def test_an_answer_is_reused_for_a_second(bench: Bench) -> None:
    """Then the engine looks again, whatever the frame looks like."""
    clock = FakeClock()
    engine = FakeEngine(rows={"tiny-0": SURE})
    camera = Camera(bench(engine, clock=clock), {**FAST, "X-Reuse-Within": "5"})
    for place in range(5):
        camera.stream.offer(scene())
        await camera.after(place + 1)
        clock.sleep(0.4)
    reused = [None if result.reused is None else result.reused.number for result in await camera.ended()]
    assert reused == [None, 0, 0, None, 3]


async def test_an_answer_that_lacks_a_stage_is_not_reused(bench: Bench) -> None:
    """The next frame, with more time, gets both stages."""
    clock = FakeClock()
    engine = FakeEngine(
        rows={"tiny-0": DOUBTFUL, "tiny-1": LARGE},
        latency_ms={"tiny-0": 2.0, "tiny-1": 6.0},
        sleep=clock.sleep,
    )
    camera = Camera(bench(engine, clock=clock), {"X-Operating-Point": "balanced", "X-Reuse-Within": "5"})
    camera.stream.offer(scene(), budget_ms=6.0)
    await camera.after(1)
    camera.stream.offer(scene())
    cut, whole = await camera.ended()
    assert cut.written is not None
    assert cut.written.cut is not None
    assert whole.reused is None
    assert whole.written is not None
    assert whole.written.cut is None


@given(
    wh=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 2**16),
    block=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    by=st.integers(1, 60),
)
def test_the_difference_is_that_of_the_most_different_block(
    wh: tuple[int, int], seed: int, block: tuple[int, int], by: int
) -> None:
    """A block that gets brighter by n differs by n, wherever it lies; and the same from both sides."""
    width, height = wh
    rng = np.random.default_rng(seed)
    image: NDArray[np.uint8] = rng.integers(0, 190, (height, width, 3), dtype=np.uint8)
    across, down = -(-width // 8), -(-height // 8)
    # Blocks are equal shares of the image: where it is no multiple of eight they are a little smaller.
    x, y = min(block[0], across - 1), min(block[1], down - 1)
    rows = slice(int(np.floor(y * height / down)), int(np.ceil((y + 1) * height / down)))
    columns = slice(int(np.floor(x * width / across)), int(np.ceil((x + 1) * width / across)))
    other = image.copy()
    other[rows, columns] += np.uint8(by)
    one, two = blocks_of(image), blocks_of(other)
    assert one.shape == (down, across, 3)
    assert difference(one, two) == difference(two, one) == pytest.approx(by, abs=1)
    assert difference(one, one) == 0
