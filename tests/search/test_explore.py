from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.candidates import Candidate, kept, ranks, slice_sizes
from search.explore import Judged, explore
from search.racing import bars, margins
from search.run_folder import Journal, RunError
from search.space import Architecture, Space
from search.strategies import Algorithm, Task, strategy
from tests.search.tiny import tiny_space

IMAGES = 128
SPACE = Space(classes=3)


def latency_ms(architecture: Architecture) -> float:
    return 0.5 + SPACE.cost(architecture).macs * 1e-8


def accuracy(architecture: Architecture) -> float:
    noise = np.random.default_rng(crc32(str(architecture.depths).encode())).random() * 0.1
    return float(min(0.1 * np.log1p(SPACE.cost(architecture).macs * 1e-6) + noise, 1.0))


class Counting:
    """Judge by a formula, slice by slice, and count how often it is asked; stop with an error after `stop`
    answers."""

    def __init__(self, stop: int | None = None) -> None:
        self.asked: list[str] = []
        self.stop = stop

    def __call__(self, tasks: Sequence[Task]) -> Iterator[Judged]:
        for task in tasks:
            if self.stop is not None and len(self.asked) == self.stop:
                raise KeyboardInterrupt
            self.asked.append(task.architecture.name)
            true, off = (
                accuracy(task.architecture),
                np.random.default_rng(crc32(task.architecture.name.encode())),
            )
            slices: list[float] = []
            for k in range(len(slice_sizes(IMAGES))):
                last = k == len(slice_sizes(IMAGES)) - 1
                slices.append(true if last else float(np.clip(true + off.normal(0, 0.01), 0, 1)))
                if not last and task.bars and slices[k] < task.bars[k]:
                    break
            yield Judged(tuple(slices), 0.0)


def search(
    journal: Path,
    evaluate: Counting,
    *,
    budget: int,
    seed: int,
    population: int = 8,
    algorithm: Algorithm = "nsga2",
    latency_weight: float | None = None,
    known_good: Sequence[Architecture] = (),
) -> list[Candidate]:
    drawn = strategy(algorithm, SPACE, latency_ms, population=population, latency_weight=latency_weight)
    return explore(
        SPACE, drawn, evaluate, latency_ms, Journal(journal), budget=budget, images=IMAGES, seed=seed,
        population=population, known_good=known_good,
    )  # fmt: skip


ALGORITHMS: list[tuple[Algorithm, float | None]] = [("nsga2", None), ("evolution", 0.02), ("random", None)]


@pytest.mark.parametrize(("algorithm", "weight"), ALGORITHMS)
def test_smallest_and_largest_come_first_and_nothing_twice(
    tmp_path: Path, algorithm: Algorithm, weight: float | None
) -> None:
    """A search begins with both ends of the space and never evaluates a subnet twice."""
    done = search(tmp_path / "j", Counting(), budget=40, seed=1, algorithm=algorithm, latency_weight=weight)
    names = [candidate.architecture for candidate in done]
    assert names[:2] == [SPACE.smallest.name, SPACE.largest.name]
    assert len(set(names)) == len(names) == 40
    assert max(candidate.generation for candidate in done) == 4


def test_what_an_earlier_search_found_is_looked_at_first(tmp_path: Path) -> None:
    """Known subnets begin the first generation, however many they are, and count toward the budget."""
    rng = np.random.default_rng(4)
    known = [SPACE.sample(rng) for _ in range(12)]
    done = search(tmp_path / "j", Counting(), budget=30, seed=1, known_good=known)
    assert [candidate.architecture for candidate in done[:12]] == [one.name for one in known]
    assert [candidate.generation for candidate in done[:13]] == [0] * 12 + [1]
    assert len(done) == 30


