"""Training a supernet: the sandwich rule with in-place distillation, resumable to the bit.

Each step draws one resolution and one batch.  The largest subnet learns from the labels; the smallest and a
few random ones learn from a mixture of the labels and the largest one's predictions on the same batch
(BigNAS, https://arxiv.org/abs/2003.11142).  Their gradients add up to one AdamW step.  An exponential
moving average of the weights is what comes out.

For the first part of the budget the largest subnet learns alone, so that the others join a teacher that has
something to say (Once-for-All shrinks in that order, https://arxiv.org/abs/1908.09791). Measured on the
conveyor set at equal time, four minutes: the largest gains 6.5 points of mAP over training all from the
start, the smallest loses 0.8.

Nothing in a step depends on anything but the configuration, the data, the step's number and the state in the
checkpoint: no global random state is used.  So a run that was killed and started again ends with the same
bits as one that was not, with the budget in steps and the same number of threads.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from search import distributed
from search.assign import Targets
from search.batches import Batch, BatchPlan, FramePool, make_batch, prefetched, resolution_of
from search.data.coco import Dataset
from search.losses import distillation_loss, label_loss
from search.process import keep_for_reuse
from search.recipe import TrainConfig, resolutions_of, subnets_of
from search.run_folder import write_text
from search.space import Architecture, Space
from search.supernet.decode import anchors_for
from search.supernet.head import RawOutputs
from search.supernet.model import Supernet
from search.warmstart import warm_start
from search.weights import WEIGHTS_FILE, StoredSupernet, read_supernet, write_supernet, write_whole

CHECKPOINT_FILE = "checkpoint.pt"
HISTORY_FILE = "history.jsonl"
CONFIG_FILE = "train.json"


class TrainError(RuntimeError):
    """Training cannot start or go on: another run's folder, or a loss that is no longer a number."""


@dataclass(frozen=True)
class StepReport:
    """One step: its losses (of the largest subnet; the mean of the others, 0 without any), rate, resolution
    and time."""

    step: int
    share: float
    classes: float
    boxes: float
    others: float
    learning_rate: float
    resolution: int
    seconds: float


@dataclass(frozen=True)
class TrainResult:
    """Where a finished training is: the averaged weights, the training curve, and how long it took."""

    weights: Path
    history: Path
    steps: int
    seconds: float


Progress = Callable[[StepReport], None]


def train(
    config: TrainConfig,
    space: Space,
    dataset: Dataset,
    out_dir: Path,
    progress: Progress | None = None,
    *,
    init: Path | None = None,
) -> TrainResult:
    """Train a supernet on the data set's split `train` and leave weights, curve and checkpoint in `out_dir`.

    A folder with a checkpoint of the same run is continued; one with a finished run of the same configuration
    is returned at once. Under torchrun every process calls this; the first one writes.

    Args:
        config: how to train.
        space: the supernet's subnets.
        dataset: must hold the split `train`.
        out_dir: the run's own folder, on a disk that all processes see.
        progress: told about every step.
        init: the file of the supernet to begin with, when `config.init` holds its digest.

    Raises:
        TrainError: when `out_dir` belongs to a run with another configuration, space or data set, when the
            batch cannot be shared by the processes, or when the loss is no longer finite.
        RunError: when `init` cannot be read.
        ValueError: when the data set has no split `train` or it is empty.
    """
    if config.batch_size % distributed.size():
        raise TrainError(f"batch_size: {config.batch_size} frames cannot be shared by {distributed.size()}")
    with distributed.joined():
        return _train(config, space, dataset, out_dir, progress, init)


