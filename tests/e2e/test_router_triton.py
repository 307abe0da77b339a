"""Gateway and search in front of a real Triton that serves what was published for an embedded runtime."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from model_repo import triton
from model_repo.codec import encode
from model_repo.publish import MANIFEST, Repository, read
from model_repo.runtime.openvino import OpenVinoEngine
from model_repo.runtime.triton import TritonEngine
from router.client import GatewayClient, GatewayFailed, GatewayOverloaded, RequestRejected
from search.measure import latency_samples_ms, predictions
from search.run_folder import Silent
from tests.e2e.gateway_process import gateway_process
from tests.e2e.triton_server import TritonServer, run_triton
from tests.fakes import Square, encode_image, squares_frame, tiny_repository

IMAGE = squares_frame([Square(0, 0, 0), Square(2, 1, 1, 200)], (256, 192))


@dataclass(frozen=True, slots=True)
class Served:
    """A repository without a measurement on Triton, the folder rendered for it, and the Triton that serves
    it."""

    repository: Repository
    rendered: Path
    server: TritonServer


@pytest.fixture(scope="module")
def served(triton_env: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Publish for the embedded runtimes alone, render for the python platform, serve."""
    folder = tmp_path_factory.mktemp("router-triton")
    repository = tiny_repository(folder / "repository")
    frontier = repository.frontier
    embedded = frontier.model_copy(
        update={
            "variants": tuple(
                variant.model_copy(update={"measurements": (variant.on("openvino"),)})
                for variant in frontier.variants
            ),
            "plans": tuple(plan.model_copy(update={"engines": ("openvino",)}) for plan in frontier.plans),
        }
    )
    (repository.root / MANIFEST).write_text(encode(embedded))
    repository = read(repository.root)
    rendered = triton.render_repository(repository, "python", folder / "rendered")
    with run_triton(triton_env, rendered, folder / "log") as server:
        yield Served(repository, rendered, server)


def test_the_gateway_answers_alike_through_triton_and_embedded(served: Served) -> None:
    """Boxes, scores and plan are the same over either engine, for every operating point."""
    points = [point.name for point in served.repository.frontier.operating_points]
    through_triton = ("--runtime", "triton", "--triton-url", served.server.url, "--triton-runs", "openvino")
    answers = []
    for arguments in (through_triton, ("--runtime", "openvino")):
        with gateway_process(served.repository.root, *arguments) as gateway:
            with GatewayClient(gateway.url) as client:
                answers.append(
                    [client.detect(encode_image(IMAGE), operating_point=point) for point in points]
                )
                with pytest.raises(RequestRejected):
                    client.detect(b"no image")
            assert gateway.terminate() == 0
    for far, near in zip(*answers, strict=True):
        assert (far.plan, far.cut) == (near.plan, near.cut)
        ours, theirs = near.as_detections(), far.as_detections()
        assert len(ours) >= 2
        np.testing.assert_allclose(theirs.xyxy, ours.xyxy, atol=0.02)
        np.testing.assert_allclose(theirs.score, ours.score, atol=1e-4)
        np.testing.assert_array_equal(theirs.label, ours.label)


def test_servers_that_die_and_come_back(served: Served, triton_env: Path, tmp_path: Path) -> None:
    """One of two killed costs no answer; both gone, errors come within the budget; one back, all is well."""
    first, frame = served.server, encode_image(IMAGE)
    with run_triton(triton_env, served.rendered, tmp_path / "second.log") as other:
        urls = f"{other.url},{first.url}"
        options = ("--runtime", "triton", "--triton-url", urls, "--triton-runs", "openvino")
        with (
            gateway_process(served.repository.root, *options) as gateway,
            GatewayClient(gateway.url) as client,
        ):
            expected = client.detect(frame, operating_point="fast").as_detections()

            def ask() -> bool:
                """Ask once within a budget; say whether there was an answer, which must be the right one."""
                began_s = time.monotonic()
                try:
                    found = client.detect(frame, operating_point="fast", budget_ms=3_000).as_detections()
                except (GatewayFailed, GatewayOverloaded):
                    assert time.monotonic() - began_s < 4.0
                    return False
                np.testing.assert_allclose(found.xyxy, expected.xyxy, atol=0.02)
                return True

            other.kill()
            assert all(ask() for _ in range(30)), "the first one is there"
            os.killpg(first.pid, signal.SIGSTOP)
            try:
                assert not any(ask() for _ in range(4))
                port = int(other.url.rsplit(":", 1)[1])
                with run_triton(triton_env, served.rendered, tmp_path / "third.log", grpc_port=port):
                    give_up_s = time.monotonic() + 60.0
                    while not ask():
                        assert time.monotonic() < give_up_s, "it never came back"
                    assert all(ask() for _ in range(20)), "failures have stopped"
            finally:
                os.killpg(first.pid, signal.SIGCONT)
            assert gateway.terminate() == 0


def test_the_search_measures_on_triton_as_on_any_engine(served: Served) -> None:
    """Predictions through Triton are the embedded engine's, and its latency can be sampled."""
    engines = (TritonEngine(served.server.url), OpenVinoEngine())
    variants = served.repository.frontier.variants
    for engine in engines:
        for variant in variants:
            engine.load(served.repository.root, variant)
    for variant in variants:
        theirs, ours = (predictions(engine, variant, [IMAGE, IMAGE], Silent()) for engine in engines)
        for far, near in zip(theirs, ours, strict=True):
            np.testing.assert_allclose(far.xyxy, near.xyxy, atol=1e-3)
    samples = latency_samples_ms(engines[0], variants, [IMAGE], concurrency=1, samples=4, seed=0)
    assert set(samples) == {variant.name for variant in variants}
    assert all(len(values) >= 4 and values.min() > 0 for values in samples.values())
    for engine in engines:
        engine.close()
