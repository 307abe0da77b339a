"""Building TensorRT's plans: what is built, kept and refused, and how TensorRT's builder is told."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from typer.testing import CliRunner

from model_repo import triton
from model_repo.publish import Repository
from search import tensorrt_builder as tensorrt_module
from search.__main__ import app
from search.build_engines import BuildRefused, Built, PlanRequest, build_plans
from search.run_folder import RunError, Silent
from search.tensorrt_builder import TensorRtBuilder, tensorrt_builder
from tests.fakes import tiny_repository
from tests.search import fake_tensorrt


@dataclass
class FakeBuilder:
    """Builds what is not refused: the plan is the file behind the number of the build."""

    version: str = "11.4.1"
    compute_capability: str = "8.9"
    refused: frozenset[bytes] = frozenset()
    requests: list[PlanRequest] = field(default_factory=list)

    def build(self, request: PlanRequest, note: Callable[[str], None]) -> Built:
        """Build one plan."""
        self.requests.append(request)
        note("half way")
        if request.onnx in self.refused:
            raise BuildRefused("no such layer")
        return Built(b"%d " % len(self.requests) + request.onnx, request.timing + b"+")


@dataclass
class Heard:
    """A progress that keeps what it hears."""

    notes: list[str] = field(default_factory=list)
    done: float = 0.0

    def start(self, description: str, total: float | None) -> None:
        """Keep the description."""
        self.notes.append(f"{description}: {total:g}")

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        """Keep the note."""
        self.done += amount
        self.notes.append(note)


@pytest.fixture
def published(tmp_path: Path) -> Repository:
    """Return a published repository of two models."""
    return tiny_repository(tmp_path / "repository")


@pytest.fixture
def rendered(published: Repository, tmp_path: Path) -> Path:
    """Return it rendered for TensorRT with batches of up to 4."""
    return triton.render_repository(published, "tensorrt", tmp_path / "rendered", triton.Serving(batch=4))


def models(rendered: Path) -> list[Path]:
    return sorted(path for path in rendered.iterdir() if path.is_dir())


def plan(model: Path, capability: str = "8.9") -> Path:
    return model / "1" / triton.plan_file(capability)


def test_every_plan_is_written_under_the_name_that_triton_looks_for(rendered: Path) -> None:
    """Each model gets the plan that its configuration names for this GPU, and the timing cache is kept."""
    builder, heard = FakeBuilder(), Heard()
    outcome = build_plans(rendered, builder, heard)
    names = [model.name for model in models(rendered)]
    assert outcome.built == tuple(names)
    assert (outcome.kept, outcome.refused) == ((), ())
    for model, request in zip(models(rendered), builder.requests, strict=True):
        config = triton.parse_config((model / triton.CONFIG).read_text())
        assert plan(model).name == config.cc_model_filenames["8.9"]
        assert plan(model).read_bytes().endswith(request.onnx)
        assert request.onnx == (model / "1" / "model.onnx").read_bytes()
        assert (request.name, request.batch) == ("frames", 4)
        assert request.frame_shape == tuple(config.input[0].dims)
    assert [request.timing for request in builder.requests] == [b"", b"+"]
    assert (rendered / "timing-sm89.cache").read_bytes() == b"++"
    assert heard.done == 2
    assert f"{names[0]}: half way" in heard.notes
    assert not list(rendered.rglob("*.tmp"))


def test_a_plan_that_is_up_to_date_is_kept(rendered: Path) -> None:
    """A second run builds nothing, and begins with what the first has measured when it has to build."""
    build_plans(rendered, FakeBuilder(), Silent())
    again = FakeBuilder()
    names = tuple(model.name for model in models(rendered))
    assert build_plans(rendered, again, Silent()).kept == names
    assert again.requests == []
    plan(models(rendered)[1]).unlink()
    outcome = build_plans(rendered, again, Silent())
    assert (outcome.built, outcome.kept) == (names[1:], names[:1])
    assert again.requests[0].timing == b"++"


@pytest.mark.parametrize("changed", ["onnx", "plan", "stamp", "version"])
def test_whatever_changed_is_built_again(rendered: Path, changed: str) -> None:
    """Another file, another TensorRT, a damaged plan or stamp: the plan is built anew."""
    build_plans(rendered, FakeBuilder(), Silent())
    first = models(rendered)[0]
    builder = FakeBuilder(version="11.5.0" if changed == "version" else "11.4.1")
    if changed == "onnx":
        (first / "1" / "model.onnx").write_bytes(b"another")
    elif changed == "plan":
        plan(first).write_bytes(b"half")
    elif changed == "stamp":
        Path(f"{plan(first)}.json").write_text("{")
    outcome = build_plans(rendered, builder, Silent())
    assert len(outcome.built) == (2 if changed == "version" else 1)
    assert plan(first).read_bytes() == b"1 " + (first / "1" / "model.onnx").read_bytes()


def test_a_refusal_does_not_stop_the_others(rendered: Path) -> None:
    """A model that TensorRT does not build is reported with the reason; the others have their plans."""
    first, second = models(rendered)
    builder = FakeBuilder(refused=frozenset({(first / "1" / "model.onnx").read_bytes()}))
    outcome = build_plans(rendered, builder, Silent())
    assert outcome.refused == ((first.name, "no such layer"),)
    assert outcome.built == (second.name,)
    assert not plan(first).exists()


def test_each_kind_of_gpu_has_its_own_plan(rendered: Path) -> None:
    """Plans for two GPUs lie side by side, each with its own timing cache."""
    for capability in ("8.9", "9.0"):
        outcome = build_plans(rendered, FakeBuilder(compute_capability=capability), Silent())
        assert len(outcome.built) == 2
    (first, _) = models(rendered)
    assert plan(first, "8.9").exists()
    assert plan(first, "9.0").exists()
    assert {path.name for path in rendered.glob("*.cache")} == {"timing-sm89.cache", "timing-sm90.cache"}


def test_what_does_not_fit_is_said_before_anything_is_built(
    rendered: Path, published: Repository, tmp_path: Path
) -> None:
    """Another GPU than expected or rendered for, another platform, no repository: one line each."""
    with pytest.raises(RunError, match=r"this GPU has 8\.9, not 9\.0"):
        build_plans(rendered, FakeBuilder(), Silent(), compute_capability="9.0")
    with pytest.raises(RunError, match=r"rendered for 10\.0.*--capability 7\.5"):
        build_plans(rendered, FakeBuilder(compute_capability="7.5"), Silent())
    other = triton.render_repository(published, "onnxruntime", tmp_path / "other")
    with pytest.raises(RunError, match="not rendered for TensorRT"):
        build_plans(other, FakeBuilder(), Silent())
    with pytest.raises(RunError, match="no such folder"):
        build_plans(tmp_path / "none", FakeBuilder(), Silent())
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="holds no model"):
        build_plans(tmp_path / "empty", FakeBuilder(), Silent())


@pytest.fixture
def package() -> Iterator[TensorRtBuilder]:
    """Return the real builder with a package of TensorRT's names behind it."""
    fake_tensorrt.Builder.configs.clear()
    yield TensorRtBuilder(fake_tensorrt, "8.9", workspace_bytes=1 << 20)
    fake_tensorrt.Builder.configs.clear()


