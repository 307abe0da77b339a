from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_repo.detections import Detections
from model_repo.frontier import Segment, Variant
from model_repo.runtime.select import make_engine
from model_repo.scoring import Truth
from search.choose import SPAN, TOP_MARGIN, choose_published
from search.measure import (
    COST_FRAMES,
    FRAMES_PER_VISIT,
    LoadedSplit,
    Screened,
    accuracy_of,
    best_precision,
    decode_cost,
    latency_samples_ms,
    levelled,
    load_all,
    load_predictions,
    matched,
    predictions,
    profile_of,
    save_predictions,
)
from tests.fakes import Square, encode_image, squares_frame, tiny_repository


def test_answers_come_in_the_order_of_the_frames_and_survive_the_disk(tmp_path: Path) -> None:
    """Predictions are one per frame in order, and read back from their file as they were."""
    repository = tiny_repository(tmp_path / "repo")
    variant = repository.frontier.variants[0]
    images = [squares_frame([Square(i % 4, 0, i % 2)] * (i > 0)) for i in range(6)]
    engine = make_engine("openvino", parallelism=2)
    load_all(engine, repository.root, [variant])
    answers = predictions(engine, variant, images)
    engine.close()
    assert [len(answer) for answer in answers] == [0, 1, 1, 1, 1, 1]
    assert [int(answer.label[0]) for answer in answers[1:]] == [1, 0, 1, 0, 1]
    save_predictions(tmp_path / "answers.npz", answers)
    for before, after in zip(answers, load_predictions(tmp_path / "answers.npz"), strict=True):
        np.testing.assert_array_equal(before.xyxy, after.xyxy)
        np.testing.assert_array_equal(before.score, after.score)
        np.testing.assert_array_equal(before.label, after.label)


def test_perfect_answers_score_one(tmp_path: Path) -> None:
    """Answers equal to the labels have an mAP of one, with an interval around it."""
    truth = Truth(np.array([[0, 0, 16, 16]], np.float32), np.array([0]), np.array([False]))
    split = LoadedSplit("valid", (squares_frame([]),) * 4, (truth,) * 4)
    table = matched(split, [Detections.make(truth.xyxy, [0.9], [0])] * 4, 2)
    accuracy = accuracy_of(table, "valid", seed=0, resamples=10)
    assert (accuracy.map, accuracy.map50, accuracy.f1, accuracy.images) == (1.0, 1.0, 1.0, 4)
    assert accuracy.map_low == accuracy.map_high == 1.0


@pytest.mark.parametrize("concurrency", [1, 2])
def test_all_variants_get_the_samples_asked_for(tmp_path: Path, concurrency: int) -> None:
    """Latency comes as at least the number of samples asked for, for every variant, and makes a profile."""
    repository = tiny_repository(tmp_path / "repo")
    engine = make_engine("onnxruntime", parallelism=concurrency)
    load_all(engine, repository.root, repository.frontier.variants)
    images = [squares_frame([Square(0, 0, 0)])] * 3
    taken = latency_samples_ms(
        engine, repository.frontier.variants, images, samples=23, concurrency=concurrency
    )
    assert set(taken) == {"tiny-0", "tiny-1"}
    assert all(23 <= len(samples) < 23 + FRAMES_PER_VISIT * concurrency for samples in taken.values())
    profile = profile_of(
        taken["tiny-0"], engine=engine, precision="f32", concurrency=concurrency,
    )  # fmt: skip
    engine.close()
    assert profile.concurrency == concurrency
    assert profile.histogram.total == len(taken["tiny-0"])


def test_a_drifting_machine_hits_all_variants_alike(tmp_path: Path) -> None:
    """With a clock that runs ever slower, variants measured in rounds still come out equal."""
    repository = tiny_repository(tmp_path / "repo", variants=3)
    engine = make_engine("onnxruntime")
    load_all(engine, repository.root, repository.frontier.variants)

    def drifting() -> Iterator[int]:
        now = 0
        for tick in count():
            now += 1_000_000 + 2_000 * tick
            yield now

    ticks = drifting()
    taken = latency_samples_ms(
        engine, repository.frontier.variants, [squares_frame([])], samples=100, concurrency=1,
        clock_ns=lambda: next(ticks),
    )  # fmt: skip
    engine.close()
    means = [float(samples.mean()) for samples in taken.values()]
    assert max(means) / min(means) < 1.05


