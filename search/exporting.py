"""The step that turns kept subnets into files: fused, with batch norms of their own, in every precision.

int8 is judged against f32 as soon as it is made, on the images that candidates are judged on. Where it loses
more than `tune_above`, the subnet is tuned for int8 (`search.qat`) and quantized again, and the better of the
two files stays.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from model_repo.frame import Letterbox
from model_repo.latency import Precision, RuntimeName
from model_repo.publish import file_digest
from model_repo.scoring import score
from search.artifacts import (
    Artifact,
    Artifacts,
    Quantized,
    cores,
    model_files,
    short_name,
    some_frames,
)
from search.asking import FrameFiles
from search.finishing import weights_for
from search.measure import LoadedSplit, place, predictions, truths_of, unmeasured
from search.run_folder import write_text
from search.space import Architecture
from search.steps import augment_of, judged_images, kept_candidates, space_of
from search.targets import targets_of

if TYPE_CHECKING:
    from search.batches import FramePool
    from search.evaluate import SubnetEvaluator
    from search.pipeline import Context
    from search.supernet.plain import PlainDetector

QUANTIZATION_FRAMES = 32


def export(context: Context) -> list[Path]:
    """Export each kept architecture in every precision."""
    folder = context.folder
    root = folder.root / "export"
    chosen = kept_candidates(context)
    for left in root.glob(".making-*"):  # by a run that was stopped
        rmtree(left)
    exporter = _Exporter(context)
    context.progress.start("export", len(chosen))
    every: list[Artifact] = []
    for candidate in chosen:
        record = root / f"{candidate.architecture}.json"
        if not record.exists():
            made = exporter.artifacts(exporter.detector(Architecture.parse(candidate.architecture)))
            write_text(record, Artifacts(artifacts=made).model_dump_json(indent=2) + "\n")
        done = Artifacts.model_validate_json(record.read_text()).artifacts
        every += done
        context.progress.advance(1, candidate.architecture)
    index = folder.path("export", "artifacts.json")
    write_text(index, Artifacts(artifacts=tuple(every)).model_dump_json(indent=2) + "\n")
    _say_what_int8_lost(context, every)
    return [index, *(root / "models" / artifact.folder / "1" / "model.onnx" for artifact in every)]


class _Exporter:
    """Makes the files of one detector after the other; what all need is loaded when the first needs it."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._root = context.folder.root / "export"
        self._ranged: list[NDArray[np.uint8]] = []
        self._valid: LoadedSplit | None = None
        self._pool: FramePool | None = None
        self._evaluators: dict[Path, SubnetEvaluator] = {}

    def detector(self, arch: Architecture) -> PlainDetector:
        """Return a subnet, fused, with batch norms of its own, as it was finished or as it was shared."""
        import torch

        from search.evaluate import SubnetEvaluator
        from search.weights import read_supernet

        weights = weights_for(self._context, arch)
        if weights not in self._evaluators:
            torch.set_num_threads(cores())  # it decides how sums are split, and so about the last bits
            self._evaluators = {
                weights: SubnetEvaluator(
                    read_supernet(weights).supernet(), self._context.dataset(),
                    seed=self._context.settings.seed, precision="float32",
                )
            }  # fmt: skip
        return self._evaluators[weights].detector(arch)

    def artifacts(self, detector: PlainDetector) -> tuple[Artifact, ...]:
        """Write a fused detector's files and describe them."""
        settings, space, arch = self._context.settings, space_of(self._context), detector.arch
        cost = space.cost(arch)
        made: list[Artifact] = []
        self._root.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self._root, prefix=".making-") as temporary:
            files = model_files(
                detector, self._frames(), settings.precisions, settings.quantization, Path(temporary)
            )
            quantized: Quantized | None = None
            if "int8" in files:
                files["int8"], quantized = self._int8(detector, files["int8"], Path(temporary))
            for precision, file in files.items():
                name = f"{short_name(arch, space)}-{precision}"
                folder = f"{name}-{file_digest(file)[:8]}"
                target = self._root / "models" / folder / "1" / "model.onnx"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.unlink(missing_ok=True)
                os.link(file, target)  # f32 and bf16 are one file run in two ways
                made.append(
                    Artifact(
                        name=name,
                        architecture=arch.name,
                        resolution_wh=detector.resolution_wh,
                        precision=precision,
                        parameters=cost.parameters,
                        macs=cost.macs,
                        nms_iou=settings.nms_iou,
                        folder=folder,
                        quantized=quantized if precision == "int8" else None,
                    )
                )
        return tuple(made)

    def _int8(self, detector: PlainDetector, int8: Path, temporary: Path) -> tuple[Path, Quantized | None]:
        """Return the int8 file to keep and what it loses; not judged where no target runs both
        f32 and int8."""
        settings = self._context.settings
        runs = targets_of(self._context).precisions
        runtime = next((each for each in settings.runtimes if {"f32", "int8"} <= set(runs(each))), None)
        if runtime is None:
            return int8, None
        whole = self._objective(runtime, temporary / "model.onnx", "f32", detector)
        lost = whole - self._objective(runtime, int8, "int8", detector)
        if lost <= settings.tune_above or not settings.tune_steps:
            return int8, Quantized(lost=lost)
        apart = temporary / "tuned"
        apart.mkdir()
        files = model_files(self._tuned(detector), self._frames(), ("int8",), settings.quantization, apart)
        tuned_lost = whole - self._objective(runtime, files["int8"], "int8", detector)
        return files["int8"] if tuned_lost < lost else int8, Quantized(lost=lost, tuned_lost=tuned_lost)

    def _tuned(self, detector: PlainDetector) -> PlainDetector:
        import torch

        from search.batches import FramePool
        from search.qat import TuningConfig, tuned

        settings = self._context.settings
        torch.set_num_threads(cores())
        if self._pool is None:
            train = self._context.dataset().splits["train"]
            self._pool = FramePool(train, long_side=2 * max(space_of(self._context).resolutions))
        wh, done = detector.resolution_wh, 0
        ranged = [Letterbox((each.shape[1], each.shape[0]), wh).apply(each) for each in self._frames()]

        def on_step() -> None:
            nonlocal done
            done += 1
            note = f"{detector.arch.name}: tuned for int8, step {done} of {settings.tune_steps}"
            self._context.progress.advance(0, note)

        return tuned(
            detector,
            self._pool,
            np.stack(ranged),
            TuningConfig(steps=settings.tune_steps, augment=augment_of(settings).without_mosaic()),
            seed=settings.seed,
            on_step=on_step,
        )

    def _objective(
        self, runtime: RuntimeName, model: Path, precision: Precision, detector: PlainDetector
    ) -> float:
        """Return the objective that a file reaches on the runtime, on the images that candidates met."""
        settings, split = self._context.settings, self._judged()
        with TemporaryDirectory(dir=self._root, prefix=".making-") as folder:
            variant = unmeasured(
                name=precision, architecture=detector.arch.name, resolution_wh=detector.resolution_wh,
                precision=precision, parameters=1, macs=1, nms_iou=settings.nms_iou, model=model,
            )  # fmt: skip
            place(variant, model, Path(folder))
            with targets_of(self._context).engine(runtime) as engine:
                engine.load(Path(folder), variant)
                answers = predictions(engine, variant, split.images)
        found = score(split.truths, answers, len(self._context.dataset().classes))
        return found.map if settings.objective == "map" else found.f1

    def _judged(self) -> LoadedSplit:
        if self._valid is None:
            valid, chosen = self._context.dataset().splits["valid"], judged_images(self._context)
            truths = truths_of(self._context.dataset(), "valid")
            self._valid = LoadedSplit(
                "valid",
                FrameFiles([valid.images[i] for i in chosen]),
                tuple(truths[i] for i in chosen),
            )
        return self._valid

    def _frames(self) -> Sequence[NDArray[np.uint8]]:
        """Return the training frames that the quantizer takes ranges from."""
        if not self._ranged:
            train = self._context.dataset().splits["train"].images
            self._ranged = some_frames(train, QUANTIZATION_FRAMES, self._context.settings.seed)
        return self._ranged


def _say_what_int8_lost(context: Context, artifacts: Sequence[Artifact]) -> None:
    judged = [each.quantized for each in artifacts if each.quantized is not None]
    if not judged:
        return
    tuned = [each for each in judged if each.tuned_lost is not None]
    text = f"  int8 loses {100 * float(np.mean([each.kept_lost for each in judged])):.2f} points on average"
    if tuned:
        before = 100 * float(np.mean([each.lost for each in tuned]))
        after = 100 * float(np.mean([each.kept_lost for each in tuned]))
        text += f"; {len(tuned)} of {len(judged)} were tuned for it, from {before:.2f} to {after:.2f} points"
    context.say(text)
