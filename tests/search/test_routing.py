from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from model_repo.frontier import Certificate, NoCertificate
from model_repo.fusion import fuse
from model_repo.latency import Histogram
from model_repo.scoring import Ranking, match, mean_precision, mix, swap_gains
from search.align import aligned_table, fit_alignment
from search.answers import AnswerSet, answered
from search.certify import CERTIFY_MIN_IMAGES
from search.gain import fit_gain, swap_influences
from search.routing import (
    MAX_PLANS,
    Costs,
    Routing,
    fit_images,
    operating_points,
    route,
    score_plan,
    worth_publishing,
)
from tests.search.synthetic import CLASSES, Scene, artifact, scene

COSTS = Costs("openvino", Histogram.of([0.5, 0.6]), Histogram.of([0.7, 0.8]))
IMAGES = CERTIFY_MIN_IMAGES


@pytest.fixture(scope="module")
def drawn() -> Scene:
    return scene(IMAGES, seed=0)


@pytest.fixture(scope="module")
def routing(drawn: Scene) -> Routing:
    artifacts = [
        artifact("small", drawn, weakness=1.5, ms=2.0, seed=1, boast=0.5),
        artifact("large", drawn, weakness=0.25, ms=12.0, seed=2),
    ]
    return route(artifacts, drawn.views, drawn.truths, classes=CLASSES, costs=COSTS, seed=0)


def routed_on(images: int) -> Routing:
    few = scene(images, seed=8)
    return route(
        [artifact("s", few, weakness=1.0, ms=2.0, seed=1), artifact("l", few, weakness=0.2, ms=12.0, seed=2)],
        few.views, few.truths, classes=CLASSES, costs=COSTS, seed=0,
    )  # fmt: skip


WEAKNESSES = {"small": 2.0, "middle": 0.8, "large": 0.1}


@pytest.fixture(scope="module")
def long_routing(drawn: Scene) -> Routing:
    artifacts = [
        artifact(name, drawn, weakness=weakness, ms=ms, seed=k)
        for k, ((name, weakness), ms) in enumerate(zip(WEAKNESSES.items(), (1.0, 4.0, 30.0), strict=True))
    ]
    return route(artifacts, drawn.views, drawn.truths, classes=CLASSES, costs=COSTS, seed=0)


def test_an_alignment_rises_and_tells_the_quality(drawn: Scene) -> None:
    """Aligned scores keep a model's mAP and its ranking, and their mean is the mean quality of the boxes."""
    made = artifact("small", drawn, weakness=1.5, ms=2.0, seed=1, boast=0.5)
    alignment = fit_alignment(made.table, CLASSES)
    for curve in alignment.curves:
        assert (np.diff(curve.quality) > 0).all()
    aligned = aligned_table(made.table, alignment)
    assert mean_precision(aligned) == pytest.approx(mean_precision(made.table), abs=2e-3)
    assert float(aligned.score.mean()) == pytest.approx(float(made.table.hit.mean()), abs=0.03)
    assert abs(float(made.table.score.mean()) - float(made.table.hit.mean())) > 0.1


def test_a_rare_class_leans_on_the_others(drawn: Scene) -> None:
    """A class without a box takes the pooled curve; without any box the alignment changes nothing."""
    made = artifact("small", drawn, weakness=1.5, ms=2.0, seed=1)
    three = fit_alignment(made.table, CLASSES + 1)
    pooled = np.mean([curve.quality for curve in three.curves[:2]], axis=0)
    assert np.abs(np.asarray(three.curves[2].quality) - pooled).max() < 0.1
    empty = artifact("none", Scene((), (), np.empty(0)), weakness=1.0, ms=1.0, seed=1)
    assert fit_alignment(empty.table, 2).curves[0].apply(np.array([0.3], np.float32)) == pytest.approx(0.3)


def test_influences_rank_images_as_exact_swaps_do() -> None:
    """The first-order labels order images like scoring the whole set again for every swap."""
    small_scene = scene(120, seed=3)
    small = artifact("s", small_scene, weakness=1.0, ms=2.0, seed=4)
    large = artifact("l", small_scene, weakness=0.2, ms=9.0, seed=5)
    near = swap_influences(Ranking([small.table, large.table]))
    exact = swap_gains(small.table, large.table) * 120
    assert float(spearmanr(near, exact).statistic) > 0.9
    assert near.sum() > 0


def test_a_gain_model_finds_the_hard_frames(drawn: Scene) -> None:
    """Predicted on frames it was not fitted on, gains order them far better than chance."""
    small = artifact("s", drawn, weakness=1.0, ms=2.0, seed=1)
    large = artifact("l", drawn, weakness=0.25, ms=9.0, seed=2)
    side = answered(small.answers, drawn.views, small.table, fit_alignment(small.table, CLASSES))
    labels = swap_influences(Ranking([side.table, large.table]))
    fitted = fit_gain(side.features, labels, seed=0)
    assert fitted.rank_correlation > 0.3
    assert float(spearmanr(fitted.held_out, drawn.difficulty).statistic) > 0.5
    np.testing.assert_allclose(fit_gain(side.features, labels, seed=0).held_out, fitted.held_out)


