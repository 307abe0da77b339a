"""Frames in JSON, COCO results, and images with their boxes drawn."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import numpy as np
import pytest

from model_repo.frame import decode
from router.bootstrap import Gateway
from router.documents import AnswerDocument, AnswersDocument, FailedDocument
from router.http_frames import MOST_FRAMES
from tests.fakes import FakeEngine
from tests.router.conftest import DOUBTFUL, LARGE, SURE, Bench, http_to, sample

pytestmark = pytest.mark.anyio


def text(frame: bytes) -> str:
    """Return base64."""
    return base64.b64encode(frame).decode()


async def ask(gateway: Gateway, body: Any, query: str = "", **headers: str) -> httpx.Response:
    """Post JSON."""
    async with http_to(gateway) as http:
        return await http.post(f"/v1/detect{query}", json=body, headers=headers)


async def test_one_frame_in_json_is_answered_like_any_other(bench: Bench, frame: bytes) -> None:
    """The same document, under the id that was given."""
    gateway = bench(FakeEngine(rows={"tiny-0": DOUBTFUL, "tiny-1": LARGE}))
    response = await ask(gateway, {"image": text(frame)}, **{"X-Request-Id": "one"})
    assert response.status_code == 200, response.text
    answer = AnswerDocument.model_validate_json(response.content)
    assert (answer.request_id, [found.label for found in answer.detections]) == ("one", ["green"])
    assert response.headers["server-timing"].startswith("queue;dur=")


async def test_a_broken_frame_among_several_fails_alone(bench: Bench, frame: bytes) -> None:
    """Answers and problems come in the order of the frames, each counted."""
    gateway = bench(FakeEngine(rows={"tiny-0": SURE}))
    images = [text(frame), text(b"GIF89a"), text(frame[:50]), text(frame)]
    response = await ask(gateway, {"images": images}, **{"X-Request-Id": "all"})
    assert response.status_code == 200
    told = AnswersDocument.model_validate_json(response.content)
    assert told.request_id == "all"
    kinds = [
        answer.problem.type.rpartition(":")[2] if isinstance(answer, FailedDocument) else answer.request_id
        for answer in told.answers
    ]
    assert kinds == ["all.0", "unsupported-type", "broken-image", "all.3"]
    for outcome in ("answered", "rejected"):
        assert sample(gateway, "paretogate_requests_total", protocol="http", outcome=outcome) == 2


@pytest.mark.parametrize("image_id", [0, 40])
async def test_coco_results_count_images_up(bench: Bench, frame: bytes, image_id: int) -> None:
    """One list for all frames; those without an answer or a detection add nothing."""
    gateway = bench(FakeEngine(rows={"tiny-0": SURE}))
    images = [text(b""), text(frame), text(frame)]
    results = (await ask(gateway, {"images": images}, f"?format=coco&image_id={image_id}")).json()
    assert [result["image_id"] for result in results] == [image_id + 1, image_id + 2]
    assert results[0]["bbox"] == [0.0, 0.0, 16.0, 16.0]
    assert results[0]["category_id"] == 0
    async with http_to(gateway) as http:
        raw = await http.post("/v1/detect?format=coco", content=frame, headers={"Content-Type": "image/png"})
    assert raw.json()[0]["bbox"] == [0.0, 0.0, 16.0, 16.0]


async def test_a_rendered_answer_is_the_frame_with_its_boxes(bench: Bench, frame: bytes) -> None:
    """A JPEG of the same size, changed around the box and nowhere else."""
    gateway = bench(FakeEngine(rows={"tiny-0": SURE}))
    async with http_to(gateway) as http:
        response = await http.post(
            "/v1/detect?render=1", content=frame, headers={"Content-Type": "image/png"}
        )
    assert response.headers["content-type"] == "image/jpeg"
    drawn, source = decode(response.content).astype(int), decode(frame).astype(int)
    assert drawn.shape == source.shape
    far = np.abs(drawn - source).max(axis=2)
    assert far[:16, :16].max() > 60
    assert far[40:, 40:].max() < 40


@pytest.mark.parametrize(
    ("body", "query", "word"),
    [
        ([], "", "expected {"),
        ({"image": "x", "images": []}, "", "expected {"),
        ({"image": 3}, "", "image: expected base64 text"),
        ({"image": "%%"}, "", "image: no base64"),
        ({"images": []}, "", f"1 to {MOST_FRAMES}"),
        ({"images": [""] * (MOST_FRAMES + 1)}, "", f"1 to {MOST_FRAMES}"),
        ({"images": ["", None]}, "", "images[1]"),
        ({"images": ["", ""]}, "?render=1", "one image at a time"),
        ({"image": ""}, "?format=xml", "?format=xml"),
        ({"image": ""}, "?render=yes", "?render=yes"),
        ({"image": ""}, "?image_id=-1", "?image_id=-1"),
        ({"image": ""}, "?render=1&format=coco", "exclude each other"),
        ({"image": ""}, "?format=json&format=coco", "twice"),
        ({"image": ""}, "?fromat=coco", "?fromat: unknown"),
        ({"image": ""}, "?" + "&".join(["format=json"] * 17), "more than 16 fields"),
    ],
)
async def test_a_malformed_request_names_what_is_wrong(
    bench: Bench, body: Any, query: str, word: str
) -> None:
    """400, counted once."""
    gateway = bench()
    response = await ask(gateway, body, query)
    assert response.status_code == 400
    assert word in response.json()["detail"]
    assert sample(gateway, "paretogate_requests_total", protocol="http", outcome="rejected") == 1


async def test_the_document_s_examples_are_answered(bench: Bench) -> None:
    """What OpenAPI shows works as it stands."""
    gateway = bench()
    async with http_to(gateway) as http:
        document = (await http.get("/openapi.json")).json()
    content = document["paths"]["/v1/detect"]["post"]["requestBody"]["content"]["application/json"]
    for example in content["examples"].values():
        response = await ask(gateway, example["value"])
        assert response.status_code == 200
        assert "problem" not in response.text
