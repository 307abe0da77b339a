"""Refit a published repository on newly labelled frames: alignment, gain, thresholds, plans, certificates.

The models stay as they are and nothing needs torch: every published variant answers the new frames on this
machine, and what search decides from such answers is decided again. Latency profiles are the manifest's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from model_repo.detections import Detections
from model_repo.escalation import FrameView
from model_repo.frontier import (
    Certificate,
    Frontier,
    Measurement,
    OperatingPoint,
    Plan,
    SplitInfo,
    SplitName,
    Variant,
)
from model_repo.latency import RuntimeName
from model_repo.publish import Repository
from model_repo.scoring import MatchTable, subset
from search.align import fit_alignment
from search.answers import AnswerSet, answered
from search.asking import ask
from search.data.coco import Dataset
from search.gain import MIN_IMAGES
from search.measure import COST_FRAMES, LoadedSplit, accuracy_of, decode_cost, load_all, loaded, matched
from search.routing import SHARES, Artifact, Costs, Routing, fit_images, route, score_plan
from search.run_folder import Progress, RunError
from search.targets import Targets

POINT = "balanced"
"""The operating point that a wish decides: the one that is served unless a request says otherwise."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What the balanced operating point shall be; at most one of the three, none for the knee of the curve.

    Attributes:
        escalate: the share of frames in (0, 1) that goes on, whatever pair of models does best with it.
        max_loss: the certified excess loss over its last stage that it may have.
        max_mean_ms: the mean cost of a whole frame that it may have.
    """

    escalate: float | None = None
    max_loss: float | None = None
    max_mean_ms: float | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("escalate", "max_loss", "max_mean_ms") if getattr(self, name) is not None]
        if len(given) > 1:
            raise RunError(f"{' and '.join(given)} exclude each other")
        if self.escalate is not None and not 0.0 < self.escalate < 1.0:
            raise RunError(f"escalate: expected a share above 0 % and below 100 %, got {self.escalate:.0%}")
        for name in ("max_loss", "max_mean_ms"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise RunError(f"{name}: expected a positive number, got {value}")


@dataclass(frozen=True, slots=True, eq=False)
class _Answers:
    """What one variant on one runtime answered on a split, and how that met the labels."""

    detections: list[Detections]
    table: MatchTable


def calibrate(
    repository: Repository,
    dataset: Dataset,
    progress: Progress,
    targets: Targets,
    *,
    split: SplitName = "calibration",
    wish: Wish | None = None,
    seed: int = 0,
) -> Frontier:
    """Return the repository's frontier as it is when refitted on a split of labelled frames.

    The data set's test split, where it has one, scores the new plans, once. What the manifest says of a
    runtime that is not within reach stays as it was. Raises RunError when the classes differ, the split
    is missing or too small, or the wish cannot be met.
    """
    frontier, wish = repository.frontier, wish or Wish()
    check_classes(repository, dataset)
    if split not in dataset.splits:
        raise RunError(f"{dataset.root}: no split {split!r}, it has {', '.join(sorted(dataset.splits))}")
    frames = loaded(dataset, split)
    if len(frames) < MIN_IMAGES:
        raise RunError(f"{dataset.root}: {split}: {len(frames)} images are too few, {MIN_IMAGES} are needed")
    answers, views = _answer_all(repository, frames, progress, targets)
    first = frontier.plans[0].runtime
    if not any(runtime == first for _, runtime in answers):
        raise RunError(f"{repository.root}: its plans were made for {first}, which does not run here")
    routing = _route(frontier, first, dataset, frames, views, answers, wish, seed, progress)
    test = loaded(dataset, "test") if "test" in dataset.splits and split != "test" else None
    plans = routing.plans
    if test is not None:
        tested, test_views = _answer_all(repository, test, progress, targets, only=first)
        plans = _with_test(routing, tested, test, test_views, first, len(dataset.classes))
    return Frontier(
        dataset=frontier.dataset.model_copy(update={"splits": _splits(frontier, dataset, split)}),
        environment=frontier.environment,
        decode=frontier.decode,
        variants=tuple(
            _refitted(variant, frames, answers, routing, len(dataset.classes), seed)
            for variant in frontier.variants
        ),
        plans=plans,
        operating_points=_points(routing, wish),
        references=routing.references,
    )


def check_classes(repository: Repository, dataset: Dataset) -> None:
    """Raise RunError when a data set's classes are not those that the repository's models know."""
    known = repository.frontier.dataset.classes
    if dataset.classes != known:
        raise RunError(
            f"{dataset.root}: its classes are {', '.join(dataset.classes)}; the models of {repository.root}"
            f" know {', '.join(known)}"
        )


def _answer_all(
    repository: Repository,
    frames: LoadedSplit,
    progress: Progress,
    targets: Targets,
    only: RuntimeName | None = None,
) -> tuple[dict[tuple[str, RuntimeName], _Answers], tuple[FrameView, ...]]:
    """Ask every variant on every runtime that it was measured on and that is within reach, and look at the
    frames."""
    frontier = repository.frontier
    runtimes: dict[RuntimeName, list[Variant]] = {}
    for variant in frontier.variants:
        for runtime in variant.runtimes:
            if only in (None, runtime) and targets.supports(runtime, variant.precision):
                runtimes.setdefault(runtime, []).append(variant)
    found: dict[tuple[str, RuntimeName], _Answers] = {}
    views: tuple[FrameView, ...] = ()
    for runtime, variants in runtimes.items():
        with targets.engine(runtime) as engine:
            load_all(engine, repository.root, variants)
            progress.start(f"{len(variants)} models on {runtime}, {frames.name}", len(frames))
            replies = ask(engine, variants, frames.images, progress)
        views = replies.views
        progress.start(f"match answers on {runtime}, {frames.name}", len(variants))
        for name, detections in replies.detections.items():
            table = matched(frames, detections, len(frontier.dataset.classes))
            found[name, runtime] = _Answers(detections, table)
            progress.advance(1, name)
    return found, views


def _route(
    frontier: Frontier,
    runtime: RuntimeName,
    dataset: Dataset,
    frames: LoadedSplit,
    views: Sequence[FrameView],
    answers: dict[tuple[str, RuntimeName], _Answers],
    wish: Wish,
    seed: int,
    progress: Progress,
) -> Routing:
    records = dataset.splits[frames.name].images[:COST_FRAMES]
    artifacts = [
        Artifact(
            name=variant.name,
            answers=tuple(answers[variant.name, runtime].detections),
            table=answers[variant.name, runtime].table,
            stage=variant.on(runtime).profile(1).histogram,
            runtimes=variant.runtimes,
        )
        for variant in frontier.variants
        if (variant.name, runtime) in answers
    ]
    return route(
        artifacts,
        views,
        frames.truths,
        classes=len(dataset.classes),
        costs=Costs(
            runtime,
            frontier.decode,
            decode_cost([record.path.read_bytes() for record in records], rule=True),
        ),
        seed=seed,
        shares=SHARES if wish.escalate is None else (wish.escalate,),
        progress=progress,
    )


def _refitted(
    variant: Variant,
    frames: LoadedSplit,
    answers: dict[tuple[str, RuntimeName], _Answers],
    routing: Routing,
    classes: int,
    seed: int,
) -> Variant:
    fitted, _ = fit_images(len(frames), seed)
    measurements: list[Measurement] = []
    for measurement in variant.measurements:
        own = answers.get((variant.name, measurement.runtime))
        if own is None:
            measurements.append(measurement)
            continue
        seen = subset(own.table, fitted)
        accuracy = accuracy_of(seen, "calibration", seed=seed)
        others = tuple(kept for kept in measurement.accuracy if kept.split != "calibration")
        measurements.append(
            measurement.model_copy(
                update={"alignment": fit_alignment(seen, classes), "accuracy": (*others, accuracy)}
            )
        )
    return variant.model_copy(update={"measurements": tuple(measurements)})


def _with_test(
    routing: Routing,
    tested: dict[tuple[str, RuntimeName], _Answers],
    test: LoadedSplit,
    views: Sequence[FrameView],
    runtime: RuntimeName,
    classes: int,
) -> tuple[Plan, ...]:
    sides = {
        name: answered(tested[name, runtime].detections, views, tested[name, runtime].table, alignment)
        for name, alignment in routing.alignments.items()
    }
    on_test = AnswerSet(sides, test.truths, classes)
    scored: list[Plan] = []
    for plan in routing.plans:
        accuracy = score_plan(plan, on_test, split="test")
        scored.append(plan.model_copy(update={"accuracy": (*plan.accuracy, accuracy)}))
    return tuple(scored)


def _splits(frontier: Frontier, dataset: Dataset, split: SplitName) -> tuple[SplitInfo, ...]:
    images = dataset.splits[split].images
    info = SplitInfo(name="calibration", images=len(images), boxes=sum(len(image.labels) for image in images))
    return (*(old for old in frontier.dataset.splits if old.name != "calibration"), info)


def _points(routing: Routing, wish: Wish) -> tuple[OperatingPoint, ...]:
    chosen = wished_for(routing.plans, wish)
    if chosen is None:
        return routing.operating_points
    return tuple(
        OperatingPoint(name=POINT, plan=chosen.name) if point.name == POINT else point
        for point in routing.operating_points
    )


def wished_for(plans: tuple[Plan, ...], wish: Wish) -> Plan | None:
    """Return the plan that a wish chooses, None for no wish; raises RunError naming what would be possible.

    escalate: the most accurate of two stages. max_mean_ms: the most accurate that costs no more.
    max_loss: the cheapest whose certified excess loss is no more, of those that share the last stage of the
    most accurate one: against another, a small loss would say little.
    """
    if wish.escalate is not None:
        cascades = [plan for plan in plans if len(plan.stages) > 1]
        if not cascades:
            raise RunError(f"escalate: no two models pay together at {wish.escalate:.0%}")
        return max(cascades, key=_accuracy)
    if wish.max_mean_ms is not None:
        cheap = [plan for plan in plans if plan.mean_ms <= wish.max_mean_ms]
        if not cheap:
            least = min(plan.mean_ms for plan in plans)
            raise RunError(f"max_mean_ms: the cheapest plan costs {least:.2f} ms")
        return max(cheap, key=_accuracy)
    if wish.max_loss is not None:
        last = max(plans, key=_accuracy).stages[-1].variant
        certified = [
            (plan.certificate.epsilon, plan)
            for plan in plans
            if isinstance(plan.certificate, Certificate) and plan.stages[-1].variant == last
        ]
        fine = [plan for epsilon, plan in certified if epsilon <= wish.max_loss]
        if not fine:
            possible = min((epsilon for epsilon, _ in certified), default=None)
            raise RunError(
                "max_loss: no plan has a certificate; more labelled frames are needed"
                if possible is None
                else f"max_loss: the smallest that these frames can certify is {possible:.3f}"
            )
        return min(fine, key=lambda plan: plan.mean_ms)
    return None


def _accuracy(plan: Plan) -> float:
    return plan.accuracy_on("calibration").map
