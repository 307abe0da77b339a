"""What the gateway's own page is told, as JSON.

The page is the one reader: these documents change with it and are no part of the interface.
"""

from __future__ import annotations

from typing import Literal

from model_repo.frontier import SplitName
from router.documents import Document, StageDocument


class PlottedDocument(Document):
    """A model by itself, or a plan: its accuracy, and its cost per frame in milliseconds.

    expected_ms: the mean under the profiles in force here; p99_ms is as published, as is `escalated`, the
    share of frames that its first rule sends on. map: null where it was never scored. on_frontier and
    on_p99_frontier: whether no other is both cheaper and as accurate, by the one cost and by the other.
    points: operating points that are this plan here.
    """

    name: str
    stages: list[str]
    split: SplitName | None
    map: float | None
    expected_ms: float
    p99_ms: float
    escalated: float | None
    on_frontier: bool
    on_p99_frontier: bool
    points: list[str]
    epsilon: float | None
    delta: float | None


class FrontierDocument(Document):
    """Everything that may answer a frame, cheapest first."""

    manifest: str
    dataset: str
    runtime: str
    runtime_version: str
    release: str
    profiles: Literal["published", "measured here"]
    home: str
    plotted: list[PlottedDocument]


class CountDocument(Document):
    """How often something has happened."""

    name: str
    count: int


class TotalsDocument(Document):
    """`router.totals.Totals`; bounds_ms are those of `within`, which has one more, of all."""

    outcomes: list[CountDocument]
    answers: list[CountDocument]
    budgeted: int
    missed: int
    decided: int
    escalated: int
    cut: int
    within: list[int]
    bounds_ms: list[float]


class SignalDocument(Document):
    """Something that is watched for drift; height is 1 where it rings."""

    subject: str
    name: str
    height: float
    rings: bool


class StateDocument(Document):
    """How the gateway does.

    instance: another one after a restart, when counts begin anew. at_s: of a clock that never goes back.
    slowest and slow_down: the step that takes longest by its profile, and how many times as long. signals:
    those that ring, and of the others the nearest to it. void: plans whose certificates drift voids, of
    `certified` that have one. frames: how many recent ones the page may show.
    """

    instance: str
    at_s: float
    manifest: str
    ready: bool
    engine_up: bool
    inside: int
    waiting: int
    busy: int
    workers: int
    limit: int
    operating_point: str
    plan: str
    held: bool
    slowest: str | None
    slow_down: float
    latency_drift: list[str]
    signals: list[SignalDocument]
    certified: int
    void: list[str]
    frames: int
    totals: TotalsDocument


class BoxDocument(Document):
    """A box in shares of a frame's width and height."""

    x1: float
    y1: float
    x2: float
    y2: float
    class_id: int
    label: str
    score: float


class RecentDocument(Document):
    """A frame that was answered, as a small JPEG in base64; width and height are the frame's own.

    cut: the stage that was left out, if any. late: whether the answer came after its budget.
    """

    number: int
    age_s: float
    jpeg: str
    width: int
    height: int
    boxes: list[BoxDocument]
    operating_point: str
    plan: str
    stages: list[StageDocument]
    cut: str | None
    total_ms: float
    late: bool


class RecentsDocument(Document):
    """Recent frames, oldest first."""

    frames: list[RecentDocument]