def request(onnx: bytes = b"graph", *, batch: int = 1, timing: bytes = b"") -> PlanRequest:
    return PlanRequest(onnx, "frames", (64, 96, 3), batch, timing)


def test_tensorrt_is_told_the_batches(package: TensorRtBuilder) -> None:
    """A model with batches has one profile, from 1 to the largest, tuned for that; one without has none."""
    heard: list[str] = []
    assert package.build(request(batch=8), heard.append).plan == b"plan of graph"
    package.build(request(), heard.append)
    with_batches, without = fake_tensorrt.Builder.configs
    (profile,) = with_batches.profiles
    assert profile.shapes == {"frames": ((1, 64, 96, 3), (8, 64, 96, 3), (8, 64, 96, 3))}
    assert without.profiles == []
    assert with_batches.pools == {fake_tensorrt.MemoryPoolType.WORKSPACE: 1 << 20}
    assert heard[:2] == ["Building Engine 1 of 2", "Building Engine 2 of 2"]


def test_the_timing_cache_goes_on_or_begins_anew(package: TensorRtBuilder) -> None:
    """What fits is added to; a cache that TensorRT refuses is replaced."""
    first = package.build(request(), print)
    assert first.timing == b"timing-1"
    assert package.build(request(timing=first.timing), print).timing == b"timing-2"
    assert package.build(request(timing=b"of another version"), print).timing == b"timing-1"


