"""Refitting a published repository."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from model_repo.codec import encode
from model_repo.frontier import Certificate, Plan
from model_repo.latency import Histogram
from model_repo.publish import Repository, read
from search.calibrate import Wish, calibrate, wished_for
from search.certify import CERTIFY_MIN_IMAGES
from search.data.coco import read_dataset
from search.routing import Costs, route
from search.run_folder import RunError, Silent
from search.targets import Targets
from tests.fakes import CLASSES, GRID, Square, encode_image, squares_frame, tiny_repository
from tests.search.synthetic import CLASSES as SCENE_CLASSES
from tests.search.synthetic import artifact, scene

HERE = Targets(Path())


def squares_data(
    root: Path, counts: dict[str, int], classes: tuple[str, ...] = CLASSES, *, seed: int = 3
) -> Path:
    """Write splits of frames with squares that the tiny detectors find, in COCO format."""
    rng = np.random.default_rng(seed)
    for split, count in counts.items():
        folder = root / split
        folder.mkdir(parents=True)
        images: list[dict[str, object]] = []
        annotations: list[dict[str, object]] = []
        for i in range(count):
            places = rng.choice(GRID * GRID, size=int(rng.integers(1, 4)), replace=False)
            squares = [
                Square(int(p) % GRID, int(p) // GRID, int(rng.integers(2)), int(rng.integers(60, 255)))
                for p in places
            ]
            (folder / f"{i}.png").write_bytes(encode_image(squares_frame(squares)))
            images.append({"id": i + 1, "file_name": f"{i}.png", "width": 64, "height": 64})
            for square in squares:
                if rng.random() < 0.3:  # found but not there: alignment has something to mend
                    continue
                box = [square.column * 16, square.row * 16, 16, 16]
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": i + 1, "category_id": square.label + 1,
                     "bbox": box, "area": 256, "iscrowd": 0}
                )  # fmt: skip
        categories = [{"id": k + 1, "name": name} for k, name in enumerate(classes)]
        (folder / "_annotations.coco.json").write_text(
            json.dumps({"images": images, "annotations": annotations, "categories": categories})
        )
    return root


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return tiny_repository(tmp_path_factory.mktemp("repo") / "repo")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return squares_data(tmp_path_factory.mktemp("data") / "data", {"calib": 40, "test": 12})


def test_what_is_fitted_is_new_and_what_was_measured_stays(published: Repository, data: Path) -> None:
    """Alignments, plans and calibration accuracy come from the new frames; models and latency stay."""
    frontier = calibrate(published, read_dataset(data, needed=()), Silent(), HERE)
    before = published.frontier
    for old, new in zip(before.variants, frontier.variants, strict=True):
        assert new.segments == old.segments
        for runtime in ("openvino", "onnxruntime"):
            assert new.on(runtime).latency == old.on(runtime).latency
            assert new.on(runtime).alignment.images == 40
            assert new.on(runtime).accuracy_on("calibration").images == 40
        assert new.on("triton") == old.on("triton")
    assert all(plan.accuracy_on("calibration").images == 40 for plan in frontier.plans)
    assert all(plan.accuracy_on("test").images == 12 for plan in frontier.plans)
    assert {point.name for point in frontier.operating_points} == {"fast", "balanced", "accurate"}
    # A third of what is found is not labelled: scores must come to mean that.
    curve = frontier.variants[0].on("openvino").alignment.curves[0]
    assert 0.4 < float(curve.apply(np.array([0.9], np.float32))[0]) < 0.85


def test_calibrating_twice_gives_the_same(published: Repository, data: Path) -> None:
    """With the same frames and seed everything but the measured cost of deciding repeats."""
    dataset = read_dataset(data, needed=())
    one, two = (calibrate(published, dataset, Silent(), HERE).variants for _ in range(2))
    assert one == two


def test_bad_input_is_named(published: Repository, data: Path, tmp_path: Path) -> None:
    """Other classes, a split that is not there, and too few frames are refused by name."""
    other = squares_data(tmp_path / "other", {"calib": 4}, ("red", "blue"))
    with pytest.raises(RunError, match="red, blue"):
        calibrate(published, read_dataset(other, needed=()), Silent(), HERE)
    with pytest.raises(RunError, match="'valid'"):
        calibrate(published, read_dataset(data, needed=()), Silent(), HERE, split="valid")
    few = squares_data(tmp_path / "few", {"calib": 4})
    with pytest.raises(RunError, match="calibration: 4 images are too few"):
        calibrate(published, read_dataset(few, needed=()), Silent(), HERE)


def test_the_command_republishes_without_torch(data: Path, tmp_path: Path) -> None:
    """The command line refits in place, prints the plans, and imports no torch."""
    root = tiny_repository(tmp_path / "repo").root
    before = read(root).digest
    program = (
        "import sys; from search.__main__ import app\n"
        f"app(['calibrate', '--repo', {str(root)!r}, '--data', {str(data)!r}, '--max-mean-ms', '4'],"
        " standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    after = read(root)
    assert after.digest != before
    assert after.frontier.plan_of("balanced").mean_ms <= 4
    assert "balanced" in done.stdout
    shown = subprocess.run(
        [sys.executable, "-m", "search", "plans", "--repo", str(root)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "tiny-0" in shown.stdout


def test_a_wish_that_cannot_be_met_leaves_the_repository_as_it_was(data: Path, tmp_path: Path) -> None:
    """A budget below the cheapest plan is refused with what would be possible; nothing is replaced."""
    root = tiny_repository(tmp_path / "repo").root
    before = encode(read(root).frontier)
    done = subprocess.run(
        [sys.executable, "-m", "search", "calibrate", "--repo", str(root), "--data", str(data),
         "--max-mean-ms", "0.1"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "max_mean_ms: the cheapest plan costs" in done.stderr
    assert encode(read(root).frontier) == before


@pytest.fixture(scope="module")
def plans() -> tuple[Plan, ...]:
    """The plans of a drawn scene large enough to certify."""
    drawn = scene(CERTIFY_MIN_IMAGES, seed=0)
    artifacts = [
        artifact("small", drawn, weakness=1.5, ms=2.0, seed=1, boast=0.5),
        artifact("large", drawn, weakness=0.25, ms=12.0, seed=2),
    ]
    return route(
        artifacts, drawn.views, drawn.truths, classes=SCENE_CLASSES,
        costs=Costs("openvino", Histogram.of([0.5, 0.6]), Histogram.of([0.7, 0.8])), seed=0,
    ).plans  # fmt: skip


def test_wishes_choose_as_they_say(plans: tuple[Plan, ...]) -> None:
    """A cost is kept by the most accurate plan, a certified loss by the cheapest, no wish chooses nothing."""
    assert wished_for(plans, Wish()) is None
    cheap = wished_for(plans, Wish(max_mean_ms=8.0))
    assert cheap is not None
    assert cheap.mean_ms <= 8.0
    rivals = [plan for plan in plans if plan.mean_ms <= 8.0]
    assert cheap.accuracy_on("calibration").map == max(p.accuracy_on("calibration").map for p in rivals)
    least = [p.certificate.epsilon for p in plans if isinstance(p.certificate, Certificate)]
    sure = wished_for(plans, Wish(max_loss=float(np.median(least))))
    assert sure is not None
    assert isinstance(sure.certificate, Certificate)
    assert sure.certificate.epsilon <= np.median(least)
    with pytest.raises(RunError, match=f"can certify is {min(least):.3f}"):
        wished_for(plans, Wish(max_loss=min(least) / 2))


def test_wishes_are_checked() -> None:
    """Two wishes at once, a share that is none, and a budget below zero are refused by name."""
    with pytest.raises(RunError, match="escalate and max_mean_ms exclude"):
        Wish(escalate=0.2, max_mean_ms=4.0)
    with pytest.raises(RunError, match="escalate: expected a share"):
        Wish(escalate=1.5)
    with pytest.raises(RunError, match="max_loss: expected a positive"):
        Wish(max_loss=-0.1)
