"""Copies of graphs for Triton: any number of frames at once, and int8 as TensorRT takes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from model_repo import triton
from model_repo.frontier import Variant
from model_repo.int8 import QuantizationError, check_pairs, with_float_biases
from model_repo.publish import Repository, read
from model_repo.runtime.unsigned import with_unsigned_activations
from model_repo.triton import Serving
from model_repo.triton.graphs import batched, check_copies, tensorrt_form
from tests.fakes import Square, squares_frame, tiny_repository

DEMO = Path(__file__).parents[2] / "model_repo"


@pytest.fixture(scope="module")
def demo() -> Repository:
    """Return the committed repository with its smallest model alone: a real int8 graph."""
    whole = read(DEMO)
    smallest = min(whole.frontier.variants, key=lambda variant: variant.segments[0].bytes)
    return Repository(whole.root, whole.frontier.model_copy(update={"variants": (smallest,)}), whole.digest)


def content_of(repository: Repository) -> tuple[Variant, bytes]:
    variant = repository.frontier.variants[0]
    return variant, repository.path(variant.segments[0]).read_bytes()


def rows_of(content: bytes, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["detections"], {"frames": frames})[0])


def noise(variant: Variant, count: int) -> NDArray[np.uint8]:
    width, height = variant.resolution_wh
    blocks = np.random.default_rng(1).integers(0, 256, (count, height // 32, width // 32, 3), dtype=np.uint8)
    return blocks.repeat(32, axis=1).repeat(32, axis=2)


def singly(content: bytes, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.concatenate([rows_of(content, frames[index : index + 1]) for index in range(len(frames))])


def tiny(tmp_path: Path, *, shared_trunk: bool = False) -> Repository:
    return tiny_repository(tmp_path / "repository", 1, shared_trunk=shared_trunk)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_published_model_takes_batches(demo: Repository, count: int) -> None:
    """The copy of an int8 model answers any number of frames as the model answers them one by one."""
    variant, content = content_of(demo)
    copy = batched(content, "it")
    frames = noise(variant, count)
    np.testing.assert_allclose(rows_of(copy, frames), singly(content, frames), atol=1e-4)


def test_padding_rows_are_made_for_every_frame(tmp_path: Path) -> None:
    """Constant rows that are appended to a frame's are appended to those of every frame of a batch."""
    _, content = content_of(tiny(tmp_path))
    frames = np.stack([squares_frame([Square(1, 1, 0)]), squares_frame([]), squares_frame([Square(2, 2, 1)])])
    rows = rows_of(batched(content, "it"), frames)
    assert rows.shape == (3, 100, 6)
    assert [int((row[:, 5] >= 0).sum()) for row in rows] == [1, 0, 1]


@pytest.mark.parametrize("platform", ["onnxruntime", "tensorrt", "openvino", "python"])
def test_rendering_leaves_the_published_file_alone(
    platform: triton.Platform, demo: Repository, tmp_path: Path
) -> None:
    """What is rendered is a copy: the published file has the bytes that its manifest says."""
    triton.render_repository(demo, platform, tmp_path / "out", Serving(batch=4))
    read(DEMO)


def test_openvino_runs_the_copy_as_its_backend_does(demo: Repository, tmp_path: Path) -> None:
    """With its batch set to the largest, as Triton's backend sets it, OpenVINO reads and runs the copy."""
    variant, content = content_of(demo)
    out = triton.render_repository(demo, "openvino", tmp_path / "out", Serving(batch=4))
    core = ov.Core()
    steps = ov.preprocess.PrePostProcessor(core.read_model(out / variant.folder / "1" / "model.onnx"))
    steps.input("frames").tensor().set_layout(ov.Layout("N..."))
    model = steps.build()
    ov.set_batch(model, 4)
    assert list(model.output("detections").shape) == [4, 100, 6]
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    frames = noise(variant, 4)
    rows = compiled(frames)["detections"]
    # Another runtime rounds int8 in another way: the best box is the same, not its last digits.
    np.testing.assert_allclose(rows[:, 0, 4], singly(content, frames)[:, 0, 4], atol=0.05)


