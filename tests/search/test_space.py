"""The search space: names, choices, sampling and the paper cost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.space import RESOLUTIONS, Architecture, Space, aspect_of, resolutions_for

SPACE = Space(classes=3)
seeds = st.integers(0, 2**32 - 1)


def drawn(seed: int) -> Architecture:
    return SPACE.sample(np.random.default_rng(seed))


def test_holds_a_million_subnets() -> None:
    """The default space holds at least a million subnets over at least eight resolutions."""
    assert SPACE.size() >= 1_000_000
    assert len(SPACE.resolutions) >= 8


@given(seeds)
def test_name_round_trip(seed: int) -> None:
    """A name reads back as the architecture that wrote it."""
    assert Architecture.parse(drawn(seed).name) == drawn(seed)


@given(seeds)
def test_gene_round_trip(seed: int) -> None:
    """Genes and architectures map one to one."""
    assert SPACE.from_genes(SPACE.genes(drawn(seed))) == drawn(seed)


@given(seeds, seeds)
def test_variation_stays_inside(one: int, other: int) -> None:
    """A mutant differs from its parent, a child takes every gene from a parent, and both are in the space."""
    rng = np.random.default_rng(one ^ other)
    a, b = drawn(one), drawn(other)
    mutant, child = SPACE.mutate(a, rng), SPACE.crossover(a, b, rng)
    assert mutant in SPACE
    assert mutant != a
    genes = SPACE.genes(child)
    assert bool(np.all((genes == SPACE.genes(a)) | (genes == SPACE.genes(b))))


def test_sampling_repeats() -> None:
    """The same generator state gives the same subnets, at a fixed resolution where one is asked for."""
    assert drawn(7) == drawn(7)
    assert SPACE.sample(np.random.default_rng(1), resolution=320).resolution == 320


@given(seeds)
def test_input_is_rectangular(seed: int) -> None:
    """Inputs have the long side asked for, multiples of 32, and hold the aspect."""
    arch = drawn(seed)
    width, height = SPACE.resolution_wh(arch)
    assert width == arch.resolution
    assert height % 32 == 0
    assert 0 <= height - width * 3 / 4 < 32


def test_upright_frames() -> None:
    """Upright frames give upright inputs, and 4:3 at 320 is rounded up to 320x256."""
    assert Space(classes=1, aspect=(3, 4)).input_wh(320) == (256, 320)
    assert SPACE.input_wh(320) == (320, 256)
    assert aspect_of(np.array([[640, 480], [640, 480], [100, 900]])) == (4, 3)


@given(seeds)
def test_cost_grows_with_every_gene(seed: int) -> None:
    """The next larger choice of any gene costs more multiply-accumulates."""
    arch = drawn(seed)
    genes = SPACE.genes(arch)
    for index, size in enumerate(SPACE.gene_sizes):
        if genes[index] + 1 < size:
            larger = genes.copy()
            larger[index] += 1
            assert SPACE.cost(SPACE.from_genes(larger)).macs > SPACE.cost(arch).macs


def test_extremes_span_the_space() -> None:
    """The largest subnet costs at least forty times the smallest and stays within two million parameters."""
    low, high = SPACE.cost(SPACE.smallest), SPACE.cost(SPACE.largest)
    assert high.macs > 40 * low.macs
    assert high.parameters <= 2_000_000


@pytest.mark.parametrize(
    "change",
    [{"resolution": 100}, {"depths": (1, 1)}, {"depths": (0, 1, 1, 1)}, {"widths": (16, 24, 32, 50)},
     {"neck_width": 0}, {"head_depth": 0}],
)  # fmt: skip
def test_impossible_architectures_cannot_be_made(change: dict[str, object]) -> None:
    """A combination that no detector can have is refused when it is made."""
    with pytest.raises(ValueError, match="must be"):
        replace(SPACE.smallest, **change)  # type: ignore[arg-type]  # wrong values are the point


@pytest.mark.parametrize(
    "name", ["", "r320", "r320-d1.1-w16.24-n24-h1", "r320-d1.1.1.1-w16.24.32.48-n24-h1x"]
)
def test_other_names_are_refused(name: str) -> None:
    """Text that is no architecture's name is refused."""
    with pytest.raises(ValueError):
        Architecture.parse(name)


def test_impossible_spaces_cannot_be_made() -> None:
    """Unsorted, empty or impossible choices are refused."""
    with pytest.raises(ValueError, match="increasing"):
        Space(classes=3, resolutions=(320, 160))
    with pytest.raises(ValueError, match="increasing"):
        Space(classes=3, neck_widths=())
    with pytest.raises(ValueError, match="multiple"):
        Space(classes=3, resolutions=(100,))


def test_strangers_are_refused() -> None:
    """An architecture of another space has no genes here."""
    with pytest.raises(ValueError, match="not in"):
        SPACE.genes(replace(SPACE.smallest, neck_width=8))


def test_frames_are_not_enlarged() -> None:
    """Resolutions end at the frames' usual long side, rounded up to the stride; small frames keep three."""
    assert resolutions_for(np.array([[416, 416]] * 3 + [[4000, 3000]]))[-1] == 416
    assert resolutions_for(np.array([[300, 390]]))[-1] == 416
    assert resolutions_for(np.array([[640, 480]])) == RESOLUTIONS
    assert resolutions_for(np.array([[64, 48]])) == RESOLUTIONS[:3]
    with pytest.raises(ValueError, match="no frames"):
        resolutions_for(np.empty((0, 2), dtype=np.int64))


@given(st.integers(0, 10_000))
def test_a_space_of_one_subnet_holds_it_and_nothing_else(seed: int) -> None:
    """What a subnet that goes on alone is trained in: same classes, same inputs, same cost."""
    space = Space(classes=3)
    arch = space.sample(np.random.default_rng(seed))
    alone = space.only(arch)
    assert alone.size() == 1
    assert alone.largest == alone.smallest == arch
    assert alone.cost(arch) == space.cost(arch)
    assert alone.resolution_wh(arch) == space.resolution_wh(arch)
