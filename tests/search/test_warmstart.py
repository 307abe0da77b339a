"""Beginning with another supernet's weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from search.recipe import TrainConfig
from search.run_folder import RunError
from search.space import Space
from search.supernet.model import Supernet
from search.train import TrainError, train
from search.warmstart import warm_start
from search.weights import StoredSupernet, write_supernet
from tests.search.rectangles import TINY, tiny_dataset

WIDER = replace(TINY, widths=((8, 16, 24), (16,), (16, 24), (16, 32)), depths=((1, 2), (1, 2), (1,), (1, 2)))


def stored(path: Path, space: Space, seed: int) -> Supernet:
    net = Supernet(space, seed)
    write_supernet(path, StoredSupernet(space, net.state_dict(), steps=1, seconds=1.0))
    return net


def test_the_same_space_is_taken_over_whole(tmp_path: Path) -> None:
    """A supernet of the same space begins as exactly the stored one."""
    source, net = stored(tmp_path / "w.pt", TINY, 1), Supernet(TINY, 2)
    found = warm_start(net, tmp_path / "w.pt")
    assert found.taken == found.total
    assert found.classes
    for mine, other in zip(net.parameters(), source.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_a_wider_and_deeper_supernet_contains_the_stored_subnets(tmp_path: Path) -> None:
    """What the stored supernet computes, the same subnet of a larger one computes after taking it over."""
    source, net = stored(tmp_path / "w.pt", TINY, 1), Supernet(WIDER, 2)
    found = warm_start(net, tmp_path / "w.pt")
    assert 0 < found.taken < found.total
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        for arch in (TINY.smallest, replace(TINY.largest, resolution=64)):
            for mine, other in zip(net(x, arch).logits, source(x, arch).logits, strict=True):
                assert torch.allclose(mine, other, atol=1e-5)


def test_a_wider_subnet_begins_as_the_widest_that_was_there(tmp_path: Path) -> None:
    """Channels that are new change nothing at first: the widest subnet computes what the old widest did."""
    source, net = stored(tmp_path / "w.pt", TINY, 1), Supernet(WIDER, 2)
    warm_start(net, tmp_path / "w.pt")
    x = torch.rand(2, 3, 64, 64)
    widest = replace(WIDER.largest, resolution=64, depths=TINY.largest.depths)
    with torch.no_grad():
        pairs = zip(
            net(x, widest).logits, source(x, replace(TINY.largest, resolution=64)).logits, strict=True
        )
        for mine, other in pairs:
            assert torch.allclose(mine, other, atol=1e-5)


def test_other_classes_start_anew(tmp_path: Path) -> None:
    """With another number of classes their outputs keep their initial weights, the rest is taken over."""
    stored(tmp_path / "w.pt", TINY, 1)
    net = Supernet(replace(TINY, classes=5), 2)
    before = net.head.class_kernel.clone()
    assert not warm_start(net, tmp_path / "w.pt").classes
    assert torch.equal(net.head.class_kernel, before)


def test_what_is_no_supernet_is_refused_by_name(tmp_path: Path) -> None:
    """A missing file, other bytes, and a supernet with nothing in common are refused, naming the file."""
    (tmp_path / "bytes.pt").write_bytes(b"no weights")
    write_supernet(
        tmp_path / "other.pt", StoredSupernet(TINY, {"other": torch.zeros(1)}, steps=1, seconds=1.0)
    )
    for name in ("missing.pt", "bytes.pt", "other.pt"):
        with pytest.raises(RunError, match=name):
            warm_start(Supernet(TINY), tmp_path / name)


def test_fine_tuning_goes_on_from_what_was_learnt(tmp_path: Path) -> None:
    """A training that begins with another one's weights starts at a lower loss; its folder is its own."""
    dataset = tiny_dataset(tmp_path)
    config = TrainConfig(steps=40, batch_size=4, dtype="float32", learning_rate=5e-3, workers=1)
    curves: list[list[float]] = [[], []]
    first = train(
        config, TINY, dataset, tmp_path / "a", lambda step: curves[0].append(step.classes + step.boxes)
    )
    again = replace(config, steps=4, init="digest")
    train(
        again,
        TINY,
        dataset,
        tmp_path / "b",
        lambda step: curves[1].append(step.classes + step.boxes),
        init=first.weights,
    )
    assert sum(curves[1]) < 0.95 * sum(curves[0][:4])
    with pytest.raises(TrainError, match="another"):
        train(replace(again, init=None), TINY, dataset, tmp_path / "b")
