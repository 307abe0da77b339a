"""The elastic head: two branches of 3x3 blocks, one for classes and one for distances, shared by all levels.

The kernels are shared, the batch norms are each level's own, as in RTMDet (https://arxiv.org/abs/2212.07784):
statistics differ between levels, what a part looks like does not.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search.space import LEVEL_STRIDES, Architecture, Space
from search.supernet.blocks import ElasticBlock

PRIOR_SCORE = 0.01


class RawOutputs(NamedTuple):
    """What a detector says per level, finest first.

    Attributes:
        logits: [N, classes, H, W] per level, before the sigmoid.
        distances: [N, 4, H, W] per level: the logarithm of the distances from the anchor point to the left,
            top, right and bottom of the box, in strides.
    """

    logits: list[Tensor]
    distances: list[Tensor]


class ElasticHead(nn.Module):
    """Class logits and box distances for each pyramid level."""

    def __init__(self, space: Space) -> None:
        super().__init__()
        width, levels = space.neck_widths[-1], len(LEVEL_STRIDES)
        depth = space.head_depths[-1]
        self.class_branch = nn.ModuleList(ElasticBlock(width, width, norms=levels) for _ in range(depth))
        self.box_branch = nn.ModuleList(ElasticBlock(width, width, norms=levels) for _ in range(depth))
        self.class_kernel = nn.Parameter(torch.empty(space.classes, width, 1, 1))
        self.class_bias = nn.Parameter(torch.empty(space.classes))
        self.box_kernel = nn.Parameter(torch.empty(4, width, 1, 1))
        self.box_bias = nn.Parameter(torch.empty(4))
        self.level_scales = nn.Parameter(torch.ones(levels))

    def forward(self, pyramid: list[Tensor], arch: Architecture) -> RawOutputs:
        """Map the neck's levels to raw outputs with the subnet's leading blocks and channels."""
        logits: list[Tensor] = []
        distances: list[Tensor] = []
        width = arch.neck_width
        for level, feature in enumerate(pyramid):
            classes = boxes = feature
            for block in list(self.class_branch)[: arch.head_depth]:
                classes = block(classes, width, level)
            for block in list(self.box_branch)[: arch.head_depth]:
                boxes = block(boxes, width, level)
            logits.append(F.conv2d(classes, self.class_kernel[:, :width], self.class_bias))
            scale = self.level_scales[level]
            distances.append(F.conv2d(boxes, self.box_kernel[:, :width] * scale, self.box_bias * scale))
        return RawOutputs(logits, distances)

    def initialize(self, generator: torch.Generator) -> None:
        """Draw every kernel from `generator`; start with scores of 0.01 and boxes of a few strides."""
        for module in self.modules():
            if isinstance(module, ElasticBlock):
                module.initialize(generator)
        with torch.no_grad():
            self.class_kernel.normal_(0.0, 0.01, generator=generator)
            self.class_bias.fill_(-math.log((1.0 - PRIOR_SCORE) / PRIOR_SCORE))
            self.box_kernel.normal_(0.0, 0.01, generator=generator)
            self.box_bias.fill_(math.log(2.0))
            self.level_scales.fill_(1.0)
