"""The rendered conveyor set: reproducible, labelled to the pixel, hard by independent factors, resumable."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_repo.frame import decode
from search.data.coco import read_dataset
from search.data.conveyor.dataset import ANNOTATIONS, RenderError, render_dataset, render_sequence
from search.data.conveyor.factors import DISTRIBUTIONS, FACTOR_NAMES, SHIFTS, Distribution
from search.data.conveyor.frames import Renderer, stream, visible_box
from search.data.conveyor.sequence import SPEED_PX
from search.data.conveyor.sheet import contact_sheet

COUNTS = {"train": 3, "valid": 2}


def _files(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()
    }


def test_a_frame_is_a_function_of_seed_split_and_number(renderer: Renderer) -> None:
    """The same three give the same bytes; another of any of them another picture."""
    frame = renderer.render(1, "train", 4)
    again = renderer.render(1, "train", 4)
    assert (frame.jpeg, frame.parts) == (again.jpeg, again.parts)
    others = [renderer.render(2, "train", 4), renderer.render(1, "valid", 4), renderer.render(1, "train", 5)]
    assert len({frame.jpeg, *(other.jpeg for other in others)}) == 4
    assert decode(frame.jpeg).shape == (480, 640, 3)


def test_a_render_that_was_stopped_goes_on_to_the_same_files(renderer: Renderer, tmp_path: Path) -> None:
    """Whatever is missing when a render is taken up again, it ends as one that was never stopped."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    render_dataset(whole, frames=COUNTS, seed=5, renderer=renderer)

    class Killed(Exception):
        pass

    def stop(split: str, done: int, total: int) -> None:
        if split == "train" and done == total:
            raise Killed

    with pytest.raises(Killed):
        render_dataset(stopped, frames=COUNTS, seed=5, renderer=renderer, progress=stop)
    assert not (stopped / "train" / ANNOTATIONS).exists()
    (stopped / "train" / "000001.jpg").unlink()
    (stopped / "train" / ".000001.json").unlink()
    render_dataset(stopped, frames=COUNTS, seed=5, renderer=renderer)
    assert _files(stopped) == _files(whole)


def test_another_render_into_the_same_folder_is_refused(renderer: Renderer, tmp_path: Path) -> None:
    """Another seed or shift is refused by name; so are a foreign folder and bad requests."""
    render_dataset(tmp_path / "set", frames={"test": 1}, seed=5, renderer=renderer)
    with pytest.raises(RenderError, match="seed: rendered with 5, asked for 6"):
        render_dataset(tmp_path / "set", frames={"test": 1}, seed=6, renderer=renderer)
    with pytest.raises(RenderError, match="shift"):
        render_dataset(tmp_path / "set", frames={"test": 1}, seed=5, shift="dark", renderer=renderer)
    with pytest.raises(RenderError, match="shift: 'wet' is none of"):
        render_dataset(tmp_path / "other", frames={"test": 1}, seed=5, shift="wet", renderer=renderer)
    with pytest.raises(RenderError, match="needs at least one frame"):
        render_dataset(tmp_path / "other", frames={"test": 0}, seed=5, renderer=renderer)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "letter.txt").touch()
    with pytest.raises(RenderError, match="not empty"):
        render_dataset(tmp_path / "foreign", frames={"test": 1}, seed=5, renderer=renderer)


def test_a_rendered_set_reads_as_coco(renderer: Renderer, tmp_path: Path) -> None:
    """The reader takes it as it is; factors, difficulty and the recipe are recorded."""
    render_dataset(tmp_path / "set", frames=COUNTS, seed=5, renderer=renderer)
    dataset = read_dataset(tmp_path / "set", calibration_share=0.4)
    assert dataset.classes[:2] == ("screw", "bolt")
    assert not dataset.notes
    assert all(record.difficulty is not None for record in dataset.splits["valid"].images)
    rows = json.loads((tmp_path / "set" / "valid" / ANNOTATIONS).read_text())["images"]
    assert all(set(row["factors"]) == set(FACTOR_NAMES) for row in rows)
    recipe = json.loads((tmp_path / "set" / "conveyor.json").read_text())
    assert recipe["seed"] == 5
    assert len(recipe["fingerprint"]) == 64
    contact_sheet(tmp_path / "set" / "valid", tmp_path / "sheet.png", columns=2, rows=1)
    assert decode((tmp_path / "sheet.png").read_bytes()).shape == (240, 640, 3)


