"""The runtimes that a search measures on: how each is reached, what it runs, and whether it is there.

Accuracy and latency belong to one artifact on one runtime, so every step gets its engines here. Most run in
this process, with one core for an inference; "triton" is a server, to which models are sent and from which
they are taken again (`model_repo.runtime.triton_guest`). Latencies there are a client's, gRPC included, and
their environment's device is the server's address and platform.
"""

from __future__ import annotations

import platform
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, get_args

import numpy as np

from model_repo.detections import MAX_ROWS, ROW_WIDTH
from model_repo.frontier import Variant
from model_repo.latency import Precision, RuntimeName
from model_repo.runtime.engine import Engine, EngineError, answer_frame
from model_repo.runtime.select import make_engine, supports
from search.artifacts import cores
from search.measure import place, unmeasured
from search.predict import read_table
from search.run_folder import RunError
from search.settings import TritonPlatform

if TYPE_CHECKING:
    from search.pipeline import Context

_TRITON_RUNS: Mapping[TritonPlatform, frozenset[Precision]] = {
    "onnxruntime": frozenset({"f32", "fp16", "int8"}),
    # Its backend computes f32 in whatever the server's processor is fastest in.
    "openvino": frozenset({"bf16", "int8"}),
    # bf16 is OpenVINO's only where the server's processor has it, which nobody here knows.
    "python": frozenset({"f32", "int8"}),
}
_PROBE_WH = (32, 32)


@dataclass(frozen=True, slots=True)
class Targets:
    """The runtimes within reach.

    folder: a run's or a repository's, on whose behalf models are sent to a Triton (one at a time for each).
    triton_url: host:port of its gRPC endpoint, None for none; triton_platform: the backend that models are
    rendered for. engine_cache: where TensorRT keeps the engines it builds, None to build them every time.
    """

    folder: Path
    triton_url: str | None = None
    triton_platform: TritonPlatform = "onnxruntime"
    engine_cache: Path | None = None

    @contextmanager
    def engine(self, runtime: RuntimeName, *, parallelism: int | None = None) -> Iterator[Engine]:
        """Yield a runtime's engine, one core for an inference, and close it afterwards.

        parallelism: inferences at once, None for as many as there are cores. What goes wrong with the
        runtime, here or while it is used, is a RunError that names it.
        """
        try:
            engine = self._made(runtime, parallelism or cores())
        except ImportError as error:
            raise RunError(f"target {runtime}: {error}; install the package {error.name}") from error
        except EngineError as error:
            raise RunError(f"target {runtime}: {error}") from error
        try:
            yield engine
        except EngineError as error:
            raise RunError(f"target {runtime}: {error}") from error
        finally:
            engine.close()

    def _made(self, runtime: RuntimeName, parallelism: int) -> Engine:
        if runtime != "triton":
            return make_engine(runtime, threads=1, parallelism=parallelism, engine_cache=self.engine_cache)
        if self.triton_url is None:
            raise RunError("target triton: it needs --triton-url host:port")
        from model_repo.runtime.triton_guest import TritonGuestEngine

        owner = f"{platform.node()}:{self.folder.resolve()}"
        return TritonGuestEngine(self.triton_url, self.triton_platform, owner=owner, parallelism=parallelism)

    def supports(self, runtime: RuntimeName, precision: Precision) -> bool:
        """Return whether a runtime executes a precision; False where the runtime is not within reach."""
        if runtime == "triton":
            return self.triton_url is not None and precision in _TRITON_RUNS[self.triton_platform]
        try:
            return supports(runtime, precision)
        except ImportError:
            return False

    def precisions(self, runtime: RuntimeName) -> tuple[Precision, ...]:
        """Return the precisions that a runtime executes."""
        return tuple(each for each in get_args(Precision) if self.supports(runtime, each))

    def check(self, runtime: RuntimeName) -> None:
        """Run a model of a few nodes on a runtime; raises RunError that says what is missing."""
        with TemporaryDirectory(prefix="paretogate-probe-") as temporary, self.engine(runtime) as engine:
            probe = _write_probe(Path(temporary), self.precisions(runtime)[0])
            engine.load(Path(temporary), probe)
            answer_frame(engine, probe, np.zeros((*_PROBE_WH, 3), np.uint8))


def targets_of(context: Context) -> Targets:
    """Return the targets of a run."""
    settings, root = context.settings, context.folder.root.resolve()
    return Targets(
        root,
        triton_url=settings.triton_url,
        triton_platform=settings.triton_platform,
        engine_cache=root / "engines" if settings.engine_cache is None else Path(settings.engine_cache),
    )


def check_targets(context: Context, steps: Collection[str]) -> None:
    """Raise RunError naming what a run's targets lack for these steps, before hours are spent on others."""
    settings, targets = context.settings, targets_of(context)
    first = settings.runtimes[0]
    for runtime in settings.runtimes:
        targets.check(runtime)
    runs = targets.precisions(first)
    if "explore" in steps:
        _check_latencies(context, runs)
    if not set(runs) & set(settings.precisions):
        raise RunError(
            f"precisions: {first} runs none of {', '.join(settings.precisions)} here;"
            f" it runs {', '.join(runs)}"
        )


def _check_latencies(context: Context, runs: Collection[Precision]) -> None:
    """Raise RunError where the first target does not run what is to be timed, or a table is not of it."""
    settings = context.settings
    first, precision = settings.runtimes[0], settings.latency_precision
    if settings.latency_table is not None:
        given = read_table(context.folder.root / "tables" / f"{settings.latency_table}.json")
        if given.runtime != first:
            raise RunError(
                f"latency_table: it was measured on {given.runtime}, and the first target is {first}"
            )
    elif precision not in runs:
        raise RunError(f"latency_precision: {first} does not run {precision} here; it runs {', '.join(runs)}")


def _write_probe(root: Path, precision: Precision) -> Variant:
    """Write a model below `root` that finds nothing in any frame, and describe it.

    The rows are computed from the frame, if only as nothing of it: some runtimes refuse a graph of constants.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    width, height = _PROBE_WH
    empty = np.zeros((1, MAX_ROWS, ROW_WIDTH), np.float32)
    empty[:, :, 5] = -1.0
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["frames"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMax", ["pixels"], ["brightest"], axes=[1, 2, 3]),
            helper.make_node("Reshape", ["brightest", "shape"], ["one"]),
            helper.make_node("Mul", ["one", "nothing"], ["dark"]),
            helper.make_node("Add", ["dark", "empty"], ["detections"]),
        ],
        "probe",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, [1, height, width, 3])],
        [helper.make_tensor_value_info("detections", TensorProto.FLOAT, [1, MAX_ROWS, ROW_WIDTH])],
        [
            numpy_helper.from_array(np.array([1, 1, 1], np.int64), "shape"),
            numpy_helper.from_array(np.zeros_like(empty), "nothing"),
            numpy_helper.from_array(empty, "empty"),
        ],
    )
    model = root / "probe.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), model)
    variant = unmeasured(
        name="probe", architecture="probe", resolution_wh=_PROBE_WH, precision=precision,
        parameters=1, macs=1, nms_iou=None, model=model,
    )  # fmt: skip
    place(variant, model, root)
    return variant
