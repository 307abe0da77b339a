"""How a supernet is trained: the settings of a run, and which subnets each of its steps trains."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import numpy as np

from search.augment import AugmentConfig
from search.space import Architecture, Space

_SUBNETS = 4
"""Name of the random stream that subnets are drawn from, beside those of `search.batches`."""


@dataclass(frozen=True)
class TrainConfig:
    """How a supernet is trained.  Exactly one of `steps` and `minutes` is the budget.

    Attributes:
        steps: budget in optimizer steps; such a run repeats to the bit.
        minutes: budget in minutes of training time, over all resumptions; the schedule follows the share that
            has passed.
        batch_size: frames per step.
        learning_rate, weight_decay: AdamW's; the rate warms up over `warmup_share` of the budget and falls
            by a cosine.  Norms, biases and scales are not decayed.
        random_subnets: how many random subnets a step trains beside the largest and the smallest.
        solo_share: the first share of the budget, in which the largest subnet learns alone.
        favoured: names of subnets that are drawn more often, such as those an earlier search kept.
        favoured_share: the chance of a random subnet to be one of them, at the step's resolution.
        polish: train the favoured subnets alone, each at its own resolution, with the largest to teach them.
        teacher_share: how much of the other subnets' target is the largest one's prediction; the rest is
            labels.
        ema_decay: of the moving average of the weights.
        calm_share: the last share of the budget runs without mosaics, near true size.
        augment: how training frames vary before that.
        dtype: what convolutions are computed in while training.
        seed: of the initial weights, batches and subnets.
        init: digest of the trained supernet to begin with, None to begin from random weights.
        threads, workers: torch threads; threads that make batches.  They are no part of the run's identity.
        checkpoint_every_s: seconds between checkpoints; no part of the identity either.
    """

    steps: int | None = None
    minutes: float | None = None
    batch_size: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup_share: float = 0.03
    random_subnets: int = 1
    solo_share: float = 0.4
    favoured: tuple[str, ...] = ()
    favoured_share: float = 0.5
    polish: bool = False
    teacher_share: float = 0.5
    ema_decay: float = 0.998
    calm_share: float = 0.15
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    seed: int = 0
    init: str | None = None
    threads: int = 2
    workers: int = 1
    checkpoint_every_s: float = 60.0

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("give exactly one of steps and minutes")
        if (self.steps if self.steps is not None else self.minutes or 0) <= 0:
            raise ValueError("the budget must be positive")
        if self.batch_size < 1 or self.random_subnets < 0:
            raise ValueError("batch_size must be at least 1 and random_subnets at least 0")
        if not 0.0 <= self.solo_share < 1.0:
            raise ValueError(f"solo_share must be at least 0 and below 1, got {self.solo_share}")
        if not 0.0 <= self.favoured_share <= 1.0:
            raise ValueError(f"favoured_share must be between 0 and 1, got {self.favoured_share}")
        if self.polish and not self.favoured:
            raise ValueError("polish needs favoured subnets")

    def identity(self) -> str:
        """Return what makes two configurations the same run, as canonical JSON."""
        fields = asdict(self)
        for name in ("threads", "workers", "checkpoint_every_s"):
            del fields[name]
        return json.dumps(fields, sort_keys=True)


def subnets_of(
    config: TrainConfig, space: Space, step: int, resolution: int, share: float
) -> list[Architecture]:
    """Return the subnets of a step at its resolution, none twice: the largest; once `share` of the budget is
    past the solo part, also the smallest and random ones."""
    drawn = [replace(space.largest, resolution=resolution)]
    if share < config.solo_share:
        return drawn
    rng = np.random.default_rng((config.seed, _SUBNETS, step))
    if config.polish:
        own = [arch for arch in _nearest(config.favoured, resolution) if arch not in drawn]
        chosen = rng.permutation(len(own))[: max(config.random_subnets, 1)]
        return [*drawn, *(own[int(k)] for k in chosen)]
    drawn.append(replace(space.smallest, resolution=resolution))
    favoured = _nearest(config.favoured, resolution)
    for _ in range(config.random_subnets):
        if favoured and rng.random() < config.favoured_share:
            drawn.append(favoured[int(rng.integers(len(favoured)))])
        else:
            drawn.append(space.sample(rng, resolution=resolution))
    return list(dict.fromkeys(drawn))


def resolutions_of(config: TrainConfig, space: Space) -> tuple[int, ...]:
    """Return what a step's resolution is drawn from: in polishing, each favoured subnet's own."""
    if config.polish:
        return tuple(Architecture.parse(name).resolution for name in config.favoured)
    return space.resolutions


def _nearest(names: Sequence[str], resolution: int) -> list[Architecture]:
    """Return the named subnets whose own resolution is nearest to a step's, at that resolution."""
    archs = [Architecture.parse(name) for name in names]
    least = min((abs(arch.resolution - resolution) for arch in archs), default=0)
    near = [arch for arch in archs if abs(arch.resolution - resolution) == least]
    return [replace(arch, resolution=resolution) for arch in near]
