"""Frames give way to those queued behind them: the plan of a frame is settled when its turn has come.

Only then is it known who waits, and for how long they still can. With w workers, the j-th in the queue
(j = 0, 1, …) is answered after about 1 + (j + 1)/w rounds, this frame's own being the first. If every one
of them gave way as this one does, all would be in time when a round takes at most

    min over j of  left_j / (1 + (j + 1)/w),

of which the share `SHARE` is used: costs vary, and who is yet to come needs room as well. With nobody queued
there is no bound, so an empty queue means full accuracy, and a growing one walks down the ladder within a
few frames; how long a request has waited itself is the planner's business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from router.engines import ServedPoint

SHARE = 0.5


def bearable_ms(left_ms: Sequence[float], workers: int) -> float:
    """Return the most that a frame may cost while others, in the order of their turns, have so much left.

    Those whose time is up already do not count; infinite when nobody is left to wait.
    """
    waiting = [left for left in left_ms if left > 0]
    return min(
        (SHARE * left / (1.0 + (place + 1) / workers) for place, left in enumerate(waiting)), default=math.inf
    )


def giving_way(
    choices: Sequence[ServedPoint], cost_ms: Callable[[str], float], left_ms: Sequence[float], workers: int
) -> ServedPoint:
    """Return the first of `choices`, costliest first, that those queued can bear, else the last.

    cost_ms: a plan's mean cost now, by name.
    """
    most_ms = bearable_ms(left_ms, workers)
    return next((choice for choice in choices if cost_ms(choice.plan.name) <= most_ms), choices[-1])
