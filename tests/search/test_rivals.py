"""Other rules than the predicted gain: where their curves begin and end, and what a resample changes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_repo.scoring import Ranking, mean_precision, mix
from search.align import aligned_table, calibration_error, fit_alignment, reliability
from search.answers import answered
from search.gain import swap_influences
from search.rivals import RATES, Rival, RuleCurve, curve_of, priorities, rule_curves
from search.routing import Artifact
from tests.search.synthetic import CLASSES, artifact, scene

IMAGES = 120
DRAWN = scene(IMAGES, seed=3)


@pytest.fixture(scope="module")
def fast() -> Artifact:
    return artifact("small", DRAWN, weakness=1.5, ms=2.0, seed=1, boast=0.5)


@pytest.fixture(scope="module")
def larger() -> Artifact:
    return artifact("large", DRAWN, weakness=0.25, ms=12.0, seed=2)


@pytest.fixture(scope="module")
def ranked(fast: Artifact, larger: Artifact) -> dict[Rival, list[np.ndarray]]:
    side = answered(fast.answers, DRAWN.views, fast.table, fit_alignment(fast.table, CLASSES))
    labels = swap_influences(Ranking([fast.table, larger.table]))
    return priorities(side, labels.astype(np.float32), labels, seed=0)


def test_curves_run_from_one_model_to_the_other(
    fast: Artifact, larger: Artifact, ranked: dict[Rival, list[np.ndarray]]
) -> None:
    """At rate 0 every rule has the fast model's mAP and at 1 the larger one's; the oracle gains most."""
    curves = rule_curves(Ranking([fast.table, larger.table]), ranked)
    for curve in curves:
        assert len(curve.map) == len(RATES)
        assert curve.map[0] == mean_precision(fast.table)
        assert curve.map[-1] == mean_precision(larger.table)
    assert curve_of(curves, "gain").map == pytest.approx(curve_of(curves, "oracle").map, abs=1e-3)
    areas = {curve.rule: curve.area or 0.0 for curve in curves}
    assert areas["oracle"] == max(areas.values())
    assert areas["oracle"] > areas["random"] + 0.1


def test_a_rate_sends_that_share_of_the_images(
    fast: Artifact, larger: Artifact, ranked: dict[Rival, list[np.ndarray]]
) -> None:
    """The images of highest priority go on, as many as the rate says."""
    priority = ranked["max score"][0]
    first = np.argsort(-priority, kind="stable")[: IMAGES // 5]
    going = np.isin(np.arange(IMAGES), first).astype(np.int64)
    curve = curve_of(rule_curves(Ranking([fast.table, larger.table]), ranked), "max score")
    assert curve.map[RATES.index(0.2)] == mean_precision(mix((fast.table, larger.table), going))


def test_a_resample_of_every_image_once_changes_nothing(
    fast: Artifact, larger: Artifact, ranked: dict[Rival, list[np.ndarray]]
) -> None:
    """Weights of one give the same curves as no weights."""
    once = np.ones(IMAGES, dtype=np.int64)
    in_hand = Ranking([fast.table, larger.table])
    weighted = rule_curves(in_hand, ranked, once)
    for curve, plain in zip(weighted, rule_curves(in_hand, ranked), strict=True):
        assert curve.map == pytest.approx(plain.map, abs=1e-12)


def test_the_area_of_a_straight_line_is_one_half() -> None:
    """Chance recovers as much of the gap as it escalates."""
    line = RuleCurve(rule="random", map=tuple(0.4 + 0.2 * rate for rate in RATES))
    assert line.area == pytest.approx(0.5)
    assert line.recovered(0.3) == pytest.approx(0.3)
    level = RuleCurve(rule="random", map=(0.5,) * len(RATES))
    assert level.average == 0.5
    assert level.area is None
    assert level.recovered(0.2) is None


def test_alignment_brings_scores_to_the_quality(fast: Artifact) -> None:
    """A boastful model's calibration error falls by more than half on the images that it was fitted on."""
    raw = calibration_error(reliability(fast.table))
    after = calibration_error(reliability(aligned_table(fast.table, fit_alignment(fast.table, CLASSES))))
    assert after < raw / 2


@settings(derandomize=True, deadline=None, max_examples=20)
@given(st.integers(1, 40))
def test_bins_hold_every_box_once(bins: int) -> None:
    """Groups differ by at most one box, rise in score, and hold all of them."""
    table = artifact("s", DRAWN, weakness=1.0, ms=1.0, seed=7).table
    groups = reliability(table, bins)
    assert sum(group.boxes for group in groups) == int((~table.ignore.any(axis=1)).sum())
    assert max(group.boxes for group in groups) - min(group.boxes for group in groups) <= 1
    assert [group.score for group in groups] == sorted(group.score for group in groups)
