"""int8 as the kernels for x86 like it: the published graph with unsigned activations.

Models are published with signed symmetric Q/DQ, the one form that every runtime takes. x86 multiplies
unsigned by signed bytes: signed activations are shifted before every convolution. ONNX Runtime has no int8
kernel at all for many of them, and computes a ReLU between two pairs in float. So both CPU engines rewrite a
graph when they load it:

    1. The pair between a convolution and its ReLU is dropped: what the ReLU gives is quantized next anyway.
    2. Activations become unsigned: the same numbers, 128 higher, with zero point 128. Where nothing is
       negative, behind a ReLU and what only moves its values, the zero point is 0 and the scale stays, so
       that the runtime's own clipping does the ReLU's work.

What changes in the answers is one rounding less in (1), and in (2) that values above the range seen in
calibration are kept, up to twice of it, in place of being clipped. `python -m search bench precision`
measures what int8 costs and gains.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import GraphProto, NodeProto, TensorProto, numpy_helper

_MOVES = frozenset({"MaxPool", "Resize", "Concat", "Transpose", "Reshape", "DequantizeLinear"})
"""What gives no value that is below all it takes; of Resize its cubic mode does, which is looked at."""


class GraphError(ValueError):
    """The bytes are no model."""


def with_unsigned_activations(model: bytes) -> bytes:
    """Return an ONNX model with its int8 activations unsigned; raises GraphError when it cannot be read.

    One without Q/DQ, or with another form of them, comes back with the same meaning.
    """
    try:
        parsed = onnx.load_from_string(model)
    except DecodeError as error:
        raise GraphError(f"not an ONNX model: {error}") from error
    _drop_pairs_before_relu(parsed.graph)
    _make_unsigned(parsed.graph)
    return parsed.SerializeToString()


def _drop_pairs_before_relu(graph: GraphProto) -> None:
    made_by = {output: node for node in graph.node for output in node.output}
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(output.name for output in graph.output)
    dropped = []
    for relu in graph.node:
        if relu.op_type != "Relu":
            continue
        second = made_by.get(relu.input[0])
        if second is None or second.op_type != "DequantizeLinear":
            continue
        first = made_by.get(second.input[0])
        if first is None or first.op_type != "QuantizeLinear":
            continue
        if readers[first.output[0]] == readers[second.output[0]] == 1:
            relu.input[0] = first.input[0]
            dropped += [first, second]
    for node in dropped:
        graph.node.remove(node)


def _make_unsigned(graph: GraphProto) -> None:
    constants = {tensor.name: tensor for tensor in graph.initializer}
    types = {value.name: value.type.tensor_type for value in graph.value_info}
    never_negative: set[str] = set()
    zeros: dict[str, int] = {}
    # In the order of the graph, which ONNX demands to be one in which values are made before they are read.
    for node in graph.node:
        if _keeps_sign(node, never_negative):
            never_negative.update(node.output)
        if node.op_type == "QuantizeLinear" and _is_int8(node, constants):
            zero = 0 if node.input[0] in never_negative else 128
            zeros[node.output[0]] = zero
            if zero == 0:
                never_negative.update(node.output)
            if node.output[0] in types:
                types[node.output[0]].elem_type = TensorProto.UINT8
        elif node.op_type != "DequantizeLinear" or node.input[0] not in zeros:
            continue
        shape = numpy_helper.to_array(constants[node.input[2]]).shape
        node.input[2] = _zero_point(graph, constants, zeros[_quantized(node)], shape)


def _quantized(node: NodeProto) -> str:
    """Return the name of the quantized tensor of a Q or DQ."""
    return str(node.output[0] if node.op_type == "QuantizeLinear" else node.input[0])


def _keeps_sign(node: NodeProto, never_negative: set[str]) -> bool:
    if node.op_type == "Relu":
        return True
    if node.op_type not in _MOVES or any(
        attribute.name == "mode" and attribute.s == b"cubic" for attribute in node.attribute
    ):
        return False
    return all(name in never_negative for name in _values(node))


def _values(node: NodeProto) -> Iterator[str]:
    """Yield the inputs whose values a node moves, without shapes, scales and the like."""
    yield from node.input if node.op_type == "Concat" else node.input[:1]


def _is_int8(node: NodeProto, constants: dict[str, TensorProto]) -> bool:
    zero = constants.get(node.input[2]) if len(node.input) > 2 else None
    return zero is not None and zero.data_type == TensorProto.INT8


def _zero_point(
    graph: GraphProto, constants: dict[str, TensorProto], zero: int, shape: tuple[int, ...]
) -> str:
    name = f"unsigned_zero_{zero}" + "".join(f"_{size}" for size in shape)
    if name not in constants:
        tensor = numpy_helper.from_array(np.full(shape, zero, np.uint8), name)
        graph.initializer.append(tensor)
        constants[name] = tensor
    return name
