"""Useful fakes, each a full implementation: a tiny real repository, an engine that follows a script.

The tiny detector is a real ONNX graph: it finds squares of pure red (class 0, "red") and pure green
(class 1, "green") that fill cells of a 4x4 grid laid over the frame, with the square's brightness as score.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from model_repo import publish
from model_repo.alignment import Alignment, Curve, Unit
from model_repo.detections import MAX_ROWS, ROW_WIDTH
from model_repo.escalation import FEATURES, GainModel, Layer
from model_repo.frontier import (
    Accuracy,
    DatasetInfo,
    Frontier,
    Measurement,
    NoCertificate,
    OperatingPoint,
    Plan,
    PlanAccuracy,
    Rule,
    Segment,
    SplitInfo,
    SplitName,
    Stage,
    Tensor,
    Variant,
)
from model_repo.latency import Environment, Histogram, LatencyProfile, RuntimeName
from model_repo.runtime.chain import check_frames
from model_repo.runtime.engine import (
    EngineTimeout,
    EngineUnavailable,
    Inference,
    Tensors,
    UnknownVariant,
)

CLASSES = ("red", "green")
GRID = 4
# Weaker cells are padding: score 0, class -1.
_WEAKEST = 0.05
_OPSET = 17
_SPLITS: tuple[SplitName, ...] = ("valid", "test")


@dataclass(frozen=True, slots=True)
class Square:
    """A coloured square that fills grid cell (column, row), each 0..3; label indexes CLASSES."""

    column: int
    row: int
    label: int
    brightness: int = 230


def squares_frame(squares: Sequence[Square], wh: tuple[int, int] = (64, 64)) -> NDArray[np.uint8]:
    """Draw squares on black, RGB uint8 [h, w, 3]: what the tiny detector finds (in a square frame)."""
    image = np.zeros((wh[1], wh[0], 3), dtype=np.uint8)
    cell_w, cell_h = wh[0] // GRID, wh[1] // GRID
    for square in squares:
        x, y = square.column * cell_w, square.row * cell_h
        image[y : y + cell_h, x : x + cell_w, square.label] = square.brightness
    return image


def encode_image(image: NDArray[np.uint8], suffix: str = ".png") -> bytes:
    """Encode an RGB image as PNG (exact) or JPEG bytes."""
    done, data = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert done
    return data.tobytes()


def tiny_repository(
    path: Path,
    variants: int = 2,
    plans: bool = True,
    *,
    shared_trunk: bool = False,
    mean_ms: float = 2.0,
    training: int = 0,
) -> publish.Repository:
    """Publish a real repository of tiny ONNX detectors that OpenVINO and ONNX Runtime run.

    variants: `tiny-0`, `tiny-1` … on 64x64, 128x128 … frames; each claims to be measured on all three
    runtimes, `tiny-i` at mean_ms·3^i. plans: one per variant, and the cascade `tiny-0-then-tiny-1`, which
    goes on when the fast answer has a doubtful box. shared_trunk: two-segment variants, all on 64x64, that
    begin with the same file. training: another number gives variants of the same names from other files, as
    another training would. Operating points: fast, balanced (the cascade), accurate.
    """
    source = path.parent / f".{path.name}-source"
    made = [_write_variant(source, index, shared_trunk, training) for index in range(variants)]
    described = [
        _variant(index, folder, segments, shared_trunk, mean_ms)
        for index, (folder, segments) in enumerate(made)
    ]
    straight = [_plan((variant.name,), variant.name, described) for variant in described]
    cascade = (
        [_plan((described[0].name, described[1].name), "tiny-0-then-tiny-1", described)]
        if variants > 1
        else []
    )
    every = straight + (cascade if plans else [])
    frontier = Frontier(
        dataset=DatasetInfo(
            name="squares", fingerprint="squares-1", classes=CLASSES,
            splits=tuple(SplitInfo(name=split, images=10, boxes=20) for split in _SPLITS),
        ),
        environment=_environment(),
        decode=Histogram.of([0.5, 0.6]),
        variants=tuple(described),
        plans=tuple(every),
        operating_points=(
            OperatingPoint(name="fast", plan=straight[0].name),
            OperatingPoint(name="balanced", plan=every[-1].name),
            OperatingPoint(name="accurate", plan=straight[-1].name),
        ),
    )  # fmt: skip
    return publish.publish(path, frontier, {folder.name: folder for folder, _ in made})


def _write_variant(
    source: Path, index: int, shared_trunk: bool, training: int
) -> tuple[Path, tuple[Segment, ...]]:
    side = 64 if shared_trunk else 64 * (index + 1)
    cell = side // GRID
    frames = Tensor(name="frames", dtype="uint8", shape=(1, side, side, 3))
    pooled = Tensor(name="pooled", dtype="float32", shape=(1, 3, GRID, GRID))
    rows = Tensor(name="detections", dtype="float32", shape=(1, MAX_ROWS, ROW_WIDTH))
    # The number makes the files of two variants of one size differ, as trained weights would.
    sharpness = 1.0 + index / 100 + training / 1000
    if shared_trunk:
        graphs = [
            _Graph("trunk.onnx", _trunk_nodes(cell), {}, frames, pooled),
            _Graph("head.onnx", *_head(cell, sharpness), pooled, rows),
        ]
    else:
        nodes, constants = _head(cell, sharpness)
        graphs = [_Graph("model.onnx", _trunk_nodes(cell) + nodes, constants, frames, rows)]
    contents = [_serialize(graph) for graph in graphs]
    digest = hashlib.sha256(b"".join(contents)).hexdigest()[:8]
    folder = source / f"tiny-{index}-{digest}"
    (folder / "1").mkdir(parents=True, exist_ok=True)
    segments = []
    for graph, content in zip(graphs, contents, strict=True):
        (folder / "1" / graph.file).write_bytes(content)
        segments.append(
            Segment(
                file=f"models/{folder.name}/1/{graph.file}",
                sha256=hashlib.sha256(content).hexdigest(),
                bytes=len(content),
                inputs=(graph.given,),
                outputs=(graph.gives,),
            )
        )
    return folder, tuple(segments)


@dataclass(frozen=True, slots=True)
class _Graph:
    file: str
    nodes: Sequence[onnx.NodeProto]
    constants: Mapping[str, NDArray[np.generic]]
    given: Tensor
    gives: Tensor


def _serialize(graph: _Graph) -> bytes:
    dtypes = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT}
    given, gives = (
        helper.make_tensor_value_info(tensor.name, dtypes[tensor.dtype], tensor.shape)
        for tensor in (graph.given, graph.gives)
    )
    model = helper.make_model(
        helper.make_graph(
            list(graph.nodes),
            "tiny",
            [given],
            [gives],
            [numpy_helper.from_array(value, name) for name, value in graph.constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=9,
    )
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _trunk_nodes(cell: int) -> list[onnx.NodeProto]:
    """Average each colour over each cell of `cell` pixels: uint8 [1, h, w, 3] to float32 [1, 3, 4, 4]."""
    return [
        helper.make_node("Cast", ["frames"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["cast"], ["chw"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["chw"], ["pooled"], kernel_shape=[cell, cell], strides=[cell, cell]),
    ]


def _head(cell: int, sharpness: float) -> tuple[list[onnx.NodeProto], dict[str, NDArray[np.generic]]]:
    """Score each (cell, class), sort, and write rows; weak ones and the tail are padding."""
    pairs = GRID * GRID * len(CLASSES)
    place = np.arange(GRID * GRID)
    x1, y1 = (place % GRID) * cell, (place // GRID) * cell
    boxes = np.stack((x1, y1, x1 + cell, y1 + cell), axis=1).astype(np.float32)
    # Pairs in the order of the flattened scores: class first, then cell.
    table = np.concatenate(
        [np.c_[boxes, np.full((len(boxes), 1), label, np.float32)] for label in range(len(CLASSES))]
    ).astype(np.float32)
    # A class is its colour less the mean of the others: grey and white are nothing.
    weight = np.array([[1, -0.5, -0.5], [-0.5, 1, -0.5]], dtype=np.float32)[..., None, None] / 255
    padding = np.zeros((1, MAX_ROWS - pairs, ROW_WIDTH), dtype=np.float32)
    padding[..., 5] = -1
    constants: dict[str, NDArray[np.generic]] = {
        "weight": weight.astype(np.float32),
        "zero": np.array(0, np.float32),
        "one": np.array(1, np.float32),
        "sharpness": np.array(sharpness, np.float32),
        "weakest": np.array(_WEAKEST, np.float32),
        "minus_one": np.array(-1, np.float32),
        "count": np.array([pairs], np.int64),
        "table": table,
        "flat": np.array([1, pairs], np.int64),
        "column": np.array([1, pairs, 1], np.int64),
        "four": np.array([4, 1], np.int64),
        "padding": padding,
    }
    nodes = [
        helper.make_node("Conv", ["pooled", "weight"], ["difference"]),
        helper.make_node("Mul", ["difference", "sharpness"], ["sharp"]),
        helper.make_node("Clip", ["sharp", "zero", "one"], ["clipped"]),
        helper.make_node("Reshape", ["clipped", "flat"], ["scores"]),
        helper.make_node("TopK", ["scores", "count"], ["best", "index"], axis=1),
        helper.make_node("Gather", ["table", "index"], ["found"], axis=0),
        helper.make_node("Reshape", ["best", "column"], ["best_column"]),
        helper.make_node("Less", ["best_column", "weakest"], ["weak"]),
        helper.make_node("Where", ["weak", "zero", "best_column"], ["score"]),
        helper.make_node("Split", ["found", "four"], ["xyxy", "found_class"], axis=2),
        helper.make_node("Where", ["weak", "minus_one", "found_class"], ["class"]),
        helper.make_node("Concat", ["xyxy", "score", "class"], ["rows"], axis=2),
        helper.make_node("Concat", ["rows", "padding"], ["detections"], axis=1),
    ]
    return nodes, constants


def _environment() -> Environment:
    return Environment(
        machine="test bench",
        device="cpu",
        cores=2,
        python="3.11.0",
        os="Linux x86_64",
        libraries={"numpy": "2"},
    )


def _variant(
    index: int, folder: Path, segments: tuple[Segment, ...], shared_trunk: bool, mean_ms: float
) -> Variant:
    _, height, width, _ = segments[0].inputs[0].shape
    quality = min(0.5 + 0.1 * index, 0.9)
    accuracy = tuple(
        Accuracy(
            split=split, images=10, map=quality, map50=quality + 0.05, f1=quality, f1_threshold=0.3,
            map_low=quality - 0.05, map_high=quality + 0.05,
        )
        for split in dict.fromkeys((*_SPLITS, "calibration"))
    )  # fmt: skip
    return Variant(
        name=f"tiny-{index}",
        folder=folder.name,
        architecture=f"squares-{width}" + ("-trunk" if shared_trunk else ""),
        resolution_wh=(width, height),
        precision="f32",
        parameters=6,
        macs=6 * GRID * GRID,
        nms_iou=0.5 if index % 2 == 0 else None,
        segments=segments,
        measurements=tuple(
            _measurement(runtime, accuracy, index, mean_ms * 3.0**index)
            for runtime in ("openvino", "onnxruntime", "triton")
        ),
    )


def _measurement(
    runtime: RuntimeName, accuracy: tuple[Accuracy, ...], index: int, mean_ms: float
) -> Measurement:
    def profile(concurrency: int) -> LatencyProfile:
        samples = mean_ms * concurrency**0.5 * np.linspace(0.9, 1.1, 21)
        return LatencyProfile(
            runtime=runtime, runtime_version="0", precision="f32", threads=1, batch=1,
            concurrency=concurrency, histogram=Histogram.of(samples), environment=_environment(),
        )  # fmt: skip

    top: Unit = 0.9 + 0.01 * min(index, 9)
    curve = Curve(score=(0.0, 0.5, 1.0), quality=(0.0, 0.4, top))
    return Measurement(
        runtime=runtime,
        precision="f32",
        accuracy=accuracy,
        latency=(profile(1), profile(2)),
        alignment=Alignment(curves=(curve,) * len(CLASSES), images=10),
    )


def doubt_gain() -> GainModel:
    """Return a gain model that predicts the sum of doubt, Σ score·(1 − score), of an answer."""
    weight = [0.0] * len(FEATURES)
    weight[FEATURES.index("doubt_sum")] = 1.0
    return GainModel(
        mean=(0.0,) * len(FEATURES),
        scale=(1.0,) * len(FEATURES),
        layers=(Layer(weight=(tuple(weight),), bias=(0.0,)),),
    )


def _plan(names: tuple[str, ...], plan_name: str, variants: Sequence[Variant]) -> Plan:
    by_name = {variant.name: variant for variant in variants}
    last = by_name[names[-1]].on("openvino")
    rule = Rule(gain=doubt_gain(), threshold=0.3)
    cost = sum(by_name[name].on("openvino").profile().mean_ms for name in names)
    return Plan(
        name=plan_name,
        stages=(*(Stage(variant=name, rule=rule) for name in names[:-1]), Stage(variant=names[-1])),
        fusion="replace",
        runtime="openvino",
        engines=("openvino", "onnxruntime", "triton"),
        accuracy=tuple(
            PlanAccuracy(
                split=split, images=10, map=last.accuracy[0].map, map50=last.accuracy[0].map50,
                escalated=(0.5,) * (len(names) - 1),
            )
            for split in ("calibration", "valid", "test")
        ),
        mean_ms=cost + 0.5,
        p99_ms=cost * 1.2 + 0.6,
        certificate=NoCertificate(reason="a test repository has no calibration set"),
    )  # fmt: skip


class FakeClock:
    """Time that passes only when it is told to: `now_ns()` and `sleep(seconds)`; safe from any thread."""

    def __init__(self, now_ns: int = 1_000_000_000) -> None:
        self._now_ns = now_ns
        self._lock = threading.Lock()

    def now_ns(self) -> int:
        """Return the present time in nanoseconds."""
        return self._now_ns

    def sleep(self, seconds: float) -> None:
        """Let time pass at once."""
        with self._lock:
            self._now_ns += round(seconds * 1e9)


Rows = NDArray[np.float32] | Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def rows_of(*boxes: tuple[float, float, float, float, float, int]) -> NDArray[np.float32]:
    """Return rows [1, 100, 6] that hold these (x1, y1, x2, y2, score, class) and padding."""
    rows = np.zeros((1, MAX_ROWS, ROW_WIDTH), dtype=np.float32)
    rows[..., 5] = -1
    if boxes:
        rows[0, : len(boxes)] = boxes
    return rows


@dataclass
class FakeEngine:
    """An engine that follows a script and keeps every rule of the protocol.

    rows: by variant name or folder, rows [1, 100, 6] or a function of the frames; a variant without gives no
    detections. broken: folders whose variants fail. latency_ms: by variant name or folder, passed to `sleep`
    (a fake clock's, or time.sleep); a latency above `timeout_s` sleeps that long and raises EngineTimeout.
    failures: raised one by one by the next calls of infer, None for a call that succeeds. refuses: variants
    that load refuses. calls: the names that infer was asked for, in order.
    """

    rows: Mapping[str, Rows] = field(default_factory=dict)
    latency_ms: Mapping[str, float] = field(default_factory=dict)
    sleep: Callable[[float], None] = FakeClock().sleep
    failures: deque[Exception | None] = field(default_factory=deque)
    refuses: frozenset[str] = frozenset()
    broken: set[str] = field(default_factory=set)
    name: RuntimeName = "openvino"
    version: str = "fake"
    device: str = "cpu"
    parallelism: int = 1
    calls: list[str] = field(default_factory=list)
    closed: bool = False
    loaded: dict[str, Variant] = field(default_factory=dict)

    @property
    def runtime(self) -> RuntimeName:
        """Return the runtime that it stands for."""
        return self.name

    def load(self, root: Path, variant: Variant) -> None:
        """Take a variant; the files below `root` are not read."""
        del root
        if self.closed:
            raise EngineUnavailable("closed")
        if variant.name in self.refuses:
            raise EngineUnavailable(f"{variant.name!r} is refused")
        self.loaded[variant.folder] = variant

    def unload(self, variant: Variant) -> None:
        """Forget a variant."""
        self.loaded.pop(variant.folder, None)

    def infer(
        self,
        variant: Variant,
        frames: NDArray[np.uint8],
        *,
        done: Mapping[str, Tensors] | None = None,
        timeout_s: float | None = None,
    ) -> Inference:
        """Answer by the script; raises as every engine does."""
        name = variant.name
        self.calls.append(name)
        if self.closed:
            raise EngineUnavailable("closed")
        if variant.folder not in self.loaded:
            raise UnknownVariant(f"{name!r} is not loaded")
        check_frames(variant, frames)
        failure = self.failures.popleft() if self.failures else None
        if failure is not None:
            raise failure
        if variant.folder in self.broken:
            raise EngineUnavailable(f"{variant.folder!r} is broken")
        latency_s = self.latency_ms.get(variant.folder, self.latency_ms.get(name, 0.0)) / 1e3
        if timeout_s is not None and latency_s > timeout_s:
            self.sleep(timeout_s)
            raise EngineTimeout(f"{name!r} takes {latency_s} s, {timeout_s} s were left")
        self.sleep(latency_s)
        scripted = self.rows.get(variant.folder, self.rows.get(name, rows_of()))
        rows = scripted(frames) if callable(scripted) else np.repeat(scripted, len(frames), axis=0)
        earlier: Mapping[str, Tensors] = {
            segment.sha256: (done or {}).get(segment.sha256, {}) for segment in variant.segments[:-1]
        }
        return Inference(rows, earlier)

    def close(self) -> None:
        """Refuse everything from now on."""
        self.closed = True
        self.loaded.clear()
