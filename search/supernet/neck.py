"""The elastic neck: a path-aggregation pyramid (https://arxiv.org/abs/1803.01534) of one width, joined by
sums.

Sums instead of concatenations keep every width elastic with the leading channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search.space import Architecture, Space
from search.supernet.blocks import ElasticBlock, ElasticPointwise


class ElasticNeck(nn.Module):
    """Laterals to one width, coarse to fine by nearest upsampling, fine to coarse by strided blocks."""

    def __init__(self, space: Space) -> None:
        super().__init__()
        width = space.neck_widths[-1]
        self.laterals = nn.ModuleList(ElasticPointwise(choices[-1], width) for choices in space.widths[1:])
        self.top_down = nn.ModuleList(ElasticBlock(width, width) for _ in range(2))
        self.down = nn.ModuleList(ElasticBlock(width, width, stride=2) for _ in range(2))
        self.bottom_up = nn.ModuleList(ElasticBlock(width, width) for _ in range(2))

    def forward(self, features: list[Tensor], arch: Architecture) -> list[Tensor]:
        """Map the features at strides 8, 16, 32 to three of `arch.neck_width` channels."""
        width = arch.neck_width
        fine, middle, coarse = (
            lateral(feature, width) for lateral, feature in zip(self.laterals, features, strict=True)
        )
        middle = self.top_down[0](middle + upsampled(coarse), width)
        fine = self.top_down[1](fine + upsampled(middle), width)
        middle = self.bottom_up[0](middle + self.down[0](fine, width), width)
        coarse = self.bottom_up[1](coarse + self.down[1](middle, width), width)
        return [fine, middle, coarse]

    def initialize(self, generator: torch.Generator) -> None:
        """Draw every kernel from `generator`."""
        for module in self.modules():
            if isinstance(module, ElasticBlock | ElasticPointwise):
                module.initialize(generator)


def upsampled(x: Tensor) -> Tensor:
    """Double the height and width of [N, C, H, W] by repeating pixels."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
