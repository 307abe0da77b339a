"""Quantization-aware fine-tuning: a fused detector learns to live with int8 before it is quantized.

Every convolution that the quantizer will quantize sees its input, its kernel and its output rounded as int8
will round them: signed and symmetric, kernels per channel, activations per tensor with a range that follows
what passes; gradients go straight through the rounding (Jacob et al., "Quantization and training of neural
networks for efficient integer-arithmetic-only inference", https://arxiv.org/abs/1712.05877). The detector
learns from labels and from itself as it was in float. What comes out are float weights for the quantizer as
before: the file has the same form, and what serves it knows nothing of this.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from search.assign import Targets
from search.augment import AugmentConfig
from search.batches import BatchPlan, FramePool, make_batch, prefetched
from search.losses import distillation_loss, label_loss
from search.supernet.decode import anchors_for
from search.supernet.plain import PlainConv, PlainDetector
from search.train import pixels_from

_LARGEST = 127
_RANGE_MOMENTUM = 0.95
_STREAM = 0x0A7


@dataclass(frozen=True, slots=True)
class TuningConfig:
    """How long and how fast a detector is tuned; the rate falls by a cosine.

    teacher_share: how much of the target is the float detector's prediction; the rest is labels.
    """

    steps: int = 150
    batch_size: int = 8
    learning_rate: float = 1e-4
    teacher_share: float = 0.5
    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig().without_mosaic())


def tuned(
    detector: PlainDetector,
    pool: FramePool,
    frames: NDArray[np.uint8],
    config: TuningConfig,
    *,
    seed: int,
    on_step: Callable[[], None] = lambda: None,
) -> PlainDetector:
    """Return a copy of a fused detector that was tuned on a pool's frames.

    frames: uint8 [n, H, W, 3] at the detector's input size; ranges are first taken from these.
    Raises ValueError when the detector is not fused or there are no frames.
    """
    if any(block.norm is not None for block in _blocks(detector)):
        raise ValueError("only a fused detector can be tuned")
    if not len(frames):
        raise ValueError("tuning needs frames to take ranges from")
    teacher = copy.deepcopy(detector).eval()
    learner = copy.deepcopy(detector)
    _round(learner)
    with torch.no_grad():
        for start in range(0, len(frames), config.batch_size):
            learner(pixels_from(frames[start : start + config.batch_size]))
    optimizer = torch.optim.AdamW(learner.parameters(), lr=config.learning_rate, weight_decay=0.0)
    anchors = anchors_for(detector.resolution_wh)
    made = prefetched(
        (BatchPlan(step, detector.resolution_wh, config.augment) for step in range(config.steps)),
        lambda plan: make_batch(pool, plan, seed=seed + _STREAM, size=config.batch_size),
        workers=1,
    )
    with closing(made) as batches:  # type: ignore[type-var]  # the generator behind the iterator has close()
        for step, batch in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = (
                    config.learning_rate * 0.5 * (1 + math.cos(math.pi * step / max(config.steps, 1)))
                )
            targets = Targets(
                image=torch.from_numpy(batch.image),
                boxes_xyxy=torch.from_numpy(batch.boxes_xyxy),
                labels=torch.from_numpy(batch.labels),
            )
            pixels = pixels_from(batch.frames)
            with torch.no_grad():
                _, view = label_loss(teacher(pixels), anchors, targets)
            loss = distillation_loss(learner(pixels), anchors, targets, view, share=config.teacher_share)
            loss.total.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
            torch.nn.utils.clip_grad_norm_(learner.parameters(), 10.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            on_step()
    result = copy.deepcopy(detector)
    with torch.no_grad():
        for ours, theirs in zip(result.parameters(), learner.parameters(), strict=True):
            ours.copy_(theirs)
    return result.eval()


class _Range(nn.Module):
    """Round a tensor as int8 will, by the range that has passed lately."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Return x [...] rounded to 255 levels around zero."""
        now = float(x.detach().abs().amax())
        mix = _RANGE_MOMENTUM if self.largest > 0.0 else 0.0
        self.largest = mix * self.largest + (1.0 - mix) * now
        scale = max(self.largest, 1e-8) / _LARGEST
        return torch.fake_quantize_per_tensor_affine(x, scale, 0, -_LARGEST - 1, _LARGEST)


class _RoundedConv(nn.Module):
    """A fused block whose input, kernel and outputs are rounded; it shares the block's parameters."""

    def __init__(self, block: PlainConv) -> None:
        super().__init__()
        self.block = block
        self.taken, self.given, self.activated = _Range(), _Range(), _Range()

    def forward(self, x: Tensor) -> Tensor:
        """Map as the block does."""
        conv = self.block.conv
        scale = (conv.weight.detach().abs().amax((1, 2, 3)) / _LARGEST).clamp(min=1e-8)
        kernel = torch.fake_quantize_per_channel_affine(
            conv.weight, scale, torch.zeros_like(scale, dtype=torch.int32), 0, -_LARGEST - 1, _LARGEST
        )
        y = self.given(F.conv2d(self.taken(x), kernel, conv.bias, conv.stride, conv.padding))
        return self.activated(F.relu(y)) if self.block.active else y


def _blocks(detector: nn.Module) -> Iterator[PlainConv]:
    return (module for module in detector.modules() if isinstance(module, PlainConv))


def _round(module: nn.Module) -> None:
    """Put a rounded block in the place of every block below a module."""
    for name, child in list(module.named_children()):
        if isinstance(child, PlainConv):
            setattr(module, name, _RoundedConv(child))
        else:
            _round(child)
