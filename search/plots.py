"""The pictures of a report: the frontier, the training curve, sample frames with what was found in them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _MUTED, _GRID = "#1d2733", "#8a94a0", "#e4e8ec"
_KEPT, _MODEL, _PLAN = "#7fb2d9", "#0b61a4", "#d1495b"


@dataclass(frozen=True, slots=True)
class Point:
    """A dot of the frontier: latency in milliseconds, mAP, and a name where it is to be shown."""

    ms: float
    map: float
    name: str = ""


def frontier_figure(
    candidates: Sequence[Point], screened: Sequence[Point], models: Sequence[Point], plans: Sequence[Point]
) -> Figure:
    """Draw accuracy against latency: candidates, screened files, published models, plans joined."""
    figure, axes = _axes(9.5, 5.6)
    _dots(axes, candidates, "#c8ced4", 16, "candidates (estimated latency, shared weights)")
    _dots(axes, screened, _KEPT, 20, "exported files, median measured alone")
    ordered = sorted(plans, key=lambda point: point.ms)
    axes.plot(
        [point.ms for point in ordered], [point.map for point in ordered], color=_PLAN, lw=1.6, marker="o",
        ms=4, label="plans (mean of a whole frame, calibration)", zorder=3,
    )  # fmt: skip
    _dots(axes, models, _MODEL, 52, "published models (valid)", edge="white")
    for point in models:
        axes.annotate(
            point.name,
            (point.ms, point.map),
            textcoords="offset points",
            xytext=(6, -11),
            fontsize=7.5,
            color=_INK,
        )
    axes.set_xscale("log")
    _plain_log_ticks(axes)
    axes.set_xlabel("latency, ms (log scale)", color=_INK)
    axes.set_ylabel("mAP@[.5:.95]", color=_INK)
    axes.set_title("Accuracy against latency", loc="left", color=_INK, fontsize=12, fontweight="bold")
    axes.legend(loc="lower right", frameon=False, fontsize=8.5)
    figure.tight_layout()
    return figure


def training_figure(share: Sequence[float], largest: Sequence[float], others: Sequence[float]) -> Figure:
    """Draw the training curve, smoothed: the largest subnet's loss and, from where they learn too (losses
    above 0), the mean of the others."""
    figure, axes = _axes(6.2, 3.2)
    x, width = 100 * np.asarray(share), max(len(share) // 60, 1)
    taught = np.flatnonzero(np.asarray(others) > 0)
    start = int(taught[0]) if len(taught) else len(x)
    for values, begin, colour, label in (
        (largest, 0, _MODEL, "largest subnet"),
        (others, start, _PLAN, "smallest and random ones"),
    ):
        if len(x) - begin < width:
            continue
        smooth = (
            np.convolve(row[begin:], np.ones(width) / width, "valid") for row in (x, np.asarray(values))
        )
        axes.plot(*smooth, color=colour, lw=1.4, label=label)
    axes.set_xlabel("% of the training budget", color=_INK)
    axes.set_ylabel("loss", color=_INK)
    axes.set_title("Training", loc="left", color=_INK, fontsize=11, fontweight="bold")
    axes.legend(frameon=False, fontsize=8.5)
    figure.tight_layout()
    return figure


def difficulty_figure(curves: Sequence[tuple[str, Sequence[float]]]) -> Figure:
    """Draw mAP by tenth of difficulty, easiest first, one line for each model."""
    figure, axes = _axes(6.2, 3.2)
    for (name, values), colour in zip(curves, (_MODEL, _PLAN, _KEPT), strict=False):
        axes.plot(range(1, len(values) + 1), values, color=colour, lw=1.6, marker="o", ms=4, label=name)
    axes.set_xticks(range(1, 11))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tenth of the frames, easiest to hardest", color=_INK)
    axes.set_ylabel("mAP@[.5:.95]", color=_INK)
    axes.set_title("Accuracy by difficulty (test)", loc="left", color=_INK, fontsize=11, fontweight="bold")
    axes.legend(frameon=False, fontsize=8.5)
    figure.tight_layout()
    return figure


def jpeg_uri(image: NDArray[np.uint8]) -> str:
    """Return an RGB image as a data URI."""
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
    if not done:
        raise ValueError("the image cannot be encoded")
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def png_bytes(figure: Figure) -> bytes:
    """Render a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def png_uri(content: bytes) -> str:
    """Return PNG bytes as a data URI."""
    return "data:image/png;base64," + base64.b64encode(content).decode()


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    # Without pyplot: no global state, no display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.subplots()
    axes.grid(True, color=_GRID, lw=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_MUTED)
    axes.tick_params(colors=_INK, labelsize=9)
    return figure, axes


def _dots(
    axes: Axes, points: Sequence[Point], colour: str, size: float, label: str, edge: str = "none"
) -> None:
    axes.scatter(
        [point.ms for point in points], [point.map for point in points], s=size, color=colour, label=label,
        edgecolors=edge, linewidths=0.8, zorder=4 if edge != "none" else 2,
    )  # fmt: skip


def _plain_log_ticks(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
