"""Frames give way to those queued behind them: the plan of a frame is settled when its turn has come.

Only then is it known who waits, and for how long they still can. With w workers, the j-th in the queue
(j = 0, 1, …) is answered after about 1 + (j + 1)/w rounds, this frame's own being the first. If every one
of them gave way as this one does, all would be in time when a round takes at most

    min over j of  left_j / (1 + (j + 1)/w),

of which the share `SHARE` is used: costs vary, and who is yet to come needs room as well. Whoever has no
deadline sets no bound, and whoever could not be saved by the cheapest plan either takes no turn: it is
refused when its own has come. Those of a lower priority are not looked at. With nobody queued there is no
bound, so an empty queue means full accuracy, and a growing one walks down the ladder within a few frames; how
long a request has waited itself is the planner's business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from router.engines import ServedPoint

SHARE = 0.5


def bearable_ms(left_ms: Sequence[float], workers: int, least_ms: float) -> float:
    """Return the most that a frame may cost while others, in the order of their turns, have so much left.

    left_ms: infinite for those without a deadline. least_ms: what the cheapest plan costs. The bound is
    infinite when nobody sets one.
    """
    most_ms, place = math.inf, 0
    for left in left_ms:
        rounds = 1.0 + (place + 1) / workers
        if left >= rounds * least_ms:
            most_ms = min(most_ms, SHARE * left / rounds)
            place += 1
    return most_ms


def giving_way(
    choices: Sequence[ServedPoint], cost_ms: Callable[[str], float], left_ms: Sequence[float], workers: int
) -> ServedPoint:
    """Return the first of `choices`, costliest first, that those queued can bear, else the last.

    cost_ms: a plan's mean cost now, by name.
    """
    most_ms = bearable_ms(left_ms, workers, cost_ms(choices[-1].plan.name))
    return next((choice for choice in choices if cost_ms(choice.plan.name) <= most_ms), choices[-1])
