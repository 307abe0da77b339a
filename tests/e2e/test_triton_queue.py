"""A real Triton takes batches, warms up, and keeps its queue policies as they are rendered."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient, InferenceServerException, InferInput

from model_repo import triton
from model_repo.frontier import Variant
from model_repo.publish import Repository, read
from model_repo.runtime.engine import Engine, EngineTimeout, EngineUnavailable
from model_repo.runtime.onnxruntime import OnnxRuntimeEngine
from model_repo.runtime.openvino import OpenVinoEngine
from model_repo.runtime.triton import TritonEngine
from model_repo.triton import Serving
from tests.e2e.triton_server import TritonServer, run_triton
from tests.fakes import Square, squares_frame, tiny_repository

_OBSERVED = """

import time

_execute = TritonPythonModel.execute


def _observed(self, requests):
    with open({log!r}, "a") as stream:
        stream.write(f"{{len(requests)}} {{requests[0].timeout()}}\\n")
    time.sleep({seconds})
    return _execute(self, requests)


TritonPythonModel.execute = _observed
"""


def observe(rendered: Path, log: Path, *, seconds: float = 0.0) -> None:
    """Have rendered models write how many requests they are given at a time, and take longer over them."""
    for source in rendered.glob("*/1/model.py"):
        source.write_text(source.read_text() + _OBSERVED.format(log=str(log), seconds=seconds))


@dataclass(frozen=True, slots=True)
class Run:
    """An execution of a model: requests that it was given, and the timeout of the first, 0 for none."""

    requests: int
    timeout_us: int


def runs(log: Path) -> list[Run]:
    return [Run(*map(int, line.split())) for line in log.read_text().splitlines()]


@dataclass(frozen=True, slots=True)
class Served:
    """Repositories whose models one server serves, and where the models say how many requests they got."""

    repositories: tuple[Repository, ...]
    server: TritonServer
    warmed_up: tuple[Run, ...]
    log: Path


def smallest_of_the_demo() -> Repository:
    whole = read(Path(__file__).parents[2] / "model_repo")
    smallest = min(whole.frontier.variants, key=lambda variant: variant.segments[0].bytes)
    return replace(whole, frontier=whole.frontier.model_copy(update={"variants": (smallest,)}))


def squares_of(cell: int, variant: Variant) -> NDArray[np.uint8]:
    square = Square(cell % 4, cell // 4, cell % 2, 80 + 10 * cell)
    return squares_frame([square], variant.resolution_wh)


@pytest.fixture(scope="module")
def batching(triton_env: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Yield a server with batches of up to 4: a tiny model and a real int8 one on OpenVINO, a chain on ONNX
    Runtime."""
    folder = tmp_path_factory.mktemp("batching")
    one = tiny_repository(folder / "one", 1)
    chain = tiny_repository(folder / "chain", 1, shared_trunk=True)
    int8 = smallest_of_the_demo()
    # Long enough for all requests of a test to be there before a batch that is not full begins.
    serving = Serving(batch=4, batch_wait_ms=500.0)
    rendered = triton.render_repository(one, "python", folder / "rendered", serving)
    onnxruntime = Serving(runtime="onnxruntime", batch=4, batch_wait_ms=500.0)
    for repository, how in ((chain, onnxruntime), (int8, serving)):
        more = triton.render_repository(repository, "python", folder / "more", how)
        for model in more.iterdir():
            model.rename(rendered / model.name)
    log = folder / "requests"
    observe(rendered, log)
    with run_triton(triton_env, rendered, folder / "log") as server:
        yield Served((one, chain, int8), server, tuple(runs(log)), log)


@pytest.mark.parametrize("which", [0, 1, 2], ids=["openvino", "chain on onnxruntime", "int8"])
def test_calls_at_once_are_answered_together(batching: Served, which: int) -> None:
    """Eight frames sent at once run in batches, and each caller gets the rows of the embedded engine."""
    repository = batching.repositories[which]
    variant = repository.frontier.variants[0]
    frames = [squares_of(cell, variant) for cell in range(8)]
    far: Engine = TritonEngine(batching.server.url, parallelism=8)
    near: Engine = OnnxRuntimeEngine() if which == 1 else OpenVinoEngine()
    for engine in (far, near):
        engine.load(repository.root, variant)
    before = len(runs(batching.log))
    together = threading.Barrier(8)

    def ask(frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        together.wait(30)
        return far.infer(variant, frame[None], timeout_s=30.0).rows

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, frames))
    for frame, rows in zip(frames, answers, strict=True):
        np.testing.assert_allclose(rows, near.infer(variant, frame[None]).rows, atol=1e-4)
    sizes = [run.requests for run in runs(batching.log)[before:]]
    assert sum(sizes) == 8
    assert 1 < max(sizes) <= 4
    far.close()
    near.close()


