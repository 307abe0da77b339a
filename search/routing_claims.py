"""What is claimed of escalation, and what a bench found: the values, and when each claim holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model_repo.fusion import Fusion
from search.bench_certificate import (
    ASKED_DELTA,
    ASKED_EXCESS,
    DRAWS,
    MOST_ESCALATED,
    MOST_EXCEEDED,
    CertificateResult,
)
from search.rivals import REPORTED_RATE, Rival, RuleCurve, curve_of

OF_ORACLE, LEAST_HALF, MOST_ERROR, MOST_US = 0.8, 0.48, 0.02, 100.0


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and the 95 % interval that it has over resampled frames."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, resampled: Sequence[float]) -> Interval:
        """Take the interval from the values of resamples."""
        low, high = np.quantile(resampled, [0.025, 0.975])
        return cls(value, float(low), float(high))


@dataclass(frozen=True, slots=True)
class Difference:
    """By how much the gain is ahead of a baseline, in points of mAP: on average over all rates, and at
    REPORTED_RATE."""

    rule: Rival
    average: Interval
    reported: Interval


@dataclass(frozen=True, slots=True)
class AlignmentError:
    """A model's calibration error with its raw and with its aligned scores."""

    variant: str
    raw: float
    aligned: float

    @property
    def holds(self) -> bool:
        """Return whether alignment halves the error, or leaves next to none."""
        return self.aligned <= max(self.raw / 2, MOST_ERROR)


@dataclass(frozen=True, slots=True)
class Claim:
    """What is claimed, what was found, and whether it holds."""

    text: str
    found: str
    holds: bool


@dataclass(frozen=True, slots=True)
class PairResult:
    """A pair of models on test: both mAPs, each rule's curve, and how far the gain is ahead."""

    fast: str
    larger: str
    fusion: Fusion
    fast_map: float
    larger_map: float
    curves: tuple[RuleCurve, ...]
    ahead: tuple[Difference, ...]


@dataclass(frozen=True, slots=True)
class RoutingResult:
    """Everything that was measured.

    widest: the pair from the fastest to the largest, None where no plan asks it and there are no calibration
    frames to fit it on. on_pool: that pair's curves on the pool, where there is one: on few frames each of
    them moves the mAP, and the oracle, which ranks by just that, is ahead by luck. half: the share of the gap
    that a random half recovers. decision_us: the best of many decisions.
    """

    frames: int
    pairs: tuple[PairResult, ...]
    widest: PairResult | None
    on_pool: tuple[RuleCurve, ...] | None
    errors: tuple[AlignmentError, ...]
    half: float
    decision_us: float
    certificate: CertificateResult | None

    def claims(self) -> tuple[Claim, ...]:
        """Return every claim that could be judged."""
        claims = [] if self.widest is None else [*self._of_widest(self.widest)]
        claims += [
            Claim(
                f"{row.variant}: calibration error at most half of the raw one, or {MOST_ERROR}",
                f"{row.raw:.4f} raw, {row.aligned:.4f} aligned",
                row.holds,
            )
            for row in self.errors
        ]
        claims += [
            Claim(
                f"a random half recovers at least {LEAST_HALF} of the gap",
                f"{self.half:.3f}",
                self.half >= LEAST_HALF,
            ),
            Claim(
                f"deciding takes at most {MOST_US:.0f} µs, the best of many",
                f"{self.decision_us:.0f} µs",
                self.decision_us <= MOST_US,
            ),
        ]
        if self.certificate is not None:
            row = self.certificate
            share = "nothing certified" if row.escalated is None else f"{row.escalated:.0%} escalated"
            claims.append(
                Claim(
                    f"of {DRAWS} certificates for {ASKED_EXCESS} at {1 - ASKED_DELTA:.0%}, at most"
                    f" {MOST_EXCEEDED} are exceeded, with less than {MOST_ESCALATED:.0%} escalated",
                    f"{row.exceeded} exceeded, {row.uncertified} certified nothing, {share}",
                    row.holds,
                )
            )
        return tuple(claims)

    def _of_widest(self, pair: PairResult) -> list[Claim]:
        where = f"{self.frames} test frames" if self.on_pool is None else "the pool"
        gain, oracle = (curve_of(self.on_pool or pair.curves, rule) for rule in ("gain", "oracle"))
        share, best = gain.recovered(REPORTED_RATE), oracle.recovered(REPORTED_RATE)
        claims = []
        if share is not None and best is not None:
            claims.append(
                Claim(
                    f"{pair.fast} → {pair.larger}, on {where}: at {REPORTED_RATE:.0%} escalated at least"
                    f" {OF_ORACLE:.0%} of what the label oracle recovers of the gap",
                    f"{share:.3f} of {best:.3f}: {share / best:.1%}",
                    share >= OF_ORACLE * best,
                )
            )
        claims += [_ahead(row) for row in pair.ahead]
        return claims


def _ahead(row: Difference) -> Claim:
    by, average = row.reported, row.average.value
    return Claim(
        f"… more than {row.rule}, there with its interval above zero and over all rates",
        f"{by.value:+.2f} points ({by.low:+.2f} to {by.high:+.2f}), over all {average:+.2f}",
        by.low > 0 and average > 0,
    )
