"""The model files of a run: what each is, how it is named, how it is made."""

from __future__ import annotations

import os
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt

from model_repo.frame import decode
from model_repo.frontier import Variant
from model_repo.latency import Precision
from model_repo.value import Value
from search.data.coco import ImageRecord
from search.measure import unmeasured
from search.quantize import quantize
from search.settings import Calibration
from search.space import Architecture, Space

if TYPE_CHECKING:
    from search.pipeline import Context
    from search.supernet.plain import PlainDetector


class Quantized(Value):
    """What int8 loses of the objective, on the images that candidates are judged on: quantized after
    training, and after tuning (None where that was not needed)."""

    lost: float
    tuned_lost: float | None = None

    @property
    def kept_lost(self) -> float:
        """Return what the file that was kept loses."""
        return self.lost if self.tuned_lost is None else min(self.lost, self.tuned_lost)


class Artifact(Value):
    """A model file of this run: a kept architecture in one precision, at its place in the step's folder."""

    name: str
    architecture: str
    resolution_wh: tuple[PositiveInt, PositiveInt]
    precision: Precision
    parameters: PositiveInt
    macs: PositiveInt
    nms_iou: Annotated[float, Field(gt=0.0, le=1.0)]
    folder: str
    quantized: Annotated[Quantized | None, Field(description="of int8, where it was judged")] = None

    def variant(self, root: Path) -> Variant:
        """Return it as a variant that an engine can load from `root`; it has no measurement yet."""
        return unmeasured(
            name=self.name,
            architecture=self.architecture,
            resolution_wh=self.resolution_wh,
            precision=self.precision,
            parameters=self.parameters,
            macs=self.macs,
            nms_iou=self.nms_iou,
            model=root / "models" / self.folder / "1" / "model.onnx",
        )


class Artifacts(Value):
    """All model files that step `export` made."""

    artifacts: tuple[Artifact, ...]


def read_artifacts(context: Context) -> list[Artifact]:
    """Return what step `export` made."""
    text = (context.folder.root / "export" / "artifacts.json").read_text()
    return list(Artifacts.model_validate_json(text).artifacts)


def some_frames(images: Sequence[ImageRecord], count: int, seed: int) -> list[NDArray[np.uint8]]:
    """Decode a seeded choice of images."""
    rng = np.random.default_rng([seed, 0xF4A])
    chosen = np.sort(rng.choice(len(images), min(count, len(images)), replace=False))
    return [decode(images[i].path.read_bytes()) for i in chosen]


def short_name(architecture: Architecture, space: Space) -> str:
    """Return a name that tells resolution and cost, and an abbreviated digest that keeps it unique."""
    mega = round(space.cost(architecture).macs / 1e6)
    return f"r{architecture.resolution}-{mega}m-{sha256(architecture.name.encode()).hexdigest()[:4]}"


def model_files(
    detector: PlainDetector,
    frames: Sequence[NDArray[np.uint8]],
    precisions: Sequence[Precision],
    method: Calibration,
    folder: Path,
) -> dict[Precision, Path]:
    """Export a fused detector in every precision asked for; f32 and bf16 are one file run in two ways.

    frames: decoded ones that the quantizer takes ranges from.
    """
    from search.export import export_onnx

    exported = export_onnx(detector, detector.resolution_wh, folder / "model.onnx")
    files: dict[Precision, Path] = {}
    for precision in precisions:
        if precision == "int8":
            files[precision] = folder / "int8.onnx"
            quantize(
                exported.path,
                files[precision],
                frames,
                float_nodes=exported.float_nodes,
                resolution_wh=detector.resolution_wh,
                method=method,
            )
        elif precision == "fp16":
            half = export_onnx(detector, detector.resolution_wh, folder / "half.onnx", half=True)
            files[precision] = half.path
        else:
            files[precision] = exported.path
    return files


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