@pytest.mark.parametrize(("algorithm", "weight"), ALGORITHMS)
@pytest.mark.parametrize("stop", [0, 1, 8, 21])
def test_a_stopped_search_goes_on_as_if_it_had_not_been(
    tmp_path: Path, stop: int, algorithm: Algorithm, weight: float | None
) -> None:
    """A search that is stopped anywhere repeats no evaluation and ends with the same candidates."""

    def run(name: str, evaluate: Counting) -> list[Candidate]:
        return search(
            tmp_path / name, evaluate, budget=24, seed=3, algorithm=algorithm, latency_weight=weight
        )

    whole = run("a", Counting())
    first = Counting(stop)
    with pytest.raises(KeyboardInterrupt):
        run("b", first)
    with (tmp_path / "b").open("ab") as torn:
        torn.write(b'{"architecture": "r1')
    second = Counting()
    assert run("b", second) == whole
    assert len(first.asked) + len(second.asked) == 24
    assert not set(first.asked) & set(second.asked)


def test_another_seed_searches_elsewhere(tmp_path: Path) -> None:
    """Two seeds evaluate different subnets."""
    one = search(tmp_path / "a", Counting(), budget=16, seed=1)
    two = search(tmp_path / "b", Counting(), budget=16, seed=2)
    assert {c.architecture for c in one} != {c.architecture for c in two}


def test_a_journal_of_another_search_is_refused(tmp_path: Path) -> None:
    """A journal that another seed wrote is named as such and not continued."""
    # A first generation of this size holds drawn subnets beside the ends, which are the same for every seed.
    search(tmp_path / "j", Counting(), budget=16, seed=1, population=16)
    with pytest.raises(RunError, match="of another search"):
        search(tmp_path / "j", Counting(), budget=16, seed=2, population=16)


def test_a_small_space_is_searched_whole(tmp_path: Path) -> None:
    """A budget larger than the space ends with every subnet evaluated once."""
    space = tiny_space()

    def ms(one: Architecture) -> float:
        return 1.0 + space.cost(one).macs * 1e-7

    done = explore(
        space,
        strategy("nsga2", space, ms, population=4, latency_weight=None),
        Counting(),
        ms,
        Journal(tmp_path / "j"),
        budget=99,
        images=IMAGES,
        seed=0,
        population=4,
    )
    assert len({candidate.architecture for candidate in done}) == space.size() == len(done)


def test_the_search_beats_random_sampling(tmp_path: Path) -> None:
    """At the same budget the search finds a frontier with more hypervolume than random draws."""
    found = search(tmp_path / "a", Counting(), budget=64, seed=0, population=16)
    rng = np.random.default_rng(0)
    drawn = [candidate_of(SPACE.sample(rng)) for _ in range(64)]
    assert _area(found) > _area(drawn)


def candidate_of(architecture: Architecture) -> Candidate:
    return evaluated(architecture.name, latency_ms(architecture), accuracy(architecture))


def evaluated(name: str, ms: float, *slices: float, whole: bool = True) -> Candidate:
    return Candidate(
        architecture=name, generation=0, slices=slices, images=IMAGES, finished=whole, latency_ms=ms,
        seconds=0.0,
    )  # fmt: skip


def test_evolution_climbs_its_score(tmp_path: Path) -> None:
    """Evolution ends with better scores, accuracy − weight · latency, than draws of the same number."""

    def best(candidates: Sequence[Candidate]) -> float:
        return max(c.accuracy - 0.05 * c.latency_ms for c in candidates if c.finished)

    climbed = search(
        tmp_path / "a", Counting(), budget=96, seed=0, population=16, algorithm="evolution",
        latency_weight=0.05,
    )  # fmt: skip
    drawn = search(tmp_path / "b", Counting(), budget=96, seed=0, population=16, algorithm="random")
    assert best(climbed) > best(drawn)


def test_a_latency_weight_belongs_to_evolution_alone() -> None:
    """Evolution without a weight, and a weight without evolution, are refused by the field's name."""
    wrong: list[tuple[Algorithm, float | None]] = [("evolution", None), ("nsga2", 0.1), ("random", 0.1)]
    for algorithm, weight in wrong:
        with pytest.raises(ValueError, match="latency_weight"):
            strategy(algorithm, SPACE, latency_ms, population=8, latency_weight=weight)


