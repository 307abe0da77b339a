"""Reading COCO-format data sets: both layouts, and every kind of bad input named."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg

from search.data.coco import ANNOTATIONS, DataError, read_dataset, to_coco_dict

BCCD = Path(__file__).parents[4] / "shared" / "data" / "bccd"
Document = dict[str, Any]  # a COCO document, mended and broken by tests


def _document(images: int) -> Document:
    return {
        "categories": [
            {"id": 0, "name": "things", "supercategory": "none"},
            {"id": 7, "name": "nut", "supercategory": "things"},
            {"id": 3, "name": "bolt", "supercategory": "things"},
        ],
        "images": [{"id": i + 10, "file_name": f"{i}.jpg", "width": 32, "height": 24} for i in range(images)],
        "annotations": [
            {"id": i, "image_id": i + 10, "category_id": (3, 7)[i % 2], "bbox": [2, 3, 10, 8], "iscrowd": 0}
            for i in range(images)
        ],
    }


def _write(annotations: Path, images: Path, document: Document) -> None:
    annotations.parent.mkdir(parents=True, exist_ok=True)
    images.mkdir(parents=True, exist_ok=True)
    annotations.write_text(json.dumps(document))
    for row in document["images"]:
        seed = list(f"{images.name}/{row['file_name']}".encode())
        pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        (images / row["file_name"]).write_bytes(simplejpeg.encode_jpeg(pixels))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a good data set in the export layout, without a calibration split."""
    for split, count in (("train", 10), ("valid", 4), ("test", 3)):
        _write(tmp_path / split / ANNOTATIONS, tmp_path / split, _document(count))
    return tmp_path


def test_the_export_layout_is_read(root: Path) -> None:
    """Classes are in the order of their ids without the group, boxes are corners, splits have their roles."""
    dataset = read_dataset(root, seed=3)
    assert dataset.classes == ("bolt", "nut")
    assert {name: len(split.images) for name, split in dataset.splits.items()} == {
        "train": 8, "calibration": 2, "valid": 4, "test": 3,
    }  # fmt: skip
    record = dataset.splits["valid"].images[1]
    assert record.boxes_xyxy.tolist() == [[2, 3, 12, 11]]
    assert record.labels.tolist() == [1]
    assert (record.width, record.height, record.difficulty) == (32, 24, None)


def test_cocos_own_layout_is_read(tmp_path: Path) -> None:
    """annotations/instances_*.json with images beside or under images/ reads as the other layout does."""
    _write(tmp_path / "annotations" / "instances_train2017.json", tmp_path / "train2017", _document(6))
    _write(tmp_path / "annotations" / "instances_val2017.json", tmp_path / "images" / "val2017", _document(3))
    dataset = read_dataset(tmp_path)
    assert sorted(dataset.splits) == ["calibration", "train", "valid"]
    assert dataset.splits["valid"].images[0].path == tmp_path / "images" / "val2017" / "0.jpg"


def test_a_calibration_split_of_its_own_is_used(root: Path) -> None:
    """With a calib folder nothing is held out of train."""
    _write(root / "calib" / ANNOTATIONS, root / "calib", _document(2))
    dataset = read_dataset(root)
    assert (len(dataset.splits["train"].images), len(dataset.splits["calibration"].images)) == (10, 2)


def test_holding_out_is_seeded_and_disjoint(root: Path) -> None:
    """The same seed holds out the same images, and none of them trains; another seed another slice."""

    def held(seed: int) -> frozenset[int]:
        splits = read_dataset(root, calibration_share=0.4, seed=seed).splits
        train = {record.id for record in splits["train"].images}
        calibration = frozenset(record.id for record in splits["calibration"].images)
        assert train.isdisjoint(calibration)
        assert len(train | calibration) == 10
        return calibration

    assert held(1) == held(1)
    assert len({held(seed) for seed in range(6)}) > 1


def test_the_fingerprint_follows_labels_and_hold_out(root: Path) -> None:
    """Equal data have equal fingerprints; a label or the seed of the hold-out changes it."""
    before = read_dataset(root).fingerprint
    assert read_dataset(root).fingerprint == before
    assert read_dataset(root, seed=1).fingerprint != before
    document = _document(3)
    document["annotations"][0]["bbox"][0] = 5
    (root / "test" / ANNOTATIONS).write_text(json.dumps(document))
    assert read_dataset(root).fingerprint != before


def test_boxes_are_clipped_and_empty_ones_dropped_and_counted(root: Path) -> None:
    """A box that leaves the image is clipped, one without area dropped, and both are told."""
    document = _document(4)
    document["annotations"][0]["bbox"] = [20, 10, 50, 50]
    document["annotations"][1]["bbox"] = [5, 5, 0, 4]
    (root / "valid" / ANNOTATIONS).write_text(json.dumps(document))
    dataset = read_dataset(root)
    first, second = dataset.splits["valid"].images[:2]
    assert first.boxes_xyxy.tolist() == [[20, 10, 32, 24]]
    assert len(second.labels) == 0
    assert any("1 boxes clipped" in note for note in dataset.notes)
    assert any("1 boxes without area" in note for note in dataset.notes)


