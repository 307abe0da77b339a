"""The embedded engines keep the protocol, agree with each other, and so does the fake."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_repo.frontier import Variant
from model_repo.publish import Repository
from model_repo.runtime import select
from model_repo.runtime.engine import (
    Engine,
    EngineTimeout,
    EngineUnavailable,
    Tensors,
    UnknownVariant,
    answer_frame,
)
from model_repo.runtime.onnxruntime import OnnxRuntimeEngine
from model_repo.runtime.openvino import OpenVinoEngine
from tests.fakes import FakeClock, FakeEngine, Square, rows_of, squares_frame, tiny_repository

FRAME = squares_frame([Square(0, 1, 0), Square(2, 3, 1, 100)])
MakeEngine = Callable[[], Engine]
EMBEDDED: tuple[MakeEngine, ...] = (OpenVinoEngine, OnnxRuntimeEngine)
relaxed = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
EVERY: tuple[MakeEngine, ...] = (*EMBEDDED, FakeEngine)


@pytest.fixture(params=EMBEDDED)
def engine(request: pytest.FixtureRequest, repository: Repository) -> Iterator[Engine]:
    """Yield each embedded engine with both variants loaded."""
    made: Engine = request.param()
    for variant in repository.frontier.variants:
        made.load(repository.root, variant)
    yield made
    made.close()


def _zeros(variant: Variant, count: int = 1) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    width, height = variant.resolution_wh
    return np.zeros((count, height, width, 3), dtype=np.uint8)


def test_finds_what_is_in_the_frame(engine: Engine, repository: Repository) -> None:
    """Every variant finds both squares, in source pixels, whatever its own resolution."""
    for variant in repository.frontier.variants:
        found = answer_frame(engine, variant, FRAME).detections
        np.testing.assert_allclose(found.xyxy, [[0, 16, 16, 32], [32, 48, 48, 64]], atol=1e-3)
        np.testing.assert_array_equal(found.label, [0, 1])
        assert found.score[0] > found.score[1] > 0.3


@relaxed
@given(st.integers(0, 2**31), st.integers(0, 100), st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0)))
def test_rows_left_out_before_suppression_change_nothing_above_them(
    repository: Repository, seed: int, count: int, least: tuple[float, float]
) -> None:
    """Crowded boxes of two classes: leaving the low ones out first, or afterwards, is the same."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 40, (count, 2)).astype(np.float32)
    boxes = np.hstack((corner, corner + rng.integers(4, 24, (count, 2)), rng.random((count, 1))))
    rows = rows_of(*((*box, int(label)) for box, label in zip(boxes, rng.integers(0, 2, count), strict=True)))
    scores = np.array(least, dtype=np.float32)
    for variant in repository.frontier.variants:
        engine = FakeEngine(rows={variant.name: rows})
        engine.load(repository.root, variant)
        whole = answer_frame(engine, variant, FRAME).detections
        found = answer_frame(engine, variant, FRAME, least=scores).detections
        wanted = whole.select(whole.score >= scores[whole.label])
        np.testing.assert_array_equal(found.xyxy, wanted.xyxy)
        np.testing.assert_array_equal(found.score, wanted.score)
        np.testing.assert_array_equal(found.label, wanted.label)


def test_runtimes_agree(repository: Repository) -> None:
    """OpenVINO and ONNX Runtime give the same rows for the same frame."""
    variant = repository.frontier.variants[1]
    rows = []
    for make in EMBEDDED:
        engine = make()
        engine.load(repository.root, variant)
        found = answer_frame(engine, variant, FRAME).detections
        rows.append(np.c_[found.xyxy, found.score, found.label])
        engine.close()
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-4, atol=1e-4)


def test_several_frames_are_answered_one_by_one(engine: Engine, repository: Repository) -> None:
    """Rows of n frames are the rows of each frame alone."""
    variant = repository.frontier.variants[0]
    frames = np.stack([FRAME, np.zeros_like(FRAME), squares_frame([Square(3, 3, 1)])])
    together = engine.infer(variant, frames).rows
    assert together.shape == (3, 100, 6)
    for index, frame in enumerate(frames):
        np.testing.assert_array_equal(together[index], engine.infer(variant, frame[None]).rows[0])


def test_answers_are_copies(engine: Engine, repository: Repository) -> None:
    """A later inference does not change the rows of an earlier one."""
    variant = repository.frontier.variants[0]
    first = engine.infer(variant, FRAME[None]).rows
    kept = first.copy()
    engine.infer(variant, squares_frame([Square(1, 1, 0, 255)])[None])
    np.testing.assert_array_equal(first, kept)


