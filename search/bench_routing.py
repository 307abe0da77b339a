"""Claims about escalation, on frames that nothing was fitted or chosen on.

Every published pair's gain model is compared with other rules on the test split, with paired bootstrap
intervals; so are raw and aligned scores. The certificate is tried against a pool so large that its mean
stands for the truth: many calibration sets are drawn from it, the cheapest plan that each certifies for the
asked excess is taken, and how often that plan's true excess is larger is counted.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from model_repo.detections import Detections
from model_repo.escalation import GainModel, features
from model_repo.frontier import Frontier, Variant
from model_repo.fusion import Fusion
from model_repo.latency import RuntimeName
from model_repo.plans import escalate, threshold_for_share
from model_repo.publish import Repository, file_digest
from model_repo.runtime.engine import Engine, answer_frame
from model_repo.runtime.select import default_runtime, make_engine
from model_repo.scoring import MatchTable, match, mean_precision, mix
from search.align import aligned_table, calibration_error, reliability
from search.answers import Answered, AnswerSet
from search.artifacts import cores
from search.calibrate import check_classes
from search.certify import in_fixed_sequence, in_turn
from search.data.coco import Dataset, ImageRecord
from search.difficulty import smallest_and_largest
from search.gain import swap_influences
from search.measure import truths_of
from search.rivals import BASELINES, RATES, REPORTED_RATE, Rival, RuleCurve, curve_of, priorities, rule_curves
from search.routing import SHARES
from search.run_folder import Progress, RunError

RESAMPLES = 50
HALF_DRAWS = 200
DRAWS, DRAW_FRAMES, LEAST_POOL = 500, 5_000, 20_000
ASKED_EXCESS, ASKED_DELTA = 0.02, 0.05
_DECISIONS = 300


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and the 95 % interval that it has over resampled frames."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, resampled: Sequence[float]) -> Interval:
        """Take the interval from the values of resamples."""
        low, high = np.quantile(resampled, [0.025, 0.975])
        return cls(value, float(low), float(high))


@dataclass(frozen=True, slots=True)
class Difference:
    """By how much the gain is ahead of a baseline, in points of mAP: on average over all rates, and at
    REPORTED_RATE."""

    rule: Rival
    average: Interval
    reported: Interval


@dataclass(frozen=True, slots=True)
class AlignmentError:
    """A model's calibration error with its raw and with its aligned scores."""

    variant: str
    raw: float
    aligned: float


@dataclass(frozen=True, slots=True)
class PairResult:
    """A pair of models on test: both mAPs, each rule's curve, and how far the gain is ahead."""

    fast: str
    larger: str
    fusion: Fusion
    fast_map: float
    larger_map: float
    curves: tuple[RuleCurve, ...]
    ahead: tuple[Difference, ...]


@dataclass(frozen=True, slots=True)
class CertificateResult:
    """What many certified choices did: how often the truth exceeded, how many draws certified nothing, and
    what was escalated on average (None where nothing was)."""

    pair: tuple[str, str]
    pool: int
    exceeded: int
    uncertified: int
    escalated: float | None


@dataclass(frozen=True, slots=True)
class RoutingResult:
    """Everything that was measured; `half` is the share of the gap that a random half recovers, `decision_us`
    the best of many decisions."""

    frames: int
    pairs: tuple[PairResult, ...]
    errors: tuple[AlignmentError, ...]
    half: float
    decision_us: float
    certificate: CertificateResult | None


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """What variants answered: under aligned scores with features, and the matches of the raw scores."""

    answers: AnswerSet
    raw: dict[str, MatchTable]


