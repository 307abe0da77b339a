"""The JSON of the HTTP interface, as models for OpenAPI and the client.

Answers are not written through them: validating and dumping a hundred detections would cost more than
finding them in a small frame. `router.encoding` writes plain values, and a test holds the two together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from model_repo.detections import Detections
from router.arms import ArmName

if TYPE_CHECKING:
    import supervision


class Document(BaseModel):
    """A part of a body; unknown fields are ignored, so that a client outlives a newer gateway."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Box(Document):
    """A box in pixels of the sent image, origin at the top left."""

    x1: float
    y1: float
    x2: float
    y2: float


class DetectedObject(Document):
    """A detection; `score` is aligned: the expected share of COCO IoU thresholds that the box meets."""

    box: Box
    label: str
    class_id: int
    score: float


class StageDocument(Document):
    """A stage that ran: resizing, inference and suppression."""

    variant: str
    latency_ms: float


class CutDocument(Document):
    """A stage that was not run, of which plan, and why; `left_ms` is null without a budget."""

    stage: str
    plan: str
    reason: Literal["deadline", "engine"]
    needed_ms: float
    left_ms: float | None


class CertificateDocument(Document):
    """The expected excess loss over the last stage alone is at most epsilon, with confidence 1 − delta."""

    loss: str
    images: int
    epsilon: float
    delta: float
    bound: float
    empirical: float


class ImageDocument(Document):
    """The size of the sent image in pixels."""

    width: int
    height: int


class TimingDocument(Document):
    """Where the time went, in milliseconds; `total_ms` runs from the parsed headers to the answer."""

    queue_ms: float
    decode_ms: float
    total_ms: float


class AnswerDocument(Document):
    """The answer to a frame; `certificate` is null when the plan has none or a stage was cut.

    arm: which of two sets that are compared gave it; left out where there is one set.
    """

    request_id: str
    arm: ArmName | None = None
    operating_point: str
    plan: str
    stages: list[StageDocument]
    cut: CutDocument | None
    certificate: CertificateDocument | None
    image: ImageDocument
    timing: TimingDocument
    detections: list[DetectedObject]

    def as_detections(self) -> Detections:
        """Return the detections as arrays, in the order of the answer."""
        return Detections.make(
            [(found.box.x1, found.box.y1, found.box.x2, found.box.y2) for found in self.detections],
            [found.score for found in self.detections],
            [found.class_id for found in self.detections],
        )

    def as_coco(self, image_id: int) -> list[dict[str, object]]:
        """Return the detections as COCO results of an image; boxes are x, y, width, height.

        `category_id` is the class's 0-based index: map it where a data set counts otherwise.
        """
        return [
            {
                "image_id": image_id,
                "category_id": found.class_id,
                "bbox": [
                    found.box.x1,
                    found.box.y1,
                    round(found.box.x2 - found.box.x1, 3),
                    round(found.box.y2 - found.box.y1, 3),
                ],
                "score": found.score,
            }
            for found in self.detections
        ]

    def as_supervision(self) -> supervision.Detections:
        """Return the detections as `supervision` has them, names under `class_name`.

        Raises ImportError without that package, which this one does not bring.
        """
        import supervision

        found = self.as_detections()
        names = np.array([one.label for one in self.detections], dtype=str)
        return supervision.Detections(
            xyxy=found.xyxy, confidence=found.score, class_id=found.label, data={"class_name": names}
        )


class ProblemDocument(Document):
    """RFC 9457 problem details; `operating_points` lists those that are known when one was not."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str = ""
    retry_after_s: float | None = None
    operating_points: list[str] | None = None


class FailedDocument(Document):
    """A frame among several that got no answer."""

    problem: ProblemDocument


class AnswersDocument(Document):
    """The answers to several frames, in their order; one that cannot be answered fails alone."""

    request_id: str
    answers: list[AnswerDocument | FailedDocument]


class ReusedDocument(Document):
    """The earlier frame of a stream whose answer is given, and how different this one looks.

    difference: of the most different block of eight by eight pixels, in levels of 0 to 255.
    """

    number: int
    difference: float


class StreamedDocument(Document):
    """What came of a frame of a stream: an answer or a problem; `number` counts frames from 0.

    dropped: frames of the stream that a newer one replaced, so far. age_ms: from the frame's arrival to this
    result.
    """

    number: int
    name: str
    dropped: int
    age_ms: float
    reused: ReusedDocument | None = None
    answer: AnswerDocument | None = None
    problem: ProblemDocument | None = None


class PointDocument(Document):
    """An operating point: its plan, and what the plan costs and reaches.

    published_plan differs from plan when the published one cannot run here. map and map50 are of the split
    that is named, null when the plan was never scored. Costs are of a whole frame in milliseconds: mean_ms
    and p99_ms as published, expected_ms the mean under the latency profiles in force here.
    """

    name: str
    plan: str
    published_plan: str
    stages: list[str]
    split: str | None
    map: float | None
    map50: float | None
    escalated: list[float]
    mean_ms: float
    p99_ms: float
    expected_ms: float
    certificate: CertificateDocument | None


class PointsDocument(Document):
    """What the gateway serves; `in_force` is an operating point or, under load, the name of a plan."""

    dataset: str
    classes: list[str]
    runtime: str
    runtime_version: str
    manifest: str
    profiles: Literal["published", "measured here"]
    in_force: str
    operating_points: list[PointDocument]
