"""A fused detector as an ONNX file, written node by node.

The graph mirrors `PlainDetector.forward` and `detections_from`; a test holds it to them.  Writing it directly
keeps nodes few, their names readable and stable, and says which must stay in floating point when the rest is
quantized: the layers that predict, and the decoding after them.  The same stay in float32 when the rest is
computed in float16, in which a place far from the corner is known to half a pixel.

Input `frames`, uint8 [N, H, W, 3]; output `detections`, float32 [N, 100, 6].  Shapes are static.  Operators
are those that ONNX Runtime, OpenVINO and TensorRT all take.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from search.space import LEVEL_STRIDES
from search.supernet.decode import MAX_LOG_DISTANCE, TOP_DETECTIONS, anchors_for
from search.supernet.plain import PlainConv, PlainDetector

INPUT_NAME = "frames"
OUTPUT_NAME = "detections"
OPSET = 17
IR_VERSION = 8


@dataclass(frozen=True)
class ExportedModel:
    """An ONNX file, and the names of its nodes that a quantizer must leave in floating point."""

    path: Path
    float_nodes: tuple[str, ...]


def export_onnx(
    detector: PlainDetector, resolution_wh: tuple[int, int], path: Path, *, batch: int = 1, half: bool = False
) -> ExportedModel:
    """Write a fused detector for frames of `resolution_wh` in batches of `batch`, atomically, and check the
    file.

    half: the network computes in float16, its weights too, up to the layers that predict.

    Raises:
        ValueError: when the detector is not fused, or the resolution is no multiple of 32.
        onnx.checker.ValidationError: when the written graph is malformed.
    """
    width, height = resolution_wh
    if width % LEVEL_STRIDES[-1] or height % LEVEL_STRIDES[-1]:
        raise ValueError(f"resolution must be a multiple of {LEVEL_STRIDES[-1]}, got {width}x{height}")
    graph = _Graph(half)
    raw = _network(graph, detector)
    network_nodes = len(graph.nodes)
    _decoding(graph, raw, detector.classes, resolution_wh, batch)
    predicting = {f"{name}/conv" for name in (*_head_names("classes"), *_head_names("boxes"))}
    float_nodes = [node.name for node in graph.nodes[:network_nodes] if node.name in predicting]
    float_nodes += [node.name for node in graph.nodes[network_nodes:]]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            detector.arch.name,
            [helper.make_tensor_value_info(INPUT_NAME, TensorProto.UINT8, [batch, height, width, 3])],
            [helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, [batch, TOP_DETECTIONS, 6])],
            graph.initializers,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="paretogate",
    )
    onnx.checker.check_model(model, full_check=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(model.SerializeToString(deterministic=True))
    os.replace(partial, path)
    return ExportedModel(path, tuple(float_nodes))


class _Graph:
    """Nodes and constants under construction; every method adds one and returns its output's name.

    half: what `number` is, the type that the network computes in: float16, else float32.
    """

    def __init__(self, half: bool) -> None:
        self.number: type[np.float16 | np.float32] = np.float16 if half else np.float32
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []

    def node(self, operator: str, name: str, inputs: list[str], **attributes: object) -> str:
        return self.nodes_of(operator, name, inputs, 1, **attributes)[0]

    def nodes_of(
        self, operator: str, name: str, inputs: list[str], outputs: int, **attributes: object
    ) -> list[str]:
        names = [name if i == 0 else f"{name}:{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(operator, inputs, names, name=name, **attributes))
        return names

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def cast(self, name: str, x: str, number: type[np.float16 | np.float32]) -> str:
        return self.node("Cast", name, [x], to=helper.np_dtype_to_tensor_dtype(np.dtype(number)))

    def prediction(self, name: str, x: str, layer: nn.Conv2d) -> str:
        """Add a layer that predicts, which computes in float32 whatever the network computes in."""
        if self.number is not np.float32:
            x = self.cast(f"{name}/cast", x, np.float32)
        return self.convolution(name, x, layer, number=np.float32)

    def convolution(
        self, name: str, x: str, layer: nn.Conv2d, *, number: type[np.float16 | np.float32]
    ) -> str:
        if layer.bias is None:
            raise ValueError(f"{name} is not fused: it has no bias")
        weight = self.constant(f"{name}/weight", _array(layer.weight).astype(number))
        bias = self.constant(f"{name}/bias", _array(layer.bias).astype(number))
        size, stride = layer.kernel_size[0], layer.stride[0]
        pad = size // 2
        return self.node(
            "Conv", f"{name}/conv", [x, weight, bias],
            kernel_shape=[size, size], strides=[stride, stride], pads=[pad] * 4,
        )  # fmt: skip

    def block(self, name: str, x: str, block: nn.Module) -> str:
        if not isinstance(block, PlainConv) or block.norm is not None:
            raise ValueError(f"{name} is not a fused convolution")
        y = self.convolution(name, x, block.conv, number=self.number)
        return self.node("Relu", f"{name}/relu", [y]) if block.active else y

    def chain(self, name: str, x: str, blocks: nn.Module) -> str:
        for index, block in enumerate(blocks.children()):
            x = self.block(f"{name}.{index}", x, block)
        return x

    def upsampled(self, name: str, x: str) -> str:
        if not any(constant.name == "upsample/scales" for constant in self.initializers):
            self.constant("upsample/scales", np.array([1, 1, 2, 2], np.float32))
        return self.node(
            "Resize", name, [x, "", "upsample/scales"],
            mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor",
        )  # fmt: skip


def _head_names(part: str) -> list[str]:
    return [f"heads.{level}.{part}" for level in range(len(LEVEL_STRIDES))]


def _network(graph: _Graph, detector: PlainDetector) -> list[tuple[str, str]]:
    """Add the convolutions; returns the names of each level's logits and log distances."""
    x = graph.cast("input/cast", INPUT_NAME, graph.number)
    x = graph.node("Transpose", "input/transpose", [x], perm=[0, 3, 1, 2])
    x = graph.node(
        "Mul", "input/scale", [x, graph.constant("input/factor", np.array([1 / 255], graph.number))]
    )
    x = graph.block("stem", x, detector.stem)
    features: list[str] = []
    for index, stage in enumerate(detector.stages):
        x = graph.chain(f"stages.{index}", x, stage)
        features.append(x)
    fine, middle, coarse = (
        graph.block(f"laterals.{index}", feature, lateral)
        for index, (lateral, feature) in enumerate(zip(detector.laterals, features[1:], strict=True))
    )
    summed = graph.node("Add", "top_down.0/add", [middle, graph.upsampled("top_down.0/upsample", coarse)])
    middle = graph.block("top_down.0", summed, detector.top_down[0])
    summed = graph.node("Add", "top_down.1/add", [fine, graph.upsampled("top_down.1/upsample", middle)])
    fine = graph.block("top_down.1", summed, detector.top_down[1])
    summed = graph.node("Add", "bottom_up.0/add", [middle, graph.block("down.0", fine, detector.down[0])])
    middle = graph.block("bottom_up.0", summed, detector.bottom_up[0])
    summed = graph.node("Add", "bottom_up.1/add", [coarse, graph.block("down.1", middle, detector.down[1])])
    coarse = graph.block("bottom_up.1", summed, detector.bottom_up[1])
    raw: list[tuple[str, str]] = []
    for index, (head, level) in enumerate(zip(detector.heads, (fine, middle, coarse), strict=True)):
        name = f"heads.{index}"
        classes = graph.chain(f"{name}.class_branch", level, head.get_submodule("class_branch"))
        boxes = graph.chain(f"{name}.box_branch", level, head.get_submodule("box_branch"))
        class_layer, box_layer = head.get_submodule("classes"), head.get_submodule("boxes")
        assert isinstance(class_layer, nn.Conv2d)
        assert isinstance(box_layer, nn.Conv2d)
        raw.append(
            (
                graph.prediction(f"{name}.classes", classes, class_layer),
                graph.prediction(f"{name}.boxes", boxes, box_layer),
            )
        )
    return raw