def test_most_of_a_long_search_is_given_up_early_and_none_of_its_best(tmp_path: Path) -> None:
    """Beaten candidates run on few images; the frontier is within the noise of one that gives up none."""
    found = search(tmp_path / "j", Counting(), budget=400, seed=2, population=16)
    given_up = [candidate for candidate in found if not candidate.finished]
    assert len(given_up) > 0.3 * len(found)
    assert all(candidate.images < IMAGES for candidate in given_up)
    true = [candidate_of(Architecture.parse(candidate.architecture)) for candidate in found]
    assert _area([c for c in found if c.finished]) > 0.99 * _area(true)


def test_slices_double_and_end_with_all() -> None:
    """A candidate is judged on 16 images, twice as many, … and all; on all at once where they are few."""
    assert slice_sizes(128) == (16, 32, 64, 128)
    assert slice_sizes(72) == (16, 32, 72)
    assert slice_sizes(20) == (20,)
    with pytest.raises(ValueError, match="at least one"):
        slice_sizes(0)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=8, max_size=30), st.floats(0, 0.3))
@settings(derandomize=True, deadline=None)
def test_margins_are_of_changed_leads(rows: list[tuple[float, float]], shift: float) -> None:
    """Images that are easier for all alike change no lead and no margin; margins never exceed the greatest
    change of any lead."""
    done = [evaluated(f"a{i}", 1.0, first * 0.7, last * 0.7) for i, (first, last) in enumerate(rows)]
    easier = [
        evaluated(f"a{i}", 1.0, first * 0.7 + shift, last * 0.7) for i, (first, last) in enumerate(rows)
    ]
    margin, same = margins(done), margins(easier)
    assert margin is not None
    assert same == pytest.approx(margin, abs=1e-9)
    ahead = [c.slices[0] - c.slices[1] for c in done]
    assert 0 <= margin[0] <= max(ahead) - min(ahead) + 1e-12


def test_nothing_is_given_up_before_enough_have_finished() -> None:
    """With few finished candidates there is no margin, and without one there is no bar."""
    few = [evaluated(f"a{i}", 1.0, 0.5, 0.5) for i in range(7)]
    assert margins(few) is None
    assert bars(few[0], None) == ()


def _area(candidates: Sequence[Candidate]) -> float:
    total, best = 0.0, 0.0
    for candidate in sorted(candidates, key=lambda c: c.latency_ms):
        if candidate.finished and candidate.accuracy > best:
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
    candidates = [evaluated(f"a{i}", ms, m) for i, (ms, m) in enumerate(drawn)]
    chosen = kept(candidates, count)
    assert len(chosen) == min(count, len(candidates))
    assert max(c.accuracy for c in chosen) == max(c.accuracy for c in candidates)
    assert min(c.latency_ms for c in chosen) == min(c.latency_ms for c in candidates)
    rank, _ = ranks(candidates)
    by_name = {c.architecture: int(r) for c, r in zip(candidates, rank, strict=True)}
    taken = [by_name[c.architecture] for c in chosen]
    left = [by_name[c.architecture] for c in candidates if c not in chosen]
    assert not left or max(taken) <= min(left) + 1


def test_what_trails_too_far_is_not_kept() -> None:
    """What could never be published makes room, but two are always kept."""
    done = [evaluated(name, ms, m) for name, ms, m in (("a", 1.0, 0.3), ("b", 2.0, 0.68), ("c", 3.0, 0.9))]
    assert [c.architecture for c in kept(done, 3, max_trail=0.2)] == ["b", "c"]
    assert [c.architecture for c in kept(done, 3, max_trail=0.1)] == ["a", "b", "c"]


def test_what_was_given_up_is_not_kept() -> None:
    """A candidate that did not run to the end is never measured, whatever its first slice said."""
    done = [evaluated("a", 1.0, 0.3), evaluated("b", 2.0, 0.4), evaluated("c", 1.0, 0.9, whole=False)]
    assert {candidate.architecture for candidate in kept(done, 3)} == {"a", "b"}


def test_fewer_than_two_candidates_are_no_search(tmp_path: Path) -> None:
    """A budget below two is refused."""
    with pytest.raises(ValueError, match="at least 2"):
        search(tmp_path / "j", Counting(), budget=1, seed=0)
