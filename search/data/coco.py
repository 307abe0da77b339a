"""Reading COCO-format data sets, checked against bad input, into frozen values.

Two layouts are read:

- `train|valid|test[|calib]/_annotations.coco.json` beside the images, as RF-DETR and Roboflow export it;
- COCO's own `annotations/instances_<split>*.json`, images in `<split>*/` or `images/<split>*/`.

Each split has one role. *calibration* is a `calib` (or `calibration`) split where there is one, else a seeded
slice of train that is held out from training. Classes are the annotated categories in the order of their ids.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model_repo.frame import BrokenFrame, FrameError, decode, sniff_wh
from model_repo.publish import file_digest
from search.run_folder import RunError

ANNOTATIONS: Final = "_annotations.coco.json"
_HEADER_BYTES: Final = 65536
_LARGEST: Final = 1e9
# What a split is called on disk, and what it is called here.
_SPLIT_NAMES: Final = (
    ("train", "train"),
    ("valid", "valid"),
    ("val", "valid"),
    ("test", "test"),
    ("calib", "calibration"),
    ("calibration", "calibration"),
)


class DataError(RunError):
    """The data set cannot be used; the message names the file and the field or annotation."""


@dataclass(frozen=True, slots=True, eq=False)
class ImageRecord:
    """One image and its labels.

    boxes_xyxy: float32 [n, 4] pixels, clipped to the image; labels: int64 [n], indices into the classes;
    crowd: bool [n]; difficulty: in [0, 1] where the data set states one.
    """

    id: int
    path: Path
    width: int
    height: int
    boxes_xyxy: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    difficulty: float | None = None

    def frame(self) -> NDArray[np.uint8]:
        """Return the decoded image, RGB uint8 [h, w, 3]; raises DataError naming file and id."""
        try:
            return decode(self.path.read_bytes())
        except (OSError, FrameError) as error:
            what = error.strerror if isinstance(error, OSError) else error
            raise DataError(f"{self.path}: image {self.id}: {what}") from error


@dataclass(frozen=True, slots=True)
class Split:
    """The images of one role."""

    name: str
    images: tuple[ImageRecord, ...]


@dataclass(frozen=True, slots=True)
class Dataset:
    """A data set that was read and checked; `notes` tells what was mended on the way."""

    name: str
    root: Path
    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    fingerprint: str
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class _Source:
    """A split as it lies on disk."""

    name: str
    annotations: Path
    image_folders: tuple[Path, ...]


def read_dataset(
    root: Path,
    *,
    calibration_share: float = 0.2,
    seed: int = 0,
    needed: Sequence[str] = ("train", "valid"),
) -> Dataset:
    """Read and check a data set in COCO format that has the `needed` splits at least.

    Without a calib split, `calibration_share` of train (drawn by `seed`) is held out as *calibration*.
    Raises DataError that names the file and what is wrong in it.
    """
    if not 0.0 < calibration_share < 1.0:
        raise DataError(f"calibration_share must lie between 0 and 1, got {calibration_share}")
    sources = _find(root)
    if not sources:
        raise DataError(f"{root}: no split; expected for example valid/{ANNOTATIONS}")
    for split in needed:
        if split not in sources:
            raise DataError(
                f"{root}: no {split} split; expected {split}/{ANNOTATIONS}"
                f" or annotations/instances_{'val' if split == 'valid' else split}*.json"
            )
    documents = {name: _load(source.annotations) for name, source in sources.items()}
    categories = _categories(documents, sources)
    classes = tuple(name for _, name in categories)
    index_of = {number: index for index, (number, _) in enumerate(categories)}
    notes: list[str] = []
    digest = hashlib.sha256()
    splits: dict[str, Split] = {}
    for name, source in sorted(sources.items()):
        images = _read_split(source, documents[name], index_of, notes)
        if not images:
            raise DataError(f"{source.annotations}: images: the split is empty")
        splits[name] = Split(name, images)
        digest.update(hashlib.sha256(source.annotations.read_bytes()).digest())
        for record in images:
            digest.update(f"{name}/{record.path.name}/{record.path.stat().st_size}\n".encode())
    if "calibration" not in splits and "train" in splits:
        splits["train"], splits["calibration"] = _hold_out(splits["train"], calibration_share, seed)
        digest.update(f"calibration {calibration_share} {seed}".encode())
    notes += _drop_copies(splits)
    notes += _drop_unlabelled(splits, sources, needed)
    return Dataset(root.resolve().name, root, classes, splits, digest.hexdigest(), tuple(notes))


def to_coco_dict(split: Split, classes: tuple[str, ...]) -> dict[str, object]:
    """Return the split's labels as a COCO document; category ids are class indices plus one."""
    annotations: list[dict[str, object]] = []
    for record in split.images:
        rows = zip(record.boxes_xyxy.astype(np.float64), record.labels, record.crowd, strict=True)
        for (x1, y1, x2, y2), label, crowd in rows:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": record.id,
                    "category_id": int(label) + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(crowd),
                }
            )
    return {
        "images": [
            {"id": r.id, "file_name": r.path.name, "width": r.width, "height": r.height} for r in split.images
        ],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(classes)],
        "annotations": annotations,
    }


