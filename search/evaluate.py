"""How good a subnet is: cut it out, estimate its batch norms, fuse it, run it, score it.

A supernet's subnets share weights but not activations, so each gets batch norm statistics of its own from a
few letterboxed training frames (https://arxiv.org/abs/1903.05134) before it is judged or exported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from model_repo.detections import Detections, nms
from model_repo.frame import Letterbox
from model_repo.scoring import Score, Truth, score
from search.data.coco import Dataset, ImageRecord
from search.space import Architecture
from search.supernet.decode import detections_from
from search.supernet.model import Supernet
from search.supernet.plain import PlainDetector
from search.train import pixels_from

Precision = Literal["bfloat16", "float32"]
BATCH_SIZE = 8
CALIBRATION_FRAMES = 64


class FrameStore:
    """Frames of a list of images, letterboxed to an input size, kept for the sizes used last.

    Args:
        images: what to load.
        cache_bytes: how much memory letterboxed frames may take over all sizes; decoded ones are not kept.
    """

    def __init__(self, images: Sequence[ImageRecord], *, cache_bytes: int = 1 << 30) -> None:
        self.images = tuple(images)
        self._cache_bytes = cache_bytes
        self._kept: dict[tuple[tuple[int, int], int], NDArray[np.uint8]] = {}
        self._used = 0

    def frame(self, index: int, resolution_wh: tuple[int, int]) -> NDArray[np.uint8]:
        """Return image `index` as a model's input, uint8 [H, W, 3].

        Raises:
            search.data.coco.DataError: when the file cannot be read or decoded.
        """
        key = (resolution_wh, index)
        kept = self._kept.pop(key, None)
        if kept is None:
            image = self.images[index].frame()
            kept = Letterbox((image.shape[1], image.shape[0]), resolution_wh).apply(image)
            self._used += kept.nbytes
            while self._used > self._cache_bytes and self._kept:
                self._used -= self._kept.pop(next(iter(self._kept))).nbytes
        self._kept[key] = kept  # last in the order: least recently used frames go first
        return kept

    def batch(self, indices: Sequence[int], resolution_wh: tuple[int, int]) -> NDArray[np.uint8]:
        """Return images as one input, uint8 [N, H, W, 3]."""
        return np.stack([self.frame(index, resolution_wh) for index in indices])


@torch.no_grad()
def recalibrate(
    supernet: Supernet,
    arch: Architecture,
    frames: NDArray[np.uint8],
    *,
    precision: Precision = "float32",
    batch_size: int = 32,
) -> PlainDetector:
    """Cut out a subnet and give its batch norms the cumulative average over `frames`, uint8 [N, H, W, 3].

    Returns the fused detector.

    Raises:
        ValueError: when there are no frames or they have another size than the subnet's input.
    """
    detector = supernet.extract(arch).train()
    if len(frames) == 0 or (frames.shape[2], frames.shape[1]) != detector.resolution_wh:
        raise ValueError(f"frames {frames.shape} do not calibrate {arch.name}")
    for start in range(0, len(frames), batch_size):
        with _computing_in(precision):
            detector(pixels_from(frames[start : start + batch_size]))
    return detector.fuse()


@torch.inference_mode()
def predict(
    detector: PlainDetector, frames: NDArray[np.uint8], *, precision: Precision = "float32"
) -> NDArray[np.float32]:
    """Run a fused detector on a batch, uint8 [N, H, W, 3]; returns [N, 100, 6] as a published model would."""
    with _computing_in(precision):
        raw = detector(pixels_from(frames))
    return np.asarray(detections_from(raw, detector.resolution_wh).numpy(), np.float32)


class SubnetEvaluator:
    """Judges subnets of one supernet on one split, with everything that candidates share kept in memory.

    Args:
        supernet: the trained supernet.
        dataset: must hold `split` and `train`; batch norms are estimated on the latter.
        split: whose images subnets are judged on.
        seed: chooses the frames that batch norms are estimated on.
        precision: what convolutions are computed in; bfloat16 is twice as fast and ranks alike, float32 is
            what a published f32 file computes.
        nms_iou: overlap above which the lower of two boxes of a class is dropped; None leaves all.
    """

    def __init__(
        self,
        supernet: Supernet,
        dataset: Dataset,
        *,
        split: str = "valid",
        seed: int = 0,
        precision: Precision = "bfloat16",
        nms_iou: float | None = 0.6,
        calibration_frames: int = CALIBRATION_FRAMES,
    ) -> None:
        self._supernet = supernet
        self._precision: Precision = precision
        self._nms_iou = nms_iou
        self._classes = len(dataset.classes)
        train = dataset.splits["train"].images
        count = min(calibration_frames, len(train))
        chosen = np.sort(np.random.default_rng(seed).choice(len(train), count, replace=False))
        self._calibration = FrameStore([train[int(index)] for index in chosen])
        self._judged = FrameStore(dataset.splits[split].images)
        self.truths = tuple(
            Truth(image.boxes_xyxy, image.labels, image.crowd) for image in self._judged.images
        )

    def __len__(self) -> int:
        return len(self._judged.images)

    def detector(self, arch: Architecture) -> PlainDetector:
        """Cut out, recalibrate and fuse a subnet."""
        resolution_wh = self._supernet.space.resolution_wh(arch)
        frames = self._calibration.batch(range(len(self._calibration.images)), resolution_wh)
        return recalibrate(self._supernet, arch, frames, precision=self._precision)

    def predictions(
        self, detector: PlainDetector, image_indices: Sequence[int] | None = None
    ) -> list[Detections]:
        """Return a detector's answers for some images (all without `image_indices`), in their own pixels."""
        indices = range(len(self)) if image_indices is None else image_indices
        answers: list[Detections] = []
        for start in range(0, len(indices), BATCH_SIZE):
            part = indices[start : start + BATCH_SIZE]
            rows = predict(
                detector, self._judged.batch(part, detector.resolution_wh), precision=self._precision
            )
            answers += [self._answer(index, row, detector) for index, row in zip(part, rows, strict=True)]
        return answers

    def evaluate(self, arch: Architecture, image_indices: Sequence[int] | None = None) -> Score:
        """Score a subnet on some of the split's images, all without `image_indices`."""
        indices = range(len(self)) if image_indices is None else image_indices
        answers = self.predictions(self.detector(arch), indices)
        return score([self.truths[index] for index in indices], answers, self._classes)

    def on_slices(
        self, arch: Architecture, image_indices: Sequence[int], sizes: Sequence[int]
    ) -> Iterator[Score]:
        """Yield a subnet's score on the first `sizes[0]` of the images, on the first `sizes[1]`, and so on.

        Each image is answered once, and only when the score that needs it is asked for.
        """
        detector = self.detector(arch)
        answers: list[Detections] = []
        for size in sizes:
            answers += self.predictions(detector, image_indices[len(answers) : size])
            yield score([self.truths[index] for index in image_indices[:size]], answers, self._classes)

    def _answer(self, index: int, rows: NDArray[np.float32], detector: PlainDetector) -> Detections:
        image = self._judged.images[index]
        found = Detections.from_rows(rows)
        if self._nms_iou is not None:
            found = nms(found, self._nms_iou)
        letterbox = Letterbox((image.width, image.height), detector.resolution_wh)
        return found.with_xyxy(letterbox.to_source(found.xyxy))


def _computing_in(precision: Precision) -> AbstractContextManager[object]:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")
