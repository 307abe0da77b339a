"""Accurate answers in time: what servers of different speed and accuracy are compared by.

Offer n requests in T seconds, all with the budget B. An answer counts when it came within B of the moment
its request was *due*; a late, refused or missing one counts as an empty answer. With

    rate       = n / T                                    requests offered per second
    attainment = #{i : answered, latency_i <= B} / n
    mAP_eff    = COCO mAP@[.5:.95] over all n requests, each an image of its own, answers not in time empty

the goodput is

    goodput = rate · mAP_eff                              (mAP-weighted answers in time per second)

An answer that is missing takes its boxes out of the recall, so mAP_eff is close to attainment · mAP: the
attainment is inside, once. Two goodputs are compared, each with the same arrivals for every server:

  held   the highest goodput among steady Poisson rates at which the p99 keeps the budget (attainment >= 99 %,
         shed requests counting against it). Each server is taken at the rate that is best for itself, as if
         the load were known in advance and never changed; each peer holds the one model that is best for it.
  rush   the goodput over one trace whose rate climbs from a quarter to one and a quarter of what this core
         could answer at the operating point `fast` were there no serving at all, and comes down again. Nobody
         is told. The model that a peer holds is the same as above.

The unit of the trace's rates is measured on a socket server without HTTP, so that no contender chooses it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from loadtest.sample import Sample
from loadtest.schedule import Arrivals, arrivals_ns
from loadtest.verdict import attainment
from model_repo.detections import Detections
from model_repo.scoring import Truth, match, mean_precision
from model_repo.value import Value

QUANTILE = 0.99
RUSH = (0.25, 0.5, 0.75, 1.0, 1.25, 1.0, 0.75, 0.5, 0.25)
_NS_PER_S = 1e9


class Served(Value):
    """What became of one run of requests: the rate offered, and what of it came in time.

    rate_hz: requests over the time that they were due in. p50_ms and p99_ms are of the answers, from the
    scheduled time, None without any; effective_map has answers that were not in time empty, mean_map counts
    every answer whenever it came. issue_delay_ms: p99 of how late the generator itself was.
    """

    rate_hz: float
    requests: int
    attainment: float
    p50_ms: float | None
    p99_ms: float | None
    effective_map: float
    mean_map: float
    issue_delay_ms: float

    @property
    def goodput(self) -> float:
        """Return the mAP-weighted answers in time per second."""
        return self.rate_hz * self.effective_map

    @property
    def holds(self) -> bool:
        """Return whether the p99 keeps the budget, missing answers counting as late."""
        return self.attainment >= QUANTILE


def serve_of(
    samples: Sequence[Sample], seconds: float, budget_ms: float, truths: Sequence[Truth], classes: int
) -> Served:
    """Judge the requests that were due in `seconds`; `truths` has one entry per frame.

    Raises ValueError without a request.
    """
    if not samples:
        raise ValueError("a run without a request has no goodput")
    latencies = [sample.latency_ms for sample in samples if sample.answered]
    of_samples = [truths[sample.frame] for sample in samples]
    in_time = [s.reply.detections if s.met(budget_ms) else Detections.empty() for s in samples]
    came = [sample.reply.detections for sample in samples]
    effective = mean_precision(match(of_samples, in_time, classes))
    return Served(
        rate_hz=len(samples) / seconds,
        requests=len(samples),
        attainment=attainment(samples, budget_ms),
        p50_ms=float(np.quantile(latencies, 0.5)) if latencies else None,
        p99_ms=float(np.quantile(latencies, 0.99)) if latencies else None,
        effective_map=effective,
        mean_map=mean_precision(match(of_samples, came, classes)),
        issue_delay_ms=float(np.quantile([sample.issue_delay_ms for sample in samples], 0.99)),
    )


def held(probes: Sequence[Served]) -> Served | None:
    """Return the probe of highest goodput among those whose p99 keeps the budget; None when none does."""
    return max((probe for probe in probes if probe.holds), key=lambda probe: probe.goodput, default=None)


def rush_ns(unit_hz: float, step_s: float, rng: np.random.Generator) -> Arrivals:
    """Return the arrivals of the trace: a Poisson process of `RUSH[k] · unit_hz` in each step k.

    Raises ValueError as `arrivals_ns` does.
    """
    parts = [
        arrivals_ns("poisson", share * unit_hz, step_s, rng) + round(position * step_s * _NS_PER_S)
        for position, share in enumerate(RUSH)
    ]
    return np.concatenate(parts)


def rush_seconds(step_s: float) -> float:
    """Return how long the trace is."""
    return len(RUSH) * step_s


def best_model(saturated_hz: Mapping[str, float], published_map: Mapping[str, float]) -> str:
    """Return the model that a server should hold: the most mAP-weighted answers per second when saturated.

    Raises ValueError when nothing was measured.
    """
    return max(saturated_hz, key=lambda name: saturated_hz[name] * published_map[name])


def candidates(cost_ms: Mapping[str, float], published_map: Mapping[str, float]) -> tuple[str, ...]:
    """Return the models that are the best to hold for some server, cheapest first.

    A server that adds o milliseconds to each request answers 1 / (cost + o) of them per millisecond; for
    o from 1 to 16 the model of highest mAP / (cost + o) is kept.
    """
    added_ms = 2.0 ** np.arange(0, 4.5, 0.5)
    best = {max(cost_ms, key=lambda name: published_map[name] / (cost_ms[name] + o)) for o in added_ms}
    return tuple(sorted(best, key=lambda name: cost_ms[name]))
