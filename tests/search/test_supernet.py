"""The supernet and the plain detectors cut out of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from search.space import Space
from search.supernet.decode import anchors_for, boxes_from, detections_from, flattened
from search.supernet.head import RawOutputs
from search.supernet.model import Supernet
from search.supernet.plain import PlainConv
from tests.search.rectangles import TINY


def pixels(resolution: int, count: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, resolution, resolution, generator=torch.Generator().manual_seed(seed))


def difference(a: RawOutputs, b: RawOutputs) -> float:
    pairs = zip([*a.logits, *a.distances], [*b.logits, *b.distances], strict=True)
    return max(float((one - other).abs().max()) for one, other in pairs)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 1000))
@torch.no_grad()
def test_extracted_subnet_computes_the_same(seed: int) -> None:
    """A subnet cut out of the supernet computes what the supernet does with that subnet active."""
    supernet = Supernet(TINY, seed=1)
    arch = TINY.sample(np.random.default_rng(seed))
    x = pixels(arch.resolution)
    assert difference(supernet(x, arch), supernet.extract(arch).train()(x)) == 0.0


@torch.no_grad()
def test_fusing_changes_nothing() -> None:
    """A fused detector equals the unfused one to 1e-4 and has one bare convolution per block."""
    detector = Supernet(TINY).extract(TINY.largest).train()
    x = pixels(96, 4)
    detector(x)
    before = detector.eval()(x)
    after = detector.fuse()
    assert difference(before, after(x)) < 1e-4
    assert all(block.norm is None for block in after.modules() if isinstance(block, PlainConv))
    assert sum(p.numel() for p in after.parameters()) == TINY.cost(TINY.largest).parameters


@torch.no_grad()
def test_branches_merge_into_one_kernel() -> None:
    """A block's merged kernel is the sum of its 3x3, 1x1 and identity branches."""
    block = Supernet(TINY).neck.top_down[0]
    x = torch.rand(1, 8, 5, 5)
    conv = torch.nn.functional.conv2d
    kernel, point = block.get_parameter("kernel")[:8, :8], block.get_parameter("point")[:8, :8]
    apart = conv(x, kernel, padding=1) + conv(x, point) + x
    merged = block.merged_kernel(8, 8)  # type: ignore[operator]  # an ElasticBlock, from a ModuleList
    assert torch.allclose(conv(x, merged, padding=1), apart, atol=1e-5)


def test_initial_weights_follow_the_seed() -> None:
    """The same seed gives the same weights, whatever the global random state."""
    first = Supernet(TINY, seed=3).state_dict()
    torch.rand(5)
    second = Supernet(TINY, seed=3).state_dict()
    other = Supernet(TINY, seed=4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_strangers_cannot_be_extracted() -> None:
    """A subnet of another space is refused."""
    with pytest.raises(ValueError, match="not in"):
        Supernet(TINY).extract(Space(classes=2).smallest)


def test_anchors_follow_the_features() -> None:
    """Anchor points lie in the middle of the cells, in the order in which raw outputs are flattened."""
    anchors = anchors_for((96, 64))
    assert anchors.points_xy.shape == (96 + 24 + 6, 2)
    assert anchors.points_xy[1].tolist() == [12.0, 4.0]
    assert anchors.points_xy[-1].tolist() == [80.0, 48.0]
    assert anchors.strides[-1] == 32.0
    level = torch.arange(96.0).reshape(1, 1, 8, 12)
    raw = RawOutputs([level], [level.expand(1, 4, 8, 12)])
    assert flattened(raw)[0][0, :, 0].tolist() == list(range(96))


def quiet_outputs(classes: int = 2, side: int = 64) -> RawOutputs:
    sizes = [side // stride for stride in (8, 16, 32)]
    return RawOutputs(
        [torch.full((1, classes, size, size), -20.0) for size in sizes],
        [torch.zeros(1, 4, size, size) for size in sizes],
    )


def test_decoding_finds_the_planted_box() -> None:
    """A single strong logit comes out first, with its class and the box that its distances say."""
    raw = quiet_outputs()
    raw.logits[1][0, 1, 2, 3] = 4.0  # stride 16: anchor point (56, 40)
    raw.distances[1][0, :, 2, 3] = torch.log(torch.tensor([1.0, 2.0, 0.25, 0.5]))
    best = detections_from(raw, (64, 64))[0, 0]
    assert torch.allclose(best[:4], torch.tensor([40.0, 8.0, 60.0, 48.0]), atol=1e-4)
    assert float(best[4]) == pytest.approx(1 / (1 + np.exp(-4)))
    assert float(best[5]) == 1.0


def test_only_peaks_are_kept() -> None:
    """Of neighbouring cells of a class only the best is kept; another class and another level keep theirs."""
    raw = quiet_outputs()
    raw.logits[0][0, 0, 2, 2], raw.logits[0][0, 0, 3, 3] = 3.0, 2.0
    raw.logits[0][0, 1, 2, 3] = 1.0
    raw.logits[1][0, 0, 1, 1] = 2.5
    rows = detections_from(raw, (64, 64))[0]
    strong = rows[rows[:, 4] > 0.5]
    assert strong[:, 5].tolist() == [0.0, 0.0, 1.0]


def test_missing_places_are_padding() -> None:
    """Where there are fewer than 100 candidates the rest has score 0 and class -1."""
    rows = detections_from(quiet_outputs(classes=1, side=32), (32, 32))[0]
    assert rows.shape == (100, 6)
    assert bool((rows[21:, 4] == 0).all())
    assert bool((rows[21:, 5] == -1).all())


def test_distant_boxes_stay_finite() -> None:
    """Absurd distances are cut, not overflowed."""
    boxes = boxes_from(torch.full((1, 84, 4), 1e4), anchors_for((64, 64)))
    assert bool(torch.isfinite(boxes).all())