def _set(*path: str | int, to: object) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        target: Any = document
        for part in path[:-1]:
            target = target[part]
        target[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("annotations", 1, "category_id", to=99), r"annotation 1: category_id 99"),
        (_set("annotations", 1, "image_id", to=99), r"annotation 1: image_id 99"),
        (_set("annotations", 1, "id", to=0), r"annotation 0: id stands twice"),
        (_set("images", 1, "id", to=10), r"images\[1\]: id 10 stands twice"),
        (_set("annotations", 1, "bbox", to=[0, 0, -3, 4]), r"annotation 1: bbox: negative"),
        (_set("annotations", 1, "bbox", to=[0, 0, float("nan"), 4]), r"annotation 1: bbox: expected finite"),
        (_set("annotations", 1, "bbox", to=[0, 0, 3]), r"annotation 1: bbox: expected \[x, y"),
        (_set("annotations", 1, "iscrowd", to=5), r"annotation 1: iscrowd"),
        (_set("annotations", 1, "image_id", to="a"), r"annotation 1: image_id: expected a whole number"),
        (_set("images", 0, "file_name", to="../../secret.jpg"), r"image 10: file_name: .* leads out"),
        (_set("images", 0, "file_name", to="/etc/passwd"), r"image 10: file_name: .* leads out"),
        (_set("images", 0, "file_name", to="gone.jpg"), r"image 10: file_name: .*gone.jpg is missing"),
        (_set("images", 0, "width", to=31), r"image 10: says 31x24, .* is 32x24"),
        (_set("categories", 1, "name", to="bolt"), r"categories"),
        (_set("categories", to={}), r"categories: expected a list"),
        (_set("images", to=[]), r"image_id 10 is no image"),
    ],
)
def test_bad_input_is_named(root: Path, change: Callable[[Document], None], message: str) -> None:
    """Each kind of bad input is refused with the file and the field or annotation."""
    document = copy.deepcopy(_document(4))
    change(document)
    (root / "valid" / ANNOTATIONS).write_text(json.dumps(document))
    with pytest.raises(DataError, match=message):
        read_dataset(root)


def test_broken_files_and_missing_splits_are_named(root: Path) -> None:
    """Broken JSON, a file that is no image, a missing split and a missing folder each say what is wrong."""
    (root / "valid" / "0.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"image 10: .*0\.jpg: neither JPEG nor PNG"):
        read_dataset(root)
    (root / "valid" / ANNOTATIONS).write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        read_dataset(root)
    (root / "valid" / ANNOTATIONS).unlink()
    with pytest.raises(DataError, match="no valid split; expected"):
        read_dataset(root)
    with pytest.raises(DataError, match="no such folder"):
        read_dataset(root / "nowhere")


def test_an_image_in_two_splits_judges_only(root: Path) -> None:
    """What also stands in test leaves train and valid, and is counted; a split of copies alone is refused."""
    for split, name in (("train", "3.jpg"), ("valid", "1.jpg")):
        (root / split / name).write_bytes((root / "test" / "0.jpg").read_bytes())
    dataset = read_dataset(root)
    fitted = [r for name in ("train", "calibration") for r in dataset.splits[name].images]
    assert (len(fitted), len(dataset.splits["valid"].images)) == (9, 3)
    assert 13 not in [record.id for record in fitted]
    assert sum("1 images that also stand in test left out" in note for note in dataset.notes) == 2
    for k in range(3):
        (root / "test" / f"{k}.jpg").write_bytes((root / "valid" / f"{k}.jpg").read_bytes())
    (root / "valid" / "3.jpg").write_bytes((root / "test" / "0.jpg").read_bytes())
    with pytest.raises(DataError, match=r"valid/_annotations\.coco\.json: valid: no image of its own"):
        read_dataset(root)
    assert "valid" not in read_dataset(root, needed=("test",)).splits


def test_a_split_without_a_box_is_refused(root: Path) -> None:
    """A split in which nothing is labelled cannot judge, and its file is named."""
    document = _document(4)
    document["annotations"] = []
    (root / "valid" / ANNOTATIONS).write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"valid/_annotations\.coco\.json: valid: no image of its own"):
        read_dataset(root)


def test_a_truncated_image_is_named_when_it_is_decoded(root: Path) -> None:
    """The header of a truncated image reads well; decoding it names the file and the id."""
    path = root / "valid" / "2.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    record = read_dataset(root).splits["valid"].images[2]
    with pytest.raises(DataError, match=r"2\.jpg: image 12: broken JPEG"):
        record.frame()
    path.unlink()
    with pytest.raises(DataError, match=r"2\.jpg: image 12: No such file"):
        record.frame()


def test_labels_written_out_are_the_labels_read(root: Path) -> None:
    """to_coco_dict gives documents whose boxes and classes are those of the split."""
    dataset = read_dataset(root)
    document: Any = to_coco_dict(dataset.splits["valid"], dataset.classes)
    assert [row["name"] for row in document["categories"]] == ["bolt", "nut"]
    assert [row["category_id"] for row in document["annotations"]] == [1, 2, 1, 2]
    assert document["annotations"][0]["bbox"] == [2, 3, 10, 8]


@pytest.mark.skipif(not BCCD.is_dir(), reason=f"no data set at {BCCD}")
def test_a_real_data_set_is_read() -> None:
    """The blood cells read without a note: three classes, 364 images."""
    dataset = read_dataset(BCCD)
    assert dataset.classes == ("Platelets", "RBC", "WBC")
    assert sum(len(split.images) for split in dataset.splits.values()) == 364
    assert not dataset.notes
