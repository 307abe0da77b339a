"""What every embedded engine does the same way: checking frames, walking a variant's chain of segments.

A chain runs one frame at a time: published graphs have the static batch size 1. A segment's inputs are found
by name among the frames and the outputs of earlier segments; a segment whose outputs the caller already has
(a trunk shared with the stage before) is not run again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from model_repo.detections import MAX_ROWS, ROW_WIDTH
from model_repo.frontier import Segment, Variant
from model_repo.runtime.engine import EngineUnavailable, Inference, Tensors

OUTPUT = "detections"

Feed = Mapping[str, NDArray[np.uint8] | NDArray[np.float32]]
RunSegment = Callable[[int, Feed], Tensors]


def check_frames(variant: Variant, frames: NDArray[np.uint8]) -> None:
    """Raise ValueError unless frames are uint8 [n ≥ 1, h, w, 3] at the variant's resolution."""
    width, height = variant.resolution_wh
    if frames.dtype != np.uint8:
        raise ValueError(f"frames are {frames.dtype}, {variant.name!r} takes uint8")
    if frames.ndim != 4 or frames.shape[0] < 1 or frames.shape[1:] != (height, width, 3):
        raise ValueError(
            f"frames have shape {frames.shape}, {variant.name!r} takes [n, {height}, {width}, 3]"
        )


def run_chain(
    variant: Variant, frames: NDArray[np.uint8], done: Mapping[str, Tensors] | None, run: RunSegment
) -> Inference:
    """Run a variant's segments on frames uint8 [n, h, w, 3]; `run(i, feed)` executes segment i on one frame.

    Returns rows [n, 100, 6] and the outputs of all segments but the last, each [n, ...].
    Raises ValueError on wrong frames, EngineUnavailable when the last output is not rows of detections.
    """
    check_frames(variant, frames)
    done = done or {}
    answers = [_run_frame(variant, frames, done, index, run) for index in range(len(frames))]
    if len(answers) == 1:
        return answers[0]
    earlier = {
        segment.sha256: {
            tensor.name: np.concatenate([answer.segments[segment.sha256][tensor.name] for answer in answers])
            for tensor in segment.outputs
        }
        for segment in variant.segments[:-1]
    }
    return Inference(np.concatenate([answer.rows for answer in answers]), earlier)


def _run_frame(
    variant: Variant,
    frames: NDArray[np.uint8],
    done: Mapping[str, Tensors],
    index: int,
    run: RunSegment,
) -> Inference:
    frame = frames[index : index + 1]
    made: dict[str, NDArray[np.float32]] = {}
    earlier: dict[str, Tensors] = {}
    for position, segment in enumerate(variant.segments):
        ready = done.get(segment.sha256)
        if ready is not None:
            outputs: Tensors = {name: value[index : index + 1] for name, value in ready.items()}
        else:
            outputs = run(position, {tensor.name: made.get(tensor.name, frame) for tensor in segment.inputs})
        made.update(outputs)
        if position < len(variant.segments) - 1:
            earlier[segment.sha256] = outputs
    return Inference(check_rows(variant, made.get(OUTPUT)), earlier)


def check_rows(variant: Variant, rows: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Return the rows; raises EngineUnavailable when a model's last output is not [1, 100, 6]."""
    if rows is None:
        raise EngineUnavailable(f"{variant.name!r} gave no output named {OUTPUT!r}")
    if rows.shape != (1, MAX_ROWS, ROW_WIDTH):
        raise EngineUnavailable(f"{variant.name!r} gave {rows.shape}, expected (1, {MAX_ROWS}, {ROW_WIDTH})")
    return rows


def check_signature(
    variant: Variant, segment: Segment, inputs: Sequence[str], outputs: Sequence[str]
) -> None:
    """Raise EngineUnavailable when a file's input or output names are not those in the manifest."""
    for kind, found, tensors in (("inputs", inputs, segment.inputs), ("outputs", outputs, segment.outputs)):
        expected = {tensor.name for tensor in tensors}
        if set(found) != expected:
            raise EngineUnavailable(
                f"{variant.name!r}: {segment.file} has the {kind} {sorted(found)},"
                f" the manifest says {sorted(expected)}"
            )
