"""Is a certificate true, and does it leave anything to gain?

It is tried against a pool so large that its mean stands for the truth: many calibration sets are drawn from
it, the cheapest plan that each certifies for the asked excess is taken, and how often that plan's true excess
is larger is counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from model_repo.escalation import GainModel
from model_repo.fusion import Fusion
from model_repo.plans import escalate, threshold_for_share
from model_repo.scoring import mix
from search.answers import AnswerSet
from search.certify import in_fixed_sequence, in_turn
from search.routing import SHARES
from search.run_folder import Progress

DRAWS, DRAW_FRAMES, LEAST_POOL = 500, 5_000, 20_000
ASKED_EXCESS, ASKED_DELTA = 0.02, 0.05
MOST_EXCEEDED = 37
"""Of the draws: 25 are expected at most, and a count above 37 would have less than 1 % probability."""
MOST_ESCALATED = 0.7


@dataclass(frozen=True, slots=True)
class CertificateResult:
    """What many certified choices did: how often the truth exceeded, how many draws certified nothing, and
    what was escalated on average (None where nothing was)."""

    pair: tuple[str, str]
    pool: int
    exceeded: int
    uncertified: int
    escalated: float | None

    @property
    def holds(self) -> bool:
        """Return whether the truth exceeded rarely enough, and the certificate still let frames stay."""
        return (
            self.exceeded <= MOST_EXCEEDED and self.escalated is not None and self.escalated < MOST_ESCALATED
        )


def try_certificate(
    fixed: AnswerSet,
    pool: AnswerSet,
    pair: tuple[str, str, Fusion],
    model: GainModel,
    *,
    seed: int,
    progress: Progress,
    draws: int = DRAWS,
    frames: int = DRAW_FRAMES,
) -> CertificateResult:
    """Draw calibration sets of so many frames from the pool, and compare what each certifies with the pool's
    mean.

    Thresholds, scores and the order of testing are fixed on the other frames, as `search.certify` does on the
    fitted ones.
    """
    fast, larger, fusion = pair
    gain = model.compiled()
    fixed_gains, pool_gains = (gain.predict(answers.sides[fast].features) for answers in (fixed, pool))
    plans, rates = [], []
    for share in SHARES:
        threshold = threshold_for_share(fixed_gains, share)
        ends = [escalate(gains, threshold).astype(np.int64) for gains in (fixed_gains, pool_gains)]
        on_fixed, on_pool = (
            (mix(answers.in_hand((fast, larger), fusion), end), answers.sides[larger].table)
            for answers, end in zip((fixed, pool), ends, strict=True)
        )
        plans.append((on_fixed, on_pool))
        rates.append(float(ends[1].mean()))
    tried = in_turn(plans)
    rng = np.random.default_rng([seed, 0xCE])
    count = len(pool.truths)
    exceeded = uncertified = 0
    escalated = []
    progress.start("certificates", draws)
    for _ in range(draws):
        drawn = rng.integers(0, count, frames)
        tested = in_fixed_sequence([excess[drawn] for _, _, excess in tried], ASKED_DELTA)
        passed = [row for row, (_, epsilon) in zip(tried, tested, strict=True) if epsilon <= ASKED_EXCESS]
        if passed:
            chosen, _, excess = min(passed, key=lambda row: rates[row[0]])
            exceeded += float(excess.mean()) > ASKED_EXCESS
            escalated.append(rates[chosen])
        else:
            uncertified += 1
        progress.advance(1)
    return CertificateResult(
        (fast, larger), count, exceeded, uncertified, float(np.mean(escalated)) if escalated else None
    )
