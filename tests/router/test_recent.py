"""Which recent frames are kept, and what keeping them costs."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from model_repo.frame import FrameLimits, decode
from router.budget import Deadline
from router.execution import Answer
from router.recent import EVERY_S, REST, RecentFrames
from router.wishes import Wishes
from tests.fakes import FakeClock, Square, encode_image, squares_frame
from tests.router.conftest import Bench
from tests.router.test_service import until

pytestmark = pytest.mark.anyio


async def answer_of(bench: Bench, image: bytes) -> Answer:
    """Return a real answer to a frame."""
    outcome = await bench().service.detect(image, Deadline.none(), Wishes(), arrived_ns=0)
    assert isinstance(outcome, Answer)
    return outcome


def recent(clock: FakeClock, most: int = 3) -> RecentFrames:
    """Return a place for a few frames."""
    return RecentFrames(clock, most, FrameLimits())


async def test_nothing_is_due_until_somebody_looks(bench: Bench, frame: bytes) -> None:
    """Then one frame in half a second is; an answer is passed on whether or not its frame is kept."""
    told: list[Answer] = []
    clock = FakeClock()
    frames, answer = recent(clock), await answer_of(bench, frame)
    assert not frames.due(clock.now_ns())
    frames.since(0)
    assert frames.due(clock.now_ns())
    both = [frames.keeping(frame, told.append) for _ in range(2)]
    for then in both:
        then(answer)
    assert told == [answer, answer]
    await until(lambda: not frames.busy)
    assert len(frames) == 1
    assert not frames.due(clock.now_ns())
    clock.sleep(EVERY_S)
    assert frames.due(clock.now_ns())


async def test_a_frame_without_an_answer_is_not_kept(frame: bytes) -> None:
    """The next one is due at once."""
    clock = FakeClock()
    frames = recent(clock)
    frames.since(0)
    frames.keeping(frame, lambda _: None)(ValueError("broken"))
    assert not frames.busy
    assert frames.due(clock.now_ns())


async def test_frames_that_take_long_are_followed_by_a_pause(
    bench: Bench, frame: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a core's time a twentieth at most goes into small pictures."""
    clock = FakeClock()
    frames, answer = recent(clock), await answer_of(bench, frame)

    def slow(data: bytes, limits: FrameLimits) -> np.ndarray:
        clock.sleep(0.4)
        return decode(data, limits)

    monkeypatch.setattr("router.recent.decode", slow)
    frames.since(0)
    frames.keeping(frame, lambda _: None)(answer)
    await until(lambda: not frames.busy)
    clock.sleep(0.4 * REST - 0.1)
    assert not frames.due(clock.now_ns())
    clock.sleep(0.2)
    assert frames.due(clock.now_ns())


async def test_pictures_are_small_and_keep_their_shape(bench: Bench) -> None:
    """The longer side has 320 pixels; pixels that came as such are taken as well."""
    clock = FakeClock()
    wide = squares_frame([Square(0, 0, 0)], (1280, 640))
    frames, answer = recent(clock), await answer_of(bench, encode_image(wide))
    frames.since(0)
    frames.keeping(wide, lambda _: None)(answer)
    await until(lambda: not frames.busy)
    (kept,) = frames.since(0)
    small = cv2.imdecode(np.frombuffer(kept.jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert small is not None
    assert small.shape == (160, 320, 3)
    assert kept.answer is answer


async def test_a_frame_that_cannot_be_made_small_is_left_out(
    bench: Bench, frame: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has the reason, and frames after it are kept."""
    clock = FakeClock()
    frames, answer = recent(clock), await answer_of(bench, frame)
    frames.since(0)
    frames.keeping(b"no image", lambda _: None)(answer)
    await until(lambda: not frames.busy)
    assert len(frames) == 0
    assert "could not be made small" in caplog.text
    clock.sleep(EVERY_S)
    frames.keeping(frame, lambda _: None)(answer)
    await until(lambda: not frames.busy)
    assert len(frames) == 1
