"""Two nets trained apart cascade as well when the scores of one are squared, and alignment makes it so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from shutil import copytree

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from model_repo.alignment import Alignment
from model_repo.publish import read
from model_repo.runtime.select import default_runtime
from model_repo.scoring import MatchTable
from search import bench_scales, calibrate, routing
from search.bench_routing import gain_models
from search.bench_scales import MOST_LOST, ScaleResult, ScaleRow, scales
from search.data.coco import Dataset, read_dataset
from search.routing_claims import Interval
from search.run_folder import RunError, Silent
from search.space import Architecture
from search.two_nets import TwoNets, published_twice, square_scores
from tests.fakes import tiny_repository
from tests.search.tiny import tiny_dataset

# The larger costs many times as much, so that the pair is worth a plan whatever else the machine does.
NETS = TwoNets(
    steps=150,
    batch_size=8,
    threads=1,
    samples=20,
    small=Architecture.parse("r64-d1.1.1.1-w8.8.16.16-n8-h1"),
    large=Architecture.parse("r160-d1.2.2.1-w16.32.48.48-n24-h1"),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    counts = {"train": 64, "calib": 120, "test": 120}
    root = tiny_dataset(tmp_path_factory.mktemp("data") / "data", counts)
    return read_dataset(root, needed=("train", "test"))


@pytest.fixture(scope="module")
def out(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which both nets are trained and published."""
    folder = tmp_path_factory.mktemp("nets") / "out"
    published_twice(NETS, data, folder, Silent())
    return folder


def found_in(out: Path, data: Dataset) -> ScaleResult:
    return scales(read(out / "plain"), read(out / "squared"), data, Silent(), resamples=20)


def test_squared_scores_cost_an_aligned_cascade_nothing(data: Dataset, out: Path) -> None:
    """With both sets calibrated their cascades are as good; under raw scores squaring shows."""
    found = found_in(out, data)
    assert found.large_map > found.small_map + 0.1
    assert [row.share for row in found.rows] == [0.2, 0.4, 0.6]
    assert found.holds
    for row in found.rows:
        assert row.raw_squared < row.raw - 2 * MOST_LOST
        assert row.lost.low <= row.lost.high


def test_without_alignment_the_loss_is_noticed(
    data: Dataset, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calibration that leaves scores as they are does not pass."""

    def none(table: MatchTable, classes: int) -> Alignment:
        del table
        return Alignment.identity(classes)

    monkeypatch.setattr(routing, "fit_alignment", none)
    monkeypatch.setattr(calibrate, "fit_alignment", none)
    again = tmp_path / "again"
    copytree(out, again)  # trained already: only published anew
    published_twice(NETS, data, again, Silent())
    found = found_in(again, data)
    assert not found.holds


def test_both_sets_are_published_as_any_other(out: Path) -> None:
    """Their files verify, their plans ask the small net first, and only the larger's file differs."""
    plain, squared = (read(out / name).frontier for name in ("plain", "squared"))
    assert plain.variant("small").folder == squared.variant("small").folder
    assert plain.variant("large").segments != squared.variant("large-squared").segments
    for frontier, larger in ((plain, "large"), (squared, "large-squared")):
        assert [key[:2] for key in gain_models(frontier, default_runtime())] == [("small", larger)]


def test_squaring_changes_the_scores_and_nothing_else(out: Path, data: Dataset) -> None:
    """Boxes and classes come in the same order from both files."""
    shape = read(out / "plain").frontier.variant("large").segments[0].inputs[0].shape
    frame = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    before, after = (
        onnxruntime.InferenceSession(out / f"{name}.onnx", providers=["CPUExecutionProvider"]).run(
            None, {"frames": frame}
        )[0]
        for name in ("large", "large-squared")
    )
    np.testing.assert_allclose(after[..., 4], before[..., 4] ** 2, rtol=1e-6)
    np.testing.assert_allclose(after[..., [0, 1, 2, 3, 5]], before[..., [0, 1, 2, 3, 5]], rtol=1e-6)
    assert (before[..., 4] > 0.0).any()


def test_what_cannot_be_squared_or_compared_is_refused(
    data: Dataset, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph without scores, another training's folder, nets too much alike and nets without a cascade each
    say so."""
    graph = helper.make_graph(
        [helper.make_node("Relu", ["a"], ["b"])],
        "none",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, [1])],
    )
    onnx.save(helper.make_model(graph), tmp_path / "none.onnx")
    with pytest.raises(ValueError, match="no scores to square"):
        square_scores(tmp_path / "none.onnx", tmp_path / "squared.onnx")
    with pytest.raises(RunError, match="another configuration"):
        published_twice(replace(NETS, steps=1), data, out, Silent())
    monkeypatch.setattr(bench_scales, "LEAST_GAP", 0.9)
    with pytest.raises(RunError, match=r"must lead by 0\.9; train both for longer"):
        found_in(out, data)
    alone = tiny_repository(tmp_path / "alone", plans=False)
    with pytest.raises(RunError, match="no plan asks one net after the other"):
        scales(alone, alone, data, Silent())


def test_the_claim_needs_every_share() -> None:
    """One share at which squaring costs more than is allowed breaks it."""

    def row(lost: float) -> ScaleRow:
        return ScaleRow(0.2, 0.5, 0.4, 0.5, 0.5 - lost, Interval(lost, lost, lost))

    def result(*lost: float) -> ScaleResult:
        return ScaleResult(10, 0.4, 0.6, ("replace", "wbf"), tuple(row(each) for each in lost))

    assert result(0.001, -0.01).holds
    assert not result(0.0, 0.003).holds