def _find(root: Path) -> dict[str, _Source]:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    found: dict[str, _Source] = {}
    for on_disk, name in _SPLIT_NAMES:
        beside = root / on_disk / ANNOTATIONS
        if beside.is_file():
            found.setdefault(name, _Source(name, beside, (root / on_disk,)))
            continue
        own = sorted((root / "annotations").glob(f"instances_{on_disk}[0-9]*.json"))
        own += [p for p in [root / "annotations" / f"instances_{on_disk}.json"] if p.is_file()]
        if len(own) > 1:
            raise DataError(f"{root / 'annotations'}: several files for {on_disk}: {[p.name for p in own]}")
        if own:
            folder = own[0].stem.removeprefix("instances_")
            found.setdefault(name, _Source(name, own[0], (root / folder, root / "images" / folder)))
    return found


def _load(path: Path) -> dict[str, object]:
    try:
        document = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise DataError(f"{path}: expected an object, got {type(document).__name__}")
    for key in ("images", "annotations", "categories"):
        rows = document.get(key)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DataError(f"{path}: {key}: expected a list of objects")
    return document


def _rows(document: Mapping[str, object], key: str) -> list[dict[str, object]]:
    rows = document[key]
    assert isinstance(rows, list)
    return rows


def _integer(row: Mapping[str, object], key: str, where: str) -> int:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise DataError(f"{where}: {key}: expected a whole number, got {value!r}")
    return value


def _categories(
    documents: Mapping[str, Mapping[str, object]], sources: Mapping[str, _Source]
) -> list[tuple[int, str]]:
    """Return (id, name) of the classes by id; splits must agree.

    A category that nothing is annotated with and that is another one's supercategory is a group, as in
    Roboflow's exports, and no class.
    """
    names: dict[int, str] = {}
    groups: set[str] = set()
    used: set[int] = set()
    for split, document in documents.items():
        path = sources[split].annotations
        for position, row in enumerate(_rows(document, "categories")):
            number = _integer(row, "id", f"{path}: categories[{position}]")
            name = row.get("name")
            if not isinstance(name, str) or not name:
                raise DataError(f"{path}: categories[{position}]: name: expected a text, got {name!r}")
            if names.setdefault(number, name) != name:
                raise DataError(
                    f"{path}: categories[{position}]: id {number} is {name!r} here"
                    f" and {names[number]!r} in another split"
                )
            parent = row.get("supercategory")
            if isinstance(parent, str) and parent != name:
                groups.add(parent)
        used |= {
            _integer(row, "category_id", f"{path}: annotation {row.get('id')}")
            for row in _rows(document, "annotations")
        }
    files = ", ".join(str(source.annotations) for source in sources.values())
    twice = {name for name in names.values() if list(names.values()).count(name) > 1}
    classes = [
        (number, name)
        for number, name in sorted(names.items())
        if number in used or (name not in groups and name not in twice)
    ]
    if len({name for _, name in classes}) != len(classes):
        raise DataError(f"{files}: categories: one name for several ids: {sorted(twice)}")
    if not classes:
        raise DataError(f"{files}: categories: there is none")
    return classes


