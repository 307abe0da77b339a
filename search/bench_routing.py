"""Claims about escalation, on frames that nothing was fitted or chosen on.

Every published pair's gain model is compared with other rules on the test split, with paired bootstrap
intervals; so are raw and aligned scores.

Claims are judged on the pair from the fastest to the largest model, whose gain is fitted here on calibration
when no plan asks that pair. The oracle knows each frame's luck, which no rule can: the smaller the difference
of two models is against what chance does to a frame, the more of the oracle's lead is luck; the fewer frames,
too, which is why its share is judged on the pool where there is one. The table has all pairs.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from model_repo.escalation import GainModel, features
from model_repo.frontier import Frontier, SplitName, Variant
from model_repo.fusion import Fusion
from model_repo.latency import RuntimeName
from model_repo.publish import Repository, file_digest
from model_repo.runtime.engine import Engine
from model_repo.runtime.select import default_runtime, make_engine
from model_repo.scoring import Ranking, mean_precision
from search.align import calibration_error, reliability
from search.answers import AnswerSet, answered
from search.artifacts import cores
from search.asking import ask
from search.bench_certificate import LEAST_POOL, try_certificate
from search.calibrate import check_classes
from search.data.coco import Dataset
from search.difficulty import smallest_and_largest
from search.gain import MIN_IMAGES, swap_influences
from search.measure import loaded, matched
from search.pairs import fit_pairs
from search.rivals import BASELINES, RATES, REPORTED_RATE, Rival, RuleCurve, curve_of, priorities, rule_curves
from search.routing import fit_images
from search.routing_claims import AlignmentError, Difference, Interval, PairResult, RoutingResult
from search.run_folder import Progress, RunError

RESAMPLES = 50
HALF_DRAWS = 200
_DECISIONS = 300

PairKey = tuple[str, str, Fusion]


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """What variants answered: under aligned scores with their features, and under raw ones with the same."""

    answers: AnswerSet
    raw: AnswerSet


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
    models = gain_models(frontier, runtime)
    if not models:
        raise RunError(f"{repository.root} publishes no plan of two stages for {runtime}")
    check_classes(repository, dataset)
    if pool is not None:
        check_classes(repository, pool)
        pool = _without(pool, dataset)
        found = len(pool.splits["test"].images)
        if found < LEAST_POOL:
            raise RunError(f"{pool.root}: test: {found} other frames are too few, {LEAST_POOL} are needed")
    ends = smallest_and_largest(frontier, runtime)
    names = {name for pair in models for name in pair[:2]} | {variant.name for variant in ends}
    variants = [variant for variant in frontier.variants if variant.name in names]
    cv2.setNumThreads(1)
    engine = make_engine(runtime, threads=1, parallelism=cores())
    for variant in variants:
        engine.load(repository.root, variant)
    published = tuple(models)
    widest = _widest(ends, models)
    if widest is None and _can_fit(dataset):
        calibration = ask_split(engine, ends, dataset, runtime, progress, split="calibration").answers
        fitted, _ = fit_images(len(calibration.truths), seed)
        (made,) = fit_pairs([(ends[0].name, ends[1].name)], calibration.part(fitted), seed)
        widest = (made.fast, made.larger, made.fusion)
        models[widest] = made.gain.model
    asked = ask_split(engine, variants, dataset, runtime, progress)
    progress.start("bootstrap", len(models))
    pairs = {}
    for key, model in models.items():
        pairs[key] = _pair(asked.answers, key, model, seed, resamples)
        progress.advance(1, f"{key[0]} → {key[1]}")
    certificate, on_pool = None, None
    if pool is not None:
        chosen = _largest_gap(pairs[key] for key in published)
        key = chosen.fast, chosen.larger, chosen.fusion
        wanted = {*key[:2], *(widest or ())[:2]}
        only = [variant for variant in variants if variant.name in wanted]
        pooled = ask_split(engine, only, pool, runtime, progress).answers
        certificate = try_certificate(asked.answers, pooled, key, models[key], seed=seed, progress=progress)
        on_pool = None if widest is None else _curves(pooled, widest, models[widest], seed)
    engine.close()
    return RoutingResult(
        frames=len(asked.answers.truths),
        pairs=tuple(pairs.values()),
        widest=None if widest is None else pairs[widest],
        on_pool=on_pool,
        errors=tuple(_error(asked, name) for name in asked.raw.sides),
        half=_half(frontier, runtime, asked.answers, seed),
        decision_us=_decision_us(asked.answers, dataset, next(iter(models.items()))),
        certificate=certificate,
    )


def _widest(ends: tuple[Variant, Variant], models: Mapping[PairKey, GainModel]) -> PairKey | None:
    names = tuple(variant.name for variant in ends)
    return next((key for key in models if key[:2] == names), None)


def _can_fit(dataset: Dataset) -> bool:
    split = dataset.splits.get("calibration")
    return split is not None and len(split.images) >= MIN_IMAGES


def _largest_gap(pairs: Iterable[PairResult]) -> PairResult:
    """Return the pair with the largest gap, of those that end at the most accurate model."""
    ordered = list(pairs)
    best = max(row.larger_map for row in ordered)
    return max(
        (row for row in ordered if row.larger_map == best), key=lambda row: row.larger_map - row.fast_map
    )


def _without(pool: Dataset, dataset: Dataset) -> Dataset:
    """Return the pool less the frames that also stand in the data set's test split."""
    seen = {file_digest(record.path) for record in dataset.splits["test"].images}
    split = pool.splits["test"]
    others = tuple(r for r in split.images if file_digest(r.path) not in seen)
    return replace(pool, splits={**pool.splits, "test": replace(split, images=others)})


