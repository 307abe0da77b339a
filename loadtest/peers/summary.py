"""From a run's records to the table's rows and to what is claimed of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from loadtest.peers.campaign import ADAPTIVE, GATEWAY, POINTS, Outcome, contender_of
from loadtest.peers.catalogue import PEERS
from loadtest.peers.records import Conditions, Goodput, Overhead, Skipped, Unit
from model_repo.value import Value

T = TypeVar("T")
TIMES_GOODPUT = 1.5
# Beyond this p99 issue delay the generator was the slow one, as in `loadtest.verdict`.
_ISSUE_DELAY_MS = 10.0


class Row(Value):
    """A contender's medians over rounds; None where it was not measured.

    overhead_*: one client, and the saturated rate, the same single model behind everybody. throughput_hz: the
    highest Poisson rate whose p99 keeps the budget; held_goodput: the best goodput among such rates.
    rush_*: over the trace. late_generator: rounds in which the load itself fell behind, which say little.
    """

    contender: str
    title: str
    settings: str
    rounds: int
    model: str | None = None
    overhead_p50_ms: float | None = None
    overhead_p99_ms: float | None = None
    overhead_hz: float | None = None
    throughput_hz: float | None = None
    held_goodput: float | None = None
    rush_attainment: float | None = None
    rush_effective_map: float | None = None
    rush_p99_ms: float | None = None
    rush_goodput: float | None = None
    rss_mb: float | None = None
    pss_mb: float | None = None
    late_generator: int = 0
    skipped: str | None = None


class Bar(Value):
    """A claim: what was found, what must be, and whether it holds; None where it cannot be said."""

    claim: str
    found: str
    holds: bool | None


class Summary(Value):
    """The table with its conditions and claims, as it is written to JSON."""

    conditions: Conditions
    unit: Unit | None
    rows: tuple[Row, ...]
    bars: tuple[Bar, ...]
    skipped: tuple[Skipped, ...]
    complete: bool

    @property
    def holds(self) -> bool:
        """Return whether every claim was shown to hold."""
        return self.complete and all(bar.holds for bar in self.bars)


_GATEWAY_SETTINGS = "1 process, HTTP, answers as JSON, the budget in X-Latency-Budget-Ms"


def summarise(outcome: Outcome) -> Summary:
    """Return the table of a run."""
    journal = outcome.journal
    skipped = {each.contender: each.reason for each in outcome.skipped}
    rows = []
    for point in (None, *POINTS):
        title = "Paretogate, adaptive" if point is None else f"Paretogate, held at {point}"
        # One client at `fast` is the gateway's single model.
        overheads = journal.overheads if point == POINTS[0] else ()
        rows.append(
            _row(contender_of(point), title, _GATEWAY_SETTINGS, journal.goodputs, overheads, GATEWAY, None)
        )
    for peer in PEERS:
        settings = f"{', '.join((*peer.packages, *peer.alone))}: {peer.settings}"
        rows.append(
            _row(
                peer.name,
                peer.title,
                settings,
                journal.goodputs,
                journal.overheads,
                peer.name,
                skipped.get(peer.name),
            )
        )
    shown = tuple(row for row in rows if row.rounds or row.overhead_hz is not None or row.skipped)
    return Summary(
        conditions=outcome.conditions,
        unit=journal.unit,
        rows=shown,
        bars=bars_of(shown),
        skipped=outcome.skipped,
        complete=outcome.complete,
    )


def _row(
    contender: str,
    title: str,
    settings: str,
    goodputs: Sequence[Goodput],
    overheads: Sequence[Overhead],
    overhead_of: str,
    skipped: str | None,
) -> Row:
    good = [each for each in goodputs if each.contender == contender]
    over = [each for each in overheads if each.contender == overhead_of]
    late = [
        each
        for each in good
        if max(run.issue_delay_ms for run in (*each.probes, each.rush)) > _ISSUE_DELAY_MS
    ]
    return Row(
        contender=contender,
        title=title,
        settings=settings,
        rounds=len(good),
        model=good[0].model if good else None,
        overhead_p50_ms=_median(over, lambda each: each.p50_ms),
        overhead_p99_ms=_median(over, lambda each: each.p99_ms),
        overhead_hz=_median(over, lambda each: each.saturated_hz),
        throughput_hz=_median(good, lambda each: each.throughput_hz),
        held_goodput=_median(good, lambda each: each.held.goodput if each.held else 0.0),
        rush_attainment=_median(good, lambda each: each.rush.attainment),
        rush_effective_map=_median(good, lambda each: each.rush.effective_map),
        # Nothing answered at all is later than anything.
        rush_p99_ms=_median(
            [g for g in good if g.rush.p99_ms is not None], lambda each: each.rush.p99_ms or 0.0
        ),
        rush_goodput=_median(good, lambda each: each.rush.goodput),
        rss_mb=_median(good, lambda each: each.memory.rss_mb),
        pss_mb=_median(good, lambda each: each.memory.pss_mb),
        late_generator=len(late),
        skipped=skipped,
    )


def _median(values: Sequence[T], of: Callable[[T], float]) -> float | None:
    return float(np.median([of(value) for value in values])) if values else None


def bars_of(rows: Sequence[Row]) -> tuple[Bar, ...]:
    """Return what is claimed, with what was found.

    The best peer is the best one in that figure, whichever it is; peers that were left out count in none.
    """
    return (
        _times(
            rows, "goodput at the best steady rate that keeps the p99 budget", lambda row: row.held_goodput
        ),
        _times(rows, "goodput over the trace", lambda row: row.rush_goodput),
        _lowest(rows),
    )


def _times(rows: Sequence[Row], what: str, of: Callable[[Row], float | None]) -> Bar:
    claim = f"{what}: the adaptive gateway has at least {TIMES_GOODPUT:g} times the best peer's"
    ours = next((of(row) for row in rows if row.contender == ADAPTIVE), None)
    best = max(_peers(rows, of), key=lambda found: found[0], default=None)
    if ours is None or best is None:
        return Bar(claim=claim, found="not measured", holds=None)
    figure, title = best
    if figure == 0.0:
        return Bar(claim=claim, found=f"{ours:.1f}, no peer has any", holds=ours > 0.0)
    found = f"{ours / figure:.2f} times: {ours:.1f}, and {figure:.1f} of {title}"
    return Bar(claim=claim, found=found, holds=ours >= TIMES_GOODPUT * figure)


def _lowest(rows: Sequence[Row]) -> Bar:
    claim = "one client, the same single model: the gateway's p50 is the lowest of all"
    ours = next((row.overhead_p50_ms for row in rows if row.contender == f"{GATEWAY}:{POINTS[0]}"), None)
    best = min(_peers(rows, lambda row: row.overhead_p50_ms), key=lambda found: found[0], default=None)
    if ours is None or best is None:
        return Bar(claim=claim, found="not measured", holds=None)
    return Bar(claim=claim, found=f"{ours:.2f} ms, and {best[0]:.2f} ms of {best[1]}", holds=ours < best[0])


def _peers(rows: Sequence[Row], of: Callable[[Row], float | None]) -> list[tuple[float, str]]:
    return [
        (figure, row.title)
        for row in rows
        if not row.contender.startswith(GATEWAY) and (figure := of(row)) is not None
    ]
