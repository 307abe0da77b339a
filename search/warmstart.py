"""Fine-tuning: a supernet that begins with the weights of another one.

Elastic widths are leading channels and elastic depths leading blocks, so what two spaces have in common is
the leading part of every weight: a wider, narrower, deeper or shallower supernet takes over as much as fits.
Channels that are new have no say at first in those that were there (Net2Net's widening,
https://arxiv.org/abs/1511.05641), so a wider supernet begins by computing what the narrower one did, in every
subnet that both have, and in the wider ones too as far as they are not deeper.
Class outputs are taken over only where both know equally many classes; otherwise they start anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from search.run_folder import RunError
from search.supernet.model import Supernet
from search.weights import read_supernet

_CLASS_OUTPUTS = ("head.class_kernel", "head.class_bias")


@dataclass(frozen=True, slots=True)
class WarmStart:
    """How many of a supernet's numbers were taken over, and whether its class outputs were."""

    taken: int
    total: int
    classes: bool


@torch.no_grad()
def warm_start(supernet: Supernet, path: Path) -> WarmStart:
    """Copy into a new supernet what fits of one that training left in `path`.

    Raises RunError naming the file when it is missing, no trained supernet, or has nothing in common.
    """
    weights = read_supernet(path).weights
    own = dict(supernet.named_parameters())
    fitting = own.keys() & weights.keys()
    same_classes = "head.class_bias" in fitting and (
        own["head.class_bias"].shape == weights["head.class_bias"].shape
    )
    taken = 0
    for name in sorted(fitting):
        mine, other = own[name], weights[name]
        if mine.dim() != other.dim() or (name in _CLASS_OUTPUTS and not same_classes):
            continue
        shared = tuple(slice(min(a, b)) for a, b in zip(mine.shape, other.shape, strict=True))
        if mine.dim() == 4:  # what was there hears nothing of what is new
            mine[: other.shape[0]] = 0.0
        mine[shared] = other[shared]
        taken += mine[shared].numel()
    if not taken:
        raise RunError(f"{path}: nothing in it fits this supernet")
    return WarmStart(taken, sum(weight.numel() for weight in own.values()), same_classes)