def _read_split(
    source: _Source, document: Mapping[str, object], index_of: Mapping[int, int], notes: list[str]
) -> tuple[ImageRecord, ...]:
    path = source.annotations
    images: dict[int, dict[str, object]] = {}
    for position, row in enumerate(_rows(document, "images")):
        number = _integer(row, "id", f"{path}: images[{position}]")
        if number in images:
            raise DataError(f"{path}: images[{position}]: id {number} stands twice")
        images[number] = row
    labels: dict[int, list[tuple[tuple[float, float, float, float], int, bool]]] = {n: [] for n in images}
    seen: set[int] = set()
    counts = {"clipped to the image": 0, "without area dropped": 0}
    for position, row in enumerate(_rows(document, "annotations")):
        number = _integer(row, "id", f"{path}: annotations[{position}]")
        where = f"{path}: annotation {number}"
        if number in seen:
            raise DataError(f"{where}: id stands twice")
        seen.add(number)
        image = images.get(_integer(row, "image_id", where))
        if image is None:
            raise DataError(f"{where}: image_id {row['image_id']} is no image of this file")
        category = _integer(row, "category_id", where)
        if category not in index_of:
            raise DataError(f"{where}: category_id {category} is no category of this file")
        size = (_integer(image, "width", where), _integer(image, "height", where))
        box, clipped = _box(row.get("bbox"), size, where)
        if box is None:
            counts["without area dropped"] += 1
            continue
        counts["clipped to the image"] += clipped
        crowd = row.get("iscrowd", 0)
        if crowd not in (0, 1):
            raise DataError(f"{where}: iscrowd: expected 0 or 1, got {crowd!r}")
        labels[_integer(row, "image_id", where)].append((box, index_of[category], bool(crowd)))
    notes += [f"{path}: {count} boxes {what}" for what, count in counts.items() if count]
    return tuple(_image(source, number, images[number], labels[number]) for number in sorted(images))


def _box(
    value: object, size_wh: tuple[int, int], where: str
) -> tuple[tuple[float, float, float, float] | None, bool]:
    """Return x1, y1, x2, y2 clipped to the image, None without area; and whether it had to be clipped."""
    if not isinstance(value, list) or len(value) != 4:
        raise DataError(f"{where}: bbox: expected [x, y, width, height], got {value!r}")
    numbers = []
    for number in value:
        # Whole numbers have no end in JSON: one may be larger than any float.
        if (
            isinstance(number, bool)
            or not isinstance(number, int | float)
            or not -_LARGEST < number < _LARGEST
        ):
            raise DataError(f"{where}: bbox: expected finite numbers, got {value!r}")
        numbers.append(float(number))
    x, y, width, height = numbers
    if width < 0 or height < 0:
        raise DataError(f"{where}: bbox: negative size in {value!r}")
    x1, y1 = max(x, 0.0), max(y, 0.0)
    x2, y2 = min(x + width, float(size_wh[0])), min(y + height, float(size_wh[1]))
    # Exports round: a box that leaves the image by less than a pixel is not worth a word.
    clipped = min(x, y) < -1.0 or x + width > size_wh[0] + 1.0 or y + height > size_wh[1] + 1.0
    return ((x1, y1, x2, y2) if x2 > x1 and y2 > y1 else None), clipped


