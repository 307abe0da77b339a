"""The report of a run: one HTML page that needs nothing else, and its main picture as a PNG."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from model_repo.codec import decode as decode_manifest
from model_repo.drawing import drawn
from model_repo.frontier import Certificate, Frontier, Plan, Variant
from model_repo.publish import MANIFEST
from model_repo.scoring import best_f1_by_class, match
from search.candidates import finished
from search.curve import STYLE as CURVE_STYLE
from search.curve import Dot, Group, curve
from search.difficulty import map_by_tenth, smallest_and_largest
from search.measure import truths_of
from search.plots import (
    Point,
    difficulty_figure,
    frontier_figure,
    jpeg_uri,
    png_bytes,
    png_uri,
    training_figure,
)
from search.predict import PredictorError
from search.publishing import cached, load_split
from search.report_data import data_summary, table
from search.report_routing import STYLE as ROUTING_STYLE
from search.report_routing import alignment, escalation
from search.results import MeasuredAll, Routed, ScreenRow
from search.run_folder import write_bytes, write_text
from search.steps import evaluated_summary, read_candidates

if TYPE_CHECKING:
    from search.pipeline import Context

_SAMPLES = 3
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1d2733;max-width:1200px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem}h2{font-size:1.15rem;margin-top:2.2rem}
table{border-collapse:collapse;font-size:13.5px}
.wide{overflow-x:auto}th,td{padding:.3rem .7rem;text-align:right;border-bottom:1px solid #e4e8ec}
td{white-space:nowrap}th{color:#5b6672;font-weight:600;vertical-align:bottom}
th:first-child,td:first-child{text-align:left}
img{max-width:100%}.row{display:flex;gap:.6rem;flex-wrap:wrap}.row figure{margin:0;flex:1 1 300px}
figcaption{font-size:12.5px;color:#5b6672}p.note{color:#5b6672;font-size:13.5px}
"""


def write_report(context: Context, measured: MeasuredAll, routed: Routed) -> list[Path]:
    """Write report.html and report.png into the run's folder and return their paths."""
    if context.repository is None:
        raise ValueError("the report reads the published manifest: give --repo DIR")
    manifest = context.repository / MANIFEST
    frontier = decode_manifest(manifest.read_bytes(), source=str(manifest))
    picture = png_bytes(_frontier_picture(context, measured, frontier))
    sections = [
        f"<h1>{escape(frontier.dataset.name)}: {len(frontier.variants)} models,"
        f" {len(frontier.plans)} plans</h1>",
        _summary(frontier, measured),
        _interactive(context, measured, frontier),
        "<h2>Which to take</h2>",
        _choices(frontier),
        "<h2>Published models</h2>",
        _models_table(frontier),
        "<h2>Plans</h2>",
        _plans_table(frontier),
        "<h2>Precisions</h2>",
        '<p class="note">mAP on valid and median latency alone, by architecture; bold was chosen.</p>',
        _precision_table(measured),
        "<h2>Thresholds</h2>",
        '<p class="note">The score threshold that gives a class its best F1 at IoU 0.5 on valid, and that F1.'
        "</p>",
        _threshold_table(context, frontier),
        "<h2>Escalation</h2>",
        escalation(routed),
        "<h2>Alignment</h2>",
        alignment(routed),
        "<h2>Candidates</h2>",
        f"<p>{escape(evaluated_summary(read_candidates(context)))}.</p>",
        "<h2>Latency estimates</h2>",
        _predictor(context),
        *_training(context),
        *_difficulty(context, frontier),
        "<h2>Data</h2>",
        data_summary(context.dataset()),
        "<h2>Sample answers (test)</h2>",
        _sample_rows(context, frontier),
    ]
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(frontier.dataset.name)}</title>'
        f"<style>{_STYLE}{CURVE_STYLE}{ROUTING_STYLE}</style>{''.join(sections)}</html>\n"
    )
    html, png = context.folder.path("report", "report.html"), context.folder.path("report", "report.png")
    write_text(html, page)
    write_bytes(png, picture)
    context.say(f"  {html}")
    return [html, png]


