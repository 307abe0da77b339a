"""A study for people: its arms and the rank agreement as tables on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from search.study_values import SIZES, Interval, Study

MOST_BEHIND = 0.01
"""How far the search's curve may lie below the family's before the bench says that it does not pay."""


def print_study(study: Study, console: Console) -> None:
    """Print what each arm cost and reached, and how the supernet ranks."""
    dataset = study.plan.dataset
    splits = ", ".join(f"{split.images} {split.name}" for split in dataset.splits)
    console.print(
        f"{dataset.name} ({splits}), seed {study.plan.seed}, {study.environment.machine},"
        f" {study.environment.cores} cores. Training is counted in steps of a measured length; exploring"
        f" {study.plan.candidates} subnets took {study.explore_seconds:.0f} s besides.",
        highlight=False,
    )
    table = Table("arm", "models", "minutes", "mean mAP over budgets")
    for size, budget in zip(SIZES[1:], study.budgets_ms, strict=True):
        table.add_column(f"at {budget:.2f} ms ({size})")
    for arm in study.arms:
        cells = [_with_ahead(arm.area, arm.area_ahead)]
        cells += [
            _with_ahead(at, ahead) for at, ahead in zip(arm.at_budgets, arm.at_budgets_ahead, strict=True)
        ]
        table.add_row(arm.name, str(len(arm.models)), f"{arm.minutes:.1f}", *cells)
    console.print(table)
    console.print(
        "Test mAP of the model that valid chooses within a latency budget; below it the lead over the family,"
        " in points, with 95 % intervals over resampled test images."
    )
    rows = Table("trained alone", "estimate", "alone", title="valid mAP", title_justify="left")
    for name, estimate, alone in zip(
        study.ranking.architectures, study.ranking.estimated, study.ranking.alone, strict=True
    ):
        rows.add_row(name, f"{estimate:.3f}", f"{alone:.3f}")
    console.print(rows)
    tau = study.ranking.tau
    console.print(
        f"Kendall's tau of {len(study.ranking.architectures)} subnets: {tau.value:.2f} ({tau.low:.2f} to"
        f" {tau.high:.2f} over resampled images), p = {study.ranking.p_value:.3f}; the supernet's estimates"
        f" lie {100 * study.ranking.worse:.1f} points below.",
        highlight=False,
    )


def _with_ahead(value: Interval, ahead: Interval) -> str:
    first = f"{value.value:.3f}"
    if ahead.value == ahead.low == ahead.high == 0.0:
        return first
    return f"{first}\n{100 * ahead.value:+.1f} ({100 * ahead.low:+.1f} to {100 * ahead.high:+.1f})"