def test_too_few_images_are_no_fit(drawn: Scene) -> None:
    """A gain model needs more images than folds."""
    with pytest.raises(ValueError, match="too few"):
        fit_gain(np.zeros((9, 5), np.float32), np.zeros(9), seed=0)


def test_a_cascade_saves_time_for_little_accuracy(routing: Routing) -> None:
    """Among the plans is one of two stages with 95 % of the large model's mAP for 75 % of its cost."""
    large = next(plan for plan in routing.plans if plan.name == "large")
    target = large.accuracy_on("calibration").map
    assert any(
        len(plan.stages) == 2
        and plan.accuracy_on("calibration").map >= 0.95 * target
        and plan.mean_ms <= 0.75 * large.mean_ms
        for plan in routing.plans
    )


def test_no_published_plan_is_matched_by_another(routing: Routing) -> None:
    """No plan costs no less in mean and p99 and is no better than another; each escalates what it says."""
    plans = routing.plans
    rows = [(plan.mean_ms, plan.p99_ms, -plan.accuracy_on("calibration").map) for plan in plans]
    for i, row in enumerate(rows):
        assert not any(j != i and all(np.less_equal(other, row)) for j, other in enumerate(rows))
    for plan in plans:
        if len(plan.stages) == 2:
            share = int(plan.name.rsplit(".", 1)[1]) / 100
            assert plan.accuracy_on("calibration").escalated[0] == pytest.approx(share, abs=0.02)
    assert worth_publishing(plans) == list(plans)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.floats(1, 50), st.floats(1, 50), st.floats(0.1, 0.9)), min_size=2, max_size=70))
def test_thinning_keeps_single_models_and_the_best(
    routing: Routing, rows: list[tuple[float, float, float]]
) -> None:
    """At most so many plans are published; what no plan matches stays if it is a single model or the best."""
    double = next(plan for plan in routing.plans if len(plan.stages) == 2)
    single = next(plan for plan in routing.plans if len(plan.stages) == 1)
    plans = []
    for i, (mean_ms, more_ms, accuracy) in enumerate(rows):
        kind = single if i % 7 == 0 else double
        scored = kind.accuracy_on("calibration").model_copy(update={"map": accuracy})
        plans.append(
            kind.model_copy(
                update={
                    "name": f"p{i}",
                    "mean_ms": mean_ms,
                    "p99_ms": mean_ms + more_ms,
                    "accuracy": (scored,),
                }
            )
        )
    stays = worth_publishing(plans)
    assert len(stays) <= max(MAX_PLANS, sum(len(plan.stages) == 1 for plan in plans))
    assert max(p.accuracy[0].map for p in stays) == max(p.accuracy[0].map for p in plans)
    for plan in plans:
        matched = any(
            other is not plan
            and other.mean_ms <= plan.mean_ms
            and other.p99_ms <= plan.p99_ms
            and other.accuracy[0].map >= plan.accuracy[0].map
            for other in plans
        )
        if len(plan.stages) == 1 and not matched:
            assert plan in stays


def test_operating_points_are_named_by_their_rules(routing: Routing) -> None:
    """accurate is the best plan, fast the cheapest within a tenth of it, balanced lies between."""
    point = {
        point.name: next(p for p in routing.plans if p.name == point.plan)
        for point in routing.operating_points
    }
    best = max(plan.accuracy_on("calibration").map for plan in routing.plans)
    assert point["accurate"].accuracy_on("calibration").map == best
    assert point["fast"].accuracy_on("calibration").map >= 0.9 * best
    assert point["fast"].mean_ms <= point["balanced"].mean_ms <= point["accurate"].mean_ms
    assert operating_points(routing.plans) == routing.operating_points


def test_plans_are_certified_on_images_that_nothing_was_fitted_on(routing: Routing) -> None:
    """Two-stage plans carry a bound above what was seen; a plan of one stage says why it has none."""
    fitted, certifying = fit_images(IMAGES, 0)
    assert not set(fitted.tolist()) & set(certifying.tolist())
    assert len(fitted) + len(certifying) == IMAGES
    assert (np.diff(certifying) < 0).any(), "a certificate reads images in random order"
    for plan in routing.plans:
        if len(plan.stages) == 2:
            assert isinstance(plan.certificate, Certificate)
            assert plan.certificate.images == len(certifying)
            assert plan.certificate.empirical <= plan.certificate.bound <= plan.certificate.epsilon
        else:
            assert isinstance(plan.certificate, NoCertificate)


def test_a_small_calibration_set_is_fitted_whole() -> None:
    """Fifty calibration images give plans without a certificate, and the reason names their number."""
    routing = routed_on(50)
    reasons = [p.certificate.reason for p in routing.plans if isinstance(p.certificate, NoCertificate)]
    assert len(reasons) == len(routing.plans)
    assert any("50 images" in reason for reason in reasons)


