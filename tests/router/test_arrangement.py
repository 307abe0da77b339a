"""Cores per inference and inferences at once: what is possible, what is best, what is remembered."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_repo.publish import Repository
from model_repo.runtime.select import environment
from router.arrangement import Arrangement, Make, arrange, best, possible
from tests.fakes import FakeEngine

NARROW, WIDE = Arrangement(1, 2), Arrangement(2, 1)


def making(repository: Repository, frame_ms: Mapping[Arrangement, float], made: list[Arrangement]) -> Make:
    """Return what makes engines on which a frame takes so long on every variant; 0 ms: one that refuses."""
    names = [variant.name for variant in repository.frontier.variants]

    def make(arrangement: Arrangement) -> FakeEngine:
        made.append(arrangement)
        took_ms = frame_ms[arrangement]
        return FakeEngine(
            latency_ms=dict.fromkeys(names, took_ms),
            refuses=frozenset() if took_ms else frozenset(names),
            sleep=time.sleep,
        )

    return make


@given(st.integers(1, 300))
def test_arrangements_use_the_cores(cores: int) -> None:
    """Narrowest first; none takes more cores than there are; one core each and all for one are among them."""
    choices = possible(cores, threads=None, workers=None)
    assert list(choices) == sorted(set(choices))
    assert all(choice.threads * choice.workers <= cores for choice in choices)
    assert choices[0] == Arrangement(1, cores)
    assert choices[-1] == Arrangement(cores, 1)


@pytest.mark.parametrize(
    ("threads", "workers", "expected"),
    [(3, None, (3, 2)), (None, 3, (2, 3)), (5, 7, (5, 7)), (16, None, (16, 1)), (None, 16, (1, 16))],
)
def test_what_is_given_is_kept_to(
    threads: int | None, workers: int | None, expected: tuple[int, int]
) -> None:
    """Somebody who says one number gets the other to match, and both exactly when both are said."""
    assert possible(8, threads=threads, workers=workers) == (Arrangement(*expected),)


def test_throughput_comes_first_and_width_breaks_near_ties() -> None:
    """Within a twentieth of the best rate the wider one is taken."""
    assert best({NARROW: 100.0, WIDE: 94.0}) == NARROW
    assert best({NARROW: 100.0, WIDE: 96.0}) == WIDE
    assert best({NARROW: 50.0, WIDE: 96.0}) == WIDE


@pytest.mark.parametrize(("narrow_ms", "wide_ms", "chosen"), [(40.0, 4.0, WIDE), (8.0, 40.0, NARROW)])
def test_the_faster_arrangement_is_chosen_and_remembered(
    repository: Repository, tmp_path: Path, narrow_ms: float, wide_ms: float, chosen: Arrangement
) -> None:
    """The second start asks the cache, not the engines; another operating point's plan is another case."""
    made: list[Arrangement] = []
    make = making(repository, {NARROW: narrow_ms, WIDE: wide_ms}, made)
    cache = tmp_path / "cache" / "deep"

    def start(point: str) -> Arrangement:
        return arrange(repository, point, "openvino", [NARROW, WIDE], make, environment(), cache)

    points = {point.plan: point.name for point in repository.frontier.operating_points}
    first, *others = points.values()
    assert start(first) == chosen
    assert made == [NARROW, WIDE]
    assert start(first) == chosen
    assert made == [NARROW, WIDE]
    assert others
    start(others[0])
    assert made == [NARROW, WIDE] * 2


def test_a_cache_that_cannot_be_used_costs_a_warning(
    repository: Repository, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Broken contents are measured anew and replaced; a folder that is a file changes nothing."""
    make = making(repository, {NARROW: 4.0, WIDE: 40.0}, [])
    cache = tmp_path / "cache"

    def start() -> Arrangement:
        return arrange(repository, "balanced", "openvino", [NARROW, WIDE], make, environment(), cache)

    start()
    (kept,) = cache.iterdir()
    kept.write_text('{"threads": "many"}')
    assert start() == NARROW
    assert "cannot be used" in caplog.text
    kept.unlink()
    cache.rmdir()
    cache.write_text("a file")
    caplog.clear()
    assert start() == NARROW
    assert "cannot be written" in caplog.text


def test_arrangements_that_the_engine_refuses_are_out(repository: Repository) -> None:
    """The others remain; with none left the narrowest is taken, and nothing is remembered."""
    cores = environment()
    both = [NARROW, WIDE]
    only_wide = making(repository, {NARROW: 0.0, WIDE: 5.0}, [])
    assert arrange(repository, "balanced", "openvino", both, only_wide, cores, None) == WIDE
    none = making(repository, {NARROW: 0.0, WIDE: 0.0}, [])
    assert arrange(repository, "balanced", "openvino", both, none, cores, None) == NARROW


def test_without_a_choice_nothing_is_measured(repository: Repository) -> None:
    """One arrangement, or no plan for the runtime: no engine is made."""
    made: list[Arrangement] = []
    make = making(repository, {}, made)
    assert arrange(repository, "balanced", "openvino", [WIDE], make, environment(), None) == WIDE
    bare = replace(repository, frontier=repository.frontier.model_copy(update={"plans": ()}))
    assert arrange(bare, "balanced", "openvino", [NARROW, WIDE], make, environment(), None) == NARROW
    assert made == []