def _train(
    config: TrainConfig,
    space: Space,
    dataset: Dataset,
    out_dir: Path,
    progress: Progress | None,
    init: Path | None,
) -> TrainResult:
    if distributed.rank() == 0:
        out_dir.mkdir(parents=True, exist_ok=True)
        _claim(out_dir, config, space, dataset)
    distributed.wait()
    run = _Run(config, space, out_dir)
    if run.finished:
        return run.result()
    if init is not None:
        run.begin_with(init)
    torch.set_num_threads(config.threads)
    cv2.setNumThreads(1)  # batches are made by threads of their own
    keep_for_reuse()
    pool = FramePool(dataset.splits["train"], long_side=2 * max(space.resolutions))
    run.resume()
    made = prefetched(
        run.plans(),
        lambda plan: make_batch(
            pool,
            plan,
            seed=config.seed,
            size=config.batch_size,
            part=(distributed.rank(), distributed.size()),
        ),
        workers=config.workers,
    )
    with closing(made) as batches:  # type: ignore[type-var]  # the generator behind the iterator has close()
        for batch in batches:
            report = run.advance(batch)
            if progress is not None and distributed.rank() == 0:
                progress(report)
            if run.exhausted:
                break
    if distributed.rank() == 0:
        run.finish()
    distributed.wait()
    return run.result()


