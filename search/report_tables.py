"""The report's tables: which plan to take, the published models and plans, precisions, thresholds."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from model_repo.frontier import Certificate, Frontier, Plan
from model_repo.scoring import best_f1_by_class, match
from search.measure import truths_of
from search.publishing import cached
from search.report_data import table
from search.results import MeasuredAll, ScreenRow

if TYPE_CHECKING:
    from search.pipeline import Context


def choices(frontier: Frontier) -> str:
    """Name a plan for each operating point, the model with the best F1, and the best under some p99s."""
    runtime = frontier.plans[0].runtime
    rows = [
        (f"operating point <b>{escape(point.name)}</b>", *_plan_cells(frontier.plan(point.plan)))
        for point in frontier.operating_points
    ]
    straight = {plan.stages[0].variant: plan for plan in frontier.plans if len(plan.stages) == 1}
    known = [variant for variant in frontier.variants if variant.name in straight]
    if known:
        best = max(known, key=lambda variant: variant.on(runtime).accuracy_on("valid").f1)
        f1 = best.on(runtime).accuracy_on("valid").f1
        rows.append((f"best F1 on valid ({f1:.3f})", *_plan_cells(straight[best.name])))
    before = ""
    for limit_ms in (2, 3, 5, 8, 10, 15, 20, 30, 50, 100):
        under = [plan for plan in frontier.plans if plan.p99_ms <= limit_ms]
        if not under:
            continue
        most = max(under, key=lambda plan: plan.accuracy_on("calibration").map)
        if most.name != before:
            rows.append((f"best with a p99 under {limit_ms} ms", *_plan_cells(most)))
        before = most.name
    return table(("", "plan", "mean ms", "p99 ms", "mAP calibration"), rows)


def _plan_cells(plan: Plan) -> tuple[str, str, str, str]:
    return (
        " → ".join(escape(stage.variant) for stage in plan.stages),
        f"{plan.mean_ms:.2f}",
        f"{plan.p99_ms:.2f}",
        f"{plan.accuracy_on('calibration').map:.3f}",
    )


def models_table(frontier: Frontier) -> str:
    """List the published models on every runtime that they were measured on."""
    rows = []
    for variant in frontier.variants:
        for measurement in variant.measurements:
            alone, valid, test = (
                measurement.profile(1), measurement.accuracy_on("valid"), measurement.accuracy_on("test"),
            )  # fmt: skip
            rows.append(
                (
                    escape(variant.name), measurement.runtime, f"{variant.macs / 1e6:.0f} M",
                    f"{sum(s.bytes for s in variant.segments) / 1e6:.2f} MB", f"{alone.quantile_ms(0.5):.2f}",
                    f"{alone.quantile_ms(0.99):.2f}", f"{measurement.profile(2).quantile_ms(0.5):.2f}",
                    f"{valid.map:.3f}", f"{test.map:.3f} ({test.map_low:.3f} to {test.map_high:.3f})",
                    f"{test.map50:.3f}",
                )
            )  # fmt: skip
    head = (
        "model", "runtime", "MACs", "size", "p50 ms", "p99 ms", "p50 ms, 2 at once", "mAP valid",
        "mAP test (95 %)", "mAP@.5 test",
    )  # fmt: skip
    return table(head, rows)


def plans_table(frontier: Frontier) -> str:
    """List the plans, cheapest first, with the operating points that stand for them."""
    names = {point.plan: point.name for point in frontier.operating_points}
    rows = []
    for plan in sorted(frontier.plans, key=lambda plan: plan.mean_ms):
        calibration, test = plan.accuracy_on("calibration"), plan.accuracy_on("test")
        shares = ", ".join(f"{100 * share:.0f} %" for share in calibration.escalated) or "–"
        rows.append(
            (
                " → ".join(escape(stage.variant) for stage in plan.stages) + f" {_named(names, plan)}",
                plan.fusion if len(plan.stages) > 1 else "–", shares,
                f"{plan.mean_ms:.2f}", f"{plan.p99_ms:.2f}",
                f"{calibration.map:.3f}", f"{test.map:.3f}",
                ", ".join(f"{100 * share:.0f} %" for share in test.escalated) or "–", _certificate(plan),
            )
        )  # fmt: skip
    head = (
        "plan", "fusion", "escalated", "mean ms", "p99 ms", "mAP calibration", "mAP test",
        "escalated on test", "certified excess loss",
    )  # fmt: skip
    return table(head, rows)


def _named(names: dict[str, str], plan: Plan) -> str:
    return f"<b>({names[plan.name]})</b>" if plan.name in names else ""


def _certificate(plan: Plan) -> str:
    if isinstance(plan.certificate, Certificate):
        confidence = 100 * (1 - plan.certificate.delta)
        return (
            f"≤ {plan.certificate.epsilon:.3f} at {confidence:.0f} % (seen: {plan.certificate.empirical:.3f})"
        )
    return "–" if len(plan.stages) == 1 else escape(plan.certificate.reason)


def precision_table(measured: MeasuredAll) -> str:
    """Set the precisions of every architecture side by side; the one that was chosen is bold."""
    precisions = list(dict.fromkeys(row.artifact.precision for row in measured.screened))
    rows = []
    for architecture in dict.fromkeys(row.artifact.architecture for row in measured.screened):
        own = {
            row.artifact.precision: row
            for row in measured.screened
            if row.artifact.architecture == architecture
        }
        cells = [escape(architecture)]
        for precision in precisions:
            row = own.get(precision)
            text = "–" if row is None else f"{row.map:.3f} · {row.p50_ms:.2f} ms"
            chosen = row is not None and row.artifact.name in measured.best
            cells.append((f"<b>{text}</b>" if chosen else text) + ("" if row is None else _tuning(row)))
        rows.append(cells)
    return table(("architecture", *precisions), rows)


def _tuning(row: ScreenRow) -> str:
    """Say what tuning for int8 did, where it was needed."""
    quantized = row.artifact.quantized
    if quantized is None or quantized.tuned_lost is None:
        return ""
    return (
        f"<br><small>tuned: lost {100 * quantized.lost:.1f}, now {100 * quantized.kept_lost:.1f} pt</small>"
    )


def threshold_table(context: Context, frontier: Frontier) -> str:
    """List the score threshold that gives each class its best F1 on valid, by model."""
    runtime, classes = frontier.plans[0].runtime, frontier.dataset.classes
    truths = truths_of(context.dataset(), "valid")
    names = [variant.name for variant in frontier.variants if runtime in variant.runtimes]
    columns = [
        best_f1_by_class(match(truths, cached(context, "measure", runtime, "valid", name), len(classes)))
        for name in names
    ]
    rows = [
        (escape(label), *(f"{threshold:.2f} ({f1:.3f})" for f1, threshold in row))
        for label, row in zip(classes, zip(*columns, strict=True), strict=True)
    ]
    return table(("class", *map(escape, names)), rows)