def test_slow_rounds_and_bad_visits_do_not_show() -> None:
    """Typical latencies come out in proportion though a round was slow and single visits were disturbed."""
    rng = np.random.default_rng(3)
    true_ms = np.linspace(1.0, 9.0, 20)
    visits = true_ms[:, None] * np.exp(rng.normal(0, 0.01, (20, 15)))
    visits[:, 4] *= 1.8
    visits[rng.integers(20, size=30), rng.integers(15, size=30)] *= 3.0
    found = levelled(visits)
    assert np.abs(found / true_ms - 1).max() < 0.02
    assert np.abs(np.median(visits, axis=1) / true_ms - 1).max() >= np.abs(found / true_ms - 1).max()


def test_decoding_is_measured_on_the_frames_given() -> None:
    """The decode histogram holds the samples asked for; no frames are an error."""
    data = encode_image(squares_frame([Square(1, 1, 0)]), ".jpg")
    assert decode_cost([data], rule=True).total == 2 * COST_FRAMES
    with pytest.raises(ValueError, match="no frames"):
        decode_cost([], rule=False)


def _screened(name: str, architecture: str, accuracy: float, p50_ms: float, size: int = 1000) -> Screened:
    segment = Segment(file=f"models/{name}/m.onnx", sha256="0" * 64, bytes=size, inputs=(), outputs=())
    variant = Variant.model_construct(name=name, architecture=architecture, segments=(segment,))
    return Screened(variant, "openvino", accuracy, accuracy, accuracy, p50_ms)


def test_the_fastest_precision_that_costs_little_accuracy_wins() -> None:
    """int8 is chosen where it loses less than the tolerance, bf16 where int8 loses more."""
    entries = [
        _screened(f"{name}-{precision}", name, accuracy, p50_ms)
        for name, accuracies in (("a", (0.600, 0.601, 0.597)), ("b", (0.700, 0.699, 0.670)))
        for precision, accuracy, p50_ms in zip(
            ("f32", "bf16", "int8"), accuracies, (9.0, 5.0, 3.0), strict=True
        )
    ]
    chosen = best_precision(entries, 0.005)
    assert [entry.variant.name for entry in chosen] == ["a-int8", "b-bf16"]


curve = st.lists(st.tuples(st.floats(0.5, 60), st.floats(0.2, 0.9)), min_size=1, max_size=25)


@settings(derandomize=True, deadline=None)
@given(curve, st.integers(2, 9))
def test_what_is_published_spans_the_curve(drawn: list[tuple[float, float]], limit: int) -> None:
    """The most accurate model is published, the limits hold, and 6x in latency is spanned where it can be."""
    entries = [_screened(f"v{i}", f"a{i}", m, ms) for i, (ms, m) in enumerate(drawn)]
    chosen = choose_published(entries, limit, max_bytes=2e6, max_trail=0.2)
    top = max(entries, key=lambda entry: (entry.map, -entry.p50_ms))
    assert top in chosen
    assert len(chosen) == len({entry.variant.name for entry in chosen}) <= limit
    assert [entry.p50_ms for entry in chosen] == sorted(entry.p50_ms for entry in chosen)
    if any(top.p50_ms >= SPAN * entry.p50_ms for entry in entries):
        assert top.p50_ms >= SPAN * chosen[0].p50_ms


def test_the_next_best_waits_when_it_adds_little() -> None:
    """A model within one point of the best is published only when places are left."""
    entries = [
        _screened("small", "s", 0.50, 1.0), _screened("middle", "m", 0.60, 3.0),
        _screened("near", "n", 0.70 - TOP_MARGIN / 2, 8.0), _screened("best", "b", 0.70, 10.0),
    ]  # fmt: skip
    three = choose_published(entries, 3, max_bytes=2e6, max_trail=0.3)
    assert [entry.variant.name for entry in three] == ["small", "middle", "best"]
    assert len(choose_published(entries, 4, max_bytes=2e6, max_trail=0.3)) == 4


def test_files_that_do_not_fit_are_passed_over() -> None:
    """The sum of the files stays below the limit; a best model that does not fit alone is an error."""
    entries = [_screened(f"v{i}", f"a{i}", 0.5 + i / 20, 1.0 + i, size=400_000) for i in range(6)]
    chosen = choose_published(entries, 6, max_bytes=2.3e6, max_trail=0.4)
    assert len(chosen) == 3
    with pytest.raises(ValueError, match="alone"):
        choose_published([replace(entries[0])], 2, max_bytes=1.2e6, max_trail=0.2)
