"""The one use case: answer a frame within its budget.

`Service.begin` runs on the event loop and does only what is quick: choose the operating point, predict,
admit, queue. Everything that takes time happens in one worker thread per request, in
`router.execution`. Policies (limiter, controller, slow-down, alarms) are touched on the event loop alone;
worker threads only read from them.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from model_repo.frame import BrokenFrame, FrameError, FrameTooLarge, UnsupportedFrame
from model_repo.frontier import Certificate
from model_repo.runtime.engine import EngineBusy, EngineError
from router.admission import Limiter, Permit, Shed
from router.arm_metrics import Ending
from router.arms import CHAMPION
from router.budget import Clock, Deadline
from router.challenge import Asked, Challenge
from router.engines import ServedPoint
from router.errors import (
    BrokenImage,
    EngineFailed,
    EngineFull,
    NotReady,
    TooLarge,
    UnmeetableBudget,
    UnsupportedType,
)
from router.execution import Answer, Frame, Job, Worked
from router.learning import Learning
from router.metrics import Metrics, State
from router.planner import Refusal
from router.recent import RecentFrames
from router.serving import Serving
from router.wishes import RANK, Wishes
from router.workers import PoolClosed, Ticket, WorkerPool

_LOG = logging.getLogger(__name__)
# A request without a deadline is queued as if it had this one: behind those that hurry, never starved.
_PATIENCE_NS = 1_000_000_000

Outcome = Answer | Shed | Exception
"""What comes of a frame; an exception is a RouterError, or one that nobody expected."""


class Begun:
    """A frame that was let in and has not been answered; lives on the event loop."""

    __slots__ = ("_conclude", "_permit", "_serving", "_then", "ticket")

    def __init__(
        self,
        serving: Serving,
        permit: Permit,
        conclude: Callable[[Serving, Worked | Exception], Outcome],
        then: Callable[[Outcome], None],
    ) -> None:
        self._serving, self._permit = serving, permit
        self._conclude, self._then = conclude, then
        self.ticket: Ticket[Worked] | None = None
        serving.inside += 1

    def abandon(self) -> None:
        """Wait no more: work that is queued is dropped. A running one holds its permit until it is done."""
        self._then = _nobody
        if self.ticket is not None and self.ticket.cancel():
            self.leave(None)

    def end(self, worked: Worked | Exception) -> None:
        """Take what a worker made of it, and tell it."""
        then = self._then
        self.leave(worked.service_ms if isinstance(worked, Worked) else None)
        if then is not _nobody:
            then(self._conclude(self._serving, worked))

    def leave(self, service_ms: float | None) -> None:
        """Give back what it held: `service_ms` is how long a worker was, None when none was."""
        # They know each other, and would wait for the collector.
        self.ticket, self._then = None, _nobody
        self._serving.inside -= 1
        self._permit.release(service_ms)


def _nobody(_: Outcome) -> None:
    """Is told what nobody waits for."""


class Service:
    """Answer frames with the set in force, the champion, and perhaps a challenger, on one engine."""

    def __init__(
        self,
        serving: Serving,
        pool: WorkerPool,
        limiter: Limiter,
        metrics: Metrics,
        clock: Clock,
        *,
        challenge: Challenge | None = None,
        recent: RecentFrames | None = None,
        min_score: float = 0.0,
        shadow_share: float = 0.0,
        seed: int = 0,
    ) -> None:
        """challenge: a second set that is compared with this one. recent: is shown what was answered, while
        somebody looks. min_score: of detections in answers that ask for none. shadow_share: see `Learning`.
        """
        self._serving, self._pool = serving, pool
        self._min_score, self._recent = min_score, recent
        self._limiter, self._challenge, self._clock = limiter, challenge, clock
        self._learning = Learning(pool, metrics, clock, challenge, shadow_share=shadow_share, seed=seed)
        self._accepting = True
        self._held: str | None = None

    @property
    def serving(self) -> Serving:
        """Return the set in force: the champion, where there is a challenger."""
        return self._serving

    @property
    def answering(self) -> tuple[Serving, ...]:
        """Return the sets that answer requests."""
        return (self._serving,) if self._challenge is None else self._challenge.answering

    def change(self, serving: Serving) -> Serving:
        """Put another set in force, for requests that arrive from now on; return the one before."""
        before, self._serving = self._serving, serving
        return before

    @property
    def points(self) -> tuple[ServedPoint, ...]:
        """Return the operating points as they are served."""
        return self._serving.fleet.points

    @property
    def point_in_force(self) -> str:
        """Return the operating point of requests that name none."""
        return self._in_force(self._serving)

    @property
    def held(self) -> str | None:
        """Return the operating point that an administrator holds; None when load decides.

        One that a new set does not publish is not held while that set is in force.
        """
        return self._held_in(self._serving)

    def _held_in(self, serving: Serving) -> str | None:
        return self._held if self._held is not None and serving.publishes(self._held) else None

    def _in_force(self, serving: Serving) -> str:
        return self._held_in(serving) or serving.policies.controller.point

    def hold(self, name: str | None) -> None:
        """Hold an operating point whatever the load, None for none; raises UnknownOperatingPoint."""
        if name is not None:
            self._serving.point(name)
        self._held = name

    @property
    def ready(self) -> bool:
        """Return whether requests can expect answers."""
        return self._accepting and self._pool.alive and self._serving.health.well

    @property
    def well(self) -> bool:
        """Return whether the engine answers."""
        return self._serving.health.well

    @property
    def alive(self) -> bool:
        """Return whether the process is worth keeping."""
        return self._pool.alive

    def drain(self) -> None:
        """Stop being ready; requests that still come are answered."""
        self._accepting = False

    async def detect(
        self,
        frame: Frame,
        deadline: Deadline,
        wishes: Wishes,
        *,
        arrived_ns: int,
        traceparent: str | None = None,
        finish: Callable[[Answer], None] | None = None,
    ) -> Answer | Shed:
        """Answer a frame, encoded or as pixels, or shed it because of load.

        arrived_ns: when the request's clock started. traceparent: passed on to the engine. finish: is given
        the answer while a worker is still at it, to write it as the sender wants it. Raises
        UnknownOperatingPoint, Forbidden, UnmeetableAccuracy, UnmeetableBudget, BrokenImage, UnsupportedType
        or TooLarge when the request is at fault, NotReady or EngineFailed when the gateway is. Cancelling the
        call drops the work if it is queued; a running inference is not taken back.
        """
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def then(outcome: Outcome) -> None:
            if not future.done():
                future.set_result(outcome)

        begun = self.begin(
            frame, deadline, wishes, then, arrived_ns=arrived_ns, traceparent=traceparent, finish=finish
        )
        if isinstance(begun, Shed):
            return begun
        try:
            outcome = await future
        except asyncio.CancelledError:
            begun.abandon()
            raise
        if not isinstance(outcome, Exception):
            return outcome
        try:
            raise outcome
        finally:
            del outcome  # its traceback knows this frame

    def begin(
        self,
        frame: Frame,
        deadline: Deadline,
        wishes: Wishes,
        then: Callable[[Outcome], None],
        *,
        arrived_ns: int,
        traceparent: str | None = None,
        finish: Callable[[Answer], None] | None = None,
        within: Serving | None = None,
    ) -> Begun | Shed:
        """Begin what `detect` does; `then` gets what comes of it on this event loop, unless it is abandoned.

        An event loop's task with its futures costs about as much as all that is decided here, and is paid
        for every frame. within: the set that answers, None for the champion or what is drawn. Raises what
        `detect` raises where that is known at once.
        """
        serving = self._serving if within is None else within
        now_ns, pool = self._clock.now_ns(), self._pool
        min_score = self._min_score if wishes.min_score is None else wishes.min_score
        if self._recent is not None and within is None and self._recent.due(now_ns):
            then = self._recent.keeping(frame, then)
        if self._challenge is not None and within is None:
            again = partial(
                self.begin, frame, deadline, wishes,
                arrived_ns=arrived_ns, traceparent=traceparent, finish=finish,
            )  # fmt: skip
            allowed_ns = None if deadline.at_ns is None else deadline.at_ns - arrived_ns
            asked = Asked(frame, wishes, min_score, allowed_ns, again)
            serving, then = self._challenge.enter(asked, then, self._in_force)
        policies = serving.policies
        left_ms, busy = deadline.left_ms(now_ns), pool.busy
        serving.arrived(now_ns, pool.waiting)
        held = self._held_in(serving)
        point = serving.wished(wishes, held or policies.controller.point)
        fixed = held is not None or wishes.model is not None or wishes.operating_point is not None
        choices = (point,) if fixed else (point, *serving.cheaper(point, wishes))
        order_ns = deadline.at_ns if deadline.at_ns is not None else arrived_ns + _PATIENCE_NS
        order = (RANK[wishes.priority], order_ns)
        if left_ms < math.inf:
            wait_ms = self._limiter.wait_ms(pool.ahead_of(order), busy)
            refusal = policies.planner.admit(point.plan.name, left_ms, wait_ms, min(busy + 1, pool.size))
            if refusal is not None:
                return self._refuse(serving, refusal)
        permit = self._limiter.acquire(wishes.priority)
        if isinstance(permit, Shed):
            return permit
        job = Job(
            frame, deadline, choices, order[0], arrived_ns, now_ns, min_score,
            shadowed=self._learning.draw_shadow(), traceparent=traceparent, finish=finish,
        )  # fmt: skip
        least_ms = policies.planner.busy_ms(choices[-1].plan.name)
        begun = Begun(serving, permit, self._conclude, then)

        def work(ticket: Ticket[Worked]) -> Worked:
            return serving.executor.run(job, lambda: ticket.cancelled)

        try:
            begun.ticket = pool.submit(work, order, begun.end, due_ns=deadline.at_ns, least_ms=least_ms)
        except PoolClosed as error:
            begun.leave(None)
            raise NotReady("the gateway is shutting down") from error
        return begun

    async def probe(self, image: NDArray[np.uint8]) -> bool:
        """Run the cheapest model once in a worker; return and remember whether the engine is well."""
        serving = self._serving
        try:
            await self._pool.call(lambda _: serving.executor.probe(image), (0, 0))
        except EngineError as error:
            _LOG.warning("the engine does not answer: %s", error)
            serving.health.failed()
            return False
        serving.health.succeeded()
        return True

    def state(self) -> State:
        """Return what the gauges show."""
        serving = self._serving
        policies = serving.policies
        return State(
            ready=self.ready,
            engine_up=serving.health.well,
            inside=self._limiter.inside,
            waiting=self._pool.waiting,
            busy=self._pool.busy,
            workers=self._pool.size,
            limit=self._limiter.limit,
            operating_point=self.point_in_force,
            operating_points=tuple(
                dict.fromkeys(point.name for point in (*serving.fleet.points, *serving.rungs))
            ),
            slow_down=tuple(policies.slow_down.factors().items()),
            escalated=tuple(policies.escalations.shares().items()),
            drifting=policies.alarm.ringing,
            variants=tuple(serving.fleet.variants),
            signals=policies.drift.signals(),
            certified=tuple(
                (plan.name, not policies.drift.voids(plan))
                for plan in serving.fleet.plans
                if isinstance(plan.certificate, Certificate)
            ),
        )

    def _count(self, serving: Serving, ending: Ending) -> None:
        if self._challenge is not None:
            self._challenge.metrics.ended(serving.arm, ending)

    def _refuse(self, serving: Serving, refusal: Refusal) -> Shed:
        self._count(serving, "refused")
        if refusal.hopeless:
            left = f"{refusal.left_ms:.1f} ms are left" if refusal.left_ms > 0 else "the budget is spent"
            raise UnmeetableBudget(
                f"{left}, the fastest plan needs {refusal.idle_ms:.1f} ms on an idle gateway"
            )
        return self._shed(refusal)

    def _shed(self, refusal: Refusal) -> Shed:
        return self._limiter.shed(
            f"{refusal.left_ms:.1f} ms are left, the fastest plan needs {refusal.needed_ms:.1f} ms now"
        )

    def _conclude(self, serving: Serving, worked: Worked | Exception) -> Outcome:
        """Return what the sender gets; what can be learnt from it waits until that is on its way."""
        if isinstance(worked, Exception):
            return self._failure(serving, worked)
        answer = worked.result
        assert answer is not None, "only work whose sender has left has no result, and nobody awaits that"
        if isinstance(answer, Refusal):
            # It was admitted: what was left then has gone to the queue or to a slow machine, which is load.
            self._count(serving, "refused")
            return self._shed(answer)
        if worked.engine_error is None:
            serving.health.succeeded()
        else:
            _LOG.warning("a later stage did not run: %s", worked.engine_error)
            serving.health.failed()
        self._learning.later(serving, worked, answer)
        return answer

    def _failure(self, serving: Serving, error: Exception) -> Exception:
        """Return what the sender is told of an exception in a worker."""
        failure = error
        if isinstance(error, FrameError):
            failure = _REJECTIONS[type(error)](str(error))
        elif isinstance(error, EngineError):
            self._count(serving, "failed")
            full = isinstance(error, EngineBusy)
            if serving.arm == CHAMPION and not full:
                serving.health.failed()
            failure = EngineFull(str(error)) if full else EngineFailed(str(error))
        if failure is not error:
            # It holds the worker's frames, and with them images, in a circle through the ticket.
            failure.__cause__ = error.with_traceback(None)
        return failure

    def learn(self) -> None:
        """Learn at once from all answers whose turn has not come yet."""
        self._learning.now()


_REJECTIONS: Mapping[type[FrameError], type[BrokenImage | UnsupportedType | TooLarge]] = {
    BrokenFrame: BrokenImage,
    UnsupportedFrame: UnsupportedType,
    FrameTooLarge: TooLarge,
}
