"""Reading a published model back as a supernet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from search.data.coco import Dataset
from search.evaluate import SubnetEvaluator
from search.export import export_onnx
from search.quantize import quantize
from search.recover import recover
from search.run_folder import RunError
from search.supernet.blocks import ElasticBlock
from search.supernet.model import Supernet
from search.supernet.plain import PlainDetector
from tests.search.rectangles import TINY, tiny_dataset

ARCH = TINY.largest


def detector_of(supernet: Supernet, dataset: Dataset) -> PlainDetector:
    """Return the fused detector as a run exports it."""
    return SubnetEvaluator(supernet.eval(), dataset, precision="float32").detector(ARCH)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return tiny_dataset(tmp_path, train=8)


@pytest.fixture
def published(dataset: Dataset) -> PlainDetector:
    """A detector of random weights whose norms, some of them turned about, are not those of a fresh net."""
    supernet = Supernet(TINY, 3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in supernet.named_parameters():
            if name.endswith(("gain", "shift", "level_scales")):
                weight.add_(0.7 * torch.randn(weight.shape, generator=generator))
    return detector_of(supernet, dataset)


def outputs(detector: PlainDetector) -> list[torch.Tensor]:
    pixels = torch.rand(2, 3, *detector.resolution_wh[::-1], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        raw = detector(pixels)
    return [*raw.logits, *raw.distances]


def test_a_model_read_back_computes_what_the_file_does(
    published: PlainDetector, dataset: Dataset, tmp_path: Path
) -> None:
    """Cut out of the recovered supernet again, the subnet gives the published model's outputs; norms over a
    few tiny frames are known to a percent or so."""
    file = export_onnx(published, published.resolution_wh, tmp_path / "m.onnx").path
    stored = recover(file, dataset)
    assert stored.space.largest == ARCH
    again = detector_of(stored.supernet(), dataset)
    for mine, other in zip(outputs(again), outputs(published), strict=True):
        assert torch.allclose(mine, other, atol=0.02 * float(other.abs().max()))


def test_an_int8_file_is_read_back_as_well(
    published: PlainDetector, dataset: Dataset, tmp_path: Path
) -> None:
    """What int8 rounded stays rounded; the outputs follow the float model's closely."""
    exported = export_onnx(published, published.resolution_wh, tmp_path / "m.onnx")
    frames = [record.frame() for record in dataset.splits["train"].images]
    quantize(
        exported.path,
        tmp_path / "q.onnx",
        frames,
        float_nodes=exported.float_nodes,
        resolution_wh=published.resolution_wh,
    )
    again = detector_of(recover(tmp_path / "q.onnx", dataset).supernet(), dataset)
    for mine, other in zip(outputs(again), outputs(published), strict=True):
        assert np.corrcoef(mine.flatten(), other.flatten())[0, 1] > 0.98


def test_kernels_come_back_as_long_as_fresh_ones(
    published: PlainDetector, dataset: Dataset, tmp_path: Path
) -> None:
    """A norm forgets its kernel's length, the learning rate does not: it is a fresh kernel's."""
    file = export_onnx(published, published.resolution_wh, tmp_path / "m.onnx").path
    blocks = [
        supernet.backbone.get_submodule("stages.2.0")
        for supernet in (recover(file, dataset).supernet(), Supernet(TINY, 0))
    ]
    lengths = []
    for block in blocks:
        assert isinstance(block, ElasticBlock)
        lengths.append(float(block.merged_kernel(16, 24).norm().detach()))
    assert 0.7 < lengths[0] / lengths[1] < 1.4


def test_a_file_that_no_search_made_is_refused_by_name(dataset: Dataset, tmp_path: Path) -> None:
    """A missing file, another file, another maker's graph: the error names the file."""
    with pytest.raises(RunError, match=r"absent\.onnx: No such file"):
        recover(tmp_path / "absent.onnx", dataset)
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(RunError, match=r"text\.onnx: not a model that a search made"):
        recover(tmp_path / "text.onnx", dataset)


def test_other_classes_are_refused(published: PlainDetector, dataset: Dataset, tmp_path: Path) -> None:
    """A model of two classes is not read back for a data set of three."""
    file = export_onnx(published, published.resolution_wh, tmp_path / "m.onnx").path
    three = Dataset(dataset.name, dataset.root, ("a", "b", "c"), dataset.splits, "x")
    with pytest.raises(RunError, match=r"m\.onnx: not a model of .* and 3 classes"):
        recover(file, three)
    renamed = onnx.load(file)
    renamed.graph.name = "yolo"
    onnx.save(renamed, file)
    with pytest.raises(RunError, match=r"m\.onnx: not a model that a search made"):
        recover(file, dataset)
