"""The plots of one run: latency over time and its tail, what became of requests, the generator's delay."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from loadtest.page import SLOTS, figure, legend
from loadtest.sample import OUTCOMES, Sample
from model_repo.svg import Axes, Point

# Past this many dots a scatter only grows the file; every k-th ordinary request is drawn, every miss is.
_MAX_DOTS, _MAX_MISSES = 3_000, 3_000
_CURVE_POINTS = 600
_BINS = 60
_TAIL: tuple[tuple[float, str], ...] = (
    (2, "50 %"), (10, "90 %"), (100, "99 %"), (1_000, "99.9 %"), (10_000, "99.99 %"),
)  # fmt: skip
_NS_PER_S = 1e9


def over_time(samples: Sequence[Sample], budget_ms: float) -> str:
    """Return latency against the moment a request was due, with the budget."""
    met: list[Point] = []
    late: list[Point] = []
    lost: list[Point] = []
    for sample in samples:
        point = (sample.scheduled_ns / _NS_PER_S, sample.latency_ms)
        (met if sample.met(budget_ms) else late if sample.answered else lost).append(point)
    times = [y for _, y in (*met, *late, *lost)]
    # One stall of seconds would press everything else flat: beyond four budgets dots stick to the top edge.
    top = min(max(budget_ms * 1.15, *times) * 1.05 if times else budget_ms * 1.15, budget_ms * 4)

    def draw(width: float, height: float) -> str:
        axes = Axes(
            (0.0, _end_s(samples)), (0.0, top), "due, s from the start", "latency, ms",
            width=width, height=height,
        )  # fmt: skip
        return axes.draw(
            "latency over time",
            axes.level(budget_ms, f"budget {budget_ms:g} ms", "budget"),
            axes.dots(_thinned(met, _MAX_DOTS), "met"),
            axes.dots(_thinned(late, _MAX_MISSES), "late"),
            axes.dots(_thinned(lost, _MAX_MISSES), "lost"),
        )

    keys = legend((("in time", "met"), ("late", "late"), ("no answer", "lost")))
    return figure(
        draw, "Latency counts from the moment a request was due. Dots beyond the top lie on it.", keys
    )


def tail(samples: Sequence[Sample], budget_ms: float, quantile: float) -> str:
    """Return the latency of every share of requests, the slowest drawn wide: to 99.99 %."""
    curve, own = _tail_of(samples), _delays_of(samples)
    if not curve:
        return "<p>No request was answered.</p>"
    top = max(budget_ms * 1.15, curve[-1][1] * 1.05)

    def draw(width: float, height: float) -> str:
        marks = _TAIL if width > 500 else tuple((x, label.replace(" %", "")) for x, label in _TAIL)
        axes = Axes(
            (1.0, 12_000.0), (0.0, top), "share of all requests, %", "latency, ms, at most",
            log_x=True, width=width, height=height, x_marks=marks,
        )  # fmt: skip
        return axes.draw(
            "latency of the slowest",
            axes.level(budget_ms, f"budget {budget_ms:g} ms", "budget"),
            axes.mark(1.0 / (1.0 - quantile), f"p{quantile * 100:.10g}", "goal"),
            axes.steps(own, "own"),
            axes.steps(curve, "curve"),
        )

    keys = legend((("latency", "met"), ("the generator's own delay", "late")))
    return figure(draw, "The curve ends at the share that was answered.", keys)


def delays(samples: Sequence[Sample], bound_ms: float) -> str:
    """Return the generator's own delay over time: the median and the worst of each part of the run."""
    bins = _binned(samples)
    parts = [
        (begin, end, sorted(sample.issue_delay_ms for sample in part if sample.reply.outcome != "unsent"))
        for begin, end, part in bins
    ]
    known = [(begin, end, times) for begin, end, times in parts if times]
    if not known:
        return ""
    worst = max(times[-1] for _, _, times in known)
    top = max(worst * 1.1, min(bound_ms * 1.15, worst * 4), 0.01)

    def draw(width: float, height: float) -> str:
        axes = Axes(
            (0.0, _end_s(samples)), (0.0, top), "due, s from the start", "issue delay, ms",
            width=width, height=height * 0.7,
        )  # fmt: skip
        return axes.draw(
            "issue delay over time",
            *(
                axes.box((begin, end), (0.0, times[-1]), "late", f"worst {times[-1]:.2f} ms")
                + axes.box((begin, end), (0.0, times[len(times) // 2]), "met", "median")
                for begin, end, times in known
            ),
            axes.level(bound_ms, f"bound on p99: {bound_ms:g} ms", "budget"),
        )

    keys = legend((("median", "met"), ("worst", "late")))
    return figure(draw, "How late the generator sent: its own fault, never the gateway's.", keys)


def outcomes_over_time(samples: Sequence[Sample], budget_ms: float) -> str:
    """Return what became of the requests due in each part of the run, as shares."""
    late = "answered late"

    def kind(sample: Sample) -> str:
        in_time = sample.reply.outcome != "answered" or sample.met(budget_ms)
        return sample.reply.outcome if in_time else late

    there = {kind(sample) for sample in samples}
    order = [name for name in ("answered", late, *OUTCOMES[1:]) if name in there]
    classes = {name: f"outcome-{'late' if name == late else name}" for name in order}
    return _stacked(
        samples, kind, order, classes, "outcomes over time", "What became of the requests due then."
    )


def plans_over_time(samples: Sequence[Sample]) -> str:
    """Return which plan and stages answered in each part of the run, as shares of the answers."""
    answered = [sample for sample in samples if sample.answered]

    def way(sample: Sample) -> str:
        return way_of(sample.reply.plan, sample.reply.stages)

    order = [name for name, _ in Counter(way(sample) for sample in answered).most_common()]
    if len(order) > SLOTS:
        kept = set(order[: SLOTS - 1])
        others = f"{len(order) - len(kept)} others"
        order = [*order[: SLOTS - 1], others]

        def kind(sample: Sample) -> str:
            return name if (name := way(sample)) in kept else others
    else:
        kind = way
    if not order:
        return "<p>No request was answered.</p>"
    classes = {name: f"slot{position}" for position, name in enumerate(order)}
    return _stacked(
        answered, kind, order, classes, "plans over time", "Who answered, of the requests due then."
    )


def way_of(plan: str | None, stages: Sequence[str]) -> str:
    """Return a plan and how far into it an answer came, in words."""
    name = plan or "(not said)"
    return f"{name}: {' → '.join(stages)}" if stages and tuple(stages) != (plan,) else name


def _stacked(
    samples: Sequence[Sample],
    kind: Callable[[Sample], str],
    order: Sequence[str],
    classes: dict[str, str],
    title: str,
    caption: str,
) -> str:
    counts = Counter(kind(sample) for sample in samples)
    bins = [(begin, end, Counter(map(kind, part))) for begin, end, part in _binned(samples)]

    def draw(width: float, height: float) -> str:
        axes = Axes(
            (0.0, _end_s(samples)), (0.0, 100.0), "due, s from the start", "% of the requests",
            width=width, height=height * 0.75,
        )  # fmt: skip
        boxes = []
        for begin, end, part in bins:
            below, whole = 0.0, sum(part.values())
            for name in order:
                share = 100.0 * part[name] / whole if whole else 0.0
                if share:
                    label = f"{name}: {share:.1f} %"
                    boxes.append(axes.box((begin, end), (below, below + share), classes[name], label))
                below += share
        return axes.draw(title, *boxes)

    total = max(len(samples), 1)
    keys = legend([(f"{name} {counts[name] / total:.1%}", classes[name]) for name in order])
    return figure(draw, caption, keys)


def _binned(samples: Sequence[Sample]) -> list[tuple[float, float, list[Sample]]]:
    """Return equal parts of the run, in seconds, with the requests that were due in each."""
    end_s = _end_s(samples)
    count = max(1, min(_BINS, len(samples) // 8))
    parts: list[list[Sample]] = [[] for _ in range(count)]
    for sample in samples:
        parts[min(int(sample.scheduled_ns / _NS_PER_S / end_s * count), count - 1)].append(sample)
    return [(end_s * i / count, end_s * (i + 1) / count, part) for i, part in enumerate(parts)]


def _end_s(samples: Sequence[Sample]) -> float:
    return max(0.001, max((sample.scheduled_ns / _NS_PER_S for sample in samples), default=0.0))


def _thinned(points: Sequence[Point], most: int) -> Sequence[Point]:
    return points[:: len(points) // most + 1]


def _tail_of(samples: Sequence[Sample]) -> list[Point]:
    times = sorted(sample.latency_ms for sample in samples if sample.answered)
    return _steps_of(times, len(samples))


def _delays_of(samples: Sequence[Sample]) -> list[Point]:
    times = sorted(sample.issue_delay_ms for sample in samples if sample.reply.outcome != "unsent")
    return _steps_of(times, len(samples))


def _steps_of(times: Sequence[float], count: int) -> list[Point]:
    """Return (1 / (1 − share below), time) of sorted times among `count` requests, some hundred of them."""
    if not times:
        return []
    ranks = np.unique(count - np.geomspace(count, 1, min(count, _CURVE_POINTS)).round().astype(int))
    points = [(count / (count - rank), times[rank]) for rank in ranks.tolist() if rank < len(times)]
    # The last request's step is as wide as its share.
    answered = count / (count - len(times)) if len(times) < count else math.inf
    return [*points, (min(max(answered, points[-1][0]), 12_000.0, 2.0 * points[-1][0]), times[-1])]
