"""Rendering whole data sets: resumable, in parallel, COCO annotations last.

Each frame is a function of (seed, split, index), written to a temporary name and renamed. Beside each frame
stands a small JSON file with its boxes, so that a render that was killed goes on where it stopped; when all
frames of a split are there, these are folded into `_annotations.coco.json` and removed. A folder that was
rendered under another seed or schema is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from search.data.conveyor.factors import DISTRIBUTIONS, SHIFTS, Shift
from search.data.conveyor.frames import Frame, Renderer, build_renderer
from search.data.conveyor.scene import FRAME_WH
from search.data.conveyor.sequence import shoot_sequence
from search.data.conveyor.shapes import FASTENERS

ANNOTATIONS: Final = "_annotations.coco.json"
RECORD: Final = "conveyor.json"
_CHUNK: Final = 8

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


def class_names() -> tuple[str, ...]:
    """Return the classes in label order."""
    return tuple(kind.name for kind in FASTENERS)


def fingerprint(seed: int, frames: Mapping[str, int], shift: str | None) -> str:
    """Return the sha256 of everything that decides about the pixels and labels."""
    recipe = {
        "distributions": DISTRIBUTIONS.as_json(),
        "seed": seed,
        "frames": dict(sorted(frames.items())),
        "shift": asdict(SHIFTS[shift]) if shift else None,
        "classes": class_names(),
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
) -> None:
    """Render independent frames into `out`/<split>/, with COCO annotations and `conveyor.json`.

    frames: how many per split (train, calib, valid, test); progress is called with (split, done, total).
    Raises RenderError on an unknown shift, an empty split, or a folder of another render.
    """
    record = _record(out, frames, seed, shift, kind="independent")
    for split, count in frames.items():
        folder = out / split
        if (folder / ANNOTATIONS).exists():
            _tell(progress, split, count, count)
            continue
        folder.mkdir(parents=True, exist_ok=True)
        missing = [i for i in range(count) if not _note(folder, i).exists()]
        jobs = [
            _Job(folder, split, tuple(missing[i : i + _CHUNK]), seed, SHIFTS[shift] if shift else None)
            for i in range(0, len(missing), _CHUNK)
        ]
        done = count - len(missing)
        with _mapper(workers) as run:
            for finished in run(jobs):
                done += finished
                _tell(progress, split, done, count)
        _fold(folder, split, count)
    _write(out / RECORD, json.dumps(record, indent=1).encode())


def render_sequence(
    out: Path,
    *,
    frames: int,
    seed: int,
    split: str = "test",
    shift: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Render consecutive frames of one running belt into `out`/<split>/; otherwise like `render_dataset`."""
    record = _record(out, {split: frames}, seed, shift, kind="sequence")
    folder = out / split
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / ANNOTATIONS).exists():
        sequence = shoot_sequence(_renderer(), seed, split, frames, SHIFTS[shift] if shift else None)
        for index, frame in enumerate(sequence):
            _save(folder, index, frame)
            _tell(progress, split, index + 1, frames)
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
        before = json.loads(started.read_text())
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


@lru_cache(maxsize=1)
def _renderer() -> Renderer:
    return build_renderer()


@contextmanager
def _mapper(workers: int) -> Iterator[Callable[[list[_Job]], Iterator[int]]]:
    """Give a function that runs jobs here or in worker processes and yields how many frames each made."""
    if workers <= 1:
        yield lambda jobs: map(_render_job, jobs)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield lambda jobs: pool.map(_render_job, jobs)


def _render_job(job: _Job) -> int:
    renderer = _renderer()
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
    """Fold the notes of a split into its COCO file, then remove them."""
    images, annotations = [], []
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
    document = {
        "info": {"description": f"rendered conveyor frames, {split}"},
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(class_names())],
        "images": images,
        "annotations": annotations,
    }
    _write(folder / ANNOTATIONS, json.dumps(document).encode())
    for index in range(count):
        _note(folder, index).unlink()


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