def test_instances_are_warm_before_they_are_ready(batching: Served) -> None:
    """Before the server was ready each model had run a single frame and a batch of the largest size."""
    assert Counter(run.requests for run in batching.warmed_up) == {1: 3, 4: 3}


def test_labels_are_loaded(batching: Served) -> None:
    """A model whose output names the file of its labels is served: Triton reads it when it loads."""
    client = InferenceServerClient(batching.server.url)
    for repository in batching.repositories:
        folder = repository.frontier.variants[0].folder
        config = client.get_model_config(folder).config
        assert config.output[0].label_filename == triton.LABELS
    client.close()


def outcomes(ask: Callable[[], object], count: int, *, apart_s: float = 0.0) -> Counter[str]:
    """Ask from so many threads, at once or one a while after the other; count answers and errors."""
    together = threading.Barrier(count)

    def once(place: int) -> str:
        together.wait(30)
        time.sleep(place * apart_s)
        try:
            ask()
        except (EngineTimeout, EngineUnavailable, InferenceServerException) as error:
            return f"{type(error).__name__}: {error}"
        return "answered"

    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(once, place) for place in range(count)]
        return Counter(future.result() for future in futures)


def frames_of(variant: Variant) -> NDArray[np.uint8]:
    width, height = variant.resolution_wh
    return np.zeros((1, height, width, 3), np.uint8)


def test_a_full_queue_and_one_that_is_too_slow(triton_env: Path, tmp_path: Path) -> None:
    """Whoever finds the queue full is turned away at once, who waits in it too long is dropped; both are
    errors of the engine, and neither is run. A queue needs no batches."""
    repository = tiny_repository(tmp_path / "repository", 1)
    variant = repository.frontier.variants[0]
    rendered = triton.render_repository(
        repository, "python", tmp_path / "rendered", Serving(queue_timeout_ms=100.0, max_queue=1)
    )
    log = tmp_path / "requests"
    observe(rendered, log, seconds=2.0)
    with run_triton(triton_env, rendered, tmp_path / "log") as server:
        engine = TritonEngine(server.url, parallelism=8)
        engine.load(repository.root, variant)
        before = len(runs(log))
        # While the first runs: one or two wait, and there is no room for the rest.
        found = outcomes(lambda: engine.infer(variant, frames_of(variant), timeout_s=30.0), 6, apart_s=0.2)
        full = sum(n for text, n in found.items() if "EngineBusy" in text and "queue size" in text)
        late = sum(n for text, n in found.items() if "EngineTimeout" in text and "expired" in text)
        assert full, found
        assert late, found
        assert found["answered"] == 6 - full - late, found
        assert len(runs(log)) - before == found["answered"]
        engine.close()


def test_a_requests_own_timeout_counts_in_the_queue(triton_env: Path, tmp_path: Path) -> None:
    """A request that says how long it can wait is dropped from the queue then, whatever the default is."""
    repository = tiny_repository(tmp_path / "repository", 1)
    variant = repository.frontier.variants[0]
    rendered = triton.render_repository(repository, "python", tmp_path / "rendered")
    log = tmp_path / "requests"
    observe(rendered, log, seconds=1.0)
    with run_triton(triton_env, rendered, tmp_path / "log") as server:
        client = InferenceServerClient(server.url)
        tensor = InferInput("frames", [1, 64, 64, 3], "UINT8")
        tensor.set_data_from_numpy(frames_of(variant))
        before = len(runs(log))
        found = outcomes(lambda: client.infer(variant.folder, [tensor], timeout=200_000), 6)
        late = sum(n for text, n in found.items() if "Request timeout expired" in text)
        assert late, found
        assert found["answered"] == 6 - late, found
        assert len(runs(log)) - before == found["answered"]

        # The engine says it for every call: its own clock is the first to ring, and nothing is run in vain.
        engine = TritonEngine(server.url, parallelism=6)
        engine.load(repository.root, variant)
        before = len(runs(log))
        found = outcomes(lambda: engine.infer(variant, frames_of(variant), timeout_s=1.5), 6)
        assert found["answered"] >= 1, found
        client.infer(variant.folder, [tensor])  # when it is answered, what waited before it is decided
        made = runs(log)[before:-1]
        assert len(made) < 6
        assert all(0 < run.timeout_us <= 1_500_000 for run in made)
        engine.close()
        client.close()