def test_chains_are_batched_segment_by_segment(tmp_path: Path) -> None:
    """Every segment of a chain takes a batch, and the chain is checked as a whole."""
    repository = tiny(tmp_path, shared_trunk=True)
    variant = repository.frontier.variants[0]
    published = [repository.path(segment).read_bytes() for segment in variant.segments]
    check_copies(variant, published, [batched(content, "it") for content in published], batches=True)
    with pytest.raises(triton.PlatformError, match="tiny-0"):
        check_copies(variant, published, [batched(published[0], "it"), published[1]], batches=True)


def edited(content: bytes, replaced: str, nodes: Sequence[onnx.NodeProto], **constants: object) -> bytes:
    """Put nodes behind the one that makes `replaced`: they read `replaced/before` and make `replaced`."""
    model = onnx.load_from_string(content)
    for position, node in enumerate(model.graph.node):
        if replaced in node.output:
            node.output[list(node.output).index(replaced)] = f"{replaced}/before"
            kept = list(model.graph.node)
            del model.graph.node[:]
            model.graph.node.extend([*kept[: position + 1], *nodes, *kept[position + 1 :]])
            break
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return bytes(model.SerializeToString())


def test_frames_that_see_each_other_are_refused(tmp_path: Path) -> None:
    """A graph that compares a frame with the rest of its batch is refused with the variant's name."""
    repository = tiny(tmp_path)
    variant, content = content_of(repository)
    mixing = [
        helper.make_node("ReduceMean", ["pooled/before"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["pooled/before", "mean"], ["pooled"]),
    ]
    path = repository.path(variant.segments[0])
    path.write_bytes(edited(content, "pooled", mixing))
    with pytest.raises(triton.PlatformError, match=r"tiny-0.*gives other rows.*batch of three"):
        triton.render_repository(repository, "python", tmp_path / "out", Serving(batch=2))
    assert not (tmp_path / "out").exists()


def test_fixed_shapes_inside_are_refused(tmp_path: Path) -> None:
    """A graph that flattens everything into one fixed size is refused with the variant's name."""
    repository = tiny(tmp_path)
    variant, content = content_of(repository)
    fixed = [
        helper.make_node("Reshape", ["pooled/before", "all"], ["line"]),
        helper.make_node("Reshape", ["line", "back"], ["pooled"]),
    ]
    path = repository.path(variant.segments[0])
    path.write_bytes(
        edited(content, "pooled", fixed, all=np.array([48], np.int64), back=np.array([1, 3, 4, 4], np.int64))
    )
    with pytest.raises(triton.PlatformError, match="tiny-0"):
        triton.render_repository(repository, "python", tmp_path / "out", Serving(batch=2))


def test_what_has_no_frame_dimension_is_refused(tmp_path: Path) -> None:
    """A graph whose input begins with another size than 1, or bytes that are none, are refused."""
    _, content = content_of(tiny(tmp_path))
    model = onnx.load_from_string(content)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    with pytest.raises(triton.PlatformError, match=r"it: 'frames'.*first dimension of 1"):
        batched(model.SerializeToString(), "it")
    with pytest.raises(triton.PlatformError, match="it: not an ONNX model"):
        batched(b"\xff\xff nothing", "it")


def test_tensorrt_gets_biases_in_float_and_the_same_answers(demo: Repository) -> None:
    """No int32 is dequantized any more, and the rows are those of the published graph."""
    variant, content = content_of(demo)
    assert TensorProto.INT32 in _dequantized_types(onnx.load_from_string(content))
    copy = tensorrt_form(content, "it")
    assert _dequantized_types(onnx.load_from_string(copy)) == {TensorProto.INT8}
    onnx.checker.check_model(onnx.load_from_string(copy), full_check=True)
    frames = noise(variant, 1)
    ours, theirs = rows_of(copy, frames)[0], rows_of(content, frames)[0]
    np.testing.assert_allclose(ours[:5], theirs[:5], atol=0.02 * max(variant.resolution_wh))


def _dequantized_types(model: ModelProto) -> set[int]:
    """Return the types of the constants that are dequantized."""
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    return {
        types[node.input[0]]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in types
    }


def test_folded_biases_are_the_products(demo: Repository) -> None:
    """A bias is its int32 values times their scales, and nothing that no node reads stays behind."""
    _, content = content_of(demo)
    before = onnx.load_from_string(content)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in before.graph.initializer}
    after = with_float_biases(before)
    kept = {tensor.name: numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
    folded = 0
    for node in before.graph.node:
        given = constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if given is not None and given.dtype == np.int32:
            expected = given * constants[node.input[1]].astype(np.float64)
            np.testing.assert_allclose(kept[node.output[0]], expected, rtol=1e-6)
            folded += 1
    assert folded > 5
    assert set(kept) <= {name for node in after.graph.node for name in node.input}


def broken(content: bytes, what: str) -> tuple[ModelProto, str]:
    """Break one of TensorRT's rules; returns the graph and the name of the node that breaks it."""
    model = with_float_biases(onnx.load_from_string(content))
    constants = {tensor.name: tensor for tensor in model.graph.initializer}

    def put(name: str, value: NDArray[np.generic]) -> str:
        model.graph.initializer.append(numpy_helper.from_array(value, f"broken/{name}"))
        return f"broken/{name}"

    quantize = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    weight = next(
        node for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in constants
    )
    if what == "unsigned":
        quantize.input[2] = put("zero", np.array(0, np.uint8))
    elif what == "asymmetric":
        quantize.input[2] = put("zero", np.array(3, np.int8))
    elif what == "scale":
        quantize.input[1] = put("scale", np.array(0, np.float32))
    elif what == "counts":
        quantize.input[2] = put("zero", np.zeros(2, np.int8))
    else:
        weight.input[1] = put("scale", np.array(1, np.float32))
        weight.input[2] = put("zero", np.array(0, np.int8))
        reader = next(node for node in model.graph.node if weight.output[0] in node.input)
        return model, reader.name
    return model, quantize.name


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("unsigned", "not signed"),
        ("asymmetric", "not symmetric"),
        ("scale", "not above 0"),
        ("counts", "as many zero points"),
        ("per tensor", "one scale per output channel"),
    ],
)
def test_what_breaks_the_rules_for_int8_is_named(demo: Repository, what: str, said: str) -> None:
    """Each rule of TensorRT's that a graph breaks is said together with the node that breaks it."""
    _, content = content_of(demo)
    model, name = broken(content, what)
    with pytest.raises(QuantizationError, match=said) as caught:
        check_pairs(model, "it")
    assert name in str(caught.value)


def test_rendering_for_tensorrt_refuses_broken_int8(demo: Repository, tmp_path: Path) -> None:
    """A variant whose graph breaks the rules is not rendered for TensorRT, and is for the others."""
    variant, content = content_of(demo)
    model, name = broken(content, "unsigned")
    root = tmp_path / "repository"
    path = root / variant.segments[0].file
    path.parent.mkdir(parents=True)
    path.write_bytes(model.SerializeToString())
    repository = Repository(root, demo.frontier, demo.digest)
    with pytest.raises(triton.PlatformError, match="int8") as caught:
        triton.render_repository(repository, "tensorrt", tmp_path / "out")
    assert variant.name in str(caught.value)
    assert name in str(caught.value)
    triton.render_repository(repository, "onnxruntime", tmp_path / "out")


def test_python_runs_int8_as_the_embedded_engines_do(demo: Repository, tmp_path: Path) -> None:
    """The python platform gets an int8 graph in the form that both CPU engines give it when they load it."""
    variant, content = content_of(demo)
    out = triton.render_repository(demo, "python", tmp_path / "out")
    rendered = (out / variant.folder / "1" / "model.onnx").read_bytes()
    assert rendered == with_unsigned_activations(content) != content
