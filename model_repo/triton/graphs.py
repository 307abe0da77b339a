"""Copies of published graphs for Triton: with a batch of any size, and in the form that TensorRT takes.

Published graphs have a batch of 1. To let a copy take any number of frames,

    1. the first dimension of its inputs and outputs becomes the symbol `batch`;
    2. constant target shapes of a Reshape that begin with 1 begin with 0, which keeps the dimension there is;
    3. constants with a first dimension of 1 that are concatenated with what depends on the frames (padding
       rows) are expanded to as many as there are frames; whatever broadcasts does that by itself;
    4. shapes inside the graph are forgotten and inferred anew.

That is enough for the graphs of this project, and a guess for any other. So no copy is used that has not
answered three different frames together as the published graph answers them one by one: `check_copies`. It
holds the copies for TensorRT to the published graph as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from model_repo.frontier import Variant
from model_repo.int8 import check_pairs, is_quantized, with_float_biases
from model_repo.triton.config import OUTPUT, PlatformError

_BATCH = "batch"
_ATOL = 1e-4
_BLOCK = 16
_REFUSED = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)


def tensorrt_form(content: bytes, where: str) -> bytes:
    """Return an ONNX file as TensorRT takes it: biases in float, its Q/DQ checked.

    Raises QuantizationError naming the node that breaks the rules, PlatformError for what is no model.
    """
    model = _parsed(content, where)
    if not is_quantized(model):
        return content
    model = with_float_biases(model)
    check_pairs(model, where)
    return bytes(model.SerializeToString(deterministic=True))


def batched(content: bytes, where: str) -> bytes:
    """Return an ONNX file that takes any number of frames, unchecked but for its form.

    Raises PlatformError, which begins with `where`.
    """
    model = _parsed(content, where)
    graph = model.graph
    constants = _constants(graph)
    weights = {each.name for each in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    for value in (*inputs, *graph.output):
        shape = value.type.tensor_type.shape
        if not shape.dim or shape.dim[0].dim_value != 1:
            raise PlatformError(f"{where}: {value.name!r} has no first dimension of 1 to put a batch in")
        shape.dim[0].dim_param = _BATCH
    _Rewriting(graph, constants, [value.name for value in inputs]).rewrite()
    del graph.value_info[:]
    try:
        model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise PlatformError(f"{where}: it does not take a batch: {error}") from error
    return bytes(model.SerializeToString(deterministic=True))


class _Rewriting:
    """One pass over a graph in its order, which is one in which values are made before they are read."""

    def __init__(
        self, graph: GraphProto, constants: Mapping[str, NDArray[np.generic]], inputs: Sequence[str]
    ) -> None:
        self._graph, self._constants = graph, constants
        self._input = inputs[0]
        self._per_frame = set(inputs)
        self._nodes: list[NodeProto] = []
        self._made: set[str] = set()

    def rewrite(self) -> None:
        """Replace the graph's nodes."""
        for node in self._graph.node:
            if self._per_frame.intersection(node.input):
                self._per_frame.update(node.output)
                if node.op_type == "Reshape":
                    self._keep_first(node)
                elif node.op_type == "Concat":
                    self._expand_constants(node)
            self._nodes.append(node)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)

    def _keep_first(self, node: NodeProto) -> None:
        target = self._constants.get(node.input[1])
        if target is None or not target.size or target[0] != 1:
            return
        # The same constant may be the target of a Reshape of weights: it is left alone.
        node.input[1] = self._constant(f"{node.input[1]}/{_BATCH}", np.array([0, *target[1:]], np.int64))

    def _expand_constants(self, node: NodeProto) -> None:
        for position, name in enumerate(node.input):
            value = self._constants.get(name)
            if value is None or not value.ndim or value.shape[0] != 1:
                continue
            expanded = f"{name}/{_BATCH}"
            if expanded not in self._made:
                rest = self._constant(f"{name}/rest", np.array(value.shape[1:], np.int64))
                shape = f"{name}/shape"
                self._nodes += [
                    helper.make_node("Concat", [self._size(), rest], [shape], name=shape, axis=0),
                    helper.make_node("Expand", [name, shape], [expanded], name=expanded),
                ]
                self._made.add(expanded)
            node.input[position] = expanded

    def _size(self) -> str:
        """Return the name of the number of frames, int64 [1]."""
        name = f"{self._input}/{_BATCH}"
        if name not in self._made:
            self._nodes.append(helper.make_node("Shape", [self._input], [name], name=name, start=0, end=1))
            self._made.add(name)
        return name

    def _constant(self, name: str, value: NDArray[np.int64]) -> str:
        if name not in self._made:
            self._graph.initializer.append(numpy_helper.from_array(value, name))
            self._made.add(name)
        return name


