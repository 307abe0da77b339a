"""int8 in the one form that every runtime takes: explicit signed symmetric Q/DQ, and what TensorRT adds.

What TensorRT's ONNX parser takes (`QuantDequantLinearHelper` in github.com/onnx/onnx-tensorrt,
onnxOpImporters.cpp): int8 values, zero points that are all 0, as many of them as scales, scales above 0. It
has no QuantizeLinear to uint8 outside DLA, and a DequantizeLinear of int32, which ONNX Runtime's quantizer
writes for the biases of convolutions, fails with "only activation types allowed as input to this layer":
`with_float_biases` is for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

_PAIR = ("QuantizeLinear", "DequantizeLinear")


class QuantizationError(ValueError):
    """A graph is not in the required form; the message names the node."""


def check_explicit_int8(path: Path) -> None:
    """Raise QuantizationError unless a model is quantized, and its Q/DQ keep the rules of `check_pairs`."""
    model = onnx.load(path)
    where = str(path)
    check_pairs(model, where)
    if not is_quantized(model):
        raise QuantizationError(f"{where}: nothing in it is quantized")
    dequantized = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    if not any(node.op_type == "Conv" and node.input[1] in dequantized for node in model.graph.node):
        raise QuantizationError(f"{where}: no convolution is quantized")


def is_quantized(model: ModelProto) -> bool:
    """Return whether a graph has Q/DQ at all."""
    return any(node.op_type in _PAIR for node in model.graph.node)


def check_pairs(model: ModelProto, where: str) -> None:
    """Check every Q/DQ of a graph: signed, symmetric, positive scales, convolution weights stored as int8.

    A weight has one scale for each output channel. int32 is let pass for constants (biases) alone. A graph
    without Q/DQ keeps the rules. Raises QuantizationError, which begins with `where` and names the node.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    dequantized: dict[str, NodeProto] = {}
    for node in model.graph.node:
        if node.op_type in _PAIR:
            _check_pair(node, constants, where)
        if node.op_type == "DequantizeLinear":
            dequantized[node.output[0]] = node
    for node in model.graph.node:
        if node.op_type == "Conv" and node.input[1] in dequantized:
            _check_weight(node, dequantized[node.input[1]], constants, where)


def _check_pair(node: NodeProto, constants: Mapping[str, TensorProto], where: str) -> None:
    zero = constants.get(node.input[2]) if len(node.input) > 2 else None
    if zero is None:
        raise QuantizationError(f"{where}: {node.name} has no constant zero point")
    bias = node.op_type == "DequantizeLinear" and node.input[0] in constants
    if zero.data_type != TensorProto.INT8 and not (bias and zero.data_type == TensorProto.INT32):
        raise QuantizationError(f"{where}: {node.name} is not signed")
    if np.any(numpy_helper.to_array(zero)):
        raise QuantizationError(f"{where}: {node.name} is not symmetric")
    scale = constants.get(node.input[1])
    if scale is None:
        raise QuantizationError(f"{where}: {node.name} has no constant scale")
    values = numpy_helper.to_array(scale)
    if not np.all(np.isfinite(values) & (values > 0)):
        raise QuantizationError(f"{where}: {node.name} has a scale that is not above 0")
    if values.size != numpy_helper.to_array(zero).size:
        raise QuantizationError(f"{where}: {node.name} has not as many zero points as scales")


def _check_weight(
    node: NodeProto, dequantize: NodeProto, constants: Mapping[str, TensorProto], where: str
) -> None:
    weight = constants.get(dequantize.input[0])
    if weight is None or weight.data_type != TensorProto.INT8:
        raise QuantizationError(f"{where}: the weight of {node.name} is not stored as int8")
    axis = next((attribute.i for attribute in dequantize.attribute if attribute.name == "axis"), 1)
    scales = numpy_helper.to_array(constants[dequantize.input[1]]).size
    if scales != weight.dims[0] or (scales > 1 and axis != 0):
        raise QuantizationError(f"{where}: the weight of {node.name} has not one scale per output channel")


def with_float_biases(model: ModelProto) -> ModelProto:
    """Return a copy whose int32 constants behind a DequantizeLinear are the floats that it makes of them.

    The same float32 product that a runtime computes, so that answers stay what they are.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    folded = []
    for node in graph.node:
        given = constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if given is None or given.data_type != TensorProto.INT32:
            continue
        values = numpy_helper.to_array(given).astype(np.float32)
        scale = numpy_helper.to_array(constants[node.input[1]])
        graph.initializer.append(numpy_helper.from_array(values * scale, node.output[0]))
        folded.append(node)
    for node in folded:
        graph.node.remove(node)
    read = {name for node in graph.node for name in node.input}
    for tensor in [each for each in graph.initializer if each.name not in read]:
        graph.initializer.remove(tensor)
    return copy
