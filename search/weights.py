"""A trained supernet on disk: its space and its weights in one file, which is whole or absent."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from search.run_folder import RunError, write_bytes
from search.space import Space
from search.supernet.model import Supernet

WEIGHTS_FILE = "weights.pt"


@dataclass(frozen=True, slots=True)
class StoredSupernet:
    """What the file holds: the space, the weights by name, and how much training is in them."""

    space: Space
    weights: Mapping[str, Tensor]
    steps: int
    seconds: float

    def supernet(self) -> Supernet:
        """Return the supernet, in evaluation mode."""
        supernet = Supernet(self.space)
        supernet.load_state_dict(dict(self.weights))
        return supernet.eval()


def write_supernet(path: Path, stored: StoredSupernet) -> None:
    """Write a supernet's file."""
    write_whole(
        path,
        {
            "space": stored.space.to_json(),
            "weights": dict(stored.weights),
            "step": stored.steps,
            "seconds": stored.seconds,
        },
    )


def read_supernet(path: Path) -> StoredSupernet:
    """Read a supernet's file; raises RunError naming it when it is missing or no such file."""
    try:
        content = torch.load(path, weights_only=True)
        return StoredSupernet(
            Space.from_json(content["space"]), content["weights"], content["step"], content["seconds"]
        )
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}") from error
    except (RuntimeError, EOFError, KeyError, TypeError, ValueError, UnpicklingError) as error:
        raise RunError(f"{path}: not a trained supernet: {error}") from error


def write_whole(path: Path, content: Mapping[str, object]) -> None:
    """Write tensors and numbers so that the file is the old one or the new one at any moment."""
    buffer = io.BytesIO()  # torch's own writer hides a full disk behind an error of its own
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())
