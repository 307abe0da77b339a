"""The report's part on escalation: how well scores were aligned, and what the predicted gain is worth."""

from __future__ import annotations

from html import escape

from model_repo.svg import Axes
from search.align import calibration_error
from search.pairs import PairReport
from search.report_data import table
from search.results import Routed
from search.rivals import BASELINES, RATES, REPORTED_RATE, Rival, RuleCurve, curve_of
from search.routing import AlignmentReport

STYLE = """
.small{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));gap:.6rem 1rem}
.small svg{width:100%;height:auto;font:11px system-ui,sans-serif}.small .grid{stroke:#e4e8ec}
.small figure{margin:0}.small text{fill:#5b6672}.small path,.small line.ideal{fill:none;stroke-width:1.8}
.gain{stroke:#d1495b}.oracle{stroke:#2e8b57;stroke-dasharray:5 3}.random{stroke:#8a94a0;stroke-dasharray:2 3}
.max-score{stroke:#0b61a4}.mean-score{stroke:#e69f00}.mid-score-count{stroke:#7b50b2}
.raw{stroke:#8a94a0}.aligned{stroke:#0b61a4}.ideal{stroke:#c8ced4}
.key span{display:inline-flex;align-items:center;gap:.35rem;margin-right:1rem;font-size:13px}
.key svg{width:22px;height:8px}
"""
_RULES: tuple[Rival, ...] = ("gain", "oracle", *BASELINES)
_SIZE = (340.0, 240.0)


def escalation(routed: Routed) -> str:
    """Return the section: all pairs in a table, and mAP against escalation rate for those that plans use."""
    if not routed.pairs:
        return "<p>No pair of models was worth a rule, or calibration is too small to fit one.</p>"
    compared = [pair for pair in routed.pairs if pair.rules]
    return "".join(
        (
            '<p class="note">On calibration images that the gain model did not see. Area: the mean over all'
            " rates of the share of the gap that is recovered; chance has about 0.5. Recovered: that share at"
            f" {REPORTED_RATE:.0%} escalated. Other rules were tried on the pairs that plans ask.</p>",
            _pairs_table(routed.pairs),
            _key(_RULES),
            '<div class="small">',
            *map(_pair_figure, compared),
            "</div>",
        )
    )


def alignment(routed: Routed) -> str:
    """Return the section: calibration errors before and after, and a reliability plot per model."""
    rows = [
        (
            escape(report.variant),
            f"{calibration_error(report.raw):.4f}",
            f"{calibration_error(report.aligned):.4f}",
        )
        for report in routed.alignment
    ]
    return "".join(
        (
            '<p class="note">The mean distance between the score of a box and the share of IoU thresholds'
            " that it meets, over groups of equally many boxes, on images held back from fitting where"
            " calibration is large enough.</p>",
            table(("model", "raw", "aligned"), rows),
            _key(("raw", "aligned")),
            '<div class="small">',
            *(_reliability_figure(report) for report in routed.alignment),
            "</div>",
        )
    )


def _pairs_table(pairs: tuple[PairReport, ...]) -> str:
    rows = []
    for pair in pairs:
        rows.append(
            (
                f"{escape(pair.fast)} → {escape(pair.larger)}", pair.gain, f"{pair.rank_correlation:.3f}",
                f"{pair.replace_map:.3f}", f"{pair.wbf_map:.3f}", *_compared(pair.rules),
            )
        )  # fmt: skip
    head = (
        "pair", "gain model", "rank correlation", "mAP at 50 %, replace", "wbf", "recovered (oracle)",
        *(f"area, {rule}" for rule in _RULES),
    )  # fmt: skip
    return table(head, rows)


def _compared(curves: tuple[RuleCurve, ...]) -> list[str]:
    """Return the cells of one pair: what gain and oracle recover, and every rule's area."""
    if not curves:
        return ["–"] * (1 + len(_RULES))
    gain, oracle = (
        _or_dash(curve_of(curves, rule).recovered(REPORTED_RATE), ".0%") for rule in ("gain", "oracle")
    )
    return [f"{gain} ({oracle})", *(_or_dash(curve_of(curves, rule).area, ".3f") for rule in _RULES)]


def _or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _pair_figure(pair: PairReport) -> str:
    values = [value for curve in pair.rules for value in curve.map]
    margin = 0.05 * (max(values) - min(values)) or 0.01
    axes = Axes(
        (0.0, 100.0), (min(values) - margin, max(values) + margin), "frames escalated, %", "mAP",
        width=_SIZE[0], height=_SIZE[1],
    )  # fmt: skip
    title = f"{pair.fast} → {pair.larger}"
    lines = [
        axes.line(
            [(100 * rate, value) for rate, value in zip(RATES, curve.map, strict=True)], _css(curve.rule)
        )
        for curve in sorted(pair.rules, key=lambda curve: curve.rule == "gain")
    ]
    return _figure(title, axes.draw(title, *lines))


def _reliability_figure(report: AlignmentReport) -> str:
    axes = Axes((0.0, 1.0), (0.0, 1.0), "score", "quality", width=_SIZE[0], height=_SIZE[1])
    lines = [
        axes.line([(0.0, 0.0), (1.0, 1.0)], "ideal"),
        *(
            axes.line([(group.score, group.quality) for group in bins], css)
            for bins, css in ((report.raw, "raw"), (report.aligned, "aligned"))
        ),
    ]
    return _figure(report.variant, axes.draw(report.variant, *lines))


def _figure(title: str, drawing: str) -> str:
    return f"<figure>{drawing}<figcaption>{escape(title)}</figcaption></figure>"


def _key(names: tuple[str, ...]) -> str:
    return '<p class="key">' + "".join(
        f'<span><svg viewBox="0 0 22 8"><path class="{_css(name)}" stroke-width="2" d="M0 4H22"/></svg>'
        f"{name}</span>"
        for name in names
    ) + "</p>"  # fmt: skip


def _css(name: str) -> str:
    return name.replace(" ", "-")