class _Run:
    """The state of a training: weights, optimizer, average, step, time spent; and how it goes to disk."""

    def __init__(self, config: TrainConfig, space: Space, out_dir: Path) -> None:
        self.config, self.space, self.out_dir = config, space, out_dir
        self.supernet = Supernet(space, config.seed)
        decayed = [p for p in self.supernet.parameters() if p.dim() == 4]
        others = [p for p in self.supernet.parameters() if p.dim() != 4]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": config.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
        )
        self.weights: list[Tensor] = list(self.supernet.parameters())
        self.average = [weight.detach().clone() for weight in self.weights]
        self.step = 0
        self.seconds = 0.0
        self.rows: list[str] = []
        self.saved_at = self.ticked_at = time.monotonic()

    @property
    def finished(self) -> bool:
        return (self.out_dir / WEIGHTS_FILE).exists()

    @property
    def share(self) -> float:
        """The share of the budget that has been used."""
        if self.config.steps is not None:
            return self.step / self.config.steps
        return self.seconds / (60.0 * (self.config.minutes or 1.0))

    @property
    def exhausted(self) -> bool:
        return self.share >= 1.0

    def plans(self) -> Iterator[BatchPlan]:
        """Plan the steps from the present one on; drawn a few steps ahead of training."""
        config = self.config
        calm = config.augment.without_mosaic()
        step = self.step
        while step < config.steps if config.steps is not None else not self.exhausted:
            share = self.share if config.steps is None else step / config.steps
            resolution = resolution_of(config.seed, step, resolutions_of(config, self.space))
            augment = calm if share >= 1.0 - config.calm_share else config.augment
            yield BatchPlan(step, self.space.input_wh(resolution), augment)
            step += 1

    def advance(self, batch: Batch) -> StepReport:
        """Train one step on its batch; its time counts from the end of the step before, waiting included."""
        config, share = self.config, self.share
        rate = config.learning_rate * rate_factor(share, config.warmup_share)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        resolution = max(batch.plan.resolution_wh)
        archs = subnets_of(config, self.space, self.step, resolution, share)
        losses = torch.tensor(train_step(self.supernet, archs, batch, config), dtype=torch.float64)
        classes, boxes, others = distributed.summed(losses).tolist()
        if not math.isfinite(classes + boxes + others):
            raise TrainError(f"the loss is not finite at step {self.step}: {classes}, {boxes}, {others}")
        distributed.sum_gradients(self.weights)
        torch.nn.utils.clip_grad_norm_(self.weights, 20.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = min(config.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.weights, 1.0 - decay)
        self.step += 1
        now = time.monotonic()
        spent, self.ticked_at = distributed.of_first(now - self.ticked_at), now
        self.seconds += spent
        report = StepReport(self.step - 1, share, classes, boxes, others, rate, resolution, spent)
        self.rows.append(json.dumps(asdict(report)))
        if time.monotonic() - self.saved_at >= config.checkpoint_every_s and distributed.rank() == 0:
            self.save()
        return report

    def begin_with(self, init: Path) -> None:
        """Take over a trained supernet's weights; a checkpoint that is resumed after it replaces them."""
        warm_start(self.supernet, init)
        self.average = [weight.detach().clone() for weight in self.weights]

    def save(self) -> None:
        """Write the checkpoint, then the curve up to it."""
        write_whole(
            self.out_dir / CHECKPOINT_FILE,
            {
                "weights": self.supernet.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": self.average,
                "step": self.step,
                "seconds": self.seconds,
                "rows": self.rows,
            },
        )
        self.write_history()
        self.saved_at = time.monotonic()

    def write_history(self) -> None:
        write_text(self.out_dir / HISTORY_FILE, "".join(row + "\n" for row in self.rows))

    def resume(self) -> None:
        """Take up the checkpoint where there is one, and start the clock."""
        self.ticked_at = time.monotonic()
        path = self.out_dir / CHECKPOINT_FILE
        if not path.exists():
            return
        stored = torch.load(path, weights_only=True)
        self.supernet.load_state_dict(stored["weights"])
        self.optimizer.load_state_dict(stored["optimizer"])
        for average, kept in zip(self.average, stored["average"], strict=True):
            average.copy_(kept)
        self.step, self.seconds, self.rows = stored["step"], stored["seconds"], stored["rows"]

    def finish(self) -> None:
        """Write the averaged weights; from here on the run counts as finished."""
        self.save()
        names = [name for name, _ in self.supernet.named_parameters()]
        weights = dict(zip(names, self.average, strict=True))
        write_supernet(
            self.out_dir / WEIGHTS_FILE, StoredSupernet(self.space, weights, self.step, self.seconds)
        )

    def result(self) -> TrainResult:
        stored = read_supernet(self.out_dir / WEIGHTS_FILE)
        return TrainResult(
            weights=self.out_dir / WEIGHTS_FILE,
            history=self.out_dir / HISTORY_FILE,
            steps=stored.steps,
            seconds=stored.seconds,
        )


def train_step(
    supernet: Supernet, archs: list[Architecture], batch: Batch, config: TrainConfig
) -> tuple[float, float, float]:
    """Add the gradients of a sandwich, the largest subnet first; return its class and box loss and the
    others' mean."""
    pixels = pixels_from(batch.frames)
    anchors = anchors_for(batch.plan.resolution_wh)
    targets = Targets(
        image=torch.from_numpy(batch.image),
        boxes_xyxy=torch.from_numpy(batch.boxes_xyxy),
        labels=torch.from_numpy(batch.labels),
    )

    def run(arch: Architecture) -> RawOutputs:
        with torch.autocast("cpu", torch.bfloat16, enabled=config.dtype == "bfloat16"):
            outputs: RawOutputs = supernet(pixels, arch)
        return outputs

    loss, teacher = label_loss(run(archs[0]), anchors, targets)
    loss.total.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
    others: list[float] = []
    for arch in archs[1:]:
        taught = distillation_loss(run(arch), anchors, targets, teacher, share=config.teacher_share)
        taught.total.backward()  # type: ignore[no-untyped-call]  # as above
        others.append(float(taught.total.detach()))
    mean = sum(others) / len(others) if others else 0.0
    return float(loss.classes.detach()), float(loss.boxes.detach()), mean


def pixels_from(frames: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Tensor:
    """Turn frames, uint8 [N, H, W, 3], into float32 [N, 3, H, W] in 0..1, in channels-last memory."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float().div_(255.0)


def rate_factor(share: float, warmup_share: float) -> float:
    """Return the learning rate's factor: linear warm-up, then a cosine down to 1 %."""
    if share < warmup_share:
        return max(share / warmup_share, 0.01)
    passed = min(1.0, (share - warmup_share) / max(1e-9, 1.0 - warmup_share))
    return 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * passed))


def _claim(out_dir: Path, config: TrainConfig, space: Space, dataset: Dataset) -> None:
    """Write down whose folder this is, or check that it is this run's."""
    identity = {
        "config": json.loads(config.identity()),
        "space": json.loads(space.to_json()),
        "dataset": dataset.fingerprint,
    }
    text = json.dumps(identity, indent=1, sort_keys=True)
    path = out_dir / CONFIG_FILE
    if path.exists():
        if sha256(path.read_bytes()).digest() != sha256(text.encode()).digest():
            raise TrainError(f"{out_dir} holds a training with another configuration, space or data set")
        return
    write_text(path, text)
