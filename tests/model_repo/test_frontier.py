"""Dominance is what the definition says, and a manifest that does not hang together is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any  # The documents that are broken on purpose are plain JSON.

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from model_repo import codec
from model_repo.frontier import Frontier, Segment, Tensor, non_dominated
from model_repo.publish import Repository

relaxed = settings(deadline=None, max_examples=100)
points = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=30).map(
    lambda pairs: [(float(cost), float(accuracy)) for cost, accuracy in pairs]
)


def _dominates(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] <= b[0] and a[1] >= b[1] and a != b


@relaxed
@given(points)
def test_kept_points_are_those_that_nothing_dominates(given: list[tuple[float, float]]) -> None:
    """A point is kept exactly when no other dominates it; of equal points the first."""
    kept = non_dominated(given)
    expected = {
        i
        for i, point in enumerate(given)
        if not any(_dominates(other, point) for other in given) and point not in given[:i]
    }
    assert set(kept) == expected
    assert [given[i][0] for i in kept] == sorted(given[i][0] for i in kept)


@relaxed
@given(points, st.randoms(use_true_random=False))
def test_order_does_not_matter(given: list[tuple[float, float]], random: Any) -> None:
    """The kept values are the same whatever the order of the points."""
    shuffled = list(given)
    random.shuffle(shuffled)
    assert [given[i] for i in non_dominated(given)] == [shuffled[i] for i in non_dominated(shuffled)]


def test_looks_up_by_name(repository: Repository) -> None:
    """Variants, plans, operating points and measurements are found by name, or are a KeyError."""
    frontier = repository.frontier
    assert frontier.variant("tiny-1").name == "tiny-1"
    assert frontier.plan_of("balanced").name == "tiny-0-then-tiny-1"
    for missing in (
        lambda: frontier.variant("x"),
        lambda: frontier.plan("x"),
        lambda: frontier.plan_of("x"),
        lambda: frontier.plans[0].accuracy_on("train"),
        lambda: frontier.variants[0].on("openvino").accuracy_on("train"),
    ):
        with pytest.raises(KeyError):
            missing()


def test_profile_of_a_concurrency(repository: Repository) -> None:
    """The profile is of the concurrency asked for, the next above, or the highest there is."""
    measurement = repository.frontier.variants[0].on("openvino")
    assert [measurement.profile(n).concurrency for n in (1, 2, 9)] == [1, 2, 2]


def _edit(repository: Repository, change: Callable[[dict[str, Any]], None]) -> Frontier:
    document = repository.frontier.model_dump(mode="json")
    change(document)
    return codec.decode(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda d: d["plans"][0]["stages"][0].update(variant="ghost"), "ghost"),
        (lambda d: d["operating_points"][0].update(plan="ghost"), "ghost"),
        (lambda d: d["variants"].append(d["variants"][0]), "variant named twice"),
        (lambda d: d["plans"].append(d["plans"][0]), "plan named twice"),
        (lambda d: d["dataset"]["classes"].append("third"), "one curve per class"),
        (lambda d: d["plans"][-1]["stages"][0].update(rule=None), "no rule"),
        (lambda d: d["plans"][-1]["stages"][1].update(d["plans"][-1]["stages"][0]), "nothing to go on to"),
        (lambda d: d["variants"][0].update(folder="tiny-0-xyz"), "digest8"),
        (lambda d: d["variants"][0].update(precision="int8"), "published in int8"),
        (lambda d: d["variants"][0]["measurements"].pop(2), "was not measured"),
        (lambda d: d["variants"][0].update(resolution_wh=[32, 32]), "no earlier segment"),
        (lambda d: d["variants"][0]["measurements"].append(d["variants"][0]["measurements"][0]), "runtime:"),
    ],
)  # fmt: skip
def test_refuses_what_does_not_hang_together(
    repository: Repository, change: Callable[[dict[str, Any]], None], named: str
) -> None:
    """References, names, measurements and shapes must fit; the message says what does not."""
    with pytest.raises(codec.ManifestError, match=named):
        _edit(repository, change)


@pytest.mark.parametrize(
    "file",
    ["../model.onnx", "/etc/passwd", "models/../../x", "a/./x", "a//x", ".hidden", "a\\..\\x", "", "a\n"],
)  # fmt: skip
def test_no_way_out_of_the_repository(file: str) -> None:
    """A segment's file stays inside: no absolute path, no parent, no hidden part."""
    tensor = Tensor(name="t", dtype="float32", shape=(1,))
    with pytest.raises(ValidationError):
        Segment(file=file, sha256="0" * 64, bytes=1, inputs=(tensor,), outputs=(tensor,))
