"""Augmentation: boxes follow their pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from search.augment import AugmentConfig, Sample, augmented, flipped, pasted

PLAIN = AugmentConfig(hue=0, saturation=0, brightness=0, blur=0, noise=0)


def marked(seed: int, width: int = 160, height: int = 120) -> Sample:
    """Draw a white rectangle on black, and say where it is."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.uint8)
    w, h = (int(side) for side in rng.integers(30, 60, 2))
    x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
    image[y : y + h, x : x + w] = 255
    return Sample(image, np.array([[x, y, x + w, y + h]], np.float32), np.array([1], np.int64))


def extent(image: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> tuple[float, float, float, float]:
    """Return the bounding box of the white pixels (the fill is grey), a box edge at half brightness."""
    rows, columns = np.nonzero(image[:, :, 0] > 185)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@given(st.integers(0, 10_000), st.booleans(), st.booleans())
def test_flipping_twice_is_nothing(seed: int, horizontal: bool, vertical: bool) -> None:
    """A flip done twice gives back every pixel and every box."""
    sample = marked(seed)
    once = flipped(sample, horizontal=horizontal, vertical=vertical)
    twice = flipped(once, horizontal=horizontal, vertical=vertical)
    assert np.array_equal(twice.image, sample.image)
    assert np.array_equal(twice.boxes_xyxy, sample.boxes_xyxy)
    assert extent(once.image) == tuple(once.boxes_xyxy[0])


@settings(deadline=None)
@given(st.integers(0, 100_000), st.sampled_from([(96, 96), (160, 128), (64, 128)]))
def test_a_box_follows_its_pixels(seed: int, resolution_wh: tuple[int, int]) -> None:
    """After flips, transposition, zoom, stretch and shift a marked rectangle lies where its box says."""
    config = AugmentConfig(
        mosaic=0, transpose=0.5, vertical_flip=0.5, hue=0, saturation=0, brightness=0, blur=0, noise=0
    )
    rng = np.random.default_rng(seed)
    result = augmented(marked(seed), lambda r: marked(0), config, resolution_wh, rng)
    assume(len(result.boxes_xyxy) == 1)
    assert np.abs(np.array(extent(result.image)) - result.boxes_xyxy[0]).max() <= 1.5
    assert result.labels.tolist() == [1]


@settings(deadline=None)
@given(st.integers(0, 100_000))
def test_mosaic_boxes_cover_all_marks(seed: int) -> None:
    """In a mosaic every white pixel lies in a box, and boxes hold white only, but for the dropped slivers."""
    config = AugmentConfig(mosaic=1, min_visible=0.0, hue=0, saturation=0, brightness=0, blur=0, noise=0)
    rng = np.random.default_rng(seed)
    result = augmented(marked(seed), lambda r: marked(int(r.integers(99))), config, (128, 96), rng)
    white = result.image[:, :, 0] > 185
    covered = np.zeros_like(white)
    for x1, y1, x2, y2 in result.boxes_xyxy:
        covered[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))] = True
        inner = white[int(np.ceil(y1)) + 1 : int(y2) - 1, int(np.ceil(x1)) + 1 : int(x2) - 1]
        assert inner.size == 0 or inner.all()
    assert np.count_nonzero(white & ~covered) <= 0.02 * white.size
    assert len(result.boxes_xyxy) == len(result.labels) <= 4


@given(st.integers(0, 100_000))
def test_pasted_objects_lie_where_their_boxes_say(seed: int) -> None:
    """What was there stays; every new box holds the donor's object, and nothing else changes."""
    rng = np.random.default_rng(seed)
    ground = Sample(np.zeros((120, 160, 3), np.uint8), *_objects([(20, 20, 60, 50)], [0]))
    donor = marked(seed)
    result = pasted(ground, donor, rng)
    assert np.array_equal(result.boxes_xyxy[:1], ground.boxes_xyxy)
    assert result.labels.tolist() == [0] + [1] * (len(result.labels) - 1)
    changed = result.image[:, :, 0] > 0
    for x1, y1, x2, y2 in result.boxes_xyxy[1:].astype(int):
        assert (x2 - x1, y2 - y1) == tuple((donor.boxes_xyxy[0, 2:] - donor.boxes_xyxy[0, :2]).astype(int))
        assert (result.image[(y1 + y2) // 2, (x1 + x2) // 2] == 255).all()
        changed[y1:y2, x1:x2] = False
    assert not changed.any()
    assert not ground.image.any()


def test_pasting_takes_every_class_as_often() -> None:
    """One object in nine is of class 1, and about half of what is pasted."""
    boxes = [(20 * index, 0, 20 * index + 10, 10) for index in range(9)]
    donor = Sample(np.full((40, 200, 3), 255, np.uint8), *_objects(boxes, [0] * 8 + [1]))
    ground = Sample(np.zeros((120, 160, 3), np.uint8), *_objects([], []))
    rng = np.random.default_rng(3)
    labels = np.concatenate([pasted(ground, donor, rng).labels for _ in range(200)])
    assert 0.4 < labels.mean() < 0.6


def test_a_donor_without_objects_gives_none() -> None:
    """Nor does one whose objects are larger than the frame."""
    ground = marked(1)
    empty = Sample(np.zeros((50, 50, 3), np.uint8), *_objects([], []))
    large = Sample(np.zeros((500, 500, 3), np.uint8), *_objects([(0, 0, 500, 500)], [0]))
    for donor in (empty, large):
        result = pasted(ground, donor, np.random.default_rng(0))
        assert np.array_equal(result.image, ground.image)
        assert result.labels.tolist() == [1]


def _objects(
    boxes: list[tuple[int, int, int, int]], labels: list[int]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    return np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64)


def test_content_follows_the_generator() -> None:
    """The same generator state gives the same image; colour and noise included."""
    config = AugmentConfig(blur=1.0, noise=1.0)
    results = [
        augmented(marked(1), lambda r: marked(int(r.integers(9))), config, (96, 96), np.random.default_rng(5))
        for _ in range(2)
    ]
    assert np.array_equal(results[0].image, results[1].image)
    assert results[0].image.dtype == np.uint8


def test_hidden_objects_are_dropped() -> None:
    """An object that is mostly cut off is no object to learn."""
    sample = marked(3)
    config = AugmentConfig(mosaic=0, zoom=(3.0, 3.0), min_visible=0.99, horizontal_flip=0)
    kept = [
        len(augmented(sample, lambda r: sample, config, (64, 64), np.random.default_rng(s)).labels)
        for s in range(40)
    ]
    assert 0 in kept


def test_the_calm_end_has_no_mosaic() -> None:
    """The last part of a training shows lone frames near their true size."""
    calm = PLAIN.without_mosaic()
    assert calm.mosaic == 0
    assert calm.zoom[0] >= 0.85
    assert calm.hue == PLAIN.hue


@pytest.mark.parametrize("flip", [{"horizontal": True}, {"vertical": True}])
def test_images_without_objects_pass(flip: dict[str, bool]) -> None:
    """A frame without objects is varied like any other."""
    empty = Sample(np.zeros((8, 8, 3), np.uint8), np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    assert flipped(empty, **flip).boxes_xyxy.shape == (0, 4)
