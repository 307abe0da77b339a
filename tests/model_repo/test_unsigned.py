"""Signed activations become unsigned: the same numbers, in the form that ONNX Runtime is fast for."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from model_repo.runtime.unsigned import GraphError, with_unsigned_activations

STEP = 0.05
Floats = NDArray[np.float32]


def graph_of(*, between: bool) -> onnx.ModelProto:
    """Return conv → ReLU → pool → conv + what was pooled, quantized; with a pair before the ReLU or not."""
    rng = np.random.default_rng(3)
    constants = [
        numpy_helper.from_array(np.float32(STEP), "scale"),
        numpy_helper.from_array(np.int8(0), "zero"),
        numpy_helper.from_array(rng.integers(-60, 60, (4, 4, 3, 3), dtype=np.int8), "weight"),
        numpy_helper.from_array(np.full(4, 0.004, np.float32), "weight_scale"),
        numpy_helper.from_array(np.zeros(4, np.int8), "weight_zero"),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["weight", "weight_scale", "weight_zero"], ["kernel"], axis=0)
    ]

    def pair(name: str) -> str:
        nodes.append(helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"{name}_q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", "scale", "zero"], [f"{name}_dq"]))
        return f"{name}_dq"

    def then(kind: str, inputs: list[str], name: str, **attributes: object) -> str:
        nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    first = then("Conv", [pair("x"), "kernel"], "first", pads=[1] * 4)
    positive = then("Relu", [pair(first) if between else first], "positive")
    pooled = then("MaxPool", [pair(positive)], "pooled", kernel_shape=[2, 2], strides=[2, 2])
    small = pair(pooled)
    second = then("Conv", [small, "kernel"], "second", pads=[1] * 4)
    pair(then("Add", [pair(second), small], "y"))
    shape = ["n", 4, 8, 8]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y_dq", TensorProto.FLOAT, None)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model)


def answer(model: bytes, x: Floats) -> Floats:
    """Run a model as it is written, without the runtime's own changes."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0], np.float32)


def frames(seed: int) -> Floats:
    rng = np.random.default_rng(seed)
    # Small enough that nothing lies beyond what eight signed bits hold.
    return np.asarray(rng.uniform(-2.0, 2.0, (1, 4, 8, 8)), np.float32)


@given(seed=st.integers(0, 2**16))
def test_within_the_calibrated_range_the_numbers_are_the_same(seed: int) -> None:
    """Bit for bit, where there is no pair before the ReLU to be dropped."""
    model = graph_of(between=False).SerializeToString()
    x = frames(seed)
    assert np.array_equal(answer(model, x), answer(with_unsigned_activations(model), x))


@given(seed=st.integers(0, 2**16))
def test_a_pair_before_a_relu_is_one_rounding_less(seed: int) -> None:
    """It is gone, and answers differ by what two roundings may make of it."""
    model = graph_of(between=True)
    changed = with_unsigned_activations(model.SerializeToString())
    kinds = [node.op_type for node in onnx.load_from_string(changed).graph.node]
    assert (
        kinds.count("QuantizeLinear")
        == sum(node.op_type == "QuantizeLinear" for node in model.graph.node) - 1
    )
    x = frames(seed)
    differs = np.abs(answer(model.SerializeToString(), x) - answer(changed, x))
    assert differs.max() <= 3 * STEP


def test_no_activation_stays_signed_and_what_is_never_negative_begins_at_zero() -> None:
    """Behind the ReLU and the pool the zero point is 0, elsewhere 128; weights stay as they are."""
    graph = onnx.load_from_string(with_unsigned_activations(graph_of(between=True).SerializeToString())).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    zeros = {
        node.output[0]: constants[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"
    }
    assert {name: (zero.dtype, int(zero)) for name, zero in zeros.items()} == {
        "x_q": (np.uint8, 128),
        "positive_q": (np.uint8, 0),
        "pooled_q": (np.uint8, 0),
        "second_q": (np.uint8, 128),
        "y_q": (np.uint8, 128),
    }
    assert constants["weight"].dtype == constants["weight_zero"].dtype == np.int8
    onnx.checker.check_model(
        onnx.load_from_string(with_unsigned_activations(graph_of(between=True).SerializeToString())),
        full_check=True,
    )


def test_a_float_model_comes_back_as_it_was() -> None:
    """There is nothing to change in it."""
    node = helper.make_node("Relu", ["x"], ["y"])
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    model = helper.make_model(helper.make_graph([node], "g", value[:1], value[1:])).SerializeToString()
    assert onnx.load_from_string(with_unsigned_activations(model)) == onnx.load_from_string(model)


def test_bytes_that_are_no_model_are_told() -> None:
    """By an error of their own."""
    with pytest.raises(GraphError, match="not an ONNX model"):
        with_unsigned_activations(b"\xff\xff no model")
