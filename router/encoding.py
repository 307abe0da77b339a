"""Writing what the gateway knows as JSON and as headers; the shapes are those of `router.documents`."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import orjson

from model_repo.frontier import Certificate, Frontier
from router.documents import CertificateDocument, PointDocument, PointsDocument
from router.engines import Fleet, published_accuracy
from router.execution import Answer
from router.planner import Cut


def describe_points(
    frontier: Frontier, fleet: Fleet, *, runtime: str, runtime_version: str, manifest: str, in_force: str
) -> PointsDocument:
    """Describe the operating points as they are served; accuracy is of the test split if the plan has it."""
    expected_ms = fleet.mean_ms(frontier.decode)
    points = []
    for point in fleet.points:
        plan = point.plan
        accuracy = published_accuracy(plan)
        points.append(
            PointDocument(
                name=point.name,
                plan=plan.name,
                published_plan=point.published,
                stages=[stage.variant for stage in plan.stages],
                split=accuracy.split if accuracy else None,
                map=accuracy.map if accuracy else None,
                map50=accuracy.map50 if accuracy else None,
                escalated=list(accuracy.escalated) if accuracy else [],
                mean_ms=plan.mean_ms,
                p99_ms=plan.p99_ms,
                expected_ms=expected_ms[plan.name],
                certificate=CertificateDocument.model_validate(plan.certificate.model_dump())
                if isinstance(plan.certificate, Certificate)
                else None,
            )
        )
    return PointsDocument(
        dataset=frontier.dataset.name,
        classes=list(frontier.dataset.classes),
        runtime=runtime,
        runtime_version=runtime_version,
        manifest=manifest,
        profiles="measured here" if fleet.measured_here else "published",
        in_force=in_force,
        operating_points=points,
    )


def answer_json(answer: Answer, request_id: str) -> bytes:
    """Return the body of an `AnswerDocument`; boxes to a hundredth of a pixel, scores to a millionth."""
    found = answer.detections
    boxes = found.xyxy.astype(np.float64).round(2).tolist()
    scores = found.score.astype(np.float64).round(6).tolist()
    classes = answer.classes
    arm = {} if answer.arm is None else {"arm": answer.arm}
    return orjson.dumps(
        {
            "request_id": request_id,
            **arm,
            "operating_point": answer.operating_point,
            "plan": answer.plan.name,
            "stages": [
                {"variant": stage.variant, "latency_ms": round(stage.latency_ms, 3)}
                for stage in answer.stages
            ],
            "cut": None if answer.cut is None else _cut(answer.cut),
            "certificate": None if answer.certificate is None else _certificate(answer.certificate),
            "image": {"width": answer.image_wh[0], "height": answer.image_wh[1]},
            "timing": {
                "queue_ms": round(answer.queue_ms, 3),
                "decode_ms": round(answer.decode_ms, 3),
                "total_ms": round(answer.total_ms, 3),
            },
            "detections": [
                {
                    "box": {"x1": x1, "y1": y1, "x2": x2, "y2": y2},
                    "label": classes[label],
                    "class_id": label,
                    "score": score,
                }
                for (x1, y1, x2, y2), label, score in zip(boxes, found.label.tolist(), scores, strict=True)
            ],
        }
    )


def coco_json(answer: Answer, image_id: int) -> bytes:
    """Return an answer as COCO results of an image: x, y, width, height in its pixels, 0-based classes."""
    found = answer.detections
    boxes = found.xyxy.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    scores = found.score.astype(np.float64).round(6).tolist()
    return orjson.dumps(
        [
            {"image_id": image_id, "category_id": label, "bbox": box, "score": score}
            for box, label, score in zip(boxes.round(2).tolist(), found.label.tolist(), scores, strict=True)
        ]
    )


@lru_cache(maxsize=256)
def _certificate(certificate: Certificate) -> dict[str, object]:
    return certificate.model_dump()


def _cut(cut: Cut) -> dict[str, object]:
    return {
        "stage": cut.stage,
        "plan": cut.plan,
        "reason": cut.reason,
        "needed_ms": round(cut.needed_ms, 3),
        "left_ms": round(cut.left_ms, 3) if math.isfinite(cut.left_ms) else None,
    }


def server_timing(answer: Answer) -> str:
    """Return the `Server-Timing` header: queue, decode, every stage under its variant's name, total."""
    stages = "".join(f", stage-{stage.variant};dur={stage.latency_ms:.3f}" for stage in answer.stages)
    return (
        f"queue;dur={answer.queue_ms:.3f}, decode;dur={answer.decode_ms:.3f}{stages}"
        f", total;dur={answer.total_ms:.3f}"
    )
