"""What there is to see on the gateway's own page: the frontier as it is served, how the gateway does, frames.

Half a second's figures are computed once, however many look.
"""

from __future__ import annotations

import asyncio
import base64
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from model_repo.frontier import Certificate, Frontier, Plan, SplitName, non_dominated
from router.budget import Clock
from router.console_documents import (
    BoxDocument,
    CountDocument,
    FrontierDocument,
    PlottedDocument,
    RecentDocument,
    SignalDocument,
    StateDocument,
    TotalsDocument,
)
from router.documents import StageDocument
from router.drift import Signal
from router.engines import Fleet, published_accuracy
from router.execution import Answer
from router.metrics import BUCKETS_S, State
from router.planner import DECODE
from router.recent import RecentFrame, RecentFrames
from router.service import Service
from router.serving import Serving
from router.shapes import DRAWN_FROM
from router.totals import Totals, read_totals

_FRESH_S = 0.5
_MOST_SIGNALS, _MOST_BOXES = 6, 40


@dataclass(frozen=True, slots=True)
class Served:
    """By what the gateway answers: its release, and the runtime with its version."""

    release: str
    runtime: str
    runtime_version: str


class ConsoleView:
    """Describe a gateway to its page; lives on the event loop.

    recent: None where none are to be shown.
    """

    def __init__(
        self,
        service: Service,
        registry: CollectorRegistry,
        clock: Clock,
        served: Served,
        recent: RecentFrames | None,
    ) -> None:
        self._service, self._registry, self._clock = service, registry, clock
        self._served, self._recent = served, recent
        self._instance = uuid.uuid4().hex
        self._turn = asyncio.Lock()
        self._written, self._written_ns = b"", -(2**63)

    def frontier(self) -> FrontierDocument:
        """Return the set in force."""
        return describe_frontier(self._service.serving, self._served)

    def frames(self, after: int) -> tuple[RecentDocument, ...]:
        """Return the recent frames after the one of this number, oldest first; from now on some are kept."""
        if self._recent is None:
            return ()
        now_ns = self._clock.now_ns()
        return tuple(_described(frame, now_ns) for frame in self._recent.since(after))

    async def state(self) -> bytes:
        """Return a `StateDocument` in JSON that is at most half a second old."""
        async with self._turn:
            if self._clock.now_ns() - self._written_ns > _FRESH_S * 1e9:
                # In a thread of its own: the event loop has others to serve.
                totals = await asyncio.to_thread(read_totals, self._registry)
                self._written = self._state(totals).model_dump_json().encode()
                self._written_ns = self._clock.now_ns()
        return self._written

    def _state(self, totals: Totals) -> StateDocument:
        service = self._service
        serving, state = service.serving, service.state()
        slowest, slow_down = max(state.slow_down, key=lambda each: each[1], default=(None, 1.0))
        return StateDocument(
            instance=self._instance,
            at_s=self._clock.now_ns() / 1e9,
            manifest=serving.repository.digest,
            ready=state.ready,
            engine_up=state.engine_up,
            inside=state.inside,
            waiting=state.waiting,
            busy=state.busy,
            workers=state.workers,
            limit=state.limit,
            operating_point=state.operating_point,
            plan=serving.in_force(state.operating_point).plan.name,
            held=service.held is not None,
            slowest="decoding" if slowest == DECODE else slowest,
            slow_down=slow_down,
            latency_drift=sorted(state.drifting),
            signals=[
                SignalDocument(subject=one.subject, name=one.name, height=one.height, rings=one.rings)
                for one in _foremost(state)
            ],
            certified=len(state.certified),
            void=[plan for plan, holds in state.certified if not holds],
            frames=0 if self._recent is None else self._recent.most,
            totals=TotalsDocument(
                outcomes=[CountDocument(name=name, count=count) for name, count in totals.outcomes],
                answers=[CountDocument(name=name, count=count) for name, count in totals.answers],
                budgeted=totals.budgeted,
                missed=totals.missed,
                decided=totals.decided,
                escalated=totals.escalated,
                cut=totals.cut,
                within=list(totals.within),
                bounds_ms=[bound * 1e3 for bound in BUCKETS_S],
            ),
        )


