"""Reading a folder of frames with COCO labels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadtest.frames import ANNOTATIONS, FramesError, read_frames

# A COCO document, changed field by field in the tests.
Document = dict[str, list[dict[str, object]]]


def document() -> Document:
    """Return one image with one red box, and one without any."""
    return {
        "images": [
            {"id": 7, "file_name": "b.jpg", "width": 64, "height": 48, "license": 1},
            {"id": 3, "file_name": "a.jpg", "width": 64, "height": 48},
        ],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 2, "bbox": [1, 2, 10, 20], "iscrowd": 0}],
        "categories": [{"id": 0, "name": "things"}, {"id": 2, "name": "red"}],
    }


def write(folder: Path, content: Document) -> Path:
    """Write a folder of frames."""
    folder.mkdir(exist_ok=True)
    (folder / ANNOTATIONS).write_text(json.dumps(content))
    (folder / "a.jpg").write_bytes(b"A")
    (folder / "b.jpg").write_bytes(b"B")
    return folder


def test_frames_keep_the_files_order_and_know_their_boxes(tmp_path: Path) -> None:
    """Bytes, boxes as corners, and class names come in the order of the file."""
    first, second = read_frames(write(tmp_path / "frames", document()))
    assert (first.file_name, first.content, second.content) == ("b.jpg", b"B", b"A")
    assert first.boxes[0].name == "red"
    assert first.boxes[0].xyxy == (1.0, 2.0, 11.0, 22.0)
    assert second.boxes == ()
    truth = first.truth(("green", "red"))
    assert truth.label.tolist() == [1]
    assert truth.xyxy.tolist() == [[1.0, 2.0, 11.0, 22.0]]


def test_a_limit_takes_the_first_frames(tmp_path: Path) -> None:
    """With a limit of one only the first image is read."""
    assert len(read_frames(write(tmp_path / "frames", document()), limit=1)) == 1


def test_a_class_that_the_gateway_does_not_know_is_an_error(tmp_path: Path) -> None:
    """A labelled class without a counterpart is named; a category without boxes is not missed."""
    frames = read_frames(write(tmp_path / "frames", document()))
    with pytest.raises(FramesError, match=r"no class 'red'.*'green'"):
        frames[0].truth(("green",))
    assert frames[0].truth(("red",)).label.tolist() == [0]


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("annotations", {"image_id": 99}, "image_id 99"),
        ("annotations", {"category_id": 99}, "category_id 99"),
        ("annotations", {"bbox": [1, 2, -3, 4]}, "negative size"),
        ("annotations", {"bbox": [1, 2, 3]}, r"annotations\.0\.bbox"),
        ("images", {"id": 3}, "share one id"),
        ("images", {"file_name": "../../etc/passwd"}, "outside the folder"),
        ("images", {"file_name": "missing.jpg"}, r"missing\.jpg: No such file"),
        ("categories", {"name": None}, r"categories\.0\.name"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, section: str, change: dict[str, object], message: str
) -> None:
    """Every kind of damage is an error that says where it is."""
    content = document()
    content[section][0].update(change)
    with pytest.raises(FramesError, match=message):
        read_frames(write(tmp_path / "frames", content))


def test_a_folder_without_labels_or_images_is_an_error(tmp_path: Path) -> None:
    """A missing file, broken JSON and an empty list each say so."""
    with pytest.raises(FramesError, match="expected a folder of frames"):
        read_frames(tmp_path / "nowhere")
    folder = write(tmp_path / "frames", {"images": [], "annotations": [], "categories": []})
    with pytest.raises(FramesError, match="lists no images"):
        read_frames(folder)
    (folder / ANNOTATIONS).write_text("{")
    with pytest.raises(FramesError, match="JSON"):
        read_frames(folder)
