"""The elastic backbone: a stem at stride 2 and four stages at strides 4, 8, 16 and 32."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from search.space import STAGES, Architecture, Space
from search.supernet.blocks import ElasticBlock


class ElasticBackbone(nn.Module):
    """Stages whose first block halves the resolution; a subnet runs the leading blocks of each."""

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.stem_width = space.stem_width
        self.stem = ElasticBlock(3, space.stem_width, stride=2)
        self.stages = nn.ModuleList()
        inputs = space.stem_width
        for stage in range(STAGES):
            outputs = space.widths[stage][-1]
            blocks = [ElasticBlock(inputs, outputs, stride=2)]
            blocks += [ElasticBlock(outputs, outputs) for _ in range(space.depths[stage][-1] - 1)]
            self.stages.append(nn.ModuleList(blocks))
            inputs = outputs

    def forward(self, x: Tensor, arch: Architecture) -> list[Tensor]:
        """Map pixels [N, 3, H, W] to the features at strides 8, 16 and 32."""
        x = self.stem(x, self.stem_width)
        features: list[Tensor] = []
        for stage, depth, width in zip(self.stages, arch.depths, arch.widths, strict=True):
            for block in list(stage.children())[:depth]:
                x = block(x, width)
            features.append(x)
        return features[1:]

    def initialize(self, generator: torch.Generator) -> None:
        """Draw every kernel from `generator`."""
        for module in self.modules():
            if isinstance(module, ElasticBlock):
                module.initialize(generator)
