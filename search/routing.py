"""Plans of one to three stages: proposed, scored on calibration from cached answers, and named.

1. Every ordered pair (fast, larger) worth it gets labels and a gain model for each fusion; the better stays.
2. Thresholds for a grid of escalation shares make plans; their accuracy comes from the tables of matches,
   with gains predicted by models that did not see the image, and their cost from the measured profiles.
3. What is left of two stages is lengthened by a third model, where a pair of the second one and it is known.
4. Plans stay that no other one matches in mean cost, p99 and mAP at once; the p99 counts, because a frame
   with a tight budget cannot take a plan whose second stage would come too late.
5. A slice of calibration on which nothing was fitted bounds what each remaining plan may lose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_repo.alignment import Alignment
from model_repo.detections import Detections
from model_repo.escalation import FrameView
from model_repo.frontier import (
    NoCertificate,
    OperatingPoint,
    Plan,
    PlanAccuracy,
    Rule,
    SplitName,
    Stage,
    non_dominated,
)
from model_repo.fusion import Fusion
from model_repo.latency import Histogram, RuntimeName
from model_repo.plans import PlanScore, escalate, plan_cost, score_stages, threshold_for_share
from model_repo.reference import Reference, observation
from model_repo.scoring import MatchTable, Ranking, Truth, subset
from model_repo.value import Value
from search.align import Bin, fit_alignment, reliability
from search.answers import Answered, AnswerSet, answered
from search.artifacts import cores
from search.certify import CERTIFY_MIN_IMAGES, certified
from search.gain import MIN_IMAGES, MLP_MIN_IMAGES
from search.pairs import Pair, PairReport, fit_pairs, report_pair
from search.run_folder import Progress, Silent

SHARES = tuple(k / 25 for k in range(1, 25))
_CERTIFY_SHARE = 0.4
# A fast stage that costs more than this share of the larger one cannot save enough to be worth a rule.
_WORTH_COST_RATIO = 0.8
FAST_SHARE_OF_BEST = 0.9
MAX_PLANS = 40
# Of the shares, how many a third stage is tried with.
_THIRD_SHARES = 4
# To fit a pair on 1,000 images takes about a second; to start a worker takes longer.
_WORKERS_FROM = 10_000


@dataclass(frozen=True, slots=True, eq=False)
class Artifact:
    """A variant's calibration answers (raw scores, one per image), their matches and its stage's latency."""

    name: str
    answers: tuple[Detections, ...]
    table: MatchTable
    stage: Histogram
    runtimes: tuple[RuntimeName, ...]


@dataclass(frozen=True, slots=True)
class Costs:
    """What a whole frame costs beside its stages, on which runtime.

    decode: decoding it; rule: the same with features and gain on top, what a plan of several stages pays.
    """

    runtime: RuntimeName
    decode: Histogram
    rule: Histogram


class AlignmentReport(Value):
    """How far a variant's scores are from the quality of its boxes, raw and aligned.

    On the images held back to certify, or on the fitted ones where none are.
    """

    variant: str
    raw: tuple[Bin, ...]
    aligned: tuple[Bin, ...]


@dataclass(frozen=True, slots=True)
class Routing:
    """What routing decided: alignments by variant, plans, operating points, and what it found out.

    references: of the variants that the plans ask first.
    """

    alignments: dict[str, Alignment]
    plans: tuple[Plan, ...]
    operating_points: tuple[OperatingPoint, ...]
    references: tuple[Reference, ...]
    pairs: tuple[PairReport, ...]
    alignment: tuple[AlignmentReport, ...]


def fit_images(count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split calibration's images into those to fit on and those to certify on (none of a small set).

    The latter stay in random order: a certificate reads them one by one, and files often lie by camera.
    """
    order = np.random.default_rng([seed, 0xCE7]).permutation(count).astype(np.int64)
    held = int(count * _CERTIFY_SHARE) if count >= CERTIFY_MIN_IMAGES else 0
    return np.sort(order[held:]), order[:held]