def _frontier_picture(context: Context, measured: MeasuredAll, frontier: Frontier):  # type: ignore[no-untyped-def]  # a matplotlib figure
    first = measured.published[0].runtime
    return frontier_figure(
        [Point(candidate.latency_ms, candidate.accuracy) for candidate in finished(read_candidates(context))],
        [Point(row.p50_ms, row.map) for row in measured.screened],
        [
            Point(
                variant.on(first).profile(1).quantile_ms(0.5),
                variant.on(first).accuracy_on("valid").map,
                variant.name,
            )
            for variant in frontier.variants
        ],
        [Point(plan.mean_ms, plan.accuracy_on("calibration").map) for plan in frontier.plans],
    )


def _interactive(context: Context, measured: MeasuredAll, frontier: Frontier) -> str:
    candidates = read_candidates(context)
    runtime = measured.published[0].runtime
    chosen = set(measured.names())
    models: list[Dot] = []
    for variant in frontier.variants:
        if runtime not in variant.runtimes:
            continue
        alone, valid = variant.on(runtime).profile(1), variant.on(runtime).accuracy_on("valid")
        p50, p99 = alone.quantile_ms(0.5), alone.quantile_ms(0.99)
        text = (
            f"{variant.name}\n{variant.architecture}\nmAP {valid.map:.3f} (95 %: {valid.map_low:.3f} to"
            f" {valid.map_high:.3f}), F1 {valid.f1:.3f}\np50 {p50:.2f} ms, p99 {p99:.2f} ms"
        )
        models.append(Dot(p50, valid.map, text, valid.map_low, valid.map_high))
    groups = [
        Group(
            f"candidates, shared weights, {context.settings.objective}",
            "#c3cad2",
            3,
            [
                Dot(
                    c.latency_ms,
                    c.accuracy,
                    f"{c.architecture}\n{c.accuracy:.3f} at about {c.latency_ms:.2f} ms",
                )
                for c in finished(candidates)
            ],
        ),
        Group(
            "exported files, measured",
            "#7fb2d9",
            3.5,
            [
                Dot(row.p50_ms, row.map, f"{row.artifact.name}\nmAP {row.map:.3f} at {row.p50_ms:.2f} ms")
                for row in measured.screened
                if row.artifact.name not in chosen
            ],
        ),
        Group(
            "plans, mean of a whole frame, calibration",
            "#d1495b",
            3.5,
            [_plan_dot(plan) for plan in frontier.plans],
            joined=True,
        ),
        Group("published models, valid", "#0b61a4", 6, models),
    ]
    return curve(groups, y_label="mAP@[.5:.95]")


def _plan_dot(plan: Plan) -> Dot:
    fitted = plan.accuracy_on("calibration")
    stages = " → ".join(stage.variant for stage in plan.stages)
    shares = "".join(f", {100 * share:.0f} % go on" for share in fitted.escalated)
    return Dot(plan.mean_ms, fitted.map, f"{stages}\nmAP {fitted.map:.3f} at {plan.mean_ms:.2f} ms{shares}")


def _choices(frontier: Frontier) -> str:
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


def _summary(frontier: Frontier, measured: MeasuredAll) -> str:
    env = frontier.environment
    computed = dict.fromkeys(
        profile.environment.device
        for variant in frontier.variants
        for measurement in variant.measurements
        for profile in measurement.latency
    )
    splits = ", ".join(f"{split.name} {split.images}" for split in frontier.dataset.splits)
    points = "; ".join(f"{point.name} = {escape(point.plan)}" for point in frontier.operating_points)
    return (
        f'<p class="note">Images: {splits}. Measured on {escape(env.machine)}, {env.cores} cores, one thread'
        f" per inference, computed by {escape('; '.join(computed))};"
        f" {escape(', '.join(f'{k} {v}' for k, v in env.libraries.items()))}."
        f" Decoding takes {measured.decode.mean_ms:.2f} ms, decoding and deciding"
        f" {measured.rule.mean_ms:.2f} ms. Operating points: {points}.</p>"
    )


