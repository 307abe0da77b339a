"""What a plan costs and reaches, from cached answers and measured profiles; nothing is run again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_repo.latency import Histogram, mixture_pmf, quantile_of_pmf_ms, sum_pmf
from model_repo.scoring import Ranking, mean_of


@dataclass(frozen=True, slots=True)
class Cost:
    """A whole frame's latency in milliseconds, decoding included."""

    mean_ms: float
    p99_ms: float


def plan_cost(decode: Histogram, stages: Sequence[Histogram], reach: Sequence[float]) -> Cost:
    """Return a plan's cost; reach[k] is the share of frames that reach stage k, reach[0] = 1.

    The p99 is that of the mixture over where frames end, each the sum of the stages run: the sum of the
    stages' p99s would be far above it at low escalation and says nothing about the share.
    Raises ValueError when `reach` does not start at 1 or rises.
    """
    if len(stages) != len(reach) or not reach or reach[0] != 1.0 or (np.diff(reach) > 1e-9).any():
        raise ValueError(f"reach {list(reach)} must start at 1, not rise, and have one share per stage")
    ends = [share - following for share, following in zip(reach, [*reach[1:], 0.0], strict=True)]
    pmfs = [decode.pmf(), *(stage.pmf() for stage in stages)]
    mixture = mixture_pmf([(end, sum_pmf(pmfs[: k + 2])) for k, end in enumerate(ends) if end > 0])
    mean = decode.mean_ms + sum(share * stage.mean_ms for share, stage in zip(reach, stages, strict=True))
    return Cost(float(mean), quantile_of_pmf_ms(mixture, 0.99))


@dataclass(frozen=True, slots=True)
class PlanScore:
    """mAP@[.5:.95] and mAP@.5 of a plan on one split, and the share of frames that reached each stage after
    the first."""

    map: float
    map50: float
    escalated: tuple[float, ...]


def escalate(gains: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
    """Apply the rule to predicted gains [n]: go on when the gain reaches the threshold."""
    return np.asarray(gains >= threshold)


def score_stages(in_hand: Ranking, ends: NDArray[np.int64]) -> PlanScore:
    """Score a plan: `in_hand` ranks the answers in hand after each stage, `ends` [n] is where frames end."""
    counts = in_hand.once(ends)
    precision = in_hand.per_class_precision(counts)
    reached = tuple(float((ends >= k).mean()) for k in range(1, len(counts)))
    return PlanScore(mean_of(precision), mean_of(precision[:, :1]), reached)


def threshold_for_share(gains: NDArray[np.float32], share: float) -> float:
    """Return the threshold that sends about `share` of the frames with these predicted gains on."""
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share must lie in [0, 1], got {share}")
    if share == 0.0:
        return float(np.nextafter(gains.max(), np.float32(np.inf)))
    return float(np.quantile(gains, 1.0 - share, method="higher"))
