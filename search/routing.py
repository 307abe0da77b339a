"""Plans of one and two stages: proposed, scored on calibration from cached answers, and named.

1. Every ordered pair (fast, larger) worth it gets labels, a gain model and the better fusion.
2. Thresholds for a grid of escalation shares make plans; their accuracy comes from the tables of matches,
   with gains predicted by models that did not see the image, and their cost from the measured profiles.
3. Plans stay that no other one matches in mean cost, p99 and mAP at once; the p99 counts, because a frame
   with a tight budget cannot take a plan whose second stage would come too late.
4. A slice of calibration on which nothing was fitted bounds what each remaining plan may lose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_repo.alignment import Alignment
from model_repo.detections import Detections
from model_repo.escalation import features
from model_repo.frontier import (
    Certificate,
    NoCertificate,
    OperatingPoint,
    Plan,
    PlanAccuracy,
    Rule,
    SplitName,
    Stage,
)
from model_repo.fusion import Fusion, fuse
from model_repo.latency import Histogram, RuntimeName
from model_repo.plans import PlanScore, escalate, plan_cost, score_two_stages, threshold_for_share
from model_repo.scoring import MatchTable, Truth, best_f1, image_loss, match, mix, score_table, subset
from model_repo.value import Value
from search.align import aligned_table, fit_alignment
from search.certify import DELTA, excess_bound
from search.gain import FittedGain, fit_gain, swap_influences
from search.run_folder import Progress, Silent

SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
# Calibration sets of fewer images are used for fitting as a whole, and nothing is certified.
CERTIFY_MIN_IMAGES = 400
_CERTIFY_SHARE = 0.4
# A fast stage that costs more than this share of the larger one cannot save enough to be worth a rule.
_WORTH_COST_RATIO = 0.8
FAST_SHARE_OF_BEST = 0.9
MAX_PLANS = 32


@dataclass(frozen=True, slots=True, eq=False)
class Artifact:
    """A variant's calibration answers (raw scores, one per image), their matches and its stage's latency."""

    name: str
    answers: tuple[Detections, ...]
    table: MatchTable
    stage: Histogram
    runtimes: tuple[RuntimeName, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """A variant's aligned answers on some images: detections, matches, and the features [n, f] of each."""

    detections: tuple[Detections, ...]
    table: MatchTable
    features: NDArray[np.float32]


class _Images:
    """All variants' answers on some images with their labels; fused answers are matched once a pair."""

    def __init__(self, sides: dict[str, Answered], truths: Sequence[Truth]) -> None:
        self.sides, self.truths = sides, truths
        self._fused: dict[tuple[str, str, Fusion], MatchTable] = {}

    def answers_of(self, plan: Plan, classes: int) -> MatchTable:
        """Return the matches of what a plan of two stages answers."""
        first, last = (self.sides[stage.variant] for stage in plan.stages)
        key = (plan.stages[0].variant, plan.stages[1].variant, plan.fusion)
        if key not in self._fused:
            self._fused[key] = fused_table(first, last, self.truths, plan.fusion, classes)
        return mix([first.table, self._fused[key]], _going_on(plan, first).astype(np.int64))


class PairReport(Value):
    """What was found out about a pair: its gain model, the fusion that was better, and by how much mAP."""

    fast: str
    larger: str
    gain: str
    rank_correlation: float
    fusion: Fusion
    replace_map: float
    wbf_map: float


@dataclass(frozen=True, slots=True)
class Routing:
    """What routing decided: alignments by variant, plans, operating points, and the pairs' findings."""

    alignments: dict[str, Alignment]
    plans: tuple[Plan, ...]
    operating_points: tuple[OperatingPoint, ...]
    pairs: tuple[PairReport, ...]