def test_does_not_write_to_the_frame(engine: Engine, repository: Repository) -> None:
    """A read-only view of a frame is enough, contiguous or not."""
    wide = np.concatenate((FRAME, FRAME), axis=1)
    view = wide[:, :64]
    view.flags.writeable = False
    variant = repository.frontier.variants[0]
    rows = engine.infer(variant, view[None]).rows
    np.testing.assert_array_equal(rows, engine.infer(variant, FRAME[None]).rows)


def test_a_frame_may_be_a_view_of_bytes(engine: Engine, repository: Repository) -> None:
    """One that needs no resizing reaches the runtime as it is, and cannot be written to."""
    for variant in repository.frontier.variants:
        width, height = variant.resolution_wh
        frame = np.frombuffer(bytes(height * width * 3), np.uint8).reshape(height, width, 3)
        expected = answer_frame(engine, variant, frame.copy()).detections
        np.testing.assert_array_equal(answer_frame(engine, variant, frame).detections.score, expected.score)


@pytest.mark.parametrize("make", [OpenVinoEngine, OnnxRuntimeEngine])
def test_threads_may_call_at_once(
    make: type[OpenVinoEngine] | type[OnnxRuntimeEngine], repository: Repository
) -> None:
    """More threads than places get, each, the answer to their own frame."""
    engine = make(1, 2)
    variant = repository.frontier.variants[0]
    engine.load(repository.root, variant)
    cells = [Square(column, row, 0) for column, row in itertools.product(range(4), range(4))] * 4

    def answer(square: Square) -> bool:
        found = answer_frame(engine, variant, squares_frame([square])).detections
        return len(found) == 1 and found.xyxy[0, :2].tolist() == [square.column * 16, square.row * 16]

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(answer, cells))
    engine.close()


def test_an_inference_that_takes_too_long_is_cut(tmp_path: Path) -> None:
    """OpenVINO cancels what is not done in time, and answers the next call as if nothing had been."""
    repository = tiny_repository(tmp_path / "repository", 24)
    variant = repository.frontier.variants[-1]
    engine = OpenVinoEngine()
    engine.load(repository.root, variant)
    whole = engine.infer(variant, _zeros(variant, 2)).rows
    # A millisecond is not enough for two frames of 1536 pixels a side.
    for _ in range(3):
        with pytest.raises(EngineTimeout):
            engine.infer(variant, _zeros(variant, 2), timeout_s=0.0015)
    np.testing.assert_array_equal(engine.infer(variant, _zeros(variant, 2), timeout_s=60.0).rows, whole)
    engine.close()


def test_wait_for_a_place_is_bounded(repository: Repository) -> None:
    """A caller whose time is over before a place comes free gets EngineTimeout."""
    for engine in (OpenVinoEngine(), OnnxRuntimeEngine()):
        variant = repository.frontier.variants[0]
        engine.load(repository.root, variant)
        with pytest.raises(EngineTimeout):
            engine.infer(variant, _zeros(variant), timeout_s=0.0)
        assert len(engine.infer(variant, _zeros(variant), timeout_s=30.0).rows) == 1


@pytest.mark.parametrize("make", EVERY)
def test_unknown_variant(make: MakeEngine, repository: Repository) -> None:
    """What was not loaded, or was unloaded, is an unknown variant."""
    engine = make()
    variant = repository.frontier.variants[0]
    with pytest.raises(UnknownVariant):
        engine.infer(variant, _zeros(variant))
    engine.load(repository.root, variant)
    engine.unload(variant)
    engine.unload(variant)
    with pytest.raises(UnknownVariant):
        engine.infer(variant, _zeros(variant))
    engine.close()


@pytest.mark.parametrize("make", EVERY)
def test_wrong_frames(make: MakeEngine, repository: Repository) -> None:
    """Frames of another type, size, rank or number are a ValueError that says what is expected."""
    engine = make()
    variant = repository.frontier.variants[0]
    engine.load(repository.root, variant)
    good = _zeros(variant)
    for wrong in (good.astype(np.float32), good[0], good[:, :32], good[..., :1], good[:0]):
        with pytest.raises(ValueError, match="takes"):
            engine.infer(variant, wrong)  # type: ignore[arg-type]  # the wrong type is the point
    assert engine.infer(variant, good).rows.shape == (1, 100, 6)
    engine.close()


@pytest.mark.parametrize("make", EVERY)
def test_closed(make: MakeEngine, repository: Repository) -> None:
    """A closed engine is unavailable, and closing twice is harmless."""
    engine = make()
    variant = repository.frontier.variants[0]
    engine.load(repository.root, variant)
    engine.close()
    engine.close()
    with pytest.raises(EngineUnavailable):
        engine.infer(variant, _zeros(variant))
    with pytest.raises(EngineUnavailable):
        engine.load(repository.root, variant)


