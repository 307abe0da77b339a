"""Writing what the gateway knows as JSON and as headers; the shapes are those of `router.documents`."""

from __future__ import annotations

import json
import math
from functools import lru_cache

from model_repo.frontier import Certificate, Frontier
from router.documents import CertificateDocument, PointDocument, PointsDocument
from router.engines import Fleet, published_accuracy
from router.execution import Answer


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
    """Return the body of an `AnswerDocument`.

    Names of variants, plans and points are plain by the manifest's own rules, and a request id by the
    edge's, so they need no escaping; classes and certificates are escaped once.
    """
    detections = answer.detections
    labels = _escaped(answer.classes)
    objects = ",".join(
        f'{{"box":{{"x1":{x1:.2f},"y1":{y1:.2f},"x2":{x2:.2f},"y2":{y2:.2f}}}'
        f',"label":{labels[label]},"class_id":{label},"score":{score:.6f}}}'
        for (x1, y1, x2, y2), label, score in zip(
            detections.xyxy.tolist(), detections.label.tolist(), detections.score.tolist(), strict=True
        )
    )
    stages = ",".join(
        f'{{"variant":"{stage.variant}","latency_ms":{stage.latency_ms:.3f}}}' for stage in answer.stages
    )
    certificate = "null" if answer.certificate is None else _certificate(answer.certificate)
    return (
        f'{{"request_id":"{request_id}","operating_point":"{answer.operating_point}"'
        f',"plan":"{answer.plan.name}","stages":[{stages}],"cut":{_cut(answer)}'
        f',"certificate":{certificate}'
        f',"image":{{"width":{answer.image_wh[0]},"height":{answer.image_wh[1]}}}'
        f',"timing":{{"queue_ms":{answer.queue_ms:.3f},"decode_ms":{answer.decode_ms:.3f}'
        f',"total_ms":{answer.total_ms:.3f}}},"detections":[{objects}]}}'
    ).encode()


@lru_cache(maxsize=8)
def _escaped(classes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(json.dumps(name) for name in classes)


@lru_cache(maxsize=256)
def _certificate(certificate: Certificate) -> str:
    return json.dumps(certificate.model_dump())


def _cut(answer: Answer) -> str:
    cut = answer.cut
    if cut is None:
        return "null"
    left = f"{cut.left_ms:.3f}" if math.isfinite(cut.left_ms) else "null"
    return (
        f'{{"stage":"{cut.stage}","plan":"{cut.plan}","reason":"{cut.reason}"'
        f',"needed_ms":{cut.needed_ms:.3f},"left_ms":{left}}}'
    )


def server_timing(answer: Answer) -> str:
    """Return the `Server-Timing` header: queue, decode, every stage under its variant's name, total."""
    stages = "".join(f", stage-{stage.variant};dur={stage.latency_ms:.3f}" for stage in answer.stages)
    return (
        f"queue;dur={answer.queue_ms:.3f}, decode;dur={answer.decode_ms:.3f}{stages}"
        f", total;dur={answer.total_ms:.3f}"
    )
