"""The supernet: every subnet of a `Space` in one set of weights, and `extract` to cut one out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from search.space import LEVEL_STRIDES, Architecture, Space
from search.supernet.backbone import ElasticBackbone
from search.supernet.blocks import ElasticBlock, ElasticPointwise
from search.supernet.head import ElasticHead, RawOutputs
from search.supernet.neck import ElasticNeck
from search.supernet.plain import PlainConv, PlainDetector, PlainHead


class Supernet(nn.Module):
    """All subnets of a search space; which one runs is an argument of `forward`.

    Args:
        space: the choices; the weights have the shapes of its largest subnet.
        seed: what the initial weights are drawn from.
    """

    def __init__(self, space: Space, seed: int = 0) -> None:
        super().__init__()
        self.space = space
        self.backbone = ElasticBackbone(space)
        self.neck = ElasticNeck(space)
        self.head = ElasticHead(space)
        generator = torch.Generator().manual_seed(seed)
        self.backbone.initialize(generator)
        self.neck.initialize(generator)
        self.head.initialize(generator)

    def forward(self, x: Tensor, arch: Architecture) -> RawOutputs:
        """Run one subnet on pixels [N, 3, H, W] scaled to 0..1, with batch norms on the batch's own
        statistics."""
        outputs: RawOutputs = self.head(self.neck(self.backbone(x, arch), arch), arch)
        return outputs

    @torch.no_grad()
    def extract(self, arch: Architecture) -> PlainDetector:
        """Cut a subnet out as a plain detector that shares nothing with the supernet.

        In training mode it computes what `forward` does with this architecture.

        Raises:
            ValueError: when the architecture is not in the supernet's space.
        """
        if arch not in self.space:
            raise ValueError(f"{arch.name} is not in the supernet's space")
        neck, head, width = self.neck, self.head, arch.neck_width
        stages: list[list[PlainConv]] = []
        channels = self.space.stem_width
        for stage, depth, stage_width in zip(self.backbone.stages, arch.depths, arch.widths, strict=True):
            blocks: list[PlainConv] = []
            for block in list(stage.children())[:depth]:
                blocks.append(_plain_block(block, channels, stage_width))
                channels = stage_width
            stages.append(blocks)
        heads: list[PlainHead] = []
        for level in range(len(LEVEL_STRIDES)):
            scale = head.level_scales[level]
            heads.append(
                PlainHead(
                    [
                        _plain_block(b, width, width, level)
                        for b in list(head.class_branch)[: arch.head_depth]
                    ],
                    [_plain_block(b, width, width, level) for b in list(head.box_branch)[: arch.head_depth]],
                    (head.class_kernel[:, :width], head.class_bias),
                    (head.box_kernel[:, :width] * scale, head.box_bias * scale),
                )
            )
        return PlainDetector(
            arch,
            self.space,
            stem=_plain_block(self.backbone.stem, 3, self.space.stem_width),
            stages=stages,
            laterals=[
                _plain_pointwise(lateral, inputs, width)
                for lateral, inputs in zip(neck.laterals, arch.widths[1:], strict=True)
            ],
            top_down=[_plain_block(block, width, width) for block in neck.top_down],
            down=[_plain_block(block, width, width) for block in neck.down],
            bottom_up=[_plain_block(block, width, width) for block in neck.bottom_up],
            heads=heads,
        )


def _plain_block(block: nn.Module, inputs: int, outputs: int, norm: int = 0) -> PlainConv:
    assert isinstance(block, ElasticBlock)
    kernel = block.merged_kernel(inputs, outputs)
    return PlainConv(
        kernel, block.gain[norm, :outputs], block.shift[norm, :outputs], block.stride, active=True
    )


def _plain_pointwise(lateral: nn.Module, inputs: int, outputs: int) -> PlainConv:
    assert isinstance(lateral, ElasticPointwise)
    kernel = lateral.kernel[:outputs, :inputs]
    return PlainConv(kernel, lateral.gain[:outputs], lateral.shift[:outputs], stride=1, active=False)
