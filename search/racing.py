"""Giving up early: most candidates are beaten long before the last validation image.

A candidate is compared with one that has run to the end and is as good as it must become (its *rival*), on
the same first images, so what makes those images easy or hard falls away. It is given up when it lies behind
by more than leads between like candidates usually change: by the 80 % quantile, over pairs of finished
candidates of similar accuracy, of how far their difference on the first images was from that on all of them
(so about one in ten that would just have caught up is lost; a search of thousands can afford that, and what
it keeps is measured in full anyway). Nothing is given up before enough have finished to know that quantile.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from search.candidates import Candidate

CONFIDENCE = 0.8
_LEAST_FINISHED = 8
_MOST_COMPARED = 128
_NEIGHBOURS = 8


def margins(finished: Sequence[Candidate]) -> NDArray[np.float64] | None:
    """Return, per slice but the last, by how much leads change from it to the end; None when too few have
    finished.

    Of the last 128 finished ones, so that it costs the same throughout a search of thousands, each compared
    with its 8 neighbours in accuracy: rivals are near, and far ones' leads change by more.
    """
    if len(finished) < _LEAST_FINISHED:
        return None
    slices = np.array([candidate.slices for candidate in finished[-_MOST_COMPARED:]])
    slices = slices[np.argsort(slices[:, -1], kind="stable")]
    ahead = slices[:, :-1] - slices[:, -1:]  # of what it comes to in the end, [n, slices - 1]
    apart = range(1, min(_NEIGHBOURS, len(ahead) - 1) + 1)
    changed = np.concatenate([np.abs(ahead[k:] - ahead[:-k]) for k in apart])
    return np.asarray(np.quantile(changed, CONFIDENCE, axis=0, method="higher"), dtype=np.float64)


def bars(rival: Candidate | None, margin: NDArray[np.float64] | None, lead: float = 0.0) -> tuple[float, ...]:
    """Return, per slice but the last, the objective below which a candidate is given up; empty for never.

    lead: how much worse than its rival the candidate may be in the end, for what it saves.
    """
    if rival is None or margin is None:
        return ()
    return tuple(
        float(on_slice - lead - allowed) for on_slice, allowed in zip(rival.slices, margin, strict=False)
    )
