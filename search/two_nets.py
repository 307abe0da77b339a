"""Two detectors that share nothing but the data, published twice: as they are, and with the larger's scores
squared.

Each is the only subnet of a space of its own, trained from random weights of its own. Squaring is part of the
graph, so that engine, calibration, plans and rules are those of any published set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from shutil import rmtree

import numpy as np
import onnx
import torch
from onnx import helper

from model_repo import publish
from model_repo.alignment import Alignment
from model_repo.frontier import (
    Frontier,
    Measurement,
    NoCertificate,
    OperatingPoint,
    Plan,
    Stage,
    Variant,
)
from model_repo.latency import Histogram, LatencyProfile, RuntimeName
from model_repo.plans import plan_cost
from model_repo.publish import Repository
from model_repo.runtime.select import default_runtime, environment
from search.artifacts import cores, some_frames
from search.calibrate import POINT, calibrate
from search.data.coco import Dataset
from search.evaluate import SubnetEvaluator
from search.export import export_onnx
from search.measure import decode_cost, load_all, place, profiles_of, unmeasured
from search.recipe import TrainConfig
from search.run_folder import Progress, RunError
from search.space import Architecture, Space, aspect_of
from search.steps import info_of
from search.targets import Targets
from search.train import StepReport, TrainError, train
from search.weights import read_supernet

SMALL = Architecture.parse("r160-d1.1.2.1-w16.24.32.48-n24-h1")
LARGE = Architecture.parse("r288-d1.2.3.2-w24.48.64.96-n32-h2")
NAMES = ("small", "large", "large-squared")
_NMS_IOU = 0.6
_FRAMES = 64


@dataclass(frozen=True, slots=True)
class TwoNets:
    """What to train. steps or minutes: of each net, one of the two. threads: torch's. samples: latencies per
    net."""

    steps: int | None = None
    minutes: float | None = None
    seed: int = 0
    small: Architecture = SMALL
    large: Architecture = LARGE
    batch_size: int = 16
    threads: int = field(default_factory=cores)
    samples: int = 200


def published_twice(
    wanted: TwoNets, dataset: Dataset, out: Path, progress: Progress
) -> tuple[Repository, Repository]:
    """Train both nets and publish and calibrate them, as they are and with the larger's scores squared.

    What is trained already in `out` is not trained again. Raises RunError when `out` holds other trainings or
    the data set has too few calibration frames.
    """
    spaces = [_alone(arch, dataset) for arch in (wanted.small, wanted.large)]
    files = [
        _trained(NAMES[k], space, replace(wanted, seed=wanted.seed + k), dataset, out, progress)
        for k, space in enumerate(spaces)
    ]
    squared = out / f"{NAMES[2]}.onnx"
    square_scores(files[1], squared)
    files.append(squared)
    variants = [
        _described(name, space, file)
        for name, space, file in zip(NAMES, [*spaces, spaces[1]], files, strict=True)
    ]
    runtime = default_runtime()
    staged = out / "staged"
    rmtree(staged, ignore_errors=True)
    for variant, file in zip(variants, files, strict=True):
        place(variant, file, staged)
    frames = some_frames(dataset.splits["calibration"].images, _FRAMES, wanted.seed)
    with Targets(staged).engine(runtime) as engine:
        load_all(engine, staged, variants)
        profiles = profiles_of(
            engine, variants, frames, samples=wanted.samples, seed=wanted.seed, progress=progress
        )
    encoded = [record.path.read_bytes() for record in dataset.splits["calibration"].images[:_FRAMES]]
    decode = decode_cost(encoded, rule=False)
    small, large, other = (_measured(v, runtime, profiles[v.name], len(dataset.classes)) for v in variants)
    plain, bent = (
        _published(out / folder, staged, pair, runtime, dataset, decode, wanted.seed, progress)
        for folder, pair in (("plain", (small, large)), ("squared", (small, other)))
    )
    return plain, bent


def square_scores(source: Path, target: Path) -> None:
    """Write a copy of an exported detector whose scores are the squares of what they were.

    Scores are the graph's only sigmoids; nothing else changes, since squaring keeps their order. Raises
    ValueError on a graph without.
    """
    model = onnx.load(source)
    graph = model.graph
    found = [node for node in graph.node if node.op_type == "Sigmoid"]
    if not found:
        raise ValueError(f"{source}: no sigmoid, so no scores to square")
    for node in found:
        scores = node.output[0]
        node.output[0] = f"{scores}/as_trained"
        after = next(k for k, each in enumerate(graph.node) if each.name == node.name) + 1
        graph.node.insert(
            after, helper.make_node("Mul", [node.output[0]] * 2, [scores], name=f"{node.name}/squared")
        )
    onnx.checker.check_model(model, full_check=True)
    target.write_bytes(model.SerializeToString(deterministic=True))


def _alone(arch: Architecture, dataset: Dataset) -> Space:
    """Return the space whose only subnet this is, for a data set's classes and frames."""
    sizes = np.array([(image.width, image.height) for image in dataset.splits["train"].images])
    return Space(
        classes=len(dataset.classes),
        aspect=aspect_of(sizes),
        resolutions=(arch.resolution,),
        depths=tuple((depth,) for depth in arch.depths),
        widths=tuple((width,) for width in arch.widths),
        neck_widths=(arch.neck_width,),
        head_depths=(arch.head_depth,),
    )


