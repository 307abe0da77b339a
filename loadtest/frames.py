"""A folder of frames with COCO labels, as a load test needs it: the files' bytes and the boxes by class name.

The gateway numbers its classes its own way, so boxes keep their class *names* until the gateway's classes
are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model_repo.scoring import Truth

ANNOTATIONS = "_annotations.coco.json"


class FramesError(ValueError):
    """The folder holds no usable frames; the message names the file and what is wrong with it."""


class _Image(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")
    id: int
    file_name: Annotated[str, Field(min_length=1)]


class _Annotation(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    iscrowd: int = 0


class _Category(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")
    id: int
    name: str


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")
    images: tuple[_Image, ...]
    annotations: tuple[_Annotation, ...]
    categories: tuple[_Category, ...]


@dataclass(frozen=True, slots=True)
class Box:
    """One labelled object: its class by name, x1, y1, x2, y2 in pixels, and whether it stands for a crowd."""

    name: str
    xyxy: tuple[float, float, float, float]
    crowd: bool


@dataclass(frozen=True, slots=True)
class Frame:
    """One encoded image and what is to be seen on it."""

    file_name: str
    content: bytes
    boxes: tuple[Box, ...]

    def truth(self, classes: Sequence[str]) -> Truth:
        """Return the boxes as the scorer wants them, classes numbered by their place in `classes`.

        Raises FramesError when a box's class is not among them.
        """
        index = {name: position for position, name in enumerate(classes)}
        unknown = sorted({box.name for box in self.boxes} - set(index))
        if unknown:
            raise FramesError(
                f"{self.file_name}: the gateway has no class {', '.join(map(repr, unknown))};"
                f" it knows {', '.join(map(repr, classes))}"
            )
        return Truth(
            np.array([box.xyxy for box in self.boxes], dtype=np.float32).reshape(-1, 4),
            np.array([index[box.name] for box in self.boxes], dtype=np.int64),
            np.array([box.crowd for box in self.boxes], dtype=np.bool_),
        )


def read_frames(folder: Path, limit: int | None = None) -> tuple[Frame, ...]:
    """Read the frames of a folder with `_annotations.coco.json`, in the file's order, `limit` at most.

    Raises FramesError naming the file: no such folder, broken JSON, a field that is missing or wrong, an
    annotation of an unknown image or category, an image that is not there or lies outside the folder.
    """
    source = folder / ANNOTATIONS
    try:
        document = _Document.model_validate_json(source.read_bytes())
    except OSError as error:
        raise FramesError(
            f"{source}: {error.strerror}; expected a folder of frames with COCO labels"
        ) from error
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"]) or "(the whole)"
        more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise FramesError(f"{source}: {where}: {problem['msg']}{more}") from error
    boxes = _boxes_by_image(document, source)
    images = document.images[:limit]
    if not images:
        raise FramesError(f"{source}: lists no images")
    return tuple(
        Frame(image.file_name, _content(folder, image.file_name), tuple(boxes[image.id])) for image in images
    )


def _boxes_by_image(document: _Document, source: Path) -> dict[int, list[Box]]:
    names = {category.id: category.name for category in document.categories}
    boxes: dict[int, list[Box]] = {image.id: [] for image in document.images}
    if len(boxes) != len(document.images):
        raise FramesError(f"{source}: two images share one id")
    for position, annotation in enumerate(document.annotations):
        where = f"{source}: annotations.{position}"
        if annotation.image_id not in boxes:
            raise FramesError(f"{where}: image_id {annotation.image_id} is not among the images")
        if annotation.category_id not in names:
            raise FramesError(f"{where}: category_id {annotation.category_id} is not among the categories")
        x, y, width, height = annotation.bbox
        if width < 0 or height < 0:
            raise FramesError(f"{where}: bbox has a negative size: {annotation.bbox}")
        boxes[annotation.image_id].append(
            Box(names[annotation.category_id], (x, y, x + width, y + height), bool(annotation.iscrowd))
        )
    return boxes


def _content(folder: Path, file_name: str) -> bytes:
    path = folder / file_name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise FramesError(f"{path}: lies outside the folder")
    try:
        return path.read_bytes()
    except OSError as error:
        raise FramesError(f"{path}: {error.strerror}") from error
