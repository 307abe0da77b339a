"""Exported ONNX files compute what the torch detector computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from search.evaluate import predict, recalibrate
from search.export import INPUT_NAME, OUTPUT_NAME, export_onnx
from search.space import Architecture
from search.supernet.model import Supernet
from search.supernet.plain import PlainDetector
from tests.search.rectangles import TINY


def frames_for(arch: Architecture, batch: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    width, height = TINY.resolution_wh(arch)
    return np.random.default_rng(1).integers(0, 255, (batch, height, width, 3), dtype=np.uint8)


def detector_for(arch: Architecture) -> PlainDetector:
    supernet = Supernet(TINY, seed=5)
    with torch.no_grad():
        supernet.head.class_kernel.mul_(50)
    return recalibrate(supernet, arch, frames_for(arch, 4))


@pytest.mark.parametrize("arch", [TINY.smallest, TINY.largest], ids=["smallest", "largest"])
@pytest.mark.parametrize("batch", [1, 3])
def test_onnx_runtime_agrees_with_torch(tmp_path: Path, arch: Architecture, batch: int) -> None:
    """ONNX Runtime gives torch's detections for the same frames, padding included."""
    detector, frames = detector_for(arch), frames_for(arch, batch)
    exported = export_onnx(detector, detector.resolution_wh, tmp_path / "model.onnx", batch=batch)
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == [INPUT_NAME]
    assert [value.name for value in session.get_outputs()] == [OUTPUT_NAME]
    rows = session.run(None, {INPUT_NAME: frames})[0]
    assert rows.shape == (batch, 100, 6)
    expected = predict(detector, frames)
    assert np.abs(rows[:, :, 4] - expected[:, :, 4]).max() < 1e-4
    certain = expected[:, :20, 4] - expected[:, 1:21, 4] > 1e-4  # where rounding cannot swap neighbours
    certain[:, 1:] &= certain[:, :-1]
    assert np.count_nonzero(certain) > 3
    assert np.abs(rows[:, :20] - expected[:, :20])[certain].max() < 1e-2


def test_float_nodes_are_the_predictors_and_the_decoding(tmp_path: Path) -> None:
    """The nodes to leave in floating point are in the graph: six predictors and all of the decoding, no
    block."""
    detector = detector_for(TINY.smallest)
    exported = export_onnx(detector, detector.resolution_wh, tmp_path / "model.onnx")
    names = {node.name for node in onnx.load(exported.path).graph.node}
    assert set(exported.float_nodes) <= names
    convolutions = [name for name in exported.float_nodes if name.endswith("/conv")]
    assert len(convolutions) == 6
    assert all(name.startswith("decode") for name in exported.float_nodes if name not in convolutions)


def test_half_precision_answers_like_whole(tmp_path: Path) -> None:
    """The float16 file takes the same frames, gives float32 rows, and moves boxes by less than half a pixel.

    ONNX Runtime's CPU has no kernels for it and computes between casts, with weights as they were rounded.
    """
    detector, frames = detector_for(TINY.largest), frames_for(TINY.largest, 1)
    sizes, rows = [], []
    for half in (False, True):
        path = export_onnx(detector, detector.resolution_wh, tmp_path / f"{half}.onnx", half=half).path
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        assert [value.type for value in (*session.get_inputs(), *session.get_outputs())] == [
            "tensor(uint8)", "tensor(float)",
        ]  # fmt: skip
        rows.append(session.run(None, {INPUT_NAME: frames})[0][0])
        sizes.append(path.stat().st_size)
    whole, halved = rows
    assert sizes[1] < 0.75 * sizes[0]
    assert not np.array_equal(whole, halved)
    assert np.abs(whole[:, 4] - halved[:, 4]).max() < 0.01
    certain = whole[:20, 4] - whole[1:21, 4] > 0.02  # where rounding cannot swap neighbours
    certain[1:] &= certain[:-1]
    assert np.count_nonzero(certain) > 2
    assert np.abs(whole[:20, :4] - halved[:20, :4])[certain].max() < 0.5


def test_files_are_reproducible(tmp_path: Path) -> None:
    """The same detector gives the same bytes."""
    detector = detector_for(TINY.smallest)
    paths = [
        export_onnx(detector, detector.resolution_wh, tmp_path / f"{name}.onnx").path for name in ("a", "b")
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_unfused_detectors_are_refused(tmp_path: Path) -> None:
    """A detector with batch norms left is not exported, and no file is left."""
    detector = Supernet(TINY).extract(TINY.smallest)
    with pytest.raises(ValueError, match="fused"):
        export_onnx(detector, detector.resolution_wh, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
