"""The half of a request that takes time, in one worker thread: decode, then the stages of a plan.

Between its steps it asks the planner. It holds no state of its own and writes none of anybody else's: what
happened is in the value that it returns, from which the service learns on the event loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from model_repo.agreement import disagreement
from model_repo.detections import Detections
from model_repo.escalation import CompiledGain, features
from model_repo.frame import FrameLimits, decode
from model_repo.frontier import Certificate, Plan
from model_repo.fusion import fuse
from model_repo.reference import observation
from model_repo.runtime.engine import (
    TRACEPARENT,
    Engine,
    EngineBusy,
    EngineError,
    EngineTimeout,
    Tensors,
    answer_frame,
)
from router.arms import ArmName
from router.budget import Clock, Deadline
from router.engines import Fleet, ServedPoint
from router.planner import Cut, Planner, Refusal
from router.slack import giving_way


@dataclass(frozen=True, slots=True)
class StageRun:
    """A stage that ran, how long it took, and how many workers were at work when it began."""

    variant: str
    latency_ms: float
    busy: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What the gateway says about a frame: detections under aligned scores, best first, in source pixels.

    classes: what the labels mean, in the set that answered.

    escalated: what the plan's first rule said, None when the plan has one stage. left_ms: budget left when
    the answer was ready, infinite without a deadline. Times are in milliseconds; `total_ms` runs from the
    request's arrival. arm: which of two sets gave it, None where there is one.
    """

    detections: Detections
    image_wh: tuple[int, int]
    classes: tuple[str, ...]
    operating_point: str
    plan: Plan
    stages: tuple[StageRun, ...]
    escalated: bool | None
    cut: Cut | None
    certificate: Certificate | None
    queue_ms: float
    decode_ms: float
    total_ms: float
    left_ms: float
    arm: ArmName | None = None


Frame = bytes | NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Job:
    """A request as a worker sees it; times in nanoseconds of the clock.

    frame: an encoded image, or pixels, RGB uint8 [h, w, 3].

    choices: the operating point of the request and what may take its place while others wait, costliest
    first. rank: of its priority, 0 first. min_score: detections below it are left out of the answer.
    shadowed: should the answer be an early one, its plan's last stage is to look at the frame as well.
    finish: is given the answer before the worker lets go of the job, to write it as its sender wants it.
    """

    frame: Frame
    deadline: Deadline
    choices: tuple[ServedPoint, ...]
    rank: int
    arrived_ns: int
    queued_ns: int
    min_score: float = 0.0
    shadowed: bool = False
    traceparent: str | None = None
    finish: Callable[[Answer], None] | None = None


@dataclass(frozen=True, slots=True)
class Worked:
    """What a worker made of a job and how long it was held; `result` is None when the sender had left.

    engine_error: why a later stage did not run, when the answer does without it. observed: what is watched of
    the first stage's answer, None when it was not its turn. image: the decoded frame of an early answer,
    where a shadow run was asked for.
    """

    result: Answer | Refusal | None
    service_ms: float
    engine_error: EngineError | None = None
    observed: NDArray[np.float64] | None = None
    image: NDArray[np.uint8] | None = None


@dataclass(frozen=True, slots=True)
class _Staged:
    """The outcome of a plan's stages."""

    detections: Detections
    stages: tuple[StageRun, ...]
    escalated: bool | None
    cut: Cut | None
    engine_error: EngineError | None
    observed: NDArray[np.float64] | None
    image: NDArray[np.uint8]


