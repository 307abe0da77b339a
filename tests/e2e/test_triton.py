"""A real Triton serves rendered repositories, and the Triton engine answers as the embedded one does."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from model_repo import triton
from model_repo.publish import Repository
from model_repo.runtime.engine import EngineTimeout, EngineUnavailable, UnknownVariant, answer_frame
from model_repo.runtime.openvino import OpenVinoEngine
from model_repo.runtime.select import make_engine
from model_repo.runtime.triton import TritonEngine
from tests.e2e.triton_server import TritonServer, run_triton
from tests.fakes import Square, squares_frame, tiny_repository

FRAME = squares_frame([Square(0, 1, 0), Square(2, 3, 1, 100), Square(3, 0, 0, 60)], (160, 160))


@dataclass(frozen=True, slots=True)
class Served:
    """A repository and the server that serves it."""

    repository: Repository
    server: TritonServer


@pytest.fixture(scope="module")
def served(triton_env: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Yield a server with both tiny variants rendered for the python platform."""
    folder = tmp_path_factory.mktemp("triton")
    repository = tiny_repository(folder / "repository")
    rendered = triton.render_repository(repository, "python", folder / "rendered")
    with run_triton(triton_env, rendered, folder / "log") as server:
        yield Served(repository, server)


@pytest.mark.parametrize("shared_memory", [False, True], ids=["wire", "shared-memory"])
def test_same_answers_as_embedded(served: Served, shared_memory: bool) -> None:
    """The same model gives the same detections through Triton as in the process."""
    near = make_engine("triton", url=served.server.url, parallelism=2, shared_memory=shared_memory)
    assert (near.runtime, near.version) == ("triton", "2.51.0")
    embedded = OpenVinoEngine()
    # The larger variant last: its frame needs a larger region than the one that was made before.
    for variant in served.repository.frontier.variants:
        for engine in (near, embedded):
            engine.load(served.repository.root, variant)
        ours = answer_frame(embedded, variant, FRAME, timeout_s=30.0).detections
        theirs = answer_frame(near, variant, FRAME, timeout_s=30.0).detections
        assert len(ours) == 3
        np.testing.assert_allclose(theirs.xyxy, ours.xyxy, atol=1e-3)
        np.testing.assert_allclose(theirs.score, ours.score, atol=1e-5)
        np.testing.assert_array_equal(theirs.label, ours.label)
    near.close()
    embedded.close()


def test_threads_get_their_own_answers(served: Served) -> None:
    """Several threads over fewer shared-memory places each get the answer to their own frame."""
    variant = served.repository.frontier.variants[0]
    engine = TritonEngine(served.server.url, parallelism=2, shared_memory=True)
    engine.load(served.repository.root, variant)

    def answer(cell: int) -> bool:
        found = answer_frame(engine, variant, squares_frame([Square(cell % 4, cell // 4, 0)])).detections
        return found.xyxy[:, :2].tolist() == [[cell % 4 * 16, cell // 4 * 16]]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(answer, range(16)))
    engine.close()


def test_several_frames(served: Served) -> None:
    """Frames are sent one by one and answered in order."""
    variant = served.repository.frontier.variants[0]
    engine = TritonEngine(served.server.url)
    engine.load(served.repository.root, variant)
    frames = np.stack([squares_frame([Square(1, 1, 0)]), squares_frame([]), squares_frame([Square(2, 2, 1)])])
    rows = engine.infer(variant, frames).rows
    assert [int((row[:, 5] >= 0).sum()) for row in rows] == [1, 0, 1]
    with pytest.raises(ValueError, match="takes"):
        engine.infer(variant, frames[:, :32])
    engine.close()


def test_unknown_and_different_models(served: Served) -> None:
    """A model that the server has not, or has with another signature, is refused when it is loaded."""
    variant = served.repository.frontier.variants[0]
    engine = TritonEngine(served.server.url)
    with pytest.raises(UnknownVariant):
        engine.infer(variant, np.zeros((1, 64, 64, 3), np.uint8))
    with pytest.raises(EngineUnavailable, match="tiny-0-00000000"):
        engine.load(served.repository.root, variant.model_copy(update={"folder": "tiny-0-00000000"}))
    with pytest.raises(EngineUnavailable, match="signature"):
        engine.load(served.repository.root, variant.model_copy(update={"resolution_wh": (32, 32)}))
    engine.close()
    with pytest.raises(EngineUnavailable, match="closed"):
        engine.load(served.repository.root, variant)


def test_deadline(served: Served) -> None:
    """An answer that cannot come in time is EngineTimeout, and the next call is answered."""
    variant = served.repository.frontier.variants[0]
    engine = TritonEngine(served.server.url, shared_memory=True)
    engine.load(served.repository.root, variant)
    frames = np.zeros((1, 64, 64, 3), np.uint8)
    for timeout_s in (0.0, 1e-4):
        with pytest.raises(EngineTimeout):
            engine.infer(variant, frames, timeout_s=timeout_s)
    assert len(engine.infer(variant, frames, timeout_s=30.0).rows) == 1
    engine.close()


def test_no_server() -> None:
    """Where nothing listens the engine is unavailable, at once."""
    engine = TritonEngine("127.0.0.1:9")
    with pytest.raises(EngineUnavailable):
        _ = engine.version
    engine.close()


def test_explicit_control_and_a_crash(triton_env: Path, tmp_path: Path) -> None:
    """The engine has the server load a chain, and a killed server is EngineUnavailable, not a wait."""
    repository = tiny_repository(tmp_path / "repository", 1, shared_trunk=True)
    variant = repository.frontier.variants[0]
    serving = triton.Serving(runtime="onnxruntime")
    rendered = triton.render_repository(repository, "python", tmp_path / "rendered", serving)
    with run_triton(triton_env, rendered, tmp_path / "log", control="explicit") as server:
        engine = TritonEngine(server.url, shared_memory=True)
        engine.load(repository.root, variant)
        found = answer_frame(engine, variant, FRAME).detections
        np.testing.assert_array_equal(found.label, [0, 1, 0])
        server.kill()
        for _ in range(2):
            with pytest.raises(EngineUnavailable):
                answer_frame(engine, variant, FRAME, timeout_s=10.0)
        engine.close()
