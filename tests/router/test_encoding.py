"""What is written by hand keeps to the documented shapes."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_repo.detections import Detections
from model_repo.frontier import Certificate
from model_repo.publish import Repository
from router.documents import AnswerDocument
from router.encoding import answer_json, server_timing
from router.execution import Answer, StageRun
from router.grpc_reply import encode_answer
from router.planner import Cut

CLASSES = ('re"d', "grün")
CERTIFICATE = Certificate(loss="miss rate", images=100, epsilon=0.05, delta=0.1, bound=0.04, empirical=0.02)
scores = st.floats(0, 1, width=32)
coordinates = st.floats(0, 1e5, width=32)
boxes = st.lists(
    st.tuples(coordinates, coordinates, coordinates, coordinates, scores, st.integers(0, 1)), max_size=5
)


def answer_of(
    repository: Repository,
    found: list[tuple[float, float, float, float, float, int]],
    cut: Cut | None = None,
    certificate: Certificate | None = None,
) -> Answer:
    plan = repository.frontier.plan("tiny-0-then-tiny-1")
    return Answer(
        detections=Detections.make([f[:4] for f in found], [f[4] for f in found], [f[5] for f in found]),
        image_wh=(640, 480), classes=CLASSES, operating_point="balanced", plan=plan.model_copy(
            update={"certificate": certificate or plan.certificate}
        ),
        stages=(StageRun("tiny-0", 1.25, 1), StageRun("tiny-1", 2.5, 1)), escalated=True, cut=cut,
        certificate=certificate, queue_ms=0.5, decode_ms=1.0, total_ms=6.0, left_ms=math.inf,
    )  # fmt: skip


@given(found=boxes, cut=st.sampled_from([None, 3.5, math.inf]))
def test_the_written_answer_is_the_documented_one(
    repository: Repository, found: list[tuple[float, float, float, float, float, int]], cut: float | None
) -> None:
    """Every answer parses as an AnswerDocument that says the same, to the written digits."""
    stage = None if cut is None else Cut("tiny-1", "tiny-0-then-tiny-1", "deadline", 7.0, cut)
    text = answer_json(answer_of(repository, found, stage), "id-1")
    assert set(json.loads(text)) == set(AnswerDocument.model_fields) - {"arm"}
    document = AnswerDocument.model_validate_json(text, strict=True)
    assert (document.request_id, document.plan) == ("id-1", "tiny-0-then-tiny-1")
    assert [(s.variant, s.latency_ms) for s in document.stages] == [("tiny-0", 1.25), ("tiny-1", 2.5)]
    assert (document.cut is None) == (cut is None)
    if document.cut is not None:
        assert document.cut.left_ms == (None if cut == math.inf else cut)
    for said, meant in zip(document.detections, found, strict=True):
        assert (said.box.x1, said.box.y1, said.box.x2, said.box.y2) == pytest.approx(meant[:4], abs=0.0051)
        assert said.score == pytest.approx(meant[4], abs=1e-6)
        assert said.label == CLASSES[said.class_id]
        assert said.class_id == meant[5]


def test_the_arm_is_said_where_there_are_two(repository: Repository) -> None:
    """Of two sets that are compared an answer says which gave it, in JSON and over gRPC."""
    given = replace(answer_of(repository, []), arm="challenger")
    assert AnswerDocument.model_validate_json(answer_json(given, "id")).arm == "challenger"
    assert encode_answer(given, "id").arm == "challenger"


def test_a_certificate_is_written_whole(repository: Repository) -> None:
    """The certificate of an uncut answer stands in it, over both protocols."""
    answer = answer_of(repository, [], certificate=CERTIFICATE)
    document = AnswerDocument.model_validate_json(answer_json(answer, "id"))
    assert document.certificate is not None
    assert document.certificate.model_dump() == CERTIFICATE.model_dump()
    message = encode_answer(answer, "id")
    assert message.certificate.epsilon == CERTIFICATE.epsilon
    assert not message.HasField("cut")


def test_server_timing_is_a_list_of_tokens(repository: Repository) -> None:
    """Server-Timing has a name and a duration in milliseconds for every step."""
    assert server_timing(answer_of(repository, [])) == (
        "queue;dur=0.500, decode;dur=1.000, stage-tiny-0;dur=1.250, stage-tiny-1;dur=2.500, total;dur=6.000"
    )
