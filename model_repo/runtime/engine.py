"""The protocol that every runtime keeps, its errors, and the one way from pixels to detections.

An engine blocks: the caller chooses the thread. Every implementation releases the GIL while a model runs
and may be called from several threads at once.

Errors: EngineError
  UnknownVariant      the engine has not loaded that variant
  EngineTimeout       no answer within `timeout_s`
  EngineUnavailable   the runtime or server does not answer, or refused the model
    EngineBusy        it answers, and has as much waiting as it takes
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from model_repo.detections import Detections, nms
from model_repo.frame import Letterbox
from model_repo.frontier import Variant
from model_repo.latency import RuntimeName

Tensors = Mapping[str, NDArray[np.float32]]

TRACEPARENT: ContextVar[str | None] = ContextVar("traceparent", default=None)
"""The W3C header of the request that this thread works for; engines that ask a server pass it on."""


class EngineError(Exception):
    """A model did not run; the message says on which engine and why."""


class UnknownVariant(EngineError):
    """The engine has not loaded that variant."""


class EngineTimeout(EngineError):
    """No answer came within the time that was left."""


class EngineUnavailable(EngineError):
    """The runtime or the server does not answer, or it refused the model."""


class EngineBusy(EngineUnavailable):
    """As much is waiting as the engine takes: it is well, and others may have room."""


@dataclass(frozen=True, slots=True)
class Inference:
    """A variant's rows float32 [n, 100, 6], and what its earlier segments gave, by the segment's sha256.

    A later stage whose first segments are the same files (a shared trunk) starts from these.
    """

    rows: NDArray[np.float32]
    segments: Mapping[str, Tensors] = field(default_factory=dict)


class Engine(Protocol):
    """Run variants on one runtime.

    A variant is known by its folder, whose name carries its digest: while one published set takes the place
    of another, both may hold a variant of the same name, and each is answered by its own files.
    """

    @property
    def runtime(self) -> RuntimeName:
        """Return the runtime's name as the manifest spells it."""

    @property
    def version(self) -> str:
        """Return the runtime's version."""

    @property
    def device(self) -> str:
        """Return what computes, as `Environment.device` has it: "cpu", a GPU's name, a server's address."""

    @property
    def parallelism(self) -> int:
        """Return how many inferences may usefully run at once."""

    def load(self, root: Path, variant: Variant) -> None:
        """Make a variant ready: files below `root`, digests already verified.

        Raises EngineUnavailable when the runtime refuses it. Loading a folder again replaces it.
        """

    def unload(self, variant: Variant) -> None:
        """Forget a variant; does nothing when it was not loaded."""

    def infer(
        self,
        variant: Variant,
        frames: NDArray[np.uint8],
        *,
        done: Mapping[str, Tensors] | None = None,
        timeout_s: float | None = None,
    ) -> Inference:
        """Run a variant on letterboxed frames uint8 [n, h, w, 3], blocking.

        done: outputs of segments that have already run on these frames, by sha256.
        Raises UnknownVariant, EngineTimeout or EngineUnavailable; ValueError on a wrong shape or type.
        """

    def close(self) -> None:
        """Let go of everything; later calls raise EngineUnavailable."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A variant's detections for one frame, raw scores, in source pixels; and its segments' outputs."""

    detections: Detections
    segments: Mapping[str, Tensors]


def answer_frame(
    engine: Engine,
    variant: Variant,
    image: NDArray[np.uint8],
    *,
    done: Mapping[str, Tensors] | None = None,
    timeout_s: float | None = None,
    least: NDArray[np.float32] | None = None,
) -> Answer:
    """Answer one decoded frame [h, w, 3]: letterbox, infer, suppress, carry back to source pixels.

    least: raw scores [classes] below which rows are left out. As suppression goes from better to worse, the
    others stay what they would have been.
    This is the stage that latency profiles measure and the router serves. Raises what `Engine.infer` raises.
    """
    letterbox = Letterbox((image.shape[1], image.shape[0]), variant.resolution_wh)
    inference = engine.infer(variant, letterbox.apply(image)[None], done=done, timeout_s=timeout_s)
    rows = inference.rows[0]
    if least is not None:
        # Padding is of class -1, which reads the last class' score: it is left out in any case.
        rows = rows[rows[:, 4] >= least[rows[:, 5].astype(np.intp)]]
    return Answer(detections_of_rows(rows, variant, letterbox), inference.segments)


def detections_of_rows(rows: NDArray[np.float32], variant: Variant, letterbox: Letterbox) -> Detections:
    """Turn a variant's rows [100, 6] into detections in source pixels, without duplicates."""
    detections = Detections.from_rows(rows)
    if variant.nms_iou is not None:
        detections = nms(detections, variant.nms_iou)
    return detections.with_xyxy(letterbox.to_source(detections.xyxy))