@pytest.mark.parametrize("make", EMBEDDED)
def test_refused_files(make: MakeEngine, repository: Repository, tmp_path: Path) -> None:
    """A missing file, one that is no model, and one of another signature are refused by name."""
    variant = repository.frontier.variants[0]
    segment = variant.segments[0]
    engine = make()
    with pytest.raises(EngineUnavailable, match=segment.file):
        engine.load(tmp_path / "nowhere", variant)
    broken = tmp_path / segment.file
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"not a model")
    with pytest.raises(EngineUnavailable, match=segment.file):
        engine.load(tmp_path, variant)
    renamed = segment.model_copy(update={"outputs": (segment.outputs[0].model_copy(update={"name": "x"}),)})
    with pytest.raises(EngineUnavailable, match="outputs"):
        engine.load(repository.root, variant.model_copy(update={"segments": (renamed,)}))
    engine.close()


def test_onnxruntime_has_no_bf16(repository: Repository) -> None:
    """A bf16 variant is refused by ONNX Runtime on the CPU and not run in another precision."""
    variant = repository.frontier.variants[0].model_copy(update={"precision": "bf16"})
    engine = OnnxRuntimeEngine()
    assert not select.supports("onnxruntime", "bf16")
    with pytest.raises(EngineUnavailable, match="bf16"):
        engine.load(repository.root, variant)
    engine.close()


def test_openvino_precision_is_explicit(repository: Repository) -> None:
    """A bf16 variant gives what bf16 rounds to where the CPU has it, an f32 one the exact scores."""
    if not select.supports("openvino", "bf16"):
        pytest.skip("this CPU has no bf16")
    variant = repository.frontier.variants[1]
    scores = []
    for precision in ("f32", "bf16"):
        engine = OpenVinoEngine()
        engine.load(repository.root, variant.model_copy(update={"precision": precision}))
        scores.append(answer_frame(engine, variant, FRAME).detections.score)
        engine.close()
    np.testing.assert_allclose(scores[0], scores[1], atol=0.02)


def test_chain_runs_only_what_has_not_run(tmp_path: Path) -> None:
    """With the trunk's outputs at hand the second variant answers as it would from the frame."""
    repository = tiny_repository(tmp_path / "repository", shared_trunk=True)
    first, second = repository.frontier.variants
    assert first.segments[0].sha256 == second.segments[0].sha256
    for make in EMBEDDED:
        engine = make()
        engine.load(repository.root, first)
        engine.load(repository.root, second)
        frames = np.stack([FRAME, squares_frame([Square(1, 1, 1)])])
        done = engine.infer(first, frames)
        assert set(done.segments) == {first.segments[0].sha256}
        alone = engine.infer(second, frames)
        from_trunk = engine.infer(second, frames, done=done.segments)
        np.testing.assert_array_equal(alone.rows, from_trunk.rows)
        # The trunk is taken from `done` and not run: another trunk's outputs change the answer.
        other: dict[str, Tensors] = {
            digest: {name: np.zeros_like(value) for name, value in tensors.items()}
            for digest, tensors in done.segments.items()
        }
        assert (engine.infer(second, frames, done=other).rows[..., 5] == -1).all()
        engine.close()


def test_select() -> None:
    """make_engine makes the engine that was asked for, and says what Triton needs."""
    for name in ("openvino", "onnxruntime"):
        engine = select.make_engine(name, parallelism=2)
        assert (engine.runtime, engine.parallelism) == (name, 2)
        assert engine.version[0].isdigit()
        engine.close()
    assert select.make_engine().runtime == select.default_runtime()
    with pytest.raises(ValueError, match="url"):
        select.make_engine("triton")
    with pytest.raises(ValueError, match="at least 1"):
        select.make_engine("openvino", threads=0)


def test_environment_names_the_machine() -> None:
    """The environment carries the processor and the versions that latencies depend on."""
    environment = select.environment()
    assert environment.machine
    assert environment.cores >= 1
    assert {"numpy", "openvino", "onnxruntime"} <= set(environment.libraries)


def test_fake_engine_follows_its_script(repository: Repository) -> None:
    """The fake gives its rows, spends its latency on the clock, fails on cue and times out."""
    clock = FakeClock()
    variant = repository.frontier.variants[0]
    engine = FakeEngine(
        rows={variant.name: rows_of((1, 2, 3, 4, 0.5, 1))},
        latency_ms={variant.name: 20.0},
        sleep=clock.sleep,
        failures=deque([EngineUnavailable("gone"), None]),
    )
    engine.load(repository.root, variant)
    start_ns = clock.now_ns()
    with pytest.raises(EngineUnavailable, match="gone"):
        engine.infer(variant, _zeros(variant))
    assert len(answer_frame(engine, variant, FRAME).detections) == 1
    assert clock.now_ns() - start_ns == 20_000_000
    with pytest.raises(EngineTimeout):
        engine.infer(variant, _zeros(variant), timeout_s=0.005)
    assert clock.now_ns() - start_ns == 25_000_000
    assert engine.calls == [variant.name] * 3
