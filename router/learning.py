"""What is learnt from answers once they are on their way: policies, metrics, and shadow runs.

Learning waits until there are several answers, or for a moment: one after another they find its code and data
in the processor's caches, and cost a fraction of what each costs alone. Lives on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import random

import numpy as np
from numpy.typing import NDArray

from model_repo.runtime.engine import EngineError
from router.arms import CHAMPION
from router.budget import Clock
from router.challenge import Challenge
from router.execution import Answer, Worked
from router.metrics import Metrics
from router.serving import Serving
from router.wishes import BEHIND_ALL
from router.workers import PoolClosed, WorkerPool

_LOG = logging.getLogger(__name__)
_TOGETHER = 8
_WITHIN_S = 0.05


class Learning:
    """Learn from answers, in batches.

    shadow_share: of the early answers, those that an idle worker compares with the last stage's.
    """

    def __init__(
        self,
        pool: WorkerPool,
        metrics: Metrics,
        clock: Clock,
        challenge: Challenge | None,
        *,
        shadow_share: float,
        seed: int,
    ) -> None:
        self._pool, self._metrics, self._clock, self._challenge = pool, metrics, clock, challenge
        self._shadow_share, self._random = shadow_share, random.Random(seed)
        self._shadows: set[asyncio.Task[None]] = set()
        self._unlearnt: list[tuple[Serving, Worked, Answer]] = []

    def draw_shadow(self) -> bool:
        """Return whether a frame's answer, should it be an early one, is to be compared."""
        return self._random.random() < self._shadow_share

    def later(self, serving: Serving, worked: Worked, answer: Answer) -> None:
        """Learn from an answer when its turn comes."""
        serving.inside += 1  # for what a shadow run will ask
        self._unlearnt.append((serving, worked, answer))
        if len(self._unlearnt) >= _TOGETHER:
            self._pool.loop.call_soon(self.now)
        elif len(self._unlearnt) == 1:
            self._pool.loop.call_later(_WITHIN_S, self.now)

    def now(self) -> None:
        """Learn at once from all answers whose turn has not come yet."""
        unlearnt, self._unlearnt = self._unlearnt, []
        for serving, worked, answer in unlearnt:
            serving.inside -= 1
            try:
                self._learn_from(serving, worked, answer)
            except Exception:  # noqa: BLE001 - as a callback of its own: the other answers are learnt from
                _LOG.exception("nothing was learnt from an answer of %s", answer.plan.name)

    def _learn_from(self, serving: Serving, worked: Worked, answer: Answer) -> None:
        """Learn from what a worker did, and count it."""
        serving.learn(worked, answer)
        metrics = self._metrics
        for stage in answer.stages:
            metrics.stage(stage.variant, stage.latency_ms)
        # The share that is expected of a plan is the champion's.
        if answer.escalated is not None and serving.arm == CHAMPION:
            metrics.decided(answer.plan.name, answer.escalated)
        if answer.cut is not None:
            metrics.cut(answer.cut.stage, answer.cut.reason)
        metrics.answered(
            answer.operating_point,
            answer.plan.name,
            total_ms=answer.total_ms,
            queue_ms=answer.queue_ms,
            decode_ms=answer.decode_ms,
            left_ms=answer.left_ms,
        )
        if self._challenge is not None:
            self._challenge.answered(serving.arm, answer)
        if worked.image is not None:
            self._perhaps_shadow(serving, answer, worked.image)

    def _perhaps_shadow(self, serving: Serving, answer: Answer, image: NDArray[np.uint8]) -> None:
        """Have the last stage look at a frame that was answered early, if nobody waits for a worker."""
        pool = self._pool
        if pool.waiting == 0 and pool.busy < pool.size:
            serving.inside += 1  # at once, or the set's models could go before the task begins
            task = asyncio.create_task(self._shadow(serving, answer, image))
            self._shadows.add(task)
            task.add_done_callback(self._shadows.discard)

    async def _shadow(self, serving: Serving, answer: Answer, image: NDArray[np.uint8]) -> None:
        plan, early = answer.plan, answer.detections
        try:
            order = (BEHIND_ALL, self._clock.now_ns())
            differ = await self._pool.call(lambda _: serving.executor.shadow(plan, image, early), order)
            self._metrics.shadowed(plan.name, differ)
        except (EngineError, PoolClosed) as error:
            _LOG.info("a shadow run of %s failed: %s", plan.name, error)
        finally:
            serving.inside -= 1
