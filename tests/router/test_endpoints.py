"""Several servers as one engine."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from model_repo.frontier import Variant
from model_repo.publish import Repository
from model_repo.runtime.engine import EngineBusy, EngineTimeout, EngineUnavailable, UnknownVariant
from router.endpoints import Endpoints
from tests.fakes import FakeClock, FakeEngine, rows_of
from tests.router.conftest import SURE

FRAMES = np.zeros((1, 64, 64, 3), dtype=np.uint8)
GONE = EngineUnavailable("connection refused")


@pytest.fixture
def variant(repository: Repository) -> Variant:
    return repository.frontier.variant("tiny-0")


def pair(clock: FakeClock | None = None) -> tuple[FakeEngine, FakeEngine, Endpoints]:
    """Return two servers and the engine over them, on a clock of the test's own."""
    time = clock or FakeClock()
    first, second = (FakeEngine(rows={"tiny-0": SURE}, sleep=time.sleep, parallelism=2) for _ in range(2))
    both = Endpoints({"a": first, "b": second}, now_s=lambda: time.now_ns() / 1e9)
    return first, second, both


def well(endpoints: Endpoints) -> dict[str, bool]:
    return {state.name: state.well for state in endpoints.states()}


def test_they_are_used_as_one(variant: Variant) -> None:
    """Loading reaches all, parallelism adds up, answers come from either."""
    first, second, both = pair()
    both.load(Path(), variant)
    assert set(first.loaded) == set(second.loaded) == {variant.folder}
    assert both.parallelism == 4
    np.testing.assert_array_equal(both.infer(variant, FRAMES).rows, SURE)
    both.unload(variant)
    assert not first.loaded
    assert not second.loaded
    with pytest.raises(UnknownVariant):
        both.infer(variant, FRAMES)


def test_the_least_busy_is_asked(variant: Variant) -> None:
    """While one endpoint holds a call, the others get the next ones."""
    first, second, both = pair()
    gate = threading.Barrier(2)

    def wait(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        del frames
        gate.wait(30)
        return SURE

    both.load(Path(), variant)
    first.rows = second.rows = {"tiny-0": wait}
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda _: both.infer(variant, FRAMES), range(2)))
    assert (first.calls, second.calls) == (["tiny-0"], ["tiny-0"])


def test_a_failed_call_is_tried_elsewhere(variant: Variant) -> None:
    """One endpoint that fails costs no answer; when all fail, the error names each."""
    first, second, both = pair()
    both.load(Path(), variant)
    first.failures = deque([GONE])
    np.testing.assert_array_equal(both.infer(variant, FRAMES).rows, SURE)
    assert (len(first.calls), len(second.calls)) == (1, 1)
    first.failures, second.failures = deque([GONE] * 2), deque([GONE] * 2)
    with pytest.raises(EngineUnavailable, match=r"a: connection refused; b: connection refused"):
        both.infer(variant, FRAMES)


def test_one_that_keeps_failing_is_left_alone_and_comes_back(variant: Variant) -> None:
    """After failures in a row no call goes there until the pause is over; a success closes the circuit."""
    clock = FakeClock()
    first, second, both = pair(clock)
    both.load(Path(), variant)
    first.failures = deque([GONE] * 4)
    while well(both)["a"]:
        both.infer(variant, FRAMES)
    asked = len(first.calls)
    for _ in range(10):
        both.infer(variant, FRAMES)
    assert len(first.calls) == asked
    clock.sleep(0.3)
    both.infer(variant, FRAMES)
    assert len(first.calls) == asked + 1, "one trial, which failed"
    clock.sleep(0.3)
    both.infer(variant, FRAMES)
    assert len(first.calls) == asked + 1, "the pause has doubled"
    clock.sleep(0.3)
    both.infer(variant, FRAMES)
    assert well(both) == {"a": True, "b": True}
    assert second.calls


def test_a_busy_one_is_well(variant: Variant) -> None:
    """A full queue sends the call elsewhere, is not held against the endpoint, and costs no loading anew."""
    first, second, both = pair()
    both.load(Path(), variant)
    full = EngineBusy("queue full")
    for _ in range(5):
        first.failures, second.failures = deque([full]), deque([full])
        with pytest.raises(EngineBusy, match="queue full"):
            both.infer(variant, FRAMES)
    assert well(both) == {"a": True, "b": True}
    first.refuses = second.refuses = frozenset({"tiny-0"})
    first.failures = deque([full])
    np.testing.assert_array_equal(both.infer(variant, FRAMES).rows, SURE)
    np.testing.assert_array_equal(both.infer(variant, FRAMES).rows, SURE)
    assert well(both) == {"a": True, "b": True}


def test_a_server_that_lost_its_models_gets_them_again(variant: Variant) -> None:
    """A restarted server is asked to load before its first call."""
    first, second, both = pair()
    both.load(Path(), variant)
    second.failures = deque([GONE] * 50)
    first.loaded.clear()
    np.testing.assert_array_equal(both.infer(variant, FRAMES).rows, SURE)
    assert variant.folder in first.loaded


def test_one_that_is_away_at_the_start_is_taken_in_later(variant: Variant) -> None:
    """Loading succeeds with one endpoint; the other serves once it is back. With none it fails."""
    clock = FakeClock()
    first, second, both = pair(clock)
    first.refuses = frozenset({"tiny-0"})
    both.load(Path(), variant)
    assert not first.loaded
    first.refuses = frozenset()
    for _ in range(8):
        both.infer(variant, FRAMES)
        clock.sleep(1.0)
    assert first.calls
    second.refuses = first.refuses = frozenset({"tiny-0"})
    both.unload(variant)
    with pytest.raises(EngineUnavailable, match="no endpoint answers"):
        both.load(Path(), variant)


def test_the_budget_bounds_all_tries_together(variant: Variant) -> None:
    """When the time is up there is no further try, and the error says that it was time."""
    clock = FakeClock()
    first, second, both = pair(clock)
    both.load(Path(), variant)
    first.latency_ms = second.latency_ms = {"tiny-0": 500.0}
    with pytest.raises(EngineTimeout):
        both.infer(variant, FRAMES, timeout_s=0.05)
    assert len(first.calls) + len(second.calls) == 1


def test_a_trial_leaves_time_for_another(variant: Variant) -> None:
    """A call that tries a hanging endpoint again is still answered by the other within its budget."""
    clock = FakeClock()
    first, second, both = pair(clock)
    both.load(Path(), variant)
    first.failures = deque([GONE] * 3)
    while well(both)["a"]:
        both.infer(variant, FRAMES)
    clock.sleep(1.0)
    first.latency_ms = {"tiny-0": 60_000.0}
    np.testing.assert_array_equal(both.infer(variant, FRAMES, timeout_s=0.1).rows, SURE)
    assert first.calls[-1] == second.calls[-1] == "tiny-0"


def test_wrong_frames_are_the_callers_fault(variant: Variant) -> None:
    """A wrong shape is no failure of an endpoint."""
    _, _, both = pair()
    both.load(Path(), variant)
    for _ in range(5):
        with pytest.raises(ValueError, match="shape"):
            both.infer(variant, FRAMES[:, :32])
    assert well(both) == {"a": True, "b": True}
    assert all(state.in_flight == 0 for state in both.states())


def test_endpoints_are_of_one_runtime() -> None:
    """None, or different ones, are a mistake in words."""
    with pytest.raises(ValueError, match="at least one"):
        Endpoints({})
    with pytest.raises(ValueError, match="one runtime"):
        Endpoints({"a": FakeEngine(), "b": FakeEngine(name="triton", rows={"x": rows_of()})})