def _decoding(
    graph: _Graph, raw: list[tuple[str, str]], classes: int, resolution_wh: tuple[int, int], batch: int
) -> None:
    """Add peak filter, top 100 and box arithmetic: `detections_from`, with boxes as [N, 4, A]."""
    width, height = resolution_wh
    anchors = anchors_for(resolution_wh)
    count = len(anchors.strides)
    places = min(TOP_DETECTIONS, classes * count)
    zero = graph.constant("decode/zero", np.array([0], np.float32))

    def integers(name: str, values: list[int]) -> str:
        return graph.constant(name, np.array(values, np.int64))

    scores: list[str] = []
    distances: list[str] = []
    for level, ((logits, boxes), stride) in enumerate(zip(raw, LEVEL_STRIDES, strict=True)):
        cells = (width // stride) * (height // stride)
        name = f"decode.{level}"
        score = graph.node("Sigmoid", f"{name}/sigmoid", [logits])
        best = graph.node(
            "MaxPool", f"{name}/best", [score], kernel_shape=[3, 3], strides=[1, 1], pads=[1] * 4
        )
        peak = graph.node("Equal", f"{name}/peak", [score, best])
        kept = graph.node("Where", f"{name}/kept", [peak, score, zero])
        flat = [integers(f"{name}/class_shape", [batch, classes, cells])]
        scores.append(graph.node("Reshape", f"{name}/scores", [kept, *flat]))
        flat = [integers(f"{name}/box_shape", [batch, 4, cells])]
        distances.append(graph.node("Reshape", f"{name}/distances", [boxes, *flat]))

    by_class = graph.node("Concat", "decode/by_class", scores, axis=2)
    pairs = graph.node("Reshape", "decode/pairs", [by_class, integers("decode/pair_shape", [batch, -1])])
    top, index = graph.nodes_of(
        "TopK", "decode/top", [pairs, integers("decode/places", [places])], 2, axis=1, largest=1, sorted=1
    )
    total = integers("decode/anchor_count", [count])
    label = graph.node("Div", "decode/label", [index, total])
    first = graph.node("Mul", "decode/first", [label, total])
    anchor = graph.node("Sub", "decode/anchor", [index, first])

    reach = graph.node("Concat", "decode/reach", distances, axis=2)
    limit = graph.constant("decode/limit", np.array(MAX_LOG_DISTANCE, np.float32))
    reach = graph.node("Min", "decode/limited", [reach, limit])
    reach = graph.node("Exp", "decode/exp", [reach])
    strides = _array(anchors.strides)
    signed = np.stack([-strides, -strides, strides, strides])[None]
    reach = graph.node("Mul", "decode/pixels", [reach, graph.constant("decode/strides", signed)])
    points = np.tile(_array(anchors.points_xy).T, (2, 1))[None]
    boxes = graph.node("Add", "decode/boxes", [reach, graph.constant("decode/points", points)])

    axis = integers("decode/axis", [1])
    chosen = graph.node("Unsqueeze", "decode/chosen", [anchor, axis])
    chosen = graph.node(
        "Expand", "decode/chosen4", [chosen, integers("decode/chosen_shape", [batch, 4, places])]
    )
    corners = graph.node("GatherElements", "decode/corners", [boxes, chosen], axis=2)
    label = graph.node("Cast", "decode/label_float", [label], to=TensorProto.FLOAT)
    scored = graph.node("Greater", "decode/scored", [top, zero])
    none = graph.constant("decode/none", np.array([-1], np.float32))
    label = graph.node("Where", "decode/class", [scored, label, none])
    columns = [
        corners,
        graph.node("Unsqueeze", "decode/score_column", [top, axis]),
        graph.node("Unsqueeze", "decode/class_column", [label, axis]),
    ]
    answer = graph.node("Concat", "decode/columns", columns, axis=1)
    if places < TOP_DETECTIONS:
        padding = np.zeros((batch, 6, TOP_DETECTIONS - places), np.float32)
        padding[:, 5] = -1.0
        filler = graph.constant("decode/padding", padding)
        answer = graph.node("Concat", "decode/padded", [answer, filler], axis=2)
    graph.nodes.append(
        helper.make_node("Transpose", [answer], [OUTPUT_NAME], name="decode/detections", perm=[0, 2, 1])
    )


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return np.asarray(tensor.detach().float().contiguous().numpy(), np.float32)