def _described(frame: RecentFrame, now_ns: int) -> RecentDocument:
    answer = frame.answer
    return RecentDocument(
        number=frame.number,
        age_s=(now_ns - frame.at_ns) / 1e9,
        jpeg=base64.b64encode(frame.jpeg).decode(),
        width=answer.image_wh[0],
        height=answer.image_wh[1],
        boxes=list(_boxes(answer)),
        operating_point=answer.operating_point,
        plan=answer.plan.name,
        stages=[StageDocument(variant=run.variant, latency_ms=run.latency_ms) for run in answer.stages],
        cut=None if answer.cut is None else answer.cut.stage,
        total_ms=answer.total_ms,
        late=answer.left_ms < 0,
    )  # fmt: skip


def _boxes(answer: Answer) -> Iterator[BoxDocument]:
    """Yield the boxes worth drawing, best first."""
    found, (width, height) = answer.detections, answer.image_wh
    for (x1, y1, x2, y2), score, label in zip(
        found.xyxy[:_MOST_BOXES].tolist(),
        found.score[:_MOST_BOXES].tolist(),
        found.label[:_MOST_BOXES].tolist(),
        strict=True,
    ):
        if score >= DRAWN_FROM:
            yield BoxDocument(
                x1=x1 / width,
                y1=y1 / height,
                x2=x2 / width,
                y2=y2 / height,
                class_id=label,
                label=answer.classes[label],
                score=score,
            )


def _foremost(state: State) -> list[Signal]:
    """Return the signals that ring, and the highest of the others, highest first."""
    ordered = sorted(state.signals, key=lambda signal: (not signal.rings, -signal.height))
    ringing = sum(signal.rings for signal in ordered)
    return ordered[: max(ringing, _MOST_SIGNALS)]


def describe_frontier(serving: Serving, served: Served) -> FrontierDocument:
    """Describe a set: its plans, and the models that are none of them by themselves."""
    fleet, frontier = serving.fleet, serving.frontier
    expected_ms = fleet.mean_ms(frontier.decode)
    plotted = list(_plotted(fleet, frontier))
    scored = [(number, accuracy) for number, (_, _, accuracy) in enumerate(plotted) if accuracy is not None]

    def undominated(costs_ms: list[float]) -> frozenset[int]:
        kept = non_dominated([(costs_ms[number], accuracy) for number, accuracy in scored])
        return frozenset(scored[place][0] for place in kept)

    by_mean = undominated([expected_ms[plan.name] for plan, _, _ in plotted])
    by_p99 = undominated([plan.p99_ms for plan, _, _ in plotted])
    described = [
        PlottedDocument(
            name=plan.name,
            stages=[stage.variant for stage in plan.stages],
            split=split,
            map=accuracy,
            expected_ms=expected_ms[plan.name],
            p99_ms=plan.p99_ms,
            escalated=plan.accuracy[0].escalated[0] if len(plan.stages) > 1 and plan.accuracy else None,
            on_frontier=number in by_mean,
            on_p99_frontier=number in by_p99,
            points=[point.name for point in fleet.points if point.plan.name == plan.name],
            epsilon=plan.certificate.epsilon if isinstance(plan.certificate, Certificate) else None,
            delta=plan.certificate.delta if isinstance(plan.certificate, Certificate) else None,
        )
        for number, (plan, split, accuracy) in enumerate(plotted)
    ]
    return FrontierDocument(
        manifest=serving.repository.digest,
        dataset=frontier.dataset.name,
        runtime=served.runtime,
        runtime_version=served.runtime_version,
        release=served.release,
        profiles="measured here" if fleet.measured_here else "published",
        home=serving.home.name,
        plotted=sorted(described, key=lambda one: one.expected_ms),
    )


def _plotted(fleet: Fleet, frontier: Frontier) -> Iterator[tuple[Plan, SplitName | None, float | None]]:
    """Yield plans with the split of their accuracy and their mAP there."""
    splits: set[SplitName] = set()
    for plan in fleet.plans:
        accuracy = published_accuracy(plan)
        yield (plan, None, None) if accuracy is None else (plan, accuracy.split, accuracy.map)
        if accuracy is not None:
            splits.add(accuracy.split)
    straight = {plan.stages[0].variant for plan in fleet.plans if len(plan.stages) == 1}
    for name, plan in fleet.alone.items():
        if name in straight:
            continue
        # On a split of the plans: figures of different images are not for one picture.
        scored = [one for one in frontier.variant(name).on(fleet.source).accuracy if one.split in splits]
        yield plan, scored[-1].split if scored else None, scored[-1].map if scored else None
