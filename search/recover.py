"""A published model read back as a supernet of one subnet, to train on from: its weights, and norms again.

A repository outlives the run that made it, and with new labels or a wider space training should go on from
what is deployed. A published file has its batch norms folded into its convolutions, which one is left free to
undo: a norm makes its kernel's scale irrelevant, so any scale will do, and then a channel's gain and shift
are the spread and the mean of what the fused convolution gives on frames (the model's own, to rounding). The
head's kernels are shared by the levels, whose fused copies differ by a factor for each channel; their mean
direction is taken, which also averages out some of int8's rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import numpy_helper
from torch import Tensor, nn

from search.data.coco import Dataset
from search.evaluate import CALIBRATION_FRAMES, FrameStore
from search.run_folder import RunError
from search.space import LEVEL_STRIDES, Architecture, Space
from search.supernet.blocks import NORM_EPS, ElasticBlock, ElasticPointwise
from search.supernet.model import Supernet
from search.supernet.plain import PlainConv, PlainDetector
from search.train import pixels_from
from search.weights import StoredSupernet

_BATCH = 8
_NOTHING = 1e-12


@dataclass(frozen=True, slots=True)
class _Moments:
    """Mean and standard deviation [channels] of a fused convolution's output."""

    mean: Tensor
    spread: Tensor


@torch.no_grad()
def recover(model: Path, dataset: Dataset, *, seed: int = 0) -> StoredSupernet:
    """Return a supernet whose only subnet computes what a published model of a search does.

    model: the ONNX file of a variant, in whatever precision. dataset: its training frames give the norms'
    statistics. Raises RunError naming the file when it cannot be read, was not made by a search, or knows
    other classes than the data set.
    """
    arch, input_wh, kernels = _read(model)
    space = _space_of(arch, input_wh, len(kernels["stem"][0]), len(dataset.classes))
    supernet = Supernet(space)
    detector = supernet.extract(arch)
    try:
        for name, (weight, bias) in kernels.items():
            _take(detector.get_submodule(name), weight, bias)
    except (AttributeError, RuntimeError) as error:
        raise RunError(
            f"{model}: not a model of {arch.name} and {len(dataset.classes)} classes: {error}"
        ) from error
    moments = _moments(detector.eval(), dataset, seed)
    for name, blocks in _blocks(supernet, arch).items():
        weights = [kernels[block][0] for block in blocks]
        _norm_again(supernet.get_submodule(name), weights, [moments[block] for block in blocks])
    head = supernet.head
    levels = [f"heads.{level}" for level in range(len(LEVEL_STRIDES))]
    head.class_kernel.copy_(kernels[f"{levels[0]}.classes"][0])
    head.class_bias.copy_(kernels[f"{levels[0]}.classes"][1])
    head.box_kernel.copy_(kernels[f"{levels[0]}.boxes"][0])
    head.box_bias.copy_(kernels[f"{levels[0]}.boxes"][1])
    for level, name in enumerate(levels):
        head.level_scales[level] = _ratio(kernels[f"{name}.boxes"][0], head.box_kernel)
    return StoredSupernet(space, dict(supernet.named_parameters()), 0, 0.0)


def _read(path: Path) -> tuple[Architecture, tuple[int, int], dict[str, tuple[Tensor, Tensor]]]:
    """Return what the file's graph is called, its input's width and height, and each convolution's weight and
    bias, by the layer's name."""
    try:
        graph = onnx.load(path).graph
        arch = Architecture.parse(graph.name)
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}") from error
    except (DecodeError, ValueError) as error:
        raise RunError(f"{path}: not a model that a search made: {error}") from error
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            constants[node.output[0]] = _dequantized(*(constants[name] for name in node.input))
    found = {}
    for node in graph.node:
        if node.op_type == "Conv":
            weight, bias = (torch.from_numpy(constants[name].astype(np.float32)) for name in node.input[1:])
            found[node.name.removesuffix("/conv")] = weight, bias
    _, height, width, _ = (size.dim_value for size in graph.input[0].type.tensor_type.shape.dim)
    return arch, (width, height), found


