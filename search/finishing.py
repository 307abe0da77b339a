"""The step in which kept subnets go on alone: from the shared weights, each at its own resolution.

Subnets of one supernet pull its weights in different directions, and each sees its own resolution only now
and then. What was learned together is a good place to begin from: `search bench study` measures what going
on alone adds at equal cost. Once a subnet is a file of its own, nothing is left to share, so this costs
training time alone. Off unless asked for.

Minutes are shared by the square root of what a subnet computes: equal minutes would give the largest a tenth
of the smallest's steps, equal steps would give it nearly all minutes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from model_repo.publish import file_digest
from search.artifacts import cores
from search.run_folder import RunError
from search.space import Architecture
from search.steps import augment_of, kept_candidates, space_of, weights_of

if TYPE_CHECKING:
    from search.pipeline import Context
    from search.train import StepReport

RATE_SHARE = 0.5
"""Of the supernet's learning rate: it begins where that one ended, not from nothing."""


def finish(context: Context) -> list[Path]:
    """Train every kept subnet alone for its share of `finish_minutes`, or for `finish_steps`."""
    from search.recipe import TrainConfig
    from search.train import TrainError
    from search.train import train as run_train

    settings = context.settings
    if settings.finish_minutes is None and settings.finish_steps is None:
        return []
    space, shared = space_of(context), weights_of(context)
    chosen = kept_candidates(context)
    archs = [Architecture.parse(candidate.architecture) for candidate in chosen]
    shares = shares_of([space.cost(arch).macs for arch in archs])
    config = TrainConfig(
        steps=settings.finish_steps,
        minutes=settings.finish_minutes,
        batch_size=settings.batch_size,
        learning_rate=RATE_SHARE * settings.learning_rate,
        random_subnets=0,
        solo_share=0.0,
        calm_share=1.0,
        augment=augment_of(settings),
        seed=settings.seed,
        init=file_digest(shared),
        threads=cores(),
        checkpoint_every_s=settings.checkpoint_s,
    )
    context.progress.start("finish", len(chosen))
    written: list[Path] = []
    for arch, share in zip(archs, shares, strict=True):
        own = config if config.minutes is None else replace(config, minutes=config.minutes * share)
        shown = 0.0

        def progress(report: StepReport, name: str = arch.name) -> None:
            nonlocal shown
            note = f"{name}: step {report.step}, loss {report.classes + report.boxes:.3f}"
            context.progress.advance(report.share - shown, note)
            shown = report.share

        try:
            result = run_train(
                own, space.only(arch), context.dataset(), _folder(context, arch), progress, init=shared
            )
        except TrainError as error:
            raise RunError(str(error)) from error
        context.progress.advance(1.0 - shown, arch.name)
        written += [result.weights, result.history]
    return written


def shares_of(macs: Sequence[int]) -> list[float]:
    """Return the share of the minutes that each subnet gets, from what it computes."""
    roots = [math.sqrt(count) for count in macs]
    return [root / sum(roots) for root in roots]


def weights_for(context: Context, arch: Architecture) -> Path:
    """Return the file whose weights a kept subnet has: its own where it was finished, else the supernet's."""
    from search.weights import WEIGHTS_FILE

    own = _folder(context, arch) / WEIGHTS_FILE
    return own if own.exists() else weights_of(context)


def _folder(context: Context, arch: Architecture) -> Path:
    return context.folder.root / "finish" / arch.name