@given(a=st.floats(0.5, 4.0), b=st.floats(0.5, 4.0), u=st.floats(0.001, 0.999), harder_high=st.booleans())
def test_a_value_gives_back_its_quantile(a: float, b: float, u: float, harder_high: bool) -> None:
    """Quantile inverts value, and hardness counts from the easy end."""
    distribution = Distribution(-2.0, 7.0, a, b, harder_high, 1.0)
    value = distribution.value(u)
    assert distribution.quantile(value) == pytest.approx(u, abs=1e-6)
    assert distribution.hardness(value) == pytest.approx(u if harder_high else 1 - u, abs=1e-6)


def test_factors_are_independent_and_continuous() -> None:
    """Over many draws no two factors correlate, values do not repeat, and difficulty lies in [0, 1]."""
    draws = [DISTRIBUTIONS.draw(stream(9, "x", i, "factors")) for i in range(3000)]
    table = np.array([[getattr(draw, name) for name in FACTOR_NAMES] for draw in draws])
    correlation = np.corrcoef(table.T) - np.eye(len(FACTOR_NAMES))
    # Three standard errors and a bit for fifteen pairs of independent columns.
    assert np.abs(correlation).max() < 0.07
    assert all(len(np.unique(column)) == len(draws) for column in table.T)
    difficulty = np.array([DISTRIBUTIONS.difficulty(draw) for draw in draws])
    assert 0 <= difficulty.min() < difficulty.max() <= 1
    assert difficulty.std() > 0.05


def test_boxes_hold_what_is_visible_of_a_part_and_nothing_else() -> None:
    """The box of a part touches its outermost visible pixels; a part that is covered has none."""
    owner = np.full((20, 30), -1, np.int16)
    owner[4:9, 6:15] = 0
    owner[4:9, 11:20] = 1
    assert visible_box(owner, 0) == (6, 4, 11, 9)
    assert visible_box(owner, 1) == (11, 4, 20, 9)
    assert visible_box(owner, 2) is None


def test_labels_lie_in_the_frame_and_show_enough(renderer: Renderer) -> None:
    """Every box has area inside the frame, and what is no crowd shows at least 35 % of its part."""
    for index in range(6):
        for part in renderer.render(3, "test", index).parts:
            x0, y0, x1, y1 = part.box_xyxy
            assert 0 <= x0 < x1 <= 640
            assert 0 <= y0 < y1 <= 480
            assert part.visible_px <= (x1 - x0) * (y1 - y0)
            assert part.crowd == (part.visible_share < 0.35)


def test_shifts_change_what_they_say(renderer: Renderer) -> None:
    """Dark is darker, blurred is smoother, noisy is rougher, and another scale makes parts smaller."""

    def look(shift: str | None) -> tuple[float, float, float]:
        light, rough, size = [], [], []
        for index in range(4):
            frame = renderer.render(2, "test", index, SHIFTS[shift] if shift else None)
            grey = decode(frame.jpeg).astype(np.float32).mean(axis=2)
            light.append(grey.mean())
            rough.append(np.abs(np.diff(grey, axis=1)).mean())
            size += [
                np.hypot(p.box_xyxy[2] - p.box_xyxy[0], p.box_xyxy[3] - p.box_xyxy[1]) for p in frame.parts
            ]
        return float(np.mean(light)), float(np.mean(rough)), float(np.mean(size))

    light, rough, size = look(None)
    assert look("dark")[0] < 0.6 * light
    assert look("blurred")[1] < rough
    assert look("noisy")[1] > 1.5 * rough
    assert look("other_scale")[2] < 0.75 * size


def test_parts_move_with_the_belt(renderer: Renderer, tmp_path: Path) -> None:
    """From one frame of a sequence to the next every part in full view moves by the belt's speed."""
    render_sequence(tmp_path / "belt", frames=2, seed=4, renderer=renderer)
    document = json.loads((tmp_path / "belt" / "test" / ANNOTATIONS).read_text())

    def inside(image: int) -> list[tuple[int, list[float]]]:
        return [
            (row["category_id"], row["bbox"])
            for row in document["annotations"]
            if row["image_id"] == image and row["bbox"][0] > 40 and row["bbox"][0] + row["bbox"][2] < 600
        ]

    before, after = inside(1), inside(2)
    followed = 0
    for category, (x, y, w, h) in before:
        moved = np.array([x + SPEED_PX, y, w, h])
        followed += any(c == category and np.abs(np.array(box) - moved).max() <= 2.0 for c, box in after)
    assert before
    assert followed == len(before)


def test_rendering_needs_no_torch() -> None:
    """Importing the renderer leaves torch out of sys.modules."""
    code = "import sys, search.data.conveyor.dataset, search.data.coco; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