def _dequantized(values: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    """Return float32; a scale for each output channel or one for all."""
    shape = (-1, *(1,) * (values.ndim - 1)) if scale.size > 1 else ()
    return (values.astype(np.float32) - zero.astype(np.float32).reshape(shape)) * scale.reshape(shape)


def _space_of(arch: Architecture, input_wh: tuple[int, int], stem_width: int, classes: int) -> Space:
    """Return the space that holds this subnet alone, with frames of the file's own shape."""
    return Space(
        classes=classes,
        aspect=input_wh,
        resolutions=(arch.resolution,),
        depths=tuple((depth,) for depth in arch.depths),
        widths=tuple((width,) for width in arch.widths),
        neck_widths=(arch.neck_width,),
        head_depths=(arch.head_depth,),
        stem_width=stem_width,
    )


def _take(layer: nn.Module, weight: Tensor, bias: Tensor) -> None:
    """Give a plain detector's layer the file's weights; it then counts as fused."""
    conv = layer.conv if isinstance(layer, PlainConv) else layer
    assert isinstance(conv, nn.Conv2d)
    conv.weight.copy_(weight)
    conv.bias = nn.Parameter(bias.clone())
    if isinstance(layer, PlainConv):
        layer.norm = None


def _moments(detector: PlainDetector, dataset: Dataset, seed: int) -> dict[str, _Moments]:
    """Return the moments of every block's convolution on some training frames."""
    train = dataset.splits["train"].images
    count = min(CALIBRATION_FRAMES, len(train))
    chosen = np.random.default_rng(seed).choice(len(train), count, replace=False)
    store = FrameStore([train[int(index)] for index in np.sort(chosen)])
    sums: dict[str, list[Tensor]] = {}

    def watch(name: str, conv: nn.Module) -> None:
        def seen(_: nn.Module, __: object, y: Tensor) -> None:
            values = y.double()
            parts = [
                values.new_tensor(y.numel() / y.shape[1]),
                values.sum((0, 2, 3)),
                values.square().sum((0, 2, 3)),
            ]
            sums[name] = [a + b for a, b in zip(sums[name], parts, strict=True)] if name in sums else parts

        conv.register_forward_hook(seen)

    for name, module in detector.named_modules():
        if isinstance(module, PlainConv):
            watch(name, module.conv)
    for start in range(0, len(store.images), _BATCH):
        part = range(start, min(start + _BATCH, len(store.images)))
        detector(pixels_from(store.batch(part, detector.resolution_wh)))
    out = {}
    for name, (values, total, squares) in sums.items():
        mean = total / values
        spread = (squares / values - mean.square()).clamp_min(0.0).sqrt()
        out[name] = _Moments(mean.float(), spread.float())
    return out


def _blocks(supernet: Supernet, arch: Architecture) -> dict[str, Sequence[str]]:
    """Return for each block of the supernet the layers of a plain detector that share its kernel, by name."""
    out: dict[str, Sequence[str]] = {}
    for name, module in supernet.named_modules():
        if isinstance(module, ElasticBlock | ElasticPointwise):
            part, _, rest = name.partition(".")
            if part == "head":
                out[name] = [f"heads.{level}.{rest}" for level in range(len(LEVEL_STRIDES))]
            else:
                out[name] = [rest]
    return out


def _norm_again(block: nn.Module, kernels: Sequence[Tensor], moments: Sequence[_Moments]) -> None:
    """Set a block's kernel to the direction of the fused ones, as long as a fresh one's, and its norms to
    what each had."""
    assert isinstance(block, ElasticBlock | ElasticPointwise)
    flat = [kernel.flatten(1) for kernel in kernels]
    length = [row.norm(dim=1, keepdim=True).clamp_min(_NOTHING) for row in flat]
    sign = [torch.sign((row * flat[0]).sum(1, keepdim=True)) for row in flat]
    mean = torch.stack([s * row / n for s, row, n in zip(sign, flat, length, strict=True)]).mean(0)
    unit = mean / mean.norm(dim=1, keepdim=True).clamp_min(_NOTHING)
    # He's length for a fresh kernel, fan out: what the learning rate is made for.
    outputs, inputs, *_ = kernels[0].shape
    fresh = (2.0 * inputs / outputs) ** 0.5 if isinstance(block, ElasticBlock) else (inputs / outputs) ** 0.5
    kernel = (fresh * unit).reshape(kernels[0].shape)
    gains, shifts = [], []
    for row_length, row_sign, moment in zip(length, sign, moments, strict=True):
        ratio = fresh / row_length[:, 0]  # by how much the new kernel's outputs are larger than the file's
        spread = moment.spread
        gains.append(row_sign[:, 0] * (spread.square() + NORM_EPS / ratio.square()).sqrt())
        shifts.append(moment.mean)
    if isinstance(block, ElasticBlock):
        block.kernel.copy_(kernel - block.get_buffer("identity"))
        block.point.zero_()
        block.gain.copy_(torch.stack(gains))
        block.shift.copy_(torch.stack(shifts))
    else:
        block.kernel.copy_(kernel)
        block.gain.copy_(gains[0])
        block.shift.copy_(shifts[0])


def _ratio(a: Tensor, b: Tensor) -> float:
    """Return the factor by which `a` is `b`, in the sense of least squares."""
    return float((a * b).sum() / (b * b).sum())
