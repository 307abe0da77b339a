"""`python -m router` with inferences that take a while asleep; how long stands in a file that a test writes.

The models run all the same. On a machine that is shared this is the only slow engine whose healthy latency
stays what it was published to be.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import router.bootstrap
from model_repo.frontier import Variant
from model_repo.latency import RuntimeName
from model_repo.runtime.engine import Engine, Inference, Tensors
from router.__main__ import main
from router.arrangement import Arrangement
from router.config import Config

PACE_FILE = "PARETOGATE_TEST_PACE"


class PacedEngine:
    """An engine whose inferences last `pace` milliseconds longer, what the file says at their beginning."""

    def __init__(self, engine: Engine, pace: Path) -> None:
        self._engine, self._pace = engine, pace

    @property
    def runtime(self) -> RuntimeName:
        """Return the inner engine's runtime."""
        return self._engine.runtime

    @property
    def version(self) -> str:
        """Return the inner engine's version."""
        return self._engine.version

    @property
    def device(self) -> str:
        """Return the inner engine's device."""
        return self._engine.device

    @property
    def parallelism(self) -> int:
        """Return the inner engine's parallelism."""
        return self._engine.parallelism

    def load(self, root: Path, variant: Variant) -> None:
        """Make a variant ready."""
        self._engine.load(root, variant)

    def unload(self, variant: Variant) -> None:
        """Forget a variant."""
        self._engine.unload(variant)

    def infer(
        self,
        variant: Variant,
        frames: NDArray[np.uint8],
        *,
        done: Mapping[str, Tensors] | None = None,
        timeout_s: float | None = None,
    ) -> Inference:
        """Sleep, then run the variant."""
        time.sleep(float(self._pace.read_text()) / 1e3)
        return self._engine.infer(variant, frames, done=done, timeout_s=timeout_s)

    def close(self) -> None:
        """Let go of everything."""
        self._engine.close()


def _paced(make: Callable[[Config, Arrangement], Engine]) -> Callable[[Config, Arrangement], Engine]:
    pace = Path(os.environ[PACE_FILE])
    return lambda config, arrangement: PacedEngine(make(config, arrangement), pace)


if __name__ == "__main__":
    # The gateway has no place for an engine of a test, and shall have none.
    setattr(router.bootstrap, "_engine", _paced(router.bootstrap._engine))  # noqa: B010 - it is another's
    main()