def _image(
    source: _Source,
    number: int,
    row: Mapping[str, object],
    labels: Iterable[tuple[tuple[float, float, float, float], int, bool]],
) -> ImageRecord:
    where = f"{source.annotations}: image {number}"
    file_name = row.get("file_name")
    if not isinstance(file_name, str) or not file_name:
        raise DataError(f"{where}: file_name: expected a text, got {file_name!r}")
    relative = PurePosixPath(file_name)
    if relative.is_absolute() or ".." in relative.parts or "\\" in file_name:
        raise DataError(f"{where}: file_name: {file_name!r} leads out of the data set")
    path = next((p for folder in source.image_folders if (p := folder / relative).is_file()), None)
    if path is None:
        raise DataError(f"{where}: file_name: {source.image_folders[0] / relative} is missing")
    width, height = _integer(row, "width", where), _integer(row, "height", where)
    try:
        real = _size_wh(path)
    except FrameError as error:
        raise DataError(f"{where}: {path}: {error}") from error
    if real != (width, height):
        raise DataError(f"{where}: says {width}x{height}, {path} is {real[0]}x{real[1]}")
    difficulty = row.get("difficulty")
    if difficulty is not None and not (
        isinstance(difficulty, int | float) and not isinstance(difficulty, bool) and 0.0 <= difficulty <= 1.0
    ):
        raise DataError(f"{where}: difficulty: expected a number from 0 to 1, got {difficulty!r}")
    rows = list(labels)
    return ImageRecord(
        id=number,
        path=path,
        width=width,
        height=height,
        boxes_xyxy=np.array([box for box, _, _ in rows], dtype=np.float32).reshape(-1, 4),
        labels=np.array([label for _, label, _ in rows], dtype=np.int64),
        crowd=np.array([crowd for _, _, crowd in rows], dtype=np.bool_),
        difficulty=None if difficulty is None else float(difficulty),
    )


def _size_wh(path: Path) -> tuple[int, int]:
    """Return an image's size from its first bytes, from all of them where metadata fills the first."""
    with path.open("rb") as stream:
        try:
            return sniff_wh(stream.read(_HEADER_BYTES))
        except BrokenFrame:
            return sniff_wh(path.read_bytes())


def _drop_copies(splits: dict[str, Split]) -> list[str]:
    """Keep an image that stands in several splits only where it judges last: nothing is judged on what it was
    fitted to. Return how many images left which split.

    Only files of equal size are read to compare them.
    """
    order: list[str] = [name for name in ("test", "valid", "calibration", "train") if name in splits]
    sizes = {name: [record.path.stat().st_size for record in splits[name].images] for name in order}
    in_splits = Counter(size for name in order for size in set(sizes[name]))
    owner: dict[str, str] = {}
    notes: list[str] = []
    for name in order:
        kept: list[ImageRecord] = []
        copies: Counter[str] = Counter()
        for record, size in zip(splits[name].images, sizes[name], strict=True):
            first = name
            if in_splits[size] > 1:
                first = owner.setdefault(file_digest(record.path), name)
            if first == name:
                kept.append(record)
            else:
                copies[first] += 1
        splits[name] = Split(name, tuple(kept))
        notes += [
            f"{name}: {count} images that also stand in {first} left out"
            for first, count in sorted(copies.items())
        ]
    return notes


def _drop_unlabelled(
    splits: dict[str, Split], sources: Mapping[str, _Source], needed: Sequence[str]
) -> list[str]:
    """Drop the splits without a box and return which; raise DataError when one of them is needed."""
    empty = [name for name, split in splits.items() if not any(len(record.labels) for record in split.images)]
    for name in empty:
        if name in needed or (name == "calibration" and "train" in needed):
            where = sources[name if name in sources else "train"].annotations
            raise DataError(f"{where}: {name}: no image of its own has a box; nothing can be judged")
        del splits[name]
    return [f"{name}: left out, no image of its own has a box" for name in empty]


def _hold_out(train: Split, share: float, seed: int) -> tuple[Split, Split]:
    """Split train into what trains and what calibrates, by a seeded draw of images."""
    count = round(len(train.images) * share)
    if not 0 < count < len(train.images):
        raise DataError(
            f"train: {len(train.images)} images are too few to hold {share:.0%} out for calibration"
        )
    held = set(np.random.default_rng(seed).permutation(len(train.images))[:count].tolist())
    return (
        Split("train", tuple(r for i, r in enumerate(train.images) if i not in held)),
        Split("calibration", tuple(r for i, r in enumerate(train.images) if i in held)),
    )