def gain_models(frontier: Frontier, runtime: RuntimeName) -> dict[PairKey, GainModel]:
    """Return the gain model of every pair that a published plan of two stages asks."""
    out: dict[PairKey, GainModel] = {}
    for plan in frontier.plans:
        rule = plan.stages[0].rule
        if len(plan.stages) == 2 and rule is not None and runtime in plan.engines:
            out[plan.stages[0].variant, plan.stages[1].variant, plan.fusion] = rule.gain
    return out


def ask_split(
    engine: Engine,
    variants: Sequence[Variant],
    dataset: Dataset,
    runtime: RuntimeName,
    progress: Progress,
    *,
    split: SplitName = "test",
) -> Asked:
    """Answer a split, and align and describe the answers."""
    found, classes = loaded(dataset, split), len(dataset.classes)
    progress.start(f"{len(variants)} models on {dataset.root.name}, {split}", len(found))
    replies = ask(engine, variants, found.images, progress)
    sides, raw_sides = {}, {}
    for variant in variants:
        raw = tuple(replies.detections[variant.name])
        table = matched(found, raw, classes)
        side = answered(raw, replies.views, table, variant.on(runtime).alignment)
        sides[variant.name], raw_sides[variant.name] = side, replace(side, detections=raw, table=table)
    return Asked(AnswerSet(sides, found.truths, classes), AnswerSet(raw_sides, found.truths, classes))


def _ranked(
    answers: AnswerSet, key: PairKey, model: GainModel, seed: int
) -> tuple[Ranking, dict[Rival, list[NDArray[np.float64]]]]:
    fast, larger, fusion = key
    in_hand = answers.ranking((fast, larger), fusion)
    gains = model.compiled().predict(answers.sides[fast].features)
    return in_hand, priorities(answers.sides[fast], gains, swap_influences(in_hand), seed=seed)


def _curves(answers: AnswerSet, key: PairKey, model: GainModel, seed: int) -> tuple[RuleCurve, ...]:
    return rule_curves(*_ranked(answers, key, model, seed))


def _pair(answers: AnswerSet, key: PairKey, model: GainModel, seed: int, resamples: int) -> PairResult:
    fast, larger, fusion = key
    in_hand, ranked = _ranked(answers, key, model, seed)
    rng = np.random.default_rng([seed, 0xB0])
    count = len(answers.truths)
    averages: dict[Rival, list[float]] = {rule: [] for rule in BASELINES}
    reported: dict[Rival, list[float]] = {rule: [] for rule in BASELINES}
    once = {rule: draws[:1] for rule, draws in ranked.items()}  # a resample is a draw of chance by itself
    for _ in range(resamples):
        weights = np.bincount(rng.integers(0, count, count), minlength=count)
        curves = rule_curves(in_hand, once, weights)
        for rule in BASELINES:
            average, at_rate = _ahead_of(curves, rule)
            averages[rule].append(average)
            reported[rule].append(at_rate)
    curves = rule_curves(in_hand, ranked)
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
        mean_precision(answers.sides[fast].table),
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
        calibration_error(reliability(asked.raw.sides[name].table)),
        calibration_error(reliability(asked.answers.sides[name].table)),
    )


def _half(frontier: Frontier, runtime: RuntimeName, answers: AnswerSet, seed: int) -> float:
    """Return the share of the gap between the fastest and the largest that a random half recovers, on average
    over draws, when the larger answer replaces the fast one."""
    ends = [variant.name for variant in smallest_and_largest(frontier, runtime)]
    low, high = (mean_precision(answers.sides[name].table) for name in ends)
    rng = np.random.default_rng([seed, 0x2F])
    count, both = len(answers.truths), answers.ranking(ends, "replace")
    halves = [(rng.permutation(count) < count // 2).astype(np.int64) for _ in range(HALF_DRAWS)]
    draws = [both.map(both.once(half)) for half in halves]
    return (float(np.mean(draws)) - low) / (high - low) if high > low else 0.0


def _decision_us(answers: AnswerSet, dataset: Dataset, model: tuple[PairKey, GainModel]) -> float:
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