def test_tensorrts_reasons_come_through(package: TensorRtBuilder) -> None:
    """What the parser or the builder says of a model is the reason of the refusal, for that model alone."""
    with pytest.raises(BuildRefused, match="INVALID_NODE"):
        package.build(request(fake_tensorrt.REFUSED_BY_PARSER), print)
    for _ in range(2):
        with pytest.raises(BuildRefused) as caught:
            package.build(request(fake_tensorrt.REFUSED_BY_BUILDER), print)
        assert str(caught.value) == "no implementation for node 7"


def test_a_gpu_that_tensorrt_does_not_take(package: TensorRtBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A builder that does not come about ends the command: no other model would fare better."""

    def fails(logger: fake_tensorrt.ILogger) -> None:
        logger.log(fake_tensorrt.ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("factory function returned nullptr")

    monkeypatch.setattr(fake_tensorrt, "Builder", fails)
    with pytest.raises(RunError, match="failure with error: 35"):
        package.build(request(), print)


def test_what_is_missing_is_one_line_and_status_two(rendered: Path) -> None:
    """Where there is no TensorRT or no GPU, the command says which and builds nothing."""
    done = subprocess.run(
        [sys.executable, "-m", "search", "build-engines", "--repo", str(rendered)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    if done.returncode == 0:
        pytest.skip("TensorRT and a GPU are here")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no plan is built: ")
    assert "Traceback" not in done.stderr
    assert not list(rendered.rglob("*.plan"))


def test_the_command_lists_what_became_of_each_model(rendered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It prints a line for every model, and ends with status 1 when one was refused."""
    first, second = models(rendered)
    refusing = FakeBuilder(refused=frozenset({(first / "1" / "model.onnx").read_bytes()}))
    monkeypatch.setattr(tensorrt_module, "tensorrt_builder", lambda workspace_bytes: refusing)
    done = CliRunner().invoke(app, ["build-engines", "--repo", str(rendered)])
    assert done.exit_code == 1
    assert f"built    {second.name}" in done.output
    assert f"refused  {first.name}: no such layer" in done.output
    assert "TensorRT 11.4.1, compute capability 8.9: 1 built, 0 kept, 1 refused" in done.output
    builds = FakeBuilder()
    monkeypatch.setattr(tensorrt_module, "tensorrt_builder", lambda workspace_bytes: builds)
    done = CliRunner().invoke(app, ["build-engines", "--repo", str(rendered), "--capability", "8.9"])
    assert done.exit_code == 0
    assert "1 built, 1 kept, 0 refused" in done.output


def test_a_real_plan(rendered: Path) -> None:
    """TensorRT, where it is, builds plans that it reads back, and keeps them the second time."""
    try:
        builder = tensorrt_builder()
    except RunError as error:
        pytest.skip(str(error))
    outcome = build_plans(rendered, builder, Silent())
    assert outcome.refused == ()
    trt = importlib.import_module("tensorrt")
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    for model in models(rendered):
        engine = runtime.deserialize_cuda_engine(plan(model, builder.compute_capability).read_bytes())
        names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
        assert names == {"frames", "detections"}
        assert list(engine.get_tensor_shape("detections")) == [-1, 100, 6]
        stamp = json.loads(Path(f"{plan(model, builder.compute_capability)}.json").read_text())
        assert stamp["tensorrt"] == trt.__version__
    assert build_plans(rendered, builder, Silent()).built == ()
