from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from model_repo.frontier import Variant
from model_repo.int8 import QuantizationError, check_explicit_int8
from model_repo.latency import Precision, RuntimeName
from model_repo.runtime.engine import answer_frame
from model_repo.runtime.select import make_engine
from search.artifacts import some_frames
from search.data.coco import read_dataset
from search.export import ExportedModel, export_onnx
from search.measure import unmeasured
from search.quantize import quantize
from search.supernet.model import Supernet
from tests.search.tiny import tiny_dataset, tiny_space


@dataclass(frozen=True)
class Made:
    root: Path
    exported: ExportedModel
    int8: Path
    frames: list[NDArray[np.uint8]]
    resolution_wh: tuple[int, int]

    def variant(self, precision: Precision) -> Variant:
        model = self.int8 if precision == "int8" else self.exported.path
        variant = unmeasured(
            name=f"largest-{precision}",
            architecture="a",
            resolution_wh=self.resolution_wh,
            precision=precision,
            parameters=1,
            macs=1,
            nms_iou=None,
            model=model,
        )
        target = self.root / variant.segments[0].file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(model.read_bytes())
        return variant


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("quantize")
    data = read_dataset(tiny_dataset(root / "data", {"train": 10, "calib": 2, "valid": 2, "test": 2}))
    frames = some_frames(data.splits["train"].images, 6, seed=0)
    space = tiny_space()
    resolution_wh = space.resolution_wh(space.largest)
    detector = Supernet(space, seed=1).extract(space.largest).fuse()
    exported = export_onnx(detector, resolution_wh, root / "float.onnx")
    quantize(
        exported.path,
        root / "int8.onnx",
        frames,
        float_nodes=exported.float_nodes,
        resolution_wh=resolution_wh,
    )
    return Made(root, exported, root / "int8.onnx", frames, resolution_wh)


def test_the_head_and_the_decoding_stay_float(made: Made) -> None:
    """Nodes that the exporter names as float take no dequantized weight."""
    graph = onnx.load(made.int8).graph
    dequantized = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    convolutions = {node.name: node.input[1] in dequantized for node in graph.node if node.op_type == "Conv"}
    assert {name for name, quantized in convolutions.items() if not quantized} == {
        name for name in made.exported.float_nodes if name.endswith("/conv")
    }
    assert sum(convolutions.values()) > 8


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_int8_answers_like_float(made: Made, runtime: RuntimeName) -> None:
    """On both runtimes the int8 file runs and its best scores follow the float file's."""
    engine = make_engine(runtime)
    best: dict[Precision, list[float]] = {"f32": [], "int8": []}
    precisions: tuple[Precision, Precision] = ("f32", "int8")
    for precision in precisions:
        variant = made.variant(precision)
        engine.load(made.root, variant)
        for frame in made.frames:
            answer = answer_frame(engine, variant, frame).detections
            best[precision].append(float(answer.score.max()))
    engine.close()
    assert np.abs(np.subtract(best["f32"], best["int8"])).max() < 0.05


def test_a_float_file_is_not_taken_for_int8(made: Made) -> None:
    """The check refuses a file without quantized operators."""
    with pytest.raises(QuantizationError, match="nothing in it is quantized"):
        check_explicit_int8(made.exported.path)


def test_an_unsigned_zero_point_is_refused(made: Made, tmp_path: Path) -> None:
    """The check names the node whose zero point is not zero."""
    model = onnx.load(made.int8)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("zero_point") and tensor.data_type == onnx.TensorProto.INT8:
            tensor.CopyFrom(
                onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) + np.int8(1), tensor.name)
            )
            break
    onnx.save(model, tmp_path / "skewed.onnx")
    with pytest.raises(QuantizationError, match="not symmetric"):
        check_explicit_int8(tmp_path / "skewed.onnx")


def test_ranges_need_frames(made: Made, tmp_path: Path) -> None:
    """Quantizing without a frame to take ranges from is an error."""
    with pytest.raises(ValueError, match="at least one frame"):
        quantize(
            made.exported.path, tmp_path / "x.onnx", [], float_nodes=(), resolution_wh=made.resolution_wh
        )