def _parsed(content: bytes, where: str) -> ModelProto:
    try:
        return onnx.load_from_string(content)
    except DecodeError as error:
        raise PlatformError(f"{where}: not an ONNX model: {error}") from error


def _constants(graph: GraphProto) -> dict[str, NDArray[np.generic]]:
    """Return the values of initializers and of Constant nodes, by name."""
    found: list[tuple[str, TensorProto]] = [(tensor.name, tensor) for tensor in graph.initializer]
    for node in graph.node:
        if node.op_type == "Constant":
            found += [(node.output[0], each.t) for each in node.attribute if each.name == "value"]
    return {name: numpy_helper.to_array(tensor) for name, tensor in found}


def check_copies(
    variant: Variant, published: Sequence[bytes], copies: Sequence[bytes], *, batches: bool
) -> None:
    """Raise PlatformError unless the copies of a variant's files answer as the published files do.

    Both are chains of ONNX files in the order of the variant's segments. ONNX Runtime answers three seeded
    frames: the published files one by one, the copies all together where they take batches. Rows may differ
    by 1e-4.
    """
    width, height = variant.resolution_wh
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (3, -(-height // _BLOCK), -(-width // _BLOCK), 3), dtype=np.uint8)
    frames = coarse.repeat(_BLOCK, axis=1).repeat(_BLOCK, axis=2)[:, :height, :width]
    try:
        expected = _singly(_Chain(variant, published), frames)
        chain = _Chain(variant, copies)
        found = chain.rows(frames) if batches else _singly(chain, frames)
    except _REFUSED as error:
        raise PlatformError(f"{variant.name!r} cannot be rendered so: {error}") from error
    if found.shape != expected.shape:
        raise PlatformError(
            f"{variant.name!r} cannot be batched: three frames give {found.shape}, not {expected.shape}"
        )
    if not np.allclose(found, expected, rtol=0.0, atol=_ATOL):
        raise PlatformError(
            f"{variant.name!r} cannot be rendered so: its copy gives other rows than the published graph"
            f" (by up to {np.abs(found - expected).max():.3g}{', in a batch of three' if batches else ''})"
        )


def _singly(chain: _Chain, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.concatenate([chain.rows(frames[index : index + 1]) for index in range(len(frames))])


class _Chain:
    """ONNX Runtime sessions for the segments of a variant."""

    def __init__(self, variant: Variant, files: Sequence[bytes]) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4  # what is refused is raised as well
        self._steps = [
            (segment, ort.InferenceSession(content, options, providers=["CPUExecutionProvider"]))
            for segment, content in zip(variant.segments, files, strict=True)
        ]

    def rows(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the rows [n, 100, 6] of frames [n, h, w, 3]."""
        made: dict[str, NDArray[np.generic]] = {}
        for segment, session in self._steps:
            feed = {tensor.name: made.get(tensor.name, frames) for tensor in segment.inputs}
            names = [tensor.name for tensor in segment.outputs]
            made.update(zip(names, session.run(names, feed), strict=True))
        return np.asarray(made[OUTPUT], np.float32)