def route(
    artifacts: Sequence[Artifact],
    views: Sequence[FrameView],
    truths: Sequence[Truth],
    *,
    classes: int,
    costs: Costs,
    seed: int,
    shares: Sequence[float] = SHARES,
    progress: Progress | None = None,
) -> Routing:
    """Fit alignments and gain models on calibration, and return the plans worth publishing.

    views: of the frames that the artifacts answered.
    shares: of the frames that a stage answers, those that go on; a plan of each pair for each. With too few
    images to fit a gain model on, there are only plans of one stage. Raises ValueError when an artifact's
    answers are not one per image.
    """
    progress = progress or Silent()
    fitted, certifying = fit_images(len(truths), seed)
    sides: dict[str, Answered] = {}
    alignments: dict[str, Alignment] = {}
    for artifact in artifacts:
        alignments[artifact.name] = fit_alignment(subset(artifact.table, fitted), classes)
        sides[artifact.name] = answered(artifact.answers, views, artifact.table, alignments[artifact.name])
    every = AnswerSet(sides, truths, classes)
    fits, held = every.part(fitted), every.part(certifying)

    singles = [_single(artifact, fits, costs) for artifact in artifacts]
    accuracy = {plan.stages[0].variant: plan.accuracy[0].map for plan in singles}
    wanted = _pairs_worth_it(artifacts, accuracy) if len(fitted) >= MIN_IMAGES else []
    maker = _PlanMaker({artifact.name: artifact for artifact in artifacts}, fits, costs)
    pairs: dict[tuple[str, str], Pair] = {}
    doubles: list[Plan] = []
    progress.start("route", len(wanted))
    for pair in fit_pairs(wanted, fits, seed, workers=_workers(len(wanted), len(fitted))):
        pairs[pair.fast, pair.larger] = pair
        doubles += [maker.double(pair, share) for share in shares]
        progress.advance(
            1, f"{pair.fast} → {pair.larger}: rank correlation {pair.report.rank_correlation:.2f}"
        )
    triples = _triples(worth_publishing([*singles, *doubles]), pairs, maker, shares, progress)
    plans = certified(
        worth_publishing([*singles, *doubles, *triples]), fits, held, len(truths), progress=progress
    )
    progress.start("compare other rules", len(pairs))
    reports: list[PairReport] = []
    for pair in pairs.values():
        reports.append(report_pair(pair, plans, fits, seed))
        progress.advance(1)
    seen = certifying if len(certifying) else fitted
    return Routing(
        alignments,
        tuple(plans),
        operating_points(plans),
        tuple(
            _reference(name, sides[name], classes)
            for name in dict.fromkeys(plan.stages[0].variant for plan in plans)
        ),
        tuple(reports),
        tuple(_alignment_report(artifact, sides[artifact.name].table, seen) for artifact in artifacts),
    )


def _reference(name: str, side: Answered, classes: int) -> Reference:
    pairs = zip(side.features, side.detections, strict=True)
    return Reference.of(name, np.array([observation(row, answer, classes) for row, answer in pairs]))