def routing(
    repository: Repository,
    dataset: Dataset,
    progress: Progress,
    *,
    pool: Dataset | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> RoutingResult:
    """Measure what the published rules are worth on the test split, and the certificate on a pool's.

    Raises RunError when the repository publishes no plan of two stages for this processor's runtime, when a
    set's classes are not the repository's, or when the pool is too small to stand for the truth.
    """
    frontier, runtime = repository.frontier, default_runtime()
    models = _gain_models(frontier, runtime)
    if not models:
        raise RunError(f"{repository.root} publishes no plan of two stages for {runtime}")
    check_classes(repository, dataset)
    if pool is not None:
        check_classes(repository, pool)
        pool = _without(pool, dataset)
        found = len(pool.splits["test"].images)
        if found < LEAST_POOL:
            raise RunError(f"{pool.root}: test: {found} other frames are too few, {LEAST_POOL} are needed")
    names = {name for pair in models for name in pair[:2]}
    names |= {variant.name for variant in smallest_and_largest(frontier, runtime)}
    variants = [variant for variant in frontier.variants if variant.name in names]
    cv2.setNumThreads(1)
    engine = make_engine(runtime, threads=1, parallelism=cores())
    for variant in variants:
        engine.load(repository.root, variant)
    asked = ask_test_split(engine, variants, dataset, runtime, progress)
    progress.start("bootstrap", len(models))
    pairs = []
    for (fast, larger, fusion), model in models.items():
        pairs.append(_pair(asked.answers, fast, larger, fusion, model, seed, resamples))
        progress.advance(1, f"{fast} → {larger}")
    certificate = None
    if pool is not None:
        chosen = max(
            (pair for pair in pairs if pair.larger_map == max(row.larger_map for row in pairs)),
            key=lambda pair: pair.larger_map - pair.fast_map,
        )
        key = chosen.fast, chosen.larger, chosen.fusion
        only = [variant for variant in variants if variant.name in key[:2]]
        pooled = ask_test_split(engine, only, pool, runtime, progress).answers
        certificate = try_certificate(asked.answers, pooled, key, models[key], seed=seed, progress=progress)
    engine.close()
    return RoutingResult(
        frames=len(asked.answers.truths),
        pairs=tuple(pairs),
        errors=tuple(_error(asked, name) for name in asked.raw),
        half=_half(frontier, runtime, asked.answers, seed),
        decision_us=_decision_us(asked.answers, dataset, next(iter(models.items()))),
        certificate=certificate,
    )


def _without(pool: Dataset, dataset: Dataset) -> Dataset:
    """Return the pool less the frames that also stand in the data set's test split."""
    seen = {file_digest(record.path) for record in dataset.splits["test"].images}
    split = pool.splits["test"]
    others = tuple(r for r in split.images if file_digest(r.path) not in seen)
    return replace(pool, splits={**pool.splits, "test": replace(split, images=others)})


def _gain_models(frontier: Frontier, runtime: RuntimeName) -> dict[tuple[str, str, Fusion], GainModel]:
    """Return the gain model of every pair that a published plan of two stages asks."""
    out: dict[tuple[str, str, Fusion], GainModel] = {}
    for plan in frontier.plans:
        rule = plan.stages[0].rule
        if len(plan.stages) == 2 and rule is not None and runtime in plan.engines:
            out[plan.stages[0].variant, plan.stages[1].variant, plan.fusion] = rule.gain
    return out


def ask_test_split(
    engine: Engine, variants: Sequence[Variant], dataset: Dataset, runtime: RuntimeName, progress: Progress
) -> Asked:
    """Answer the test split frame by frame; a pool's frames would not fit into memory together."""
    records = dataset.splits["test"].images
    alignments = {variant.name: variant.on(runtime).alignment for variant in variants}
    progress.start(f"{len(variants)} models on {dataset.root.name}", len(records))

    def ask(record: ImageRecord) -> list[tuple[Detections, Detections, NDArray[np.float32]]]:
        image = record.frame()
        out = []
        for variant in variants:
            raw = answer_frame(engine, variant, image).detections
            aligned = alignments[variant.name].apply(raw)
            out.append((raw, aligned, features(aligned, image)))
        return out

    rows = []
    with ThreadPoolExecutor(engine.parallelism) as threads:
        for row in threads.map(ask, records):
            rows.append(row)
            progress.advance(1)
    truths, classes = truths_of(dataset, "test"), len(dataset.classes)
    sides, raw_tables = {}, {}
    for k, variant in enumerate(variants):
        table = match(truths, [row[k][0] for row in rows], classes)
        raw_tables[variant.name] = table
        sides[variant.name] = Answered(
            tuple(row[k][1] for row in rows),
            aligned_table(table, alignments[variant.name]),
            np.array([row[k][2] for row in rows]),
        )
    return Asked(AnswerSet(sides, truths, classes), raw_tables)


def _pair(
    answers: AnswerSet,
    fast: str,
    larger: str,
    fusion: Fusion,
    model: GainModel,
    seed: int,
    resamples: int,
) -> PairResult:
    first = answers.sides[fast]
    in_hand = answers.in_hand((fast, larger), fusion)[1]
    gains = model.compiled().predict(first.features)
    ranked = priorities(first, gains, swap_influences(first.table, in_hand), seed=seed)
    rng = np.random.default_rng([seed, 0xB0])
    count = len(answers.truths)
    averages: dict[Rival, list[float]] = {rule: [] for rule in BASELINES}
    reported: dict[Rival, list[float]] = {rule: [] for rule in BASELINES}
    once = {rule: draws[:1] for rule, draws in ranked.items()}  # a resample is a draw of chance by itself
    for _ in range(resamples):
        weights = np.bincount(rng.integers(0, count, count), minlength=count)
        curves = rule_curves(first.table, in_hand, once, weights)
        for rule in BASELINES:
            average, at_rate = _ahead_of(curves, rule)
            averages[rule].append(average)
            reported[rule].append(at_rate)
    curves = rule_curves(first.table, in_hand, ranked)
    ahead = []
    for rule in BASELINES:
        average, at_rate = _ahead_of(curves, rule)
        ahead.append(
            Difference(rule, Interval.of(average, averages[rule]), Interval.of(at_rate, reported[rule]))
        )
    return PairResult(
        fast,
        larger,
        fusion,
        mean_precision(first.table),
        mean_precision(answers.sides[larger].table),
        curves,
        tuple(ahead),
    )


def _ahead_of(curves: Sequence[RuleCurve], rule: Rival) -> tuple[float, float]:
    """Return by how many points of mAP the gain is ahead of a rule: averaged over rates, at REPORTED_RATE."""
    gain, rival = curve_of(curves, "gain"), curve_of(curves, rule)
    at = RATES.index(REPORTED_RATE)
    return 100 * (gain.average - rival.average), 100 * (gain.map[at] - rival.map[at])


def _error(asked: Asked, name: str) -> AlignmentError:
    return AlignmentError(
        name,
        calibration_error(reliability(asked.raw[name])),
        calibration_error(reliability(asked.answers.sides[name].table)),
    )


def _half(frontier: Frontier, runtime: RuntimeName, answers: AnswerSet, seed: int) -> float:
    """Return the share of the gap between the fastest and the largest that a random half recovers, on average
    over draws, when the larger answer replaces the fast one."""
    fast, larger = (answers.sides[v.name].table for v in smallest_and_largest(frontier, runtime))
    rng = np.random.default_rng([seed, 0x2F])
    count = len(answers.truths)
    low, high = mean_precision(fast), mean_precision(larger)
    draws = [
        mean_precision(mix((fast, larger), (rng.permutation(count) < count // 2).astype(np.int64)))
        for _ in range(HALF_DRAWS)
    ]
    return (float(np.mean(draws)) - low) / (high - low) if high > low else 0.0


def _decision_us(
    answers: AnswerSet, dataset: Dataset, model: tuple[tuple[str, str, Fusion], GainModel]
) -> float:
    """Return the microseconds that features and gain of one frame take, the best of many."""
    (fast, _, _), gain = model
    compiled = gain.compiled()
    image = dataset.splits["test"].images[0].frame()
    answer = answers.sides[fast].detections[0]
    spent = []
    for _ in range(_DECISIONS):
        start_ns = time.perf_counter_ns()
        compiled.predict(features(answer, image)[None])
        spent.append(time.perf_counter_ns() - start_ns)
    return min(spent) / 1e3


def try_certificate(
    fixed: AnswerSet,
    pool: AnswerSet,
    pair: tuple[str, str, Fusion],
    model: GainModel,
    *,
    seed: int,
    progress: Progress,
    draws: int = DRAWS,
    frames: int = DRAW_FRAMES,
) -> CertificateResult:
    """Draw calibration sets of so many frames from the pool, and compare what each certifies with the pool's
    mean.

    Thresholds, scores and the order of testing are fixed on the other frames, as `search.certify` does on the
    fitted ones.
    """
    fast, larger, fusion = pair
    gain = model.compiled()
    fixed_gains, pool_gains = (gain.predict(answers.sides[fast].features) for answers in (fixed, pool))
    plans, rates = [], []
    for share in SHARES:
        threshold = threshold_for_share(fixed_gains, share)
        ends = [escalate(gains, threshold).astype(np.int64) for gains in (fixed_gains, pool_gains)]
        on_fixed, on_pool = (
            (mix(answers.in_hand((fast, larger), fusion), end), answers.sides[larger].table)
            for answers, end in zip((fixed, pool), ends, strict=True)
        )
        plans.append((on_fixed, on_pool))
        rates.append(float(ends[1].mean()))
    tried = in_turn(plans)
    rng = np.random.default_rng([seed, 0xCE])
    count = len(pool.truths)
    exceeded = uncertified = 0
    escalated = []
    progress.start("certificates", draws)
    for _ in range(draws):
        drawn = rng.integers(0, count, frames)
        tested = in_fixed_sequence([excess[drawn] for _, _, excess in tried], ASKED_DELTA)
        passed = [row for row, (_, epsilon) in zip(tried, tested, strict=True) if epsilon <= ASKED_EXCESS]
        if passed:
            chosen, _, excess = min(passed, key=lambda row: rates[row[0]])
            exceeded += float(excess.mean()) > ASKED_EXCESS
            escalated.append(rates[chosen])
        else:
            uncertified += 1
        progress.advance(1)
    return CertificateResult(
        (fast, larger), count, exceeded, uncertified, float(np.mean(escalated)) if escalated else None
    )
