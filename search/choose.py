"""Which of the measured variants are published: a few that span the curve."""

from __future__ import annotations

import math
from collections.abc import Sequence

from model_repo.frontier import non_dominated
from search.measure import Screened

SPAN = 6.0
TOP_MARGIN = 0.015
# Room for the manifest and the configurations beside the models.
_RESERVED_BYTES = 1_000_000


def choose_published(
    screened: Sequence[Screened], count: int, *, max_bytes: float, max_trail: float
) -> list[Screened]:
    """Return at most `count` variants to publish, fastest first, by (log median latency, accuracy on valid):

    1. The most accurate one is in. What comes within a point and a half of it waits until nothing else is
       left, so that the largest model is worth asking: it was chosen for its accuracy on valid, so part of
       its lead there is luck, and more is asked than the point that it should have elsewhere.
    2. The fastest one that trails it by at most `max_trail` is in; where that spans less than 6 times in
       latency, the most accurate of those that do span it (the fastest there is, if none does).
    3. The others come one by one, each the one that adds most hypervolume to those chosen; when none adds
       any, from what only the chosen ones dominate, and so on.
    4. One that does not fit into `max_bytes` with those before it is passed over.

    Raises ValueError when nothing was screened or the most accurate one alone does not fit.
    """
    if not screened:
        raise ValueError("nothing was measured, nothing can be published")
    room = max_bytes - _RESERVED_BYTES
    top = max(screened, key=lambda entry: (entry.accuracy, -entry.p50_ms))
    chosen: list[Screened] = []

    def take(entry: Screened) -> bool:
        nonlocal room
        if entry in chosen or _bytes(entry) > room or len(chosen) >= count:
            return False
        room -= _bytes(entry)
        chosen.append(entry)
        return True

    if not take(top):
        raise ValueError(
            f"{top.variant.name} alone has {_bytes(top)} bytes, the limit for all is {max_bytes:.0f}"
        )
    take(_fast_end(screened, top, max_trail))
    floor = min(entry.accuracy for entry in chosen)
    pool = [entry for entry in screened if entry not in chosen and entry.accuracy >= floor]
    waiting = [entry for entry in pool if entry.accuracy > top.accuracy - TOP_MARGIN]
    for group in ([entry for entry in pool if entry not in waiting], waiting):
        rest = list(group)
        while rest and len(chosen) < count:
            best = max(rest, key=lambda entry: (_added(chosen, entry, screened), entry.accuracy))
            if _added(chosen, best, screened) <= 0:
                front = [rest[i] for i in non_dominated([(entry.p50_ms, entry.accuracy) for entry in rest])]
                best = max(front, key=lambda entry: _gap(chosen, entry))
            take(best)
            rest.remove(best)
    return sorted(chosen, key=lambda entry: (entry.p50_ms, entry.variant.name))


def _fast_end(screened: Sequence[Screened], top: Screened, max_trail: float) -> Screened:
    near = [entry for entry in screened if entry.accuracy >= top.accuracy - max_trail]
    fastest = min(near, key=lambda entry: (entry.p50_ms, -entry.accuracy))
    if top.p50_ms >= SPAN * fastest.p50_ms:
        return fastest
    spanning = [entry for entry in screened if top.p50_ms >= SPAN * entry.p50_ms]
    if spanning:
        return max(spanning, key=lambda entry: (entry.accuracy, -entry.p50_ms))
    return min(screened, key=lambda entry: (entry.p50_ms, -entry.accuracy))


def _bytes(entry: Screened) -> int:
    return sum(segment.bytes for segment in entry.variant.segments)


def _added(chosen: Sequence[Screened], entry: Screened, every: Sequence[Screened]) -> float:
    """Return the hypervolume that an entry adds to those chosen, against the worst corner of all."""
    worst = math.log(max(other.p50_ms for other in every)) + 1e-6
    low = min(other.accuracy for other in every) - 1e-6
    return _hypervolume([*chosen, entry], worst, low) - _hypervolume(chosen, worst, low)


def _hypervolume(entries: Sequence[Screened], worst_log_ms: float, low: float) -> float:
    points = [(math.log(entry.p50_ms), entry.accuracy) for entry in entries]
    area, below = 0.0, low
    for i in non_dominated(points):
        log_ms, accuracy = points[i]
        area += (worst_log_ms - log_ms) * (accuracy - below)
        below = accuracy
    return area


def _gap(chosen: Sequence[Screened], entry: Screened) -> float:
    """Return how far an entry's log latency is from the nearest chosen one's."""
    return min(abs(math.log(entry.p50_ms / other.p50_ms)) for other in chosen)
