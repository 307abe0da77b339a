"""A plain detector: one subnet on its own, first with batch norms of its own, then fused to bare
convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search.space import LEVEL_STRIDES, Architecture, Space
from search.supernet.blocks import NORM_EPS
from search.supernet.head import RawOutputs
from search.supernet.neck import upsampled


class PlainConv(nn.Module):
    """A convolution, batch norm and, where `active`, ReLU.  `fuse` folds the norm into the convolution."""

    def __init__(self, kernel: Tensor, gain: Tensor, shift: Tensor, stride: int, active: bool) -> None:
        super().__init__()
        outputs, inputs, size, _ = kernel.shape
        self.conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
        self.norm: nn.BatchNorm2d | None = nn.BatchNorm2d(outputs, eps=NORM_EPS, momentum=None)
        self.active = active
        with torch.no_grad():
            self.conv.weight.copy_(kernel)
            self.norm.weight.copy_(gain)
            self.norm.bias.copy_(shift)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to [N, outputs, H/stride, W/stride]."""
        y: Tensor = self.conv(x)
        if self.norm is not None:
            y = self.norm(y)
        return F.relu(y, inplace=True) if self.active else y

    @torch.no_grad()
    def fuse(self) -> None:
        """Fold the norm's running statistics into the convolution; does nothing the second time."""
        norm = self.norm
        if norm is None or norm.running_var is None or norm.running_mean is None:
            return
        factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        conv = self.conv
        conv.weight.mul_(factor[:, None, None, None])
        conv.bias = nn.Parameter(norm.bias - norm.running_mean * factor)
        self.norm = None


class PlainHead(nn.Module):
    """One level's head: branches of 3x3 convolutions and the two 1x1 convolutions that predict."""

    def __init__(
        self,
        class_branch: list[PlainConv],
        box_branch: list[PlainConv],
        class_layer: tuple[Tensor, Tensor],
        box_layer: tuple[Tensor, Tensor],
    ) -> None:
        super().__init__()
        self.class_branch = nn.Sequential(*class_branch)
        self.box_branch = nn.Sequential(*box_branch)
        self.classes = _predictor(*class_layer)
        self.boxes = _predictor(*box_layer)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map [N, C, H, W] to logits [N, classes, H, W] and log distances [N, 4, H, W]."""
        return self.classes(self.class_branch(x)), self.boxes(self.box_branch(x))


class PlainDetector(nn.Module):
    """One subnet with weights of its own.

    In training mode its batch norms use the batch's statistics, like the supernet, and gather their
    cumulative average; in evaluation mode they use what was gathered; `fuse` then removes them.
    """

    def __init__(
        self,
        arch: Architecture,
        space: Space,
        stem: PlainConv,
        stages: list[list[PlainConv]],
        laterals: list[PlainConv],
        top_down: list[PlainConv],
        down: list[PlainConv],
        bottom_up: list[PlainConv],
        heads: list[PlainHead],
    ) -> None:
        super().__init__()
        if not len(heads) == len(laterals) == len(LEVEL_STRIDES):
            raise ValueError("a detector has one lateral and one head for each pyramid level")
        self.arch = arch
        self.classes = space.classes
        self.resolution_wh = space.resolution_wh(arch)
        self.stem = stem
        self.stages = nn.ModuleList(nn.Sequential(*blocks) for blocks in stages)
        self.laterals = nn.ModuleList(laterals)
        self.top_down = nn.ModuleList(top_down)
        self.down = nn.ModuleList(down)
        self.bottom_up = nn.ModuleList(bottom_up)
        self.heads = nn.ModuleList(heads)

    def forward(self, x: Tensor) -> RawOutputs:
        """Map pixels [N, 3, H, W], scaled to 0..1, to raw outputs per level."""
        x = self.stem(x)
        features: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        fine, middle, coarse = (
            lateral(feature) for lateral, feature in zip(self.laterals, features[1:], strict=True)
        )
        middle = self.top_down[0](middle + upsampled(coarse))
        fine = self.top_down[1](fine + upsampled(middle))
        middle = self.bottom_up[0](middle + self.down[0](fine))
        coarse = self.bottom_up[1](coarse + self.down[1](middle))
        outputs = [head(level) for head, level in zip(self.heads, (fine, middle, coarse), strict=True)]
        return RawOutputs([logits for logits, _ in outputs], [distances for _, distances in outputs])

    def fuse(self) -> PlainDetector:
        """Fold every batch norm into its convolution, in place, switch to evaluation mode, and return the
        detector."""
        for module in self.modules():
            if isinstance(module, PlainConv):
                module.fuse()
        return self.eval()


def _predictor(kernel: Tensor, bias: Tensor) -> nn.Conv2d:
    conv = nn.Conv2d(kernel.shape[1], kernel.shape[0], 1)
    with torch.no_grad():
        conv.weight.copy_(kernel)
        assert conv.bias is not None
        conv.bias.copy_(bias)
    return conv
