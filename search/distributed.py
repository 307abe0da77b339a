"""Training by several processes under `torchrun`: each takes its share of every global batch.

Whatever is computed over a batch is computed over the global one: batch norm's statistics, the losses'
normalizer, the gradients. So two processes take the same steps as one with the same global batch, up to the
order of sums. Outside torchrun every function here is the identity and costs nothing.

gloo, over CPU tensors: one processor is what the rest of the search is measured on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_reduce


def rank() -> int:
    """Return this process's number, 0 where it is the only one."""
    return int(os.environ.get("RANK", "0"))


def size() -> int:
    """Return how many processes train together: what torchrun says, else 1."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def joined() -> Iterator[None]:
    """Join the other processes for as long as the context lasts."""
    if size() == 1:
        yield
        return
    dist.init_process_group("gloo")
    try:
        yield
        dist.barrier()
    finally:
        dist.destroy_process_group()


def wait() -> None:
    """Wait until every process is here."""
    if _together():
        dist.barrier()


def of_first(value: float) -> float:
    """Return the first process's value."""
    if not _together():
        return value
    shared = torch.tensor([value], dtype=torch.float64)
    dist.broadcast(shared, 0)
    return float(shared)


def summed(value: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, without gradient."""
    if not _together():
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total


def sum_gradients(weights: Sequence[Tensor]) -> None:
    """Replace every gradient by its sum over all processes; a weight without one counts as zero."""
    if not _together():
        return
    flat = torch.cat([torch.zeros_like(w).view(-1) if w.grad is None else w.grad.view(-1) for w in weights])
    dist.all_reduce(flat)
    for weight, part in zip(weights, torch.split(flat, [w.numel() for w in weights]), strict=True):
        weight.grad = part.view_as(weight).clone()


def global_moments(x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return mean and biased variance per channel of [N, C, H, W] over all processes' batches, with gradient;
    None where this process is the only one."""
    if not _together():
        return None
    x = x.float()
    sums = torch.stack([x.sum((0, 2, 3)), x.square().sum((0, 2, 3))])
    total: Tensor = all_reduce(sums)  # type: ignore[no-untyped-call]  # torch does not annotate it
    mean, square = total / (dist.get_world_size() * x.numel() / x.shape[1])
    return mean, (square - mean.square()).clamp(min=0.0)


def _together() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
