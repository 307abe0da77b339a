"""Elastic convolutions: the leading channels of one weight serve every width.

`ElasticBlock` is QARepVGG's block (https://arxiv.org/abs/2212.01593): 3x3, 1x1 and identity branches without
norms of their own, summed, then one batch norm and ReLU.  Branches without norms are linear, so the sum is
made on the *kernel* and costs one convolution and one norm, in training too.  Measured on a 2-core Zen 4 in
bf16: 8.8 ms an image against 12.0 ms for branches run apart (1.35x), for the same function.

Batch norm uses the batch's own statistics; the supernet keeps none, since every subnet needs its own (they
are estimated once it is cut out, see `search.evaluate`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search.distributed import global_moments

NORM_EPS = 1e-3


class ElasticBlock(nn.Module):
    """A re-parameterizable 3x3 block, elastic in its input and output width.

    Args:
        inputs: the most input channels.
        outputs: the most output channels; equal to `inputs` and stride 1 gives the identity branch.
        stride: 1 or 2.
        norms: how many batch norms take turns on the one kernel (a head shared by pyramid levels has one
            each).
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, norms: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.kernel = nn.Parameter(torch.empty(outputs, inputs, 3, 3))
        self.point = nn.Parameter(torch.empty(outputs, inputs, 1, 1))
        self.gain = nn.Parameter(torch.ones(norms, outputs))
        self.shift = nn.Parameter(torch.zeros(norms, outputs))
        identity = torch.zeros(outputs, inputs, 3, 3)
        if stride == 1 and inputs == outputs:
            identity[range(outputs), range(inputs), 1, 1] = 1.0
        self.register_buffer("identity", identity, persistent=False)

    def initialize(self, generator: torch.Generator) -> None:
        """Draw the kernels from `generator` (He, fan out)."""
        nn.init.kaiming_normal_(self.kernel, mode="fan_out", nonlinearity="relu", generator=generator)
        nn.init.kaiming_normal_(self.point, mode="fan_out", nonlinearity="relu", generator=generator)
        with torch.no_grad():
            self.point.mul_(
                0.5
            )  # beside a 3x3 of the same fan-out scale the 1x1 would dominate the centre tap

    def merged_kernel(self, inputs: int, outputs: int) -> Tensor:
        """Return the branches' sum as one 3x3 kernel [outputs, inputs, 3, 3]."""
        identity = self.get_buffer("identity")[:outputs, :inputs]
        return self.kernel[:outputs, :inputs] + F.pad(self.point[:outputs, :inputs], (1, 1, 1, 1)) + identity

    def forward(self, x: Tensor, outputs: int, norm: int = 0) -> Tensor:
        """Map [N, inputs, H, W] to [N, outputs, H/stride, W/stride] with the leading `outputs` channels."""
        y = F.conv2d(x, self.merged_kernel(x.shape[1], outputs), None, self.stride, 1)
        return F.relu(batch_normalized(y, self.gain[norm, :outputs], self.shift[norm, :outputs]))


class ElasticPointwise(nn.Module):
    """A 1x1 convolution with batch norm and no activation, elastic in its input and output width."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(outputs, inputs, 1, 1))
        self.gain = nn.Parameter(torch.ones(outputs))
        self.shift = nn.Parameter(torch.zeros(outputs))

    def initialize(self, generator: torch.Generator) -> None:
        """Draw the kernel from `generator` (He, fan out, linear)."""
        nn.init.kaiming_normal_(self.kernel, mode="fan_out", nonlinearity="linear", generator=generator)

    def forward(self, x: Tensor, outputs: int) -> Tensor:
        """Map [N, inputs, H, W] to [N, outputs, H, W] with the leading `outputs` channels."""
        y = F.conv2d(x, self.kernel[:outputs, : x.shape[1]])
        return batch_normalized(y, self.gain[:outputs], self.shift[:outputs])


def batch_normalized(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """Normalize [N, C, H, W] by the batch's own statistics, or by the global batch's where several processes
    train; then scale and shift per channel."""
    moments = global_moments(x)
    if moments is not None:
        mean, variance = (moment[:, None, None] for moment in moments)
        scale = gain[:, None, None] * (variance + NORM_EPS).rsqrt()
        return ((x - mean) * scale + shift[:, None, None]).to(x.dtype)
    return F.batch_norm(x, None, None, gain, shift, training=True, eps=NORM_EPS)