def _models_table(frontier: Frontier) -> str:
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


def _plans_table(frontier: Frontier) -> str:
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


def _precision_table(measured: MeasuredAll) -> str:
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


def _threshold_table(context: Context, frontier: Frontier) -> str:
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


def _predictor(context: Context) -> str:
    text = (context.folder.root / "explore" / "predictor.json").read_text()
    error = PredictorError.model_validate_json(text)
    return (
        f"<p>Fitted to {error.subnets} measured subnets. Left out by one: {100 * error.mean_relative:.1f} %"
        f" off on average, {100 * error.worst_relative:.1f} % at worst, rank correlation"
        f" {error.rank_correlation:.3f}.</p>"
    )


def _training(context: Context) -> list[str]:
    history = context.folder.root / "train" / "history.jsonl"
    if not history.exists():
        return []
    rows = [json.loads(line) for line in history.read_text().splitlines()]
    if not rows:
        return []
    figure = training_figure(
        [row["share"] for row in rows],
        [row["classes"] + row["boxes"] for row in rows],
        [row["others"] for row in rows],
    )
    return [f'<h2>Training</h2><img alt="training curve" src="{png_uri(png_bytes(figure))}">']


def _difficulty(context: Context, frontier: Frontier) -> list[str]:
    records = context.dataset().splits["test"].images
    difficulty = [record.difficulty for record in records]
    known = [value for value in difficulty if value is not None]
    if len(known) < len(records):
        return []
    split = load_split(context, "test")
    runtime = frontier.plans[0].runtime
    curves = []
    for variant in smallest_and_largest(frontier, runtime):
        answers = cached(context, "publish", runtime, "test", variant.name)
        curves.append(
            (variant.name, map_by_tenth(answers, split.truths, known, len(frontier.dataset.classes)))
        )
    head = ("model", *(str(k) for k in range(1, 11)))
    rows = [(escape(name), *(f"{value:.3f}" for value in values)) for name, values in curves]
    picture = png_uri(png_bytes(difficulty_figure(curves)))
    return ["<h2>Difficulty</h2>", table(head, rows), f'<br><img alt="mAP by difficulty" src="{picture}">']


def _sample_rows(context: Context, frontier: Frontier) -> str:
    """Draw the same test frames as answered by the fastest, a middle and the most accurate model."""
    split = load_split(context, "test")
    runtime, classes = frontier.plans[0].runtime, frontier.dataset.classes
    ordered = sorted(
        (variant for variant in frontier.variants if runtime in variant.runtimes),
        key=lambda variant: variant.on(runtime).profile(1).mean_ms,
    )
    shown = list(dict.fromkeys([0, len(ordered) // 2, len(ordered) - 1]))
    frames = [round(k * (len(split) - 1) / (_SAMPLES - 1)) for k in range(_SAMPLES)]
    out = []
    for variant in (ordered[k] for k in shown):
        answers = cached(context, "publish", runtime, "test", variant.name)
        threshold = _threshold(variant, frontier)
        figures = "".join(
            f'<figure><img alt="" src="{jpeg_uri(drawn(split.images[i], answers[i], classes, threshold))}">'
            "</figure>"
            for i in frames
        )
        out.append(
            f"<p><b>{escape(variant.name)}</b>, boxes above the F1-best score {threshold:.2f} of valid</p>"
            f'<div class="row">{figures}</div>'
        )
    return "".join(out)


def _threshold(variant: Variant, frontier: Frontier) -> float:
    return variant.on(frontier.plans[0].runtime).accuracy_on("valid").f1_threshold
