from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.explore import Candidate, explore, kept, ranks
from search.run_folder import Journal, RunError
from search.space import Architecture, Space
from tests.search.tiny import tiny_space

SPACE = Space(classes=3)


def latency_ms(architecture: Architecture) -> float:
    return 0.5 + SPACE.cost(architecture).macs * 1e-8


class Counting:
    """Judge by a formula, and count how often it is asked; stop with an error after `stop` answers."""

    def __init__(self, stop: int | None = None) -> None:
        self.asked: list[str] = []
        self.stop = stop

    def __call__(self, architectures: Sequence[Architecture]) -> Iterable[tuple[float, float]]:
        for architecture in architectures:
            if self.stop is not None and len(self.asked) == self.stop:
                raise KeyboardInterrupt
            self.asked.append(architecture.name)
            noise = np.random.default_rng(abs(hash(architecture.depths)) % 1000).random() * 0.02
            yield min(0.1 * np.log1p(SPACE.cost(architecture).macs * 1e-6) + noise, 1.0), 0.0


def test_smallest_and_largest_come_first_and_nothing_twice(tmp_path: Path) -> None:
    """A search begins with both ends of the space and never evaluates a subnet twice."""
    done = explore(SPACE, Counting(), latency_ms, Journal(tmp_path / "j"), budget=40, seed=1, population=8)
    names = [candidate.architecture for candidate in done]
    assert names[:2] == [SPACE.smallest.name, SPACE.largest.name]
    assert len(set(names)) == len(names) == 40
    assert max(candidate.generation for candidate in done) == 4


@pytest.mark.parametrize("stop", [0, 1, 7, 8, 21])
def test_a_stopped_search_goes_on_as_if_it_had_not_been(tmp_path: Path, stop: int) -> None:
    """A search that is stopped anywhere repeats no evaluation and ends with the same candidates."""
    whole = explore(SPACE, Counting(), latency_ms, Journal(tmp_path / "a"), budget=24, seed=3, population=8)
    first = Counting(stop)
    with pytest.raises(KeyboardInterrupt):
        explore(SPACE, first, latency_ms, Journal(tmp_path / "b"), budget=24, seed=3, population=8)
    with (tmp_path / "b").open("ab") as torn:
        torn.write(b'{"architecture": "r1')
    second = Counting()
    resumed = explore(SPACE, second, latency_ms, Journal(tmp_path / "b"), budget=24, seed=3, population=8)
    assert resumed == whole
    assert len(first.asked) + len(second.asked) == 24
    assert not set(first.asked) & set(second.asked)


def test_another_seed_searches_elsewhere(tmp_path: Path) -> None:
    """Two seeds evaluate different subnets."""
    one = explore(SPACE, Counting(), latency_ms, Journal(tmp_path / "a"), budget=16, seed=1, population=8)
    two = explore(SPACE, Counting(), latency_ms, Journal(tmp_path / "b"), budget=16, seed=2, population=8)
    assert {c.architecture for c in one} != {c.architecture for c in two}


def test_a_journal_of_another_search_is_refused(tmp_path: Path) -> None:
    """A journal that another seed wrote is named as such and not continued."""
    # A first generation of this size holds drawn subnets beside the ends, which are the same for every seed.
    explore(SPACE, Counting(), latency_ms, Journal(tmp_path / "j"), budget=16, seed=1, population=16)
    with pytest.raises(RunError, match="of another search"):
        explore(SPACE, Counting(), latency_ms, Journal(tmp_path / "j"), budget=16, seed=2, population=16)


def test_a_small_space_is_searched_whole(tmp_path: Path) -> None:
    """A budget larger than the space ends with every subnet evaluated once."""
    space = tiny_space()
    done = explore(
        space,
        Counting(),
        lambda a: 1.0 + space.cost(a).macs * 1e-7,
        Journal(tmp_path / "j"),
        budget=99,
        seed=0,
        population=4,
    )
    assert len({candidate.architecture for candidate in done}) == space.size() == len(done)


def test_the_search_beats_random_sampling(tmp_path: Path) -> None:
    """At the same budget the search finds a frontier with more hypervolume than random draws."""
    found = explore(SPACE, Counting(), latency_ms, Journal(tmp_path / "j"), budget=64, seed=0, population=16)
    rng = np.random.default_rng(0)
    drawn = [SPACE.sample(rng) for _ in range(64)]
    random = [
        Candidate(architecture=a.name, generation=0, accuracy=m, latency_ms=latency_ms(a), seconds=0.0)
        for a, (m, _) in zip(drawn, Counting()(drawn), strict=True)
    ]
    assert _area(found) > _area(random)


def _area(candidates: Sequence[Candidate]) -> float:
    total, best = 0.0, 0.0
    for candidate in sorted(candidates, key=lambda c: c.latency_ms):
        if candidate.accuracy > best:
            total += (np.log(20) - np.log(candidate.latency_ms)) * (candidate.accuracy - best)
            best = candidate.accuracy
    return total


points = st.lists(
    st.tuples(st.floats(0.1, 100), st.floats(0, 1)), min_size=2, max_size=40, unique_by=lambda p: p
)


@settings(derandomize=True, deadline=None)
@given(points, st.integers(2, 12))
def test_what_is_kept_has_the_ends_of_the_frontier(drawn: list[tuple[float, float]], count: int) -> None:
    """Kept are the most accurate and the fastest, as many as asked, and none while better ones wait."""
    candidates = [
        Candidate(architecture=f"a{i}", generation=0, accuracy=m, latency_ms=ms, seconds=0.0)
        for i, (ms, m) in enumerate(drawn)
    ]
    chosen = kept(candidates, count)
    assert len(chosen) == min(count, len(candidates))
    assert max(c.accuracy for c in chosen) == max(c.accuracy for c in candidates)
    assert min(c.latency_ms for c in chosen) == min(c.latency_ms for c in candidates)
    rank, _ = ranks(candidates)
    by_name = {c.architecture: int(r) for c, r in zip(candidates, rank, strict=True)}
    taken = [by_name[c.architecture] for c in chosen]
    left = [by_name[c.architecture] for c in candidates if c not in chosen]
    assert not left or max(taken) <= min(left) + 1


def test_fewer_than_two_candidates_are_no_search(tmp_path: Path) -> None:
    """A budget below two is refused."""
    with pytest.raises(ValueError, match="at least 2"):
        explore(SPACE, Counting(), latency_ms, Journal(tmp_path / "j"), budget=1, seed=0)