def _trained(
    name: str, space: Space, wanted: TwoNets, dataset: Dataset, out: Path, progress: Progress
) -> Path:
    """Train one net and return its exported file, in float32."""
    config = TrainConfig(
        steps=wanted.steps,
        minutes=wanted.minutes,
        seed=wanted.seed,
        batch_size=wanted.batch_size,
        threads=wanted.threads,
    )
    progress.start(f"train {name}", 1.0)
    shown = 0.0

    def on_step(report: StepReport) -> None:
        nonlocal shown
        note = f"step {report.step}, loss {report.classes + report.boxes:.3f}"
        progress.advance(report.share - shown, note)
        shown = report.share

    try:
        weights = train(config, space, dataset, out / name, on_step).weights
    except TrainError as error:
        raise RunError(str(error)) from error
    torch.set_num_threads(wanted.threads)
    evaluator = SubnetEvaluator(
        read_supernet(weights).supernet(), dataset, split="calibration", seed=wanted.seed, precision="float32"
    )
    detector = evaluator.detector(space.largest)
    return export_onnx(detector, detector.resolution_wh, out / f"{name}.onnx").path


def _described(name: str, space: Space, model: Path) -> Variant:
    arch = space.largest
    cost = space.cost(arch)
    return unmeasured(
        name=name, architecture=arch.name, resolution_wh=space.resolution_wh(arch), precision="f32",
        parameters=cost.parameters, macs=cost.macs, nms_iou=_NMS_IOU, model=model,
    )  # fmt: skip


def _measured(
    variant: Variant, runtime: RuntimeName, latency: tuple[LatencyProfile, ...], classes: int
) -> Variant:
    """Return a variant that can be published but was not calibrated yet."""
    measurement = Measurement(
        runtime=runtime,
        precision=variant.precision,
        accuracy=(),
        latency=latency,
        alignment=Alignment.identity(classes),
    )
    return Variant.model_validate({**dict(variant), "measurements": (measurement,)})


def _published(
    root: Path,
    staged: Path,
    variants: Sequence[Variant],
    runtime: RuntimeName,
    dataset: Dataset,
    decode: Histogram,
    seed: int,
    progress: Progress,
) -> Repository:
    """Publish two nets and have them calibrated, as `search calibrate` does."""
    folders = {variant.folder: staged / publish.MODELS / variant.folder for variant in variants}
    plans = tuple(_straight(variant, runtime, decode) for variant in variants)
    frontier = Frontier(
        dataset=info_of(dataset),
        environment=environment(),
        decode=decode,
        variants=tuple(variants),
        plans=plans,
        operating_points=(OperatingPoint(name=POINT, plan=plans[0].name),),
    )
    repository = publish.publish(root, frontier, folders)
    refitted = calibrate(repository, dataset, progress, Targets(root), seed=seed)
    return publish.publish(root, refitted, {})


def _straight(variant: Variant, runtime: RuntimeName, decode: Histogram) -> Plan:
    cost = plan_cost(decode, [variant.on(runtime).profile(1).histogram], [1.0])
    return Plan(
        name=variant.name,
        stages=(Stage(variant=variant.name),),
        fusion="replace",
        runtime=runtime,
        engines=(runtime,),
        accuracy=(),
        mean_ms=cost.mean_ms,
        p99_ms=cost.p99_ms,
        certificate=NoCertificate(reason="not calibrated yet"),
    )
