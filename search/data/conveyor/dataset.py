"""Rendering whole data sets: resumable, in parallel, COCO annotations last.

Each frame is a function of (seed, split, index), written to a temporary name and renamed. Beside each frame
stands a small JSON file with its boxes, a note, so that a render that was killed goes on where it stopped;
when all frames of a split are there, the notes are folded into `_annotations.coco.json` and removed. A folder
that was rendered under another seed or schema is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import cv2

from search.data.conveyor.factors import DISTRIBUTIONS, SHIFTS, Shift
from search.data.conveyor.frames import Frame, Renderer, build_renderer
from search.data.conveyor.scene import FRAME_WH
from search.data.conveyor.sequence import shoot_sequence
from search.data.conveyor.shapes import CLASS_NAMES

ANNOTATIONS: Final = "_annotations.coco.json"
RECORD: Final = "conveyor.json"
_CHUNK: Final = 8
# Starting a process and handing the sprites over takes as long as rendering about so many frames.
_FRAMES_PER_PROCESS: Final = 40
# What a worker process was given when it started.
_GIVEN: Final[ContextVar[Renderer]] = ContextVar("renderer")

Progress = Callable[[str, int, int], None]


class RenderError(ValueError):
    """The data set cannot be rendered there; the message names the file and the field."""


@dataclass(frozen=True, slots=True)
class _Job:
    folder: Path
    split: str
    indices: tuple[int, ...]
    seed: int
    shift: Shift | None


def fingerprint(seed: int, frames: Mapping[str, int], shift: str | None) -> str:
    """Return the sha256 of everything that decides about the pixels and labels."""
    recipe = {
        "distributions": DISTRIBUTIONS.as_json(),
        "seed": seed,
        "frames": dict(sorted(frames.items())),
        "shift": asdict(SHIFTS[shift]) if shift else None,
        "classes": CLASS_NAMES,
    }
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def render_dataset(
    out: Path,
    *,
    frames: Mapping[str, int],
    seed: int,
    workers: int = 1,
    shift: str | None = None,
    progress: Progress | None = None,
    renderer: Renderer | None = None,
) -> None:
    """Render independent frames into `out`/<split>/, with COCO annotations and `conveyor.json`.

    frames: how many per split (train, calib, valid, test); workers: processes at most, fewer for few frames;
    progress is called with (split, done, total); renderer: one that was built before, else one is built.
    Raises RenderError on an unknown shift, an empty split, or a folder of another render.
    """
    record = _record(out, frames, seed, shift, kind="independent")
    missing = {split: _missing(out / split, count) for split, count in frames.items()}
    jobs = [
        _Job(out / split, split, tuple(indices[i : i + _CHUNK]), seed, SHIFTS[shift] if shift else None)
        for split, indices in missing.items()
        for i in range(0, len(indices), _CHUNK)
    ]
    processes = min(workers, sum(map(len, missing.values())) // _FRAMES_PER_PROCESS)
    with closing(_run(jobs, processes, renderer)) as finished:
        for split, count in frames.items():
            done = count - len(missing[split])
            _tell(progress, split, done, count)
            while done < count:
                done += next(finished)
                _tell(progress, split, done, count)
            _fold(out / split, split, count)
    _write(out / RECORD, json.dumps(record, indent=1).encode())


def render_sequence(
    out: Path,
    *,
    frames: int,
    seed: int,
    split: str = "test",
    shift: str | None = None,
    progress: Progress | None = None,
    renderer: Renderer | None = None,
) -> None:
    """Render consecutive frames of one running belt into `out`/<split>/; otherwise like `render_dataset`."""
    record = _record(out, {split: frames}, seed, shift, kind="sequence")
    folder = out / split
    missing = _missing(folder, frames)
    _tell(progress, split, frames - len(missing), frames)
    if missing:
        shots = shoot_sequence(
            renderer or build_renderer(), seed, split, missing, SHIFTS[shift] if shift else None
        )
        for done, (index, frame) in enumerate(shots, start=frames - len(missing) + 1):
            _save(folder, index, frame)
            _tell(progress, split, done, frames)
    _fold(folder, split, frames)
    _write(out / RECORD, json.dumps(record, indent=1).encode())


def _record(
    out: Path, frames: Mapping[str, int], seed: int, shift: str | None, *, kind: str
) -> dict[str, object]:
    """Return what `conveyor.json` will say; raise RenderError if the folder holds something else."""
    if shift is not None and shift not in SHIFTS:
        raise RenderError(f"shift: {shift!r} is none of {sorted(SHIFTS)}")
    for split, count in frames.items():
        if count < 1:
            raise RenderError(f"frames: {split} needs at least one frame, got {count}")
    record: dict[str, object] = {
        "kind": kind,
        "seed": seed,
        "frames": dict(frames),
        "shift": shift,
        "distributions": DISTRIBUTIONS.as_json(),
        "fingerprint": fingerprint(seed, frames, shift),
    }
    started = out / RECORD
    if started.exists():
        try:
            before = json.loads(started.read_bytes())
        except ValueError as error:
            raise RenderError(f"{started}: not JSON: {error}") from error
        if not isinstance(before, dict):
            raise RenderError(f"{started}: expected an object, got {type(before).__name__}")
        for field in ("kind", "seed", "frames", "shift", "distributions"):
            if before.get(field) != record[field]:
                raise RenderError(
                    f"{started}: {field}: rendered with {before.get(field)!r}, asked for {record[field]!r};"
                    " choose another folder"
                )
    else:
        if out.exists() and any(out.iterdir()):
            raise RenderError(f"{out}: not empty and without {RECORD}; choose another folder")
        out.mkdir(parents=True, exist_ok=True)
        _write(started, json.dumps(record, indent=1).encode())
    return record


def _missing(folder: Path, count: int) -> list[int]:
    """Return the frames of a split that are still to be rendered; make its folder if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / ANNOTATIONS).exists():
        return []
    return [index for index in range(count) if not _note(folder, index).exists()]


