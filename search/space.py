"""The search space: which detectors the supernet contains, named, sampled and counted without torch.

A detector is one choice per gene: the input's long side, the depth and the width of four backbone stages
(strides 4, 8, 16, 32), the width of the neck and of the head, and the depth of the head.  `Architecture` is
one such point, `Space` is the set of them.  Randomness comes in as a `numpy.random.Generator`.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

STAGES = 4
MAX_STRIDE = 32
LEVEL_STRIDES = (8, 16, 32)

RESOLUTIONS = tuple(range(160, 513, MAX_STRIDE))
_LEAST_RESOLUTIONS = 3

_NAME = re.compile(
    r"r(?P<resolution>\d+)-d(?P<depths>\d+(?:\.\d+)*)-w(?P<widths>\d+(?:\.\d+)*)"
    r"-n(?P<neck>\d+)-h(?P<head>\d+)"
)


@dataclass(frozen=True, slots=True, order=True)
class Architecture:
    """One subnet of the supernet.

    Attributes:
        resolution: long side of the model's input, in pixels, a multiple of 32.
        depths: blocks per stage, four of them, the strided first block included.
        widths: channels per stage, four multiples of 8.
        neck_width: channels of the neck and of the head's branches, a multiple of 8.
        head_depth: 3x3 blocks per branch of the head.

    Raises:
        ValueError: on construction, for values that no detector can have.
    """

    resolution: int
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    neck_width: int
    head_depth: int

    def __post_init__(self) -> None:
        if self.resolution < MAX_STRIDE or self.resolution % MAX_STRIDE:
            raise ValueError(f"resolution must be a positive multiple of {MAX_STRIDE}, got {self.resolution}")
        if len(self.depths) != STAGES or min(self.depths) < 1:
            raise ValueError(f"depths must be {STAGES} numbers of at least 1, got {self.depths}")
        if len(self.widths) != STAGES or any(width < 8 or width % 8 for width in self.widths):
            raise ValueError(f"widths must be {STAGES} positive multiples of 8, got {self.widths}")
        if self.neck_width < 8 or self.neck_width % 8:
            raise ValueError(f"neck_width must be a positive multiple of 8, got {self.neck_width}")
        if self.head_depth < 1:
            raise ValueError(f"head_depth must be at least 1, got {self.head_depth}")

    @property
    def name(self) -> str:
        """Return the stable readable name, e.g. ``r320-d1.2.3.2-w16.32.64.96-n32-h1``."""
        depths = ".".join(map(str, self.depths))
        widths = ".".join(map(str, self.widths))
        return f"r{self.resolution}-d{depths}-w{widths}-n{self.neck_width}-h{self.head_depth}"

    @classmethod
    def parse(cls, name: str) -> Architecture:
        """Read back what `name` wrote.

        Raises:
            ValueError: when the text is not such a name, or names an impossible detector.
        """
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"not an architecture's name: {name!r}")
        return cls(
            resolution=int(match["resolution"]),
            depths=tuple(int(part) for part in match["depths"].split(".")),
            widths=tuple(int(part) for part in match["widths"].split(".")),
            neck_width=int(match["neck"]),
            head_depth=int(match["head"]),
        )


@dataclass(frozen=True, slots=True)
class Cost:
    """What a subnet costs on paper: multiply-accumulates for one frame, parameters once fused."""

    macs: int
    parameters: int


@dataclass(frozen=True)
class Space:
    """The choices per gene, for a data set with `classes` classes and frames of about `aspect` (width,
    height).

    Every field that lists choices is strictly increasing, so index 0 of each gene is the cheapest.  Elastic
    widths are the leading channels and elastic depths the leading blocks of the largest subnet's.

    Raises:
        ValueError: on construction, for empty, unsorted or impossible choices.
    """

    classes: int
    aspect: tuple[int, int] = (4, 3)
    resolutions: tuple[int, ...] = RESOLUTIONS
    depths: tuple[tuple[int, ...], ...] = ((1, 2), (1, 2, 3), (1, 2, 3, 4), (1, 2, 3))
    widths: tuple[tuple[int, ...], ...] = (
        (16, 24, 32),
        (24, 32, 48, 64),
        (32, 48, 64, 96, 128),
        (48, 64, 96, 160),
    )
    neck_widths: tuple[int, ...] = (24, 32, 48)
    head_depths: tuple[int, ...] = (1, 2)
    stem_width: int = 16

    def __post_init__(self) -> None:
        if self.classes < 1:
            raise ValueError(f"classes must be at least 1, got {self.classes}")
        if min(self.aspect) < 1:
            raise ValueError(f"aspect must be two positive numbers, got {self.aspect}")
        if len(self.depths) != STAGES or len(self.widths) != STAGES:
            raise ValueError(f"depths and widths need {STAGES} stages")
        if self.stem_width < 8 or self.stem_width % 8:
            raise ValueError(f"stem_width must be a positive multiple of 8, got {self.stem_width}")
        for choices in self._choices:
            if not choices or any(a >= b for a, b in pairwise(choices)):
                raise ValueError(f"choices must be non-empty and strictly increasing, got {choices}")
        for genes in (np.zeros(len(self._choices), np.int64), np.asarray(self.gene_sizes) - 1):
            self.from_genes(genes)  # refuses values that no detector can have

    def to_json(self) -> str:
        """Write the space as canonical JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Space:
        """Read a space back from `to_json`; raises KeyError or ValueError on other text."""
        fields = json.loads(text)
        return cls(
            classes=fields["classes"],
            aspect=(fields["aspect"][0], fields["aspect"][1]),
            resolutions=tuple(fields["resolutions"]),
            depths=tuple(tuple(choices) for choices in fields["depths"]),
            widths=tuple(tuple(choices) for choices in fields["widths"]),
            neck_widths=tuple(fields["neck_widths"]),
            head_depths=tuple(fields["head_depths"]),
            stem_width=fields["stem_width"],
        )

    @cached_property
    def _choices(self) -> tuple[tuple[int, ...], ...]:
        return (self.resolutions, *self.depths, *self.widths, self.neck_widths, self.head_depths)

    @property
    def gene_sizes(self) -> tuple[int, ...]:
        """Return the number of choices per gene: resolution, depths, widths, neck width, head depth."""
        return tuple(len(choices) for choices in self._choices)

    def size(self) -> int:
        """Return how many subnets the space holds."""
        return math.prod(self.gene_sizes)

    @property
    def smallest(self) -> Architecture:
        """Return the subnet with the first choice of every gene."""
        return self.from_genes(np.zeros(len(self._choices), np.int64))

    @property
    def largest(self) -> Architecture:
        """Return the subnet with the last choice of every gene."""
        return self.from_genes(np.asarray(self.gene_sizes, np.int64) - 1)

    def only(self, arch: Architecture) -> Space:
        """Return the space that holds this subnet and nothing else; raises ValueError as `genes` does."""
        self.genes(arch)
        return replace(
            self,
            resolutions=(arch.resolution,),
            depths=tuple((depth,) for depth in arch.depths),
            widths=tuple((width,) for width in arch.widths),
            neck_widths=(arch.neck_width,),
            head_depths=(arch.head_depth,),
        )

    def __contains__(self, arch: Architecture) -> bool:
        return all(value in choices for value, choices in zip(_values(arch), self._choices, strict=True))

    def genes(self, arch: Architecture) -> NDArray[np.int64]:
        """Return the index of each of the architecture's choices, shape [genes].

        Raises:
            ValueError: when the architecture is not in this space.
        """
        if arch not in self:
            raise ValueError(f"{arch.name} is not in the search space")
        pairs = zip(_values(arch), self._choices, strict=True)
        return np.array([choices.index(value) for value, choices in pairs], np.int64)

    def from_genes(self, genes: NDArray[np.int64]) -> Architecture:
        """Return the architecture with these choice indices, the inverse of `genes`.

        Raises:
            ValueError: for a wrong number of genes or an index out of range.
        """
        if len(genes) != len(self._choices):
            raise ValueError(f"expected {len(self._choices)} genes, got {len(genes)}")
        values: list[int] = []
        for gene, choices in zip(genes.tolist(), self._choices, strict=True):
            if not 0 <= gene < len(choices):
                raise ValueError(f"gene {gene} is out of range for choices {choices}")
            values.append(choices[gene])
        return Architecture(
            resolution=values[0],
            depths=tuple(values[1 : 1 + STAGES]),
            widths=tuple(values[1 + STAGES : 1 + 2 * STAGES]),
            neck_width=values[-2],
            head_depth=values[-1],
        )

    def sample(self, rng: np.random.Generator, *, resolution: int | None = None) -> Architecture:
        """Draw a subnet uniformly, at `resolution` where one is given."""
        genes = np.array([rng.integers(size) for size in self.gene_sizes], np.int64)
        if resolution is not None:
            genes[0] = self.resolutions.index(resolution)
        return self.from_genes(genes)

    def mutate(self, arch: Architecture, rng: np.random.Generator, *, rate: float = 0.15) -> Architecture:
        """Redraw each gene with probability `rate`, at least one of them, to another choice where it has
        one."""
        genes = self.genes(arch)
        sizes = np.asarray(self.gene_sizes)
        mutable = np.flatnonzero(sizes > 1)
        if mutable.size == 0:
            return arch
        chosen = mutable[rng.random(mutable.size) < rate]
        if chosen.size == 0:
            chosen = rng.choice(mutable, 1)
        genes[chosen] = (genes[chosen] + 1 + rng.integers(sizes[chosen] - 1)) % sizes[chosen]
        return self.from_genes(genes)

    def crossover(self, a: Architecture, b: Architecture, rng: np.random.Generator) -> Architecture:
        """Take each gene from `a` or from `b` with equal chance."""
        genes_a = self.genes(a)
        return self.from_genes(np.where(rng.random(genes_a.size) < 0.5, genes_a, self.genes(b)))

    def resolution_wh(self, arch: Architecture) -> tuple[int, int]:
        """Return the input size (width, height) in pixels: the long side is `arch.resolution`, both are
        multiples of 32, and the short side is the aspect's, rounded up (4:3 at 320 gives 320x256)."""
        return self.input_wh(arch.resolution)

    def input_wh(self, resolution: int) -> tuple[int, int]:
        """Return the input size (width, height) in pixels for a long side of `resolution` pixels."""
        width, height = self.aspect
        short = -(-resolution * min(width, height) // max(width, height))
        short = max(MAX_STRIDE, -(-short // MAX_STRIDE) * MAX_STRIDE)
        return (resolution, short) if width >= height else (short, resolution)

    def cost(self, arch: Architecture) -> Cost:
        """Count the fused subnet's multiply-accumulates per frame and its parameters, convolutions only."""
        width, height = self.resolution_wh(arch)
        pixels = width * height
        macs = parameters = 0

        def conv(inputs: int, outputs: int, kernel: int, stride: int, copies: int = 1) -> None:
            nonlocal macs, parameters
            weights = inputs * outputs * kernel * kernel
            macs += copies * weights * (pixels // (stride * stride))
            parameters += copies * (weights + outputs)

        conv(3, self.stem_width, 3, 2)
        channels = self.stem_width
        for stage, (depth, stage_width) in enumerate(zip(arch.depths, arch.widths, strict=True)):
            stride = 4 << stage
            conv(channels, stage_width, 3, stride)
            conv(stage_width, stage_width, 3, stride, copies=depth - 1)
            channels = stage_width
        neck = arch.neck_width
        for stage_width, stride in zip(arch.widths[1:], LEVEL_STRIDES, strict=True):
            conv(stage_width, neck, 1, stride)
            conv(neck, neck, 3, stride, copies=2 * arch.head_depth)
            conv(neck, self.classes + 4, 1, stride)
        for stride in (8, 16, 16, 16, 32, 32):  # two blocks down the pyramid, two pairs up again
            conv(neck, neck, 3, stride)
        return Cost(macs=macs, parameters=parameters)


def aspect_of(sizes_wh: NDArray[np.int64]) -> tuple[int, int]:
    """Return the aspect (width, height) in lowest terms of the median width and height of frames [n, 2]."""
    if len(sizes_wh) == 0:
        raise ValueError("no frames to take an aspect ratio from")
    width, height = (max(1, int(side)) for side in np.median(sizes_wh, axis=0))
    divisor = math.gcd(width, height)
    return width // divisor, height // divisor


def resolutions_for(sizes_wh: NDArray[np.int64]) -> tuple[int, ...]:
    """Return the resolutions worth training for frames of these widths and heights [n, 2].

    Up to the median long side, and three at least: enlarging a frame adds pixels to pay for and nothing to
    see, and every resolution takes its share of the training.
    """
    if len(sizes_wh) == 0:
        raise ValueError("no frames to take resolutions from")
    longest = float(np.median(sizes_wh.max(axis=1)))
    within = sum(resolution < longest + MAX_STRIDE for resolution in RESOLUTIONS)
    return RESOLUTIONS[: max(within, _LEAST_RESOLUTIONS)]


def _values(arch: Architecture) -> tuple[int, ...]:
    return (arch.resolution, *arch.depths, *arch.widths, arch.neck_width, arch.head_depth)