def test_score_scales_do_not_matter(drawn: Scene) -> None:
    """A detector that boasts spoils a mixture under raw scores, and none under aligned ones."""
    large = artifact("large", drawn, weakness=0.25, ms=12.0, seed=2)
    plain, boastful = (
        artifact("small", drawn, weakness=1.5, ms=2.0, seed=1, boast=boast) for boast in (1.0, 0.3)
    )
    half = (np.arange(IMAGES) % 2).astype(np.int64)
    raw = [mean_precision(mix((small.table, large.table), half)) for small in (plain, boastful)]
    assert raw[0] - raw[1] > 0.008
    aligned = []
    for small in (plain, boastful):
        tables = [aligned_table(side.table, fit_alignment(side.table, CLASSES)) for side in (small, large)]
        aligned.append(mean_precision(mix(tables, half)))
    assert aligned[0] == pytest.approx(aligned[1], abs=0.003)
    assert aligned[1] > raw[1]


def test_nine_images_make_no_cascade() -> None:
    """With too few calibration images for a gain model every plan is one model."""
    routing = routed_on(9)
    assert {len(plan.stages) for plan in routing.plans} == {1}
    assert not routing.pairs


def test_a_plan_does_on_new_frames_about_what_calibration_said(routing: Routing) -> None:
    """On frames never seen, plans escalate and score within a few points of their calibration numbers."""
    fresh = scene(300, seed=11)
    sides = {}
    for name, weakness, boast in (("small", 1.5, 0.5), ("large", 0.25, 1.0)):
        made = artifact(name, fresh, weakness=weakness, ms=1.0, seed=21, boast=boast)
        sides[name] = answered(made.answers, fresh.views, made.table, routing.alignments[name])
    answers = AnswerSet(sides, fresh.truths, CLASSES)
    for plan in routing.plans:
        scored = score_plan(plan, answers, split="test")
        calibrated = plan.accuracy_on("calibration")
        assert scored.map == pytest.approx(calibrated.map, abs=0.06)
        assert scored.escalated == pytest.approx(calibrated.escalated, abs=0.12)


def test_three_models_in_a_row_pay_where_two_do_not(long_routing: Routing) -> None:
    """Plans of three stages are published beside those of two; fewer frames reach each further stage; none
    is matched by a shorter plan."""
    triples = [plan for plan in long_routing.plans if len(plan.stages) == 3]
    assert triples
    shorter = [plan for plan in long_routing.plans if len(plan.stages) < 3]
    for plan in triples:
        first, second = plan.accuracy_on("calibration").escalated
        assert 0 < second < first < 1
        assert [stage.variant for stage in plan.stages] == list(WEAKNESSES)
        assert isinstance(plan.certificate, Certificate)
        assert not any(
            other.mean_ms <= plan.mean_ms
            and other.p99_ms <= plan.p99_ms
            and other.accuracy_on("calibration").map >= plan.accuracy_on("calibration").map
            for other in shorter
        )


def test_three_stages_do_on_new_frames_about_what_calibration_said(long_routing: Routing) -> None:
    """On frames never seen, longer plans too escalate and score within a few points of calibration."""
    fresh = scene(300, seed=11)
    sides = {}
    for k, (name, weakness) in enumerate(WEAKNESSES.items()):
        made = artifact(name, fresh, weakness=weakness, ms=1.0, seed=30 + k)
        sides[name] = answered(made.answers, fresh.views, made.table, long_routing.alignments[name])
    answers = AnswerSet(sides, fresh.truths, CLASSES)
    for plan in long_routing.plans:
        scored = score_plan(plan, answers, split="test")
        assert scored.map == pytest.approx(plan.accuracy_on("calibration").map, abs=0.07)
        assert scored.escalated == pytest.approx(plan.accuracy_on("calibration").escalated, abs=0.15)


def test_fusion_goes_on_from_the_answer_in_hand(drawn: Scene, long_routing: Routing) -> None:
    """The third answer is fused with the fusion of the first two, as the router does it."""
    sides = {}
    for k, (name, weakness) in enumerate(WEAKNESSES.items()):
        made = artifact(name, drawn, weakness=weakness, ms=1.0, seed=k)
        sides[name] = answered(made.answers, drawn.views, made.table, long_routing.alignments[name])
    tables = AnswerSet(sides, drawn.truths, CLASSES).in_hand(tuple(WEAKNESSES), "wbf")
    in_hand = [
        fuse(fuse(a, b, "wbf"), c, "wbf")
        for a, b, c in zip(*(sides[name].detections for name in WEAKNESSES), strict=True)
    ]
    expected = match(drawn.truths, in_hand, CLASSES)
    assert len(tables) == 3
    assert mean_precision(tables[2]) == pytest.approx(mean_precision(expected), abs=1e-12)


def test_answers_are_one_per_image(drawn: Scene) -> None:
    """Answers that are fewer than the frames are refused."""
    made = artifact("small", drawn, weakness=1.5, ms=2.0, seed=1)
    with pytest.raises(ValueError, match="argument"):
        answered(made.answers[:-1], drawn.views, made.table, fit_alignment(made.table, CLASSES))