def _run(jobs: Sequence[_Job], processes: int, renderer: Renderer | None) -> Generator[int, None, None]:
    """Run jobs in order, here or in worker processes; yield how many frames each made."""
    if not jobs:
        return
    renderer = renderer or build_renderer()
    if processes <= 1:
        for job in jobs:
            yield _render(job, renderer)
        return
    # Spawned, not forked: OpenCV and the caller may have threads, whose locks a fork would copy as they are.
    pool = ProcessPoolExecutor(
        processes, mp_context=get_context("spawn"), initializer=_receive, initargs=(renderer,)
    )
    try:
        yield from pool.map(_render_given, jobs)
    finally:
        pool.shutdown(cancel_futures=True)


def _receive(renderer: Renderer) -> None:
    """Begin a worker process."""
    cv2.setNumThreads(1)
    _GIVEN.set(renderer)


def _render_given(job: _Job) -> int:
    return _render(job, _GIVEN.get())


def _render(job: _Job, renderer: Renderer) -> int:
    for index in job.indices:
        _save(job.folder, index, renderer.render(job.seed, job.split, index, job.shift))
    return len(job.indices)


def _save(folder: Path, index: int, frame: Frame) -> None:
    """Write a frame and then its note: a note says that the frame is whole."""
    _write(folder / _file_name(index), frame.jpeg)
    note = {
        "factors": asdict(frame.factors),
        "difficulty": round(frame.difficulty, 6),
        "parts": [[part.label, *part.box_xyxy, part.visible_px, int(part.crowd)] for part in frame.parts],
    }
    _write(_note(folder, index), json.dumps(note).encode())


def _fold(folder: Path, split: str, count: int) -> None:
    """Fold the notes of a split into its COCO file, then remove them; what is done already stays as it is."""
    if not (folder / ANNOTATIONS).exists():
        _write(folder / ANNOTATIONS, json.dumps(_coco(folder, split, count)).encode())
    for index in range(count):
        _note(folder, index).unlink(missing_ok=True)


def _coco(folder: Path, split: str, count: int) -> dict[str, object]:
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for index in range(count):
        note = json.loads(_note(folder, index).read_text())
        images.append(
            {
                "id": index + 1,
                "file_name": _file_name(index),
                "width": FRAME_WH[0],
                "height": FRAME_WH[1],
                "factors": note["factors"],
                "difficulty": note["difficulty"],
            }
        )
        for label, x0, y0, x1, y1, pixels, crowd in note["parts"]:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": label + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": pixels,
                    "iscrowd": crowd,
                }
            )
    return {
        "info": {"description": f"rendered conveyor frames, {split}"},
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASS_NAMES)],
        "images": images,
        "annotations": annotations,
    }


def _file_name(index: int) -> str:
    return f"{index:06d}.jpg"


def _note(folder: Path, index: int) -> Path:
    return folder / f".{index:06d}.json"


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def _tell(progress: Progress | None, split: str, done: int, total: int) -> None:
    if progress is not None:
        progress(split, done, total)
