"""What `capacity` and `frontier` found, as a page, a picture and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape

from loadtest.baseline import Machine
from loadtest.edge import Edge, Probe
from loadtest.page import SLOTS, facts, figure, legend, milliseconds, page, table
from loadtest.points import Way
from loadtest.verdict import Conditions, Verdict
from model_repo.svg import Axes, Point

# On a phone's plot names would lie on one another; its legend has them.
_ROOM_FOR_NAMES = 500.0
_ENDED: Mapping[str, str] = {
    "precision": "found",
    "most": "highest rate tried",
    "least": "lowest rate tried",
    "generator": "the generator fell behind",
}
_STANDALONE = """<style>
svg { background: #fff; font: 12px system-ui, sans-serif; } text { fill: #5b6675; }
text.axis, text.name { fill: #1c2430; } .grid { stroke: #dfe4ea; } circle.offline { fill: #8a94a3; }
path.offline { fill: none; stroke: #8a94a3; stroke-width: 1.5; stroke-dasharray: 4 3; }
path.move { stroke: #dfe4ea; } .slot0 { fill: #2a6fdb; } .slot1 { fill: #17a08a; } .slot2 { fill: #d9730d; }
.slot3 { fill: #8e5bd0; } .slot4 { fill: #c2447e; } .slot5 { fill: #6b8f23; } .slot6 { fill: #8a94a3; }
.slot7 { fill: #b08900; } line.budget { stroke: #b3261e; stroke-dasharray: 5 4; }
text.budget { fill: #b3261e; }
@media (prefers-color-scheme: dark) { svg { background: #1a2028; } text { fill: #9aa6b5; }
text.axis, text.name { fill: #e6eaf0; } .grid { stroke: #2d3642; } path.move { stroke: #2d3642; } }
</style>"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where and with what a command measured."""

    url: str
    frames: str
    schedule: str
    request_budget_ms: float | None
    senders: int
    seed: int
    machine: Machine
    runtime: str
    manifest: str

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Return what a page says of it."""
        budget = self.request_budget_ms
        return (
            ("gateway", f"{self.url}, {self.runtime}, manifest {self.manifest[:12]}"),
            ("load from", f"{self.machine.cpu}, {self.machine.cores} cores, {self.senders} sending"),
            ("frames", self.frames),
            ("schedule", f"{self.schedule}, seed {self.seed}"),
            ("budget sent along", f"{budget:g} ms" if budget is not None else "none"),
        )

    def said(self) -> dict[str, object]:
        """Return it as JSON has it."""
        return {**asdict(self), "machine": self.machine.model_dump()}


@dataclass(frozen=True, slots=True)
class Capacity:
    """A way to ask with its edge, and loads of rates that all ways were given, for the curve."""

    way: Way
    edge: Edge
    curve: tuple[Probe, ...]


@dataclass(frozen=True, slots=True)
class Served:
    """A way to ask and what it did under the load."""

    way: Way
    verdict: Verdict


def capacity_rows(found: Sequence[Capacity]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the table's head and rows, for the screen and the page."""
    head = ("asked for", "holds /s", "misses /s", "p50 ms", "p99 ms", "effective mAP", "the edge")
    rows: list[tuple[str, ...]] = []
    for one in found:
        probe = one.edge.at_edge
        verdict = None if probe is None else probe.verdict
        latency = None if verdict is None else verdict.latency
        rows.append(
            (
                one.way.name,
                f"{one.edge.held_hz:.1f}" if one.edge.held_hz else "–",
                f"{one.edge.missed_hz:.1f}" if one.edge.missed_hz is not None else "–",
                milliseconds(latency.p50_ms) if latency else "–",
                milliseconds(latency.p99_ms) if latency else "–",
                f"{verdict.effective.map:.3f}" if verdict is not None and verdict.effective else "–",
                _ENDED[one.edge.ended_by],
            )
        )
    return head, rows


def frontier_rows(found: Sequence[Served]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the table's head and rows, for the screen and the page."""
    head = (
        "asked for", "in time", "p50 ms", "p99 ms", "p99 alone", "effective mAP", "answers' mAP",
        "mAP alone",
    )  # fmt: skip
    rows: list[tuple[str, ...]] = []
    for one in found:
        verdict, published = one.verdict, one.way.published
        latency = verdict.latency
        rows.append(
            (
                one.way.name,
                f"{verdict.attainment:.2%}",
                milliseconds(latency.p50_ms) if latency else "–",
                milliseconds(latency.p99_ms) if latency else "–",
                milliseconds(published.p99_ms) if published else "–",
                f"{verdict.effective.map:.3f}" if verdict.effective else "–",
                f"{verdict.accuracy.map:.3f}" if verdict.accuracy else "–",
                f"{published.map:.3f}" if published and published.map is not None else "–",
            )
        )
    return head, rows


def capacity_json(place: Place, asked: Conditions, found: Sequence[Capacity]) -> str:
    """Return everything that was measured."""
    said = {
        "place": place.said(),
        "conditions": asdict(asked),
        "capacity": [
            {
                "name": one.way.name,
                "held_hz": one.edge.held_hz,
                "missed_hz": one.edge.missed_hz,
                "ended_by": one.edge.ended_by,
                "probes": [_probe(probe) for probe in one.edge.probes],
                "curve": [_probe(probe) for probe in one.curve],
            }
            for one in found
        ],
    }
    return json.dumps(said, indent=2) + "\n"


def frontier_json(place: Place, asked: Conditions, found: Sequence[Served]) -> str:
    """Return everything that was measured, and the offline frontier beside it."""
    said = {
        "place": place.said(),
        "conditions": asdict(asked),
        "frontier": [
            {
                "name": one.way.name,
                "published": None if one.way.published is None else one.way.published.model_dump(),
                "verdict": {
                    "valid": one.verdict.valid,
                    "reasons": one.verdict.reasons,
                    **asdict(one.verdict),
                },
            }
            for one in found
        ],
    }
    return json.dumps(said, indent=2) + "\n"


def capacity_html(place: Place, asked: Conditions, found: Sequence[Capacity]) -> str:
    """Return the page: the table, and effective accuracy and attainment against the offered load."""
    keys = legend([(one.way.name, f"slot{i % SLOTS}") for i, one in enumerate(found)])
    body = (
        f"<h1>Capacity: {escape(asked.percentile)} within {asked.budget_ms:g} ms</h1>"
        f"<p>The highest rate of Poisson arrivals that was shown to hold, with {asked.confidence:.2%}"
        " confidence, by operating point and as the gateway adapts.</p>"
        f"{table(*capacity_rows(found))}"
        f"<h2>Effective accuracy by offered load</h2>{_against_rate(found, keys, accuracy=True)}"
        f"<h2>Answers in time by offered load</h2>{_against_rate(found, keys, accuracy=False)}"
        f"<h2>Every load on the way</h2>{_probes(found)}"
        f"<h2>Conditions</h2>{facts(place.facts())}"
    )
    return page("Capacity by operating point", body)


def frontier_html(place: Place, asked: Conditions, found: Sequence[Served]) -> str:
    """Return the page: served accuracy against served latency beside the offline frontier, and the table."""
    keys = legend(
        [
            *((one.way.name, f"slot{i % SLOTS}") for i, one in enumerate(found)),
            ("published, measured alone", "offline"),
        ]
    )
    plot = figure(
        lambda width, height: frontier_svg(asked, found, width, height * 1.2),
        "Filled: under this load, late and missing answers count as empty. Gray: as published, on an idle"
        " machine and the data set's own frames.",
        keys,
    )
    body = (
        f"<h1>The frontier under load: {escape(place.schedule)}</h1>"
        f"<p>Served accuracy against served p99; a budget of {asked.budget_ms:g} ms is what is in time.</p>"
        f"{plot}{table(*frontier_rows(found))}<h2>Conditions</h2>{facts(place.facts())}"
    )
    return page("The frontier under load", body)


def frontier_svg(
    asked: Conditions,
    found: Sequence[Served],
    width: float = 720.0,
    height: float = 360.0,
    *,
    standalone: bool = False,
) -> str:
    """Return the picture; standalone: with its own style, as a file by itself."""
    offline = sorted(
        (published.p99_ms, published.map)
        for one in found
        if (published := one.way.published) is not None and published.map is not None
    )
    served: list[tuple[int, Served, Point]] = [
        (i, one, (one.verdict.latency.p99_ms, one.verdict.effective.map))
        for i, one in enumerate(found)
        if one.verdict.latency is not None and one.verdict.effective is not None
    ]
    points = [*offline, *(point for _, _, point in served)]
    if not points:
        return "<p>There is nothing to draw: no answer, or frames without labels.</p>"
    xs, ys = [x for x, _ in points], [y for _, y in points]
    spread = max(max(ys) - min(ys), 0.02)
    axes = Axes(
        (min(xs) * 0.8, max(*xs, asked.budget_ms) * 1.25),
        (max(min(ys) - 0.15 * spread, 0.0), min(max(ys) + 0.2 * spread, 1.0)),
        "p99, ms (logarithmic)", "mAP", log_x=True, width=width, height=height,
    )  # fmt: skip
    marks = [
        axes.mark(asked.budget_ms, f"budget {asked.budget_ms:g} ms", "budget"),
        axes.line(offline, "offline"),
        axes.dots(offline, "offline"),
    ]
    for i, one, point in served:
        alone = one.way.published
        if alone is not None and alone.map is not None:
            marks.append(axes.line([(alone.p99_ms, alone.map), point], "move"))
        marks.append(axes.dots([point], f"slot{i % SLOTS}"))
        if width > _ROOM_FOR_NAMES:
            marks.append(axes.tag(point, one.way.name, "name", below=i % 2 == 1))
    drawn = axes.draw("served accuracy against served latency", *marks)
    if not standalone:
        return drawn
    head, _, rest = drawn.partition(">")
    size = f'xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}"'
    return f"{head} {size}>{_STANDALONE}{rest}\n"


def _against_rate(found: Sequence[Capacity], keys: str, *, accuracy: bool) -> str:
    lines = [(i, _curve(one, accuracy)) for i, one in enumerate(found)]
    points = [point for _, line in lines for point in line]
    if not points:
        return "<p>There is nothing to draw: no load on the curve, or frames without labels.</p>"
    top_hz = max(x for x, _ in points)

    def draw(width: float, height: float) -> str:
        axes = Axes(
            (0.0, top_hz * 1.05), (0.0, 1.0 if accuracy else 100.0), "offered, requests/s",
            "effective mAP" if accuracy else "% in time", width=width, height=height,
        )  # fmt: skip
        marks = [
            axes.line(line, f"slot{i % SLOTS}") + axes.dots(line, f"slot{i % SLOTS}") for i, line in lines
        ]
        return axes.draw("by offered load", *marks)

    return figure(
        draw,
        "Late, refused and missing answers count as empty." if accuracy else "Of all requests that were due.",
        keys,
    )


def _curve(one: Capacity, accuracy: bool) -> list[Point]:
    if not accuracy:
        return [(probe.rate_hz, 100.0 * probe.verdict.attainment) for probe in one.curve]
    return [
        (probe.rate_hz, probe.verdict.effective.map)
        for probe in one.curve
        if probe.verdict.effective is not None
    ]


def _probes(found: Sequence[Capacity]) -> str:
    rows = [
        (
            one.way.name,
            f"{probe.rate_hz:.1f}",
            str(probe.verdict.requests),
            f"{probe.verdict.attainment:.2%}",
            milliseconds(probe.verdict.latency.p99_ms) if probe.verdict.latency else "–",
            "holds" if probe.holds else "misses" if probe.verdict.says_something else "generator fell behind",
        )
        for one in found
        for probe in one.edge.probes
    ]
    return table(("asked for", "offered /s", "requests", "in time", "p99 ms", ""), rows)


def _probe(probe: Probe) -> dict[str, object]:
    verdict = probe.verdict
    return {
        "rate_hz": probe.rate_hz,
        "holds": probe.holds,
        "reasons": verdict.reasons,
        "requests": verdict.requests,
        "attainment": verdict.attainment,
        "p50_ms": None if verdict.latency is None else verdict.latency.p50_ms,
        "p99_ms": None if verdict.latency is None else verdict.latency.p99_ms,
        "effective_map": None if verdict.effective is None else verdict.effective.map,
        "outcomes": dict(verdict.outcomes),
    }