class Executor:
    """Run jobs on one engine; called from worker threads, several at once.

    busy: tells how many workers are at work, the asking one included. queued: tells, as `WorkerPool.queued`,
    when those who wait for a worker are due; workers: how many there are. watched: tells whether an answer of
    a variant is to be described for drift; voids: whether drift voids a plan's certificate. arm: said in
    answers.
    """

    def __init__(
        self,
        fleet: Fleet,
        engine: Engine,
        planner: Planner,
        clock: Clock,
        limits: FrameLimits,
        busy: Callable[[], int],
        queued: Callable[[int], Sequence[int | None]],
        watched: Callable[[str], bool],
        voids: Callable[[Plan], bool],
        *,
        workers: int,
        engine_timeout_s: float,
        arm: ArmName | None = None,
    ) -> None:
        self._fleet, self._engine, self._planner = fleet, engine, planner
        self._clock, self._limits = clock, limits
        self._watched, self._voids = watched, voids
        self._busy, self._queued, self._workers = busy, queued, workers
        self._engine_timeout_s, self._arm = engine_timeout_s, arm
        self._rules: Mapping[tuple[str, int], tuple[CompiledGain, float]] = {
            (plan.name, index): (stage.rule.gain.compiled(), stage.rule.threshold)
            for plan in fleet.plans
            for index, stage in enumerate(plan.stages)
            if stage.rule is not None
        }
        # Scores are asked for by senders: the latest are kept.
        self._least = lru_cache(maxsize=256)(self._raw_at_least)
        self._alignments = {
            name: variant.on(fleet.source).alignment for name, variant in fleet.variants.items()
        }

    def run(self, job: Job, cancelled: Callable[[], bool]) -> Worked:
        """Answer a job, stopping between steps once `cancelled` says so.

        Raises FrameError on a frame that cannot be used and EngineError when the first stage does not run.
        """
        began_ns = self._clock.now_ns()
        TRACEPARENT.set(job.traceparent)
        result, staged = self._answer(job, cancelled, began_ns)
        if job.finish is not None and isinstance(result, Answer):
            job.finish(result)
        service_ms = (self._clock.now_ns() - began_ns) / 1e6
        if staged is None:
            return Worked(result, service_ms)
        # Kept only where it is wanted: the next frame takes its place in memory, and in the caches.
        early = job.shadowed and staged.escalated is False and staged.cut is None
        image = staged.image if early else None
        return Worked(result, service_ms, staged.engine_error, staged.observed, image)

    def probe(self, image: NDArray[np.uint8]) -> None:
        """Run the cheapest plan's first stage once; raises EngineError when it does not run."""
        plan = min(self._fleet.plans, key=lambda plan: plan.mean_ms)
        variant = self._fleet.variants[plan.stages[0].variant]
        answer_frame(self._engine, variant, image, timeout_s=self._engine_timeout_s)

    def shadow(self, plan: Plan, image: NDArray[np.uint8], early: Detections) -> float:
        """Run a plan's last stage on a frame that was answered early; return how far the answers differ.

        Raises EngineError when it does not run.
        """
        variant = self._fleet.variants[plan.stages[-1].variant]
        run = answer_frame(self._engine, variant, image, timeout_s=self._engine_timeout_s)
        return disagreement(early, self._alignments[variant.name].apply(run.detections))

    def _answer(
        self, job: Job, cancelled: Callable[[], bool], began_ns: int
    ) -> tuple[Answer | Refusal | None, _Staged | None]:
        deadline, asked = job.deadline, job.choices[0].plan.name
        # The wait is over and may have been longer than predicted: ask again before anything is spent.
        refusal = self._planner.admit(asked, deadline.left_ms(began_ns), 0.0, self._busy())
        if refusal is not None:
            return refusal, None
        image = decode(job.frame, self._limits) if isinstance(job.frame, bytes) else job.frame
        decoded_ns = self._clock.now_ns()
        point = self._given_way(job, decoded_ns)
        start = self._planner.start(point.plan.name, deadline.left_ms(decoded_ns), self._busy())
        if isinstance(start, Refusal):
            return start, None
        staged = self._stages(start.plan, image, deadline, job.min_score, cancelled)
        if not isinstance(staged, _Staged):
            return staged, None
        cut = staged.cut or start.cut
        certificate = start.plan.certificate
        holds = cut is None and not self._voids(start.plan)
        ended_ns = self._clock.now_ns()
        answer = Answer(
            detections=staged.detections.at_least(job.min_score),
            image_wh=(image.shape[1], image.shape[0]),
            classes=self._fleet.classes,
            operating_point=point.name,
            plan=start.plan,
            stages=staged.stages,
            escalated=staged.escalated,
            cut=cut,
            certificate=certificate if isinstance(certificate, Certificate) and holds else None,
            queue_ms=(began_ns - job.queued_ns) / 1e6,
            decode_ms=(decoded_ns - began_ns) / 1e6,
            total_ms=(ended_ns - job.arrived_ns) / 1e6,
            left_ms=deadline.left_ms(ended_ns),
            arm=self._arm,
        )
        return answer, staged

    def _given_way(self, job: Job, now_ns: int) -> ServedPoint:
        if len(job.choices) == 1:
            return job.choices[0]
        left_ms = [math.inf if at_ns is None else (at_ns - now_ns) / 1e6 for at_ns in self._queued(job.rank)]
        return giving_way(job.choices, self._planner.busy_ms, left_ms, self._workers)

    def _raw_at_least(self, variant: str, quality: float) -> NDArray[np.float32]:
        return self._alignments[variant].raw_at_least(quality)

    def _stages(
        self,
        plan: Plan,
        image: NDArray[np.uint8],
        deadline: Deadline,
        min_score: float,
        cancelled: Callable[[], bool],
    ) -> _Staged | Refusal | None:
        """Run a plan's stages until its rules, the deadline, the engine or the sender stop it."""
        runs: list[StageRun] = []
        done: dict[str, Tensors] = {}
        in_hand: Detections | None = None
        escalated: bool | None = None
        cut: Cut | None = None
        engine_error: EngineError | None = None
        observed: NDArray[np.float64] | None = None
        for index, stage in enumerate(plan.stages):
            if cancelled():
                return None
            began_ns = self._clock.now_ns()
            left_ms, busy = deadline.left_ms(began_ns), self._busy()
            if in_hand is not None:
                cut = self._planner.go_on(plan, index, left_ms, busy)
                if cut is not None:
                    break
            variant = self._fleet.variants[stage.variant]
            timeout_s = min(max(left_ms, 1.0) / 1e3, self._engine_timeout_s)
            watched = index == 0 and self._watched(stage.variant)
            # Where nobody looks at an answer but its sender, what will not be in it need not be worked out.
            whole = watched or len(plan.stages) > 1 or min_score <= 0.0
            least = None if whole else self._least(stage.variant, min_score)
            try:
                run = answer_frame(self._engine, variant, image, done=done, timeout_s=timeout_s, least=least)
            except EngineError as error:
                late = isinstance(error, EngineTimeout) and deadline.left_ms(self._clock.now_ns()) <= 0
                if in_hand is not None:
                    cut = self._planner.cut(plan, index, "deadline" if late else "engine", left_ms, busy)
                    engine_error = None if late or isinstance(error, EngineBusy) else error
                    break
                if late:
                    return self._planner.refuse(plan, left_ms)
                raise
            done.update(run.segments)
            aligned = self._alignments[stage.variant].apply(run.detections)
            in_hand = aligned.top() if in_hand is None else fuse(in_hand, aligned, plan.fusion)
            runs.append(StageRun(stage.variant, (self._clock.now_ns() - began_ns) / 1e6, busy))
            rule = self._rules.get((plan.name, index))
            described = features(aligned, image) if watched or rule is not None else None
            if watched and described is not None:
                observed = observation(described, aligned, len(self._fleet.classes))
            if rule is not None and described is not None:
                gain, threshold = rule
                go_on = bool(gain.predict(described[None])[0] >= threshold)
                escalated = go_on if escalated is None else escalated
                if not go_on:
                    break
        assert in_hand is not None, "a plan has at least one stage"
        return _Staged(in_hand, tuple(runs), escalated, cut, engine_error, observed, image)
