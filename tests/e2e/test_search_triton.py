"""The search measures on a real Triton, to which it brings its models, and publishes what it measured."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient

from model_repo import triton
from model_repo.publish import read
from model_repo.runtime.engine import EngineUnavailable, UnknownVariant, answer_frame
from model_repo.runtime.openvino import OpenVinoEngine
from model_repo.runtime.triton_guest import TritonGuestEngine
from router.client import GatewayClient
from search.data.coco import read_dataset
from search.remeasure import remeasure
from search.run_folder import RunError, Silent
from search.targets import Targets
from tests.e2e.gateway_process import gateway_process
from tests.e2e.triton_server import TritonServer, run_triton
from tests.fakes import Square, squares_frame, tiny_repository
from tests.search.test_calibrate import squares_data
from tests.search.tiny import CHOICES, tiny_dataset

FRAME = squares_frame([Square(0, 1, 0), Square(2, 3, 1, 100)])


@dataclass(frozen=True, slots=True)
class Empty:
    """A Triton that loads what it is asked to, and the folder of its own models, which has none yet."""

    server: TritonServer
    models: Path

    def ready(self) -> set[str]:
        """Return the models that the server has ready, guests among them."""
        client = InferenceServerClient(self.server.url)
        try:
            return {model.name for model in client.get_inference_statistics().model_stats}
        finally:
            client.close()


@pytest.fixture(scope="module")
def empty(triton_env: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Empty]:
    folder = tmp_path_factory.mktemp("search-triton")
    models = folder / "models"
    models.mkdir()
    with run_triton(triton_env, models, folder / "log", control="explicit") as server:
        yield Empty(server, models)


def test_a_guest_answers_as_the_embedded_engine_does_and_leaves(empty: Empty, tmp_path: Path) -> None:
    """Variants are brought, a chain of segments too, answer alike, and nothing of them stays."""
    repository = tiny_repository(tmp_path / "repo", shared_trunk=True)
    guests = TritonGuestEngine(empty.server.url, "python", owner="a", parallelism=2)
    embedded = OpenVinoEngine()
    for variant in repository.frontier.variants:
        for engine in (guests, embedded):
            engine.load(repository.root, variant)
        theirs, ours = (answer_frame(engine, variant, FRAME).detections for engine in (guests, embedded))
        assert len(ours) == 2
        np.testing.assert_allclose(theirs.xyxy, ours.xyxy, atol=1e-3)
        np.testing.assert_allclose(theirs.score, ours.score, atol=1e-5)
    assert guests.device == f"triton {empty.server.url}, python"
    assert len(empty.ready()) == 2
    first, second = repository.frontier.variants
    guests.unload(first)
    with pytest.raises(UnknownVariant):
        answer_frame(guests, first, FRAME)
    assert len(answer_frame(guests, second, FRAME).detections) == 2
    guests.close()
    assert empty.ready() == set()
    with pytest.raises(EngineUnavailable, match="closed"):
        guests.load(repository.root, first)
    embedded.close()


def test_what_a_killed_search_left_is_taken_out_by_its_next_one(empty: Empty, tmp_path: Path) -> None:
    """An engine that was never closed leaves guests; the next of the same owner removes these alone."""
    repository = tiny_repository(tmp_path / "repo")
    first, second = repository.frontier.variants
    killed, other = (TritonGuestEngine(empty.server.url, "python", owner=owner) for owner in ("a", "b"))
    for engine in (killed, other):
        engine.load(repository.root, first)
    left = empty.ready()
    assert len(left) == 2
    again = TritonGuestEngine(empty.server.url, "python", owner="a")
    again.load(repository.root, second)
    assert len(empty.ready() & left) == 1
    assert len(answer_frame(other, first, FRAME).detections) == 2
    again.close()
    other.close()
    assert empty.ready() == set()


def test_a_server_that_takes_no_models_is_named(empty: Empty, triton_env: Path, tmp_path: Path) -> None:
    """A backend that it has not, and a control mode that is not explicit, are said by the target's check."""
    with pytest.raises(RunError, match=r"target triton: .*platform onnxruntime"):
        Targets(tmp_path, empty.server.url, "onnxruntime").check("triton")
    Targets(tmp_path, empty.server.url, "python").check("triton")
    assert empty.ready() == set()
    rendered = triton.render_repository(tiny_repository(tmp_path / "repo"), "python", tmp_path / "rendered")
    with (
        run_triton(triton_env, rendered, tmp_path / "log") as server,
        pytest.raises(RunError, match="--model-control-mode=explicit"),
    ):
        Targets(tmp_path, server.url, "python").check("triton")


def test_a_published_repository_is_measured_through_triton(empty: Empty, tmp_path: Path) -> None:
    """With an address `remeasure` renews Triton's profiles too, stamped with the server and its platform."""
    before = tiny_repository(tmp_path / "repo", mean_ms=500.0)
    data = read_dataset(squares_data(tmp_path / "data", {"test": 4}), needed=("test",))
    after = remeasure(before, data, Silent(), Targets(tmp_path, empty.server.url, "python"), samples=20)
    for variant in after.variants:
        for profile in variant.on("triton").latency:
            assert profile.mean_ms < 400.0
            assert profile.environment.device == f"triton {empty.server.url}, python"
        assert variant.on("openvino").latency[0].environment.device == "cpu"
    assert empty.ready() == set()


@pytest.mark.timeout(290)
def test_a_search_on_triton_is_served_by_a_gateway_in_front_of_it(empty: Empty, tmp_path: Path) -> None:
    """One command explores, judges int8, measures, tests and publishes on Triton; a gateway in front of the
    same server uses these measurements as they are."""
    data = tiny_dataset(tmp_path / "data", {"train": 12, "calib": 8, "valid": 6, "test": 4})
    command = [
        sys.executable, "-m", "search", "run", "--data", str(data), "--out", str(tmp_path / "run"),
        "--repo", str(tmp_path / "repo"),
        "--target", "triton", "--triton-url", empty.server.url, "--triton-platform", "python",
        "--precision", "f32", "--precision", "int8", "--latency-subnets", "4", "--space", json.dumps(CHOICES),
        "--steps", "4", "--batch-size", "4", "--candidates", "4", "--population", "2", "--search-images", "4",
        "--keep", "2", "--publish", "2", "--samples", "20", "--workers", "1", "--tune-steps", "0",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert empty.ready() == set()
    repository = read(tmp_path / "repo")
    device = f"triton {empty.server.url}, python"
    for variant in repository.frontier.variants:
        assert variant.runtimes == ("triton",)
        measured = variant.on("triton")
        assert {accuracy.split for accuracy in measured.accuracy} == {"valid", "calibration", "test"}
        assert [profile.concurrency for profile in measured.latency] == [1, 2]
        assert {profile.environment.device for profile in measured.latency} == {device}
    table = json.loads((tmp_path / "run" / "explore" / "latency_table.json").read_text())
    assert (table["runtime"], table["environment"]["device"]) == ("triton", device)

    rendered = triton.render_repository(repository, "python", tmp_path / "rendered")
    for folder in rendered.iterdir():
        shutil.copytree(folder, empty.models / folder.name)
    image = next((data / "test").glob("*.png")).read_bytes()
    options = ("--runtime", "triton", "--triton-url", empty.server.url, "--measure", "auto")
    with gateway_process(repository.root, *options) as gateway:
        with GatewayClient(gateway.url) as client:
            points = client.operating_points()
            assert (points.runtime, points.profiles) == ("triton", "published")
            assert client.detect(image).plan in {plan.name for plan in repository.frontier.plans}
        assert gateway.terminate() == 0