def score_plan(plan: Plan, answers: AnswerSet, *, split: SplitName) -> PlanAccuracy:
    """Score a published plan on answers of its variants, deciding with its own rules, as the router will."""
    in_hand = answers.ranking([stage.variant for stage in plan.stages], plan.fusion)
    return _plan_accuracy(score_stages(in_hand, answers.ends(plan)), split, len(answers.truths))


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

    Too many are thinned: the one goes that adds least area under the fronts of mAP over mean cost and of mAP
    over p99 (both costs logarithmic), but never a plan of one stage, nor the best.
    """
    stays = sorted(_unmatched(plans), key=lambda plan: (plan.mean_ms, plan.name))
    best = max(stays, key=_map)
    while len(stays) > MAX_PLANS:
        loose = [k for k in range(1, len(stays)) if len(stays[k].stages) > 1 and stays[k] is not best]
        if not loose:
            break
        accuracy = [_map(plan) for plan in stays]
        adds = _exclusive_areas([plan.mean_ms for plan in stays], accuracy)
        adds += _exclusive_areas([plan.p99_ms for plan in stays], accuracy)
        del stays[min(loose, key=lambda k: (adds[k], -stays[k].mean_ms))]
    return stays


def _exclusive_areas(costs_ms: Sequence[float], accuracy: Sequence[float]) -> NDArray[np.float64]:
    """Return for each point the area that it alone dominates, over the logarithm of its cost."""
    log_ms = np.log(costs_ms)
    areas = np.zeros(len(log_ms))
    front = non_dominated(list(zip(costs_ms, accuracy, strict=True)))
    ends = [*log_ms[front[1:]], log_ms[front[-1]] + 0.1]
    below = 0.0
    for i, end in zip(front, ends, strict=True):
        areas[i] = (end - log_ms[i]) * (accuracy[i] - below)
        below = accuracy[i]
    return areas


def _unmatched(plans: Sequence[Plan]) -> list[Plan]:
    """Return the plans that no other one matches in mean cost, p99 and mAP; of equals the first."""
    rows = np.array([(plan.mean_ms, plan.p99_ms, -_map(plan)) for plan in plans])
    earlier = np.arange(len(rows))
    out: list[Plan] = []
    for i, row in enumerate(rows):
        no_worse = (rows <= row).all(axis=1)
        if not (no_worse & ((rows < row).any(axis=1) | (earlier < i))).any():
            out.append(plans[i])
    return out


def _map(plan: Plan) -> float:
    return plan.accuracy_on("calibration").map


def _pairs_worth_it(artifacts: Sequence[Artifact], accuracy: dict[str, float]) -> list[tuple[str, str]]:
    return [
        (fast.name, larger.name)
        for fast in artifacts
        for larger in artifacts
        if fast.stage.mean_ms <= _WORTH_COST_RATIO * larger.stage.mean_ms
        and accuracy[fast.name] < accuracy[larger.name]
    ]


def _workers(pairs: int, images: int) -> int:
    """Return how many processes to fit with: to start them pays where there are many pairs or images."""
    return cores() if images >= MLP_MIN_IMAGES and pairs * images >= _WORKERS_FROM else 1


def _single(artifact: Artifact, fits: AnswerSet, costs: Costs) -> Plan:
    ranking = fits.ranking([artifact.name], "replace")
    score = score_stages(ranking, np.zeros(len(fits.truths), dtype=np.int64))
    cost = plan_cost(costs.decode, [artifact.stage], [1.0])
    return Plan(
        name=artifact.name,
        stages=(Stage(variant=artifact.name),),
        fusion="replace",
        runtime=costs.runtime,
        engines=artifact.runtimes,
        accuracy=(_plan_accuracy(score, "calibration", len(fits.truths)),),
        mean_ms=cost.mean_ms,
        p99_ms=cost.p99_ms,
        certificate=NoCertificate(
            reason="a plan of one stage is its own last stage: it loses nothing against it"
        ),
    )


def _alignment_report(artifact: Artifact, aligned: MatchTable, images: NDArray[np.int64]) -> AlignmentReport:
    return AlignmentReport(
        variant=artifact.name,
        raw=reliability(subset(artifact.table, images)),
        aligned=reliability(subset(aligned, images)),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _PlanMaker:
    """Makes plans of several stages from pairs, scored on the fitted images by held-out gains."""

    by_name: Mapping[str, Artifact]
    fits: AnswerSet
    costs: Costs

    def double(self, pair: Pair, share: float) -> Plan:
        """Return the plan in which a share of the frames goes on from the first of a pair to the second."""
        threshold = threshold_for_share(pair.gain.held_out, share)
        ends = escalate(pair.gain.held_out, threshold).astype(np.int64)
        # Names have room for three variants' names; the share is the one asked for, in percent.
        name = f"{pair.fast}.{pair.larger}.{round(100 * share):02d}"
        return self._plan(name, (pair,), (threshold,), ends, pair.fusion, pair.in_hand)

    def triples(
        self, doubles: Sequence[Plan], pairs: tuple[Pair, Pair], shares: Sequence[float]
    ) -> list[Plan]:
        """Lengthen plans of a pair by another: of the frames that reach their last stage, a share goes on."""
        first, second = pairs
        variants = (first.fast, first.larger, second.larger)
        in_hand = self.fits.ranking(variants, first.fusion)
        self.fits.forget(variants)
        out: list[Plan] = []
        for plan in doubles:
            rule = plan.stages[0].rule
            assert rule is not None
            going = escalate(first.gain.held_out, rule.threshold)
            for share in shares:
                threshold = threshold_for_share(second.gain.held_out[going], share)
                on = going & escalate(second.gain.held_out, threshold)
                name = f"{plan.name}.{second.larger}.{round(100 * share):02d}"
                ends = going.astype(np.int64) + on
                out.append(self._plan(name, pairs, (rule.threshold, threshold), ends, plan.fusion, in_hand))
        return out

    def _plan(
        self,
        name: str,
        pairs: tuple[Pair, ...],
        thresholds: tuple[float, ...],
        ends: NDArray[np.int64],
        fusion: Fusion,
        in_hand: Ranking,
    ) -> Plan:
        """Make the plan that walks along pairs; `ends` is where each fitted image ends, by held-out gains."""
        artifacts = [self.by_name[name] for name in (pairs[0].fast, *(pair.larger for pair in pairs))]
        scored = score_stages(in_hand, ends)
        stages = [artifact.stage for artifact in artifacts]
        cost = plan_cost(self.costs.rule, stages, [1.0, *scored.escalated])
        rules = [
            Stage(variant=pair.fast, rule=Rule(gain=pair.gain.model, threshold=threshold))
            for pair, threshold in zip(pairs, thresholds, strict=True)
        ]
        return Plan(
            name=name,
            stages=(*rules, Stage(variant=artifacts[-1].name)),
            fusion=fusion,
            runtime=self.costs.runtime,
            engines=tuple(
                runtime
                for runtime in artifacts[0].runtimes
                if all(runtime in artifact.runtimes for artifact in artifacts)
            ),
            accuracy=(_plan_accuracy(scored, "calibration", len(self.fits.truths)),),
            mean_ms=cost.mean_ms,
            p99_ms=cost.p99_ms,
            certificate=NoCertificate(reason="not tested yet"),
        )


def _triples(
    front: Sequence[Plan],
    pairs: Mapping[tuple[str, str], Pair],
    maker: _PlanMaker,
    shares: Sequence[float],
    progress: Progress,
) -> list[Plan]:
    """Lengthen the plans of two stages on the front by every pair that goes on from their last stage."""
    by_pair: dict[tuple[str, str], list[Plan]] = {}
    for plan in front:
        if len(plan.stages) == 2:
            by_pair.setdefault((plan.stages[0].variant, plan.stages[1].variant), []).append(plan)
    longer = [
        (doubles, (pairs[key], second))
        for key, doubles in by_pair.items()
        for second in pairs.values()
        if second.fast == key[1]
    ]
    progress.start("route, three stages", len(longer))
    out: list[Plan] = []
    for doubles, both in longer:
        out += maker.triples(doubles, both, shares[:: len(shares) // _THIRD_SHARES or 1])
        progress.advance(1, f"{len(out)} plans")
    return out


def _plan_accuracy(scored: PlanScore, split: SplitName, images: int) -> PlanAccuracy:
    return PlanAccuracy(
        split=split, images=images, map=scored.map, map50=scored.map50, escalated=scored.escalated
    )
