"""The report of a run: one HTML page that needs nothing else, and its main picture as a PNG."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from model_repo.codec import decode as decode_manifest
from model_repo.drawing import drawn
from model_repo.frontier import Frontier, Plan, Variant
from model_repo.publish import MANIFEST
from search.candidates import finished
from search.curve import STYLE as CURVE_STYLE
from search.curve import Dot, Group, curve
from search.difficulty import map_by_tenth, smallest_and_largest
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
from search.report_tables import choices, models_table, plans_table, precision_table, threshold_table
from search.results import MeasuredAll, Routed
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
        choices(frontier),
        "<h2>Published models</h2>",
        models_table(frontier),
        "<h2>Plans</h2>",
        plans_table(frontier),
        "<h2>Precisions</h2>",
        '<p class="note">mAP on valid and median latency alone, by architecture; bold was chosen.</p>',
        precision_table(measured),
        "<h2>Thresholds</h2>",
        '<p class="note">The score threshold that gives a class its best F1 at IoU 0.5 on valid, and that F1.'
        "</p>",
        threshold_table(context, frontier),
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