def fit_images(count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split calibration's images into those to fit on and those to certify on (none of a small set)."""
    order = np.random.default_rng([seed, 0xCE7]).permutation(count).astype(np.int64)
    held = int(count * _CERTIFY_SHARE) if count >= CERTIFY_MIN_IMAGES else 0
    return np.sort(order[held:]), np.sort(order[:held])


def answered(
    detections: Sequence[Detections],
    images: Sequence[NDArray[np.uint8]],
    table: MatchTable,
    alignment: Alignment,
) -> Answered:
    """Align answers and describe each with its frame, as the router will."""
    aligned = tuple(alignment.apply(answer) for answer in detections)
    rows = np.array([features(answer, image) for answer, image in zip(aligned, images, strict=True)])
    return Answered(aligned, aligned_table(table, alignment), rows.astype(np.float32))


def route(
    artifacts: Sequence[Artifact],
    images: Sequence[NDArray[np.uint8]],
    truths: Sequence[Truth],
    *,
    classes: int,
    runtime: RuntimeName,
    decode: Histogram,
    rule: Histogram,
    seed: int,
    shares: Sequence[float] = SHARES,
    progress: Progress | None = None,
) -> Routing:
    """Fit alignments and gain models on calibration, and return the plans worth publishing.

    decode: latency of decoding a frame; rule: the same with features and gain on top, what every plan of two
    stages pays; shares: of frames that go on, a plan of each pair for each. Raises ValueError when an
    artifact's answers are not one per image.
    """
    progress = progress or Silent()
    fitted, certifying = fit_images(len(truths), seed)
    fit_truths = [truths[i] for i in fitted]
    sides: dict[str, Answered] = {}
    alignments: dict[str, Alignment] = {}
    for artifact in artifacts:
        alignments[artifact.name] = fit_alignment(subset(artifact.table, fitted), classes)
        sides[artifact.name] = answered(artifact.answers, images, artifact.table, alignments[artifact.name])
    fits = {name: _part(side, fitted) for name, side in sides.items()}

    singles = [_single(artifact, fits[artifact.name], runtime, decode) for artifact in artifacts]
    pairs = _pairs_worth_it(artifacts, {plan.stages[0].variant: plan.accuracy[0].map for plan in singles})
    progress.start("route", len(pairs) + 1)
    doubles: list[Plan] = []
    reports: list[PairReport] = []
    for fast, larger in pairs:
        found, report = _pair_plans(
            fast, larger, fits, fit_truths, classes=classes, runtime=runtime, decode=rule, seed=seed,
            shares=shares,
        )  # fmt: skip
        doubles += found
        reports.append(report)
        progress.advance(
            1, f"{report.fast} → {report.larger}: rank correlation {report.rank_correlation:.2f}"
        )

    plans = worth_publishing([*singles, *doubles])
    held = _Images(
        {name: _part(side, certifying) for name, side in sides.items()}, [truths[i] for i in certifying]
    )
    plans = _certified(plans, _Images(fits, fit_truths), held, len(truths), classes)
    progress.advance(1, f"{len(plans)} plans")
    return Routing(alignments, tuple(plans), operating_points(plans), tuple(reports))


def score_plan(
    plan: Plan, sides: dict[str, Answered], truths: Sequence[Truth], *, classes: int, split: SplitName
) -> PlanAccuracy:
    """Score a published plan on answers of its variants, deciding with its own rule, as the router will."""
    first = sides[plan.stages[0].variant]
    if len(plan.stages) == 1:
        return _plan_accuracy(PlanScore(score_table(first.table), ()), split, len(truths))
    going = _going_on(plan, first)
    fused = fused_table(first, sides[plan.stages[1].variant], truths, plan.fusion, classes)
    return _plan_accuracy(score_two_stages(first.table, fused, going), split, len(truths))


def fused_table(
    fast: Answered, larger: Answered, truths: Sequence[Truth], fusion: Fusion, classes: int
) -> MatchTable:
    """Return the matches of the answers that go on."""
    if fusion == "replace":
        return larger.table
    both = zip(fast.detections, larger.detections, strict=True)
    return match(truths, [fuse(first, second, fusion) for first, second in both], classes)


def operating_points(plans: Sequence[Plan]) -> tuple[OperatingPoint, ...]:
    """Name three plans by their accuracy and mean cost on calibration.

    fast: the cheapest that reaches 90 % of the best mAP. accurate: the best mAP, the cheaper of equals.
    balanced: the knee of the curve from fast to accurate (Satopää et al., "Kneedle", 2011); without a knee
    the cheapest plan that reaches 98 % of the best mAP.
    """
    from kneed import KneeLocator

    ordered = sorted(plans, key=lambda plan: (plan.mean_ms, -_map(plan)))
    accurate = max(ordered, key=_map)
    fast = next(plan for plan in ordered if _map(plan) >= FAST_SHARE_OF_BEST * _map(accurate))
    curve: list[Plan] = []
    for plan in ordered:
        if fast.mean_ms <= plan.mean_ms <= accurate.mean_ms and (not curve or _map(plan) > _map(curve[-1])):
            curve.append(plan)
    knee = None
    if len(curve) >= 4:
        costs = [plan.mean_ms for plan in curve]
        found = KneeLocator(
            costs, [_map(plan) for plan in curve], curve="concave", direction="increasing"
        ).knee
        knee = None if found is None else curve[costs.index(found)]
    near = next(plan for plan in ordered if _map(plan) >= 0.98 * _map(accurate))
    return (
        OperatingPoint(name="fast", plan=fast.name),
        OperatingPoint(name="balanced", plan=(knee or near).name),
        OperatingPoint(name="accurate", plan=accurate.name),
    )


def worth_publishing(plans: Sequence[Plan]) -> list[Plan]:
    """Return the plans that none matches in mean cost, p99 and mAP, at most MAX_PLANS, cheapest first.

    Too many are thinned: of two neighbours in mean cost whose mAP is nearest, the one that costs more goes,
    but never a plan of one stage, nor the best.
    """
    stays = [plan for i, plan in enumerate(plans) if not any(_dominates(other, plan, j < i) for j, other in
                                                              enumerate(plans) if j != i)]  # fmt: skip
    stays.sort(key=lambda plan: (plan.mean_ms, plan.name))
    best = max(stays, key=_map)
    while len(stays) > MAX_PLANS:
        loose = [k for k in range(1, len(stays)) if len(stays[k].stages) > 1 and stays[k] is not best]
        if not loose:
            break
        del stays[min(loose, key=lambda k: (abs(_map(stays[k]) - _map(stays[k - 1])), k))]
    return stays


def _dominates(a: Plan, b: Plan, first: bool) -> bool:
    costs = ((a.mean_ms, b.mean_ms), (a.p99_ms, b.p99_ms), (-_map(a), -_map(b)))
    return all(x <= y for x, y in costs) and (first or any(x < y for x, y in costs))


def _map(plan: Plan) -> float:
    return plan.accuracy_on("calibration").map


def _part(side: Answered, images: NDArray[np.int64]) -> Answered:
    return Answered(
        tuple(side.detections[i] for i in images), subset(side.table, images), side.features[images]
    )


def _pairs_worth_it(
    artifacts: Sequence[Artifact], accuracy: dict[str, float]
) -> list[tuple[Artifact, Artifact]]:
    return [
        (fast, larger)
        for fast in artifacts
        for larger in artifacts
        if fast.stage.mean_ms <= _WORTH_COST_RATIO * larger.stage.mean_ms
        and accuracy[fast.name] < accuracy[larger.name]
    ]


def _single(artifact: Artifact, side: Answered, runtime: RuntimeName, decode: Histogram) -> Plan:
    cost = plan_cost(decode, [artifact.stage], [1.0])
    return Plan(
        name=artifact.name,
        stages=(Stage(variant=artifact.name),),
        fusion="replace",
        runtime=runtime,
        engines=artifact.runtimes,
        accuracy=(
            _plan_accuracy(PlanScore(score_table(side.table), ()), "calibration", len(side.detections)),
        ),
        mean_ms=cost.mean_ms,
        p99_ms=cost.p99_ms,
        certificate=NoCertificate(
            reason="a plan of one stage is its own last stage: it loses nothing against it"
        ),
    )


def _pair_plans(
    fast: Artifact,
    larger: Artifact,
    fits: dict[str, Answered],
    truths: Sequence[Truth],
    *,
    classes: int,
    runtime: RuntimeName,
    decode: Histogram,
    seed: int,
    shares: Sequence[float],
) -> tuple[list[Plan], PairReport]:
    first, second = fits[fast.name], fits[larger.name]
    gain = fit_gain(first.features, swap_influences(first.table, second.table), seed=seed)
    tables: dict[Fusion, MatchTable] = {
        "replace": second.table,
        "wbf": fused_table(first, second, truths, "wbf", classes),
    }
    half = escalate(gain.held_out, threshold_for_share(gain.held_out, 0.5))
    scores = {
        fusion: score_two_stages(first.table, table, half).score.map for fusion, table in tables.items()
    }
    fusion: Fusion = "wbf" if scores["wbf"] > scores["replace"] else "replace"
    plans = [
        _double(fast, larger, gain, share, first.table, tables[fusion], fusion, runtime, decode)
        for share in shares
    ]
    report = PairReport(
        fast=fast.name,
        larger=larger.name,
        gain=gain.kind,
        rank_correlation=gain.rank_correlation,
        fusion=fusion,
        replace_map=scores["replace"],
        wbf_map=scores["wbf"],
    )
    return plans, report


def _double(
    fast: Artifact,
    larger: Artifact,
    gain: FittedGain,
    share: float,
    stay: MatchTable,
    go_on: MatchTable,
    fusion: Fusion,
    runtime: RuntimeName,
    decode: Histogram,
) -> Plan:
    threshold = threshold_for_share(gain.held_out, share)
    scored = score_two_stages(stay, go_on, escalate(gain.held_out, threshold))
    cost = plan_cost(decode, [fast.stage, larger.stage], [1.0, *scored.escalated])
    # Names have room for two variants' names; the share is the one asked for, in percent.
    return Plan(
        name=f"{fast.name}.{larger.name}.{round(100 * share):02d}",
        stages=(
            Stage(variant=fast.name, rule=Rule(gain=gain.model, threshold=threshold)),
            Stage(variant=larger.name),
        ),
        fusion=fusion,
        runtime=runtime,
        engines=tuple(name for name in fast.runtimes if name in larger.runtimes),
        accuracy=(_plan_accuracy(scored, "calibration", stay.images),),
        mean_ms=cost.mean_ms,
        p99_ms=cost.p99_ms,
        certificate=NoCertificate(reason="not tested yet"),
    )


def _certified(
    plans: Sequence[Plan], fits: _Images, held: _Images, calibration_images: int, classes: int
) -> list[Plan]:
    tested = [plan for plan in plans if len(plan.stages) > 1]
    out: list[Plan] = []
    for plan in plans:
        if len(plan.stages) == 1:
            out.append(plan)
        elif not held.truths:
            reason = (
                f"calibration has {calibration_images} images and all were fitted on;"
                f" from {CERTIFY_MIN_IMAGES} on a part is held back to certify"
            )
            out.append(plan.model_copy(update={"certificate": NoCertificate(reason=reason)}))
        else:
            certificate = _certificate(plan, fits, held, classes, DELTA / len(tested))
            out.append(plan.model_copy(update={"certificate": certificate}))
    return out


def _certificate(plan: Plan, fits: _Images, held: _Images, classes: int, delta: float) -> Certificate:
    """Bound the plan's mean excess loss over its last stage, each at the score that suits it best.

    Those two scores are fixed on the fitted images: a plan's answers have other aligned scores than its last
    stage's, and whoever uses it sets the threshold for it.
    """
    last = plan.stages[1].variant
    _, own = best_f1(fits.answers_of(plan, classes))
    _, lasts = best_f1(fits.sides[last].table)
    loss = image_loss(held.answers_of(plan, classes), own)
    excess = np.maximum(loss - image_loss(held.sides[last].table, lasts), 0.0)
    bound = excess_bound(excess, delta)
    return Certificate(
        loss=(
            "1 - F1, mean over IoU 0.50:0.95, of the plan's boxes with aligned score"
            f" >= {own:.4f} over that of its last stage's with >= {lasts:.4f}"
        ),
        images=len(held.truths),
        epsilon=bound,
        delta=DELTA,
        bound=bound,
        empirical=float(excess.mean()),
    )


def _going_on(plan: Plan, first: Answered) -> NDArray[np.bool_]:
    rule = plan.stages[0].rule
    assert rule is not None  # a plan's stages before the last have rules: its validation says so
    return escalate(rule.gain.compiled().predict(first.features), rule.threshold)


def _plan_accuracy(scored: PlanScore, split: SplitName, images: int) -> PlanAccuracy:
    return PlanAccuracy(
        split=split, images=images, map=scored.score.map, map50=scored.score.map50, escalated=scored.escalated
    )
