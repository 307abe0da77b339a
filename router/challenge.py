"""A challenger beside the champion: which frames it answers or looks at, and when it is stopped.

Both sets are served by one engine and one pool of workers. Each has policies of its own, so that what one of
them learns never moves the other. Whether the challenger has to do with a frame is decided when it begins.

    ab       a frame that is drawn is answered by the challenger; where that fails on it, by the champion.
    shadow   a frame that is drawn is answered by the champion; if a worker is idle then, the challenger looks
             at it as well, within the same budget, and the answers are compared. Such a run stands behind
             every request, and ends between two stages once a request waits.

A challenger whose models fail several times in a row is stopped: nothing goes to it until another manifest
takes its place or an administrator sets its share again. So is one whose classes are not the champion's. A
full queue is load and no failure, though the frame goes to the champion.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from model_repo.agreement import disagreement
from model_repo.runtime.engine import EngineBusy, EngineError
from router.admission import Shed
from router.arm_metrics import ArmMetrics
from router.arms import CHALLENGER, CHAMPION, ArmName, Mode, place_of, salt_of
from router.budget import Clock, Deadline
from router.engines import ServedPoint
from router.errors import EngineFailed, EngineFull, MalformedRequest
from router.execution import Answer, Frame, Job, Worked
from router.planner import Refusal
from router.serving import Serving
from router.wishes import BEHIND_ALL, Wishes
from router.workers import PoolClosed, Ticket, WorkerPool

_LOG = logging.getLogger(__name__)
ILL = "the challenger is stopped until its manifest changes or PUT /challenger sets its share again"

Told = Callable[[Answer | Shed | Exception], None]
"""Is told what came of a frame."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A frame that begins, and what its sender wants.

    allowed_ns: its whole budget, None without one. again: begins it once more; takes who is told, and
    `within`, the set that answers.
    """

    frame: Frame
    wishes: Wishes
    min_score: float
    allowed_ns: int | None
    again: Callable[..., object]


class Challenge:
    """The challenger's place, see `router.reload.Place`; lives on the event loop.

    share: of the frames, those drawn for it.
    """

    def __init__(
        self,
        champion: Serving,
        challenger: Serving,
        pool: WorkerPool,
        metrics: ArmMetrics,
        clock: Clock,
        *,
        mode: Mode,
        share: float,
        seed: int = 0,
    ) -> None:
        self.mode, self.metrics = mode, metrics
        self._champion, self._serving = champion, challenger
        self._pool, self._clock = pool, clock
        self._share, self._random = share, random.Random(seed)
        self._runs: set[asyncio.Task[None]] = set()
        self.meet()
        metrics.share.set_function(lambda: self.share)
        metrics.up.set_function(lambda: float(not self.stopped))

    @property
    def serving(self) -> Serving:
        """Return the challenger's set in force."""
        return self._serving

    @property
    def well(self) -> bool:
        """Return whether its models run."""
        return self._serving.health.well

    @property
    def share(self) -> float:
        """Return the share in force, 0 while the challenger is stopped."""
        return 0.0 if self.stopped else self._share

    @property
    def stopped(self) -> bool:
        """Return whether nothing goes to it, whatever share is set."""
        return not (self._serving.health.well and self._fits)

    @property
    def answering(self) -> tuple[Serving, ...]:
        """Return the sets that answer requests, the champion first."""
        if self.mode == "ab" and self.share > 0.0:
            return self._champion, self._serving
        return (self._champion,)

    def change(self, serving: Serving) -> Serving:
        """Put another challenger in its place; return the one before."""
        before, self._serving = self._serving, serving
        return before

    def meet(self, champion: Serving | None = None) -> None:
        """Stand beside the champion that is in force from now on, the same one if none is given."""
        self._champion = champion or self._champion
        self._salt = salt_of(self._serving.repository.digest)
        self._fits = self._champion.fleet.classes == self._serving.fleet.classes
        if not self._fits:
            _LOG.error("the challenger is stopped: its classes are not the champion's, publish them alike")
        self.metrics.serves(CHAMPION, self._champion.repository.digest)
        self.metrics.serves(CHALLENGER, self._serving.repository.digest)

    def set_share(self, share: float) -> None:
        """Set the share and forgive what failed; raises MalformedRequest where the classes do not fit."""
        if share > 0.0 and not self._fits:
            raise MalformedRequest("share: the challenger's classes are not the champion's, publish it again")
        self._serving.health.succeeded()
        self._share = share

    def enter(self, asked: Asked, then: Told, in_force: Callable[[Serving], str]) -> tuple[Serving, Told]:
        """Return the set that answers a frame, and who is told what came of it before `then` is.

        in_force: tells a set's operating point of requests that name none.
        """
        champion, challenger = self._champion, self._serving
        drawn = self._answers(asked.wishes)
        # How many requests arrive is for both to know: each moves as if all of them were its own.
        other = champion if drawn else challenger
        other.arrived(self._clock.now_ns(), self._pool.waiting)
        if drawn:
            return challenger, partial(self._unless_failed, challenger, asked, then)
        if self._compares(asked.wishes):
            return champion, partial(self._and_look, asked, then, in_force)
        return champion, then

    def _answers(self, wishes: Wishes) -> bool:
        """Return whether the challenger answers a request: by the draw, or as the only one that can."""
        share = self.share
        if self.mode != "ab" or share <= 0.0 or not self._serving.grants(wishes):
            return False
        if not self._champion.grants(wishes):
            return True
        place = self._random.random() if wishes.session is None else place_of(wishes.session, self._salt)
        return place < share

    def _compares(self, wishes: Wishes) -> bool:
        """Return whether the challenger is to look at a frame as well, whosever it is."""
        return self.mode == "shadow" and self._random.random() < self.share and self._serving.grants(wishes)

    def answered(self, arm: ArmName, answer: Answer) -> None:
        """Record what was answered to a request."""
        self.metrics.answered(arm, answer)
        if self.mode == "ab":
            self.metrics.worked(arm, answer)

    def _unless_failed(
        self, challenger: Serving, asked: Asked, then: Told, outcome: Answer | Shed | Exception
    ) -> None:
        """Tell what the challenger made of a frame; where its models failed, have the champion answer.

        Where the champion fails as well it is the engine that is ill, and the challenger is not blamed; nor
        is it where the engine was only full.
        """
        if not isinstance(outcome, EngineFailed):
            then(outcome)
            return
        blamed = not isinstance(outcome, EngineFull)
        if not self._champion.grants(asked.wishes):
            if blamed:
                challenger.health.failed()
            then(outcome)
            return

        def judged(second: Answer | Shed | Exception) -> None:
            if blamed and not isinstance(second, EngineFailed):
                _LOG.warning("the challenger failed on a frame, it went to the champion: %s", outcome)
                challenger.health.failed()
            then(second)

        try:
            begun = asked.again(judged, within=self._champion)
        except Exception as error:  # noqa: BLE001 - the edge of a request: whatever it is, it is told
            judged(error)
        else:
            if isinstance(begun, Shed):
                judged(begun)

    def _and_look(
        self,
        asked: Asked,
        then: Told,
        in_force: Callable[[Serving], str],
        outcome: Answer | Shed | Exception,
    ) -> None:
        """Tell what the champion made of a frame; where it was answered, let the challenger look at it."""
        then(outcome)
        if not isinstance(outcome, Answer):
            return
        # The one that is in force by now; it may be another than when the frame began.
        pool, challenger = self._pool, self._serving
        if pool.waiting or pool.busy >= pool.size or self.share <= 0.0 or not challenger.grants(asked.wishes):
            self.metrics.ended(CHALLENGER, "dropped")
            return
        point = challenger.wished(asked.wishes, in_force(challenger))
        challenger.inside += 1  # at once, or the set's models could go before the task begins
        task = asyncio.create_task(self._look(challenger, asked, (point,), outcome))
        self._runs.add(task)
        task.add_done_callback(self._runs.discard)

    async def _look(
        self, challenger: Serving, asked: Asked, choices: tuple[ServedPoint, ...], told: Answer
    ) -> None:
        """Run the challenger on a frame and compare with what was told."""
        pool, clock = self._pool, self._clock

        def work(ticket: Ticket[tuple[Worked, float]]) -> tuple[Worked, float]:
            now_ns = clock.now_ns()
            deadline = Deadline(None if asked.allowed_ns is None else now_ns + asked.allowed_ns)
            job = Job(asked.frame, deadline, choices, BEHIND_ALL, now_ns, now_ns, asked.min_score)
            worked = challenger.executor.run(
                job, lambda: ticket.cancelled or bool(pool.queued(BEHIND_ALL - 1))
            )
            found = worked.result
            differ = disagreement(found.detections, told.detections) if isinstance(found, Answer) else 0.0
            return worked, differ

        try:
            worked, differ = await pool.call(work, (BEHIND_ALL, clock.now_ns()))
        except (EngineBusy, PoolClosed):
            self.metrics.ended(CHALLENGER, "dropped")
        except EngineError as error:
            _LOG.warning("the challenger failed on a frame that it looked at: %s", error)
            challenger.health.failed()
            self.metrics.ended(CHALLENGER, "failed")
        else:
            self._learn(challenger, worked, differ, told)
        finally:
            challenger.inside -= 1

    def _learn(self, challenger: Serving, worked: Worked, differ: float, told: Answer) -> None:
        found, metrics = worked.result, self.metrics
        if found is None:
            metrics.ended(CHALLENGER, "dropped")
            return
        if isinstance(found, Refusal):
            metrics.ended(CHALLENGER, "refused")
            return
        if worked.engine_error is None:
            challenger.health.succeeded()
        else:
            challenger.health.failed()
        challenger.learn(worked, found)
        metrics.answered(CHALLENGER, found)
        metrics.worked(CHALLENGER, found)
        metrics.worked(CHAMPION, told)
        metrics.compared(differ)
