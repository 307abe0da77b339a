"""`POST /v1/detect` and the paths beside it, through the ASGI application."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, MutableMapping
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

import router.execution
from model_repo.frame import FrameLimits, decode
from model_repo.runtime.engine import EngineUnavailable
from router.bootstrap import Gateway
from router.documents import AnswerDocument, PointsDocument, ProblemDocument
from tests.fakes import FakeEngine, rows_of
from tests.router.conftest import DOUBTFUL, LARGE, SURE, Bench, http_to, sample

pytestmark = pytest.mark.anyio
PNG = {"Content-Type": "image/png"}


async def post(gateway: Gateway, content: bytes, headers: dict[str, str] | None = None) -> httpx.Response:
    """Send a body to the gateway."""
    async with http_to(gateway) as http:
        return await http.post("/v1/detect", content=content, headers=PNG | (headers or {}))


def problem(response: httpx.Response, status: int, slug: str) -> ProblemDocument:
    """Check that a response is this problem in RFC 9457's form."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document = ProblemDocument.model_validate_json(response.content)
    assert document.type == f"urn:paretogate:problem:{slug}"
    assert document.status == status
    assert document.request_id == response.headers["x-request-id"]
    return document


def outcomes(gateway: Gateway) -> dict[str, float]:
    """Return how many HTTP requests ended in each way."""
    names = ("answered", "shed", "cancelled", "rejected", "failed")
    return {
        name: count
        for name in names
        if (count := sample(gateway, "paretogate_requests_total", protocol="http", outcome=name))
    }


@pytest.mark.parametrize("kind", ["image/png", "image/jpeg", "application/octet-stream", "Image/PNG; q=1"])
async def test_a_raw_image_is_answered(bench: Bench, frame: bytes, kind: str) -> None:
    """A raw body of any accepted type gives detections, plan, stages and times."""
    gateway = bench(FakeEngine(rows={"tiny-0": DOUBTFUL, "tiny-1": LARGE}))
    response = await post(gateway, frame, {"Content-Type": kind})
    assert response.status_code == 200
    answer = AnswerDocument.model_validate_json(response.content)
    assert (answer.operating_point, answer.plan) == ("balanced", "tiny-0-then-tiny-1")
    assert [stage.variant for stage in answer.stages] == ["tiny-0", "tiny-1"]
    assert (answer.image.width, answer.image.height) == (64, 64)
    assert [found.label for found in answer.detections] == ["green"]
    assert answer.cut is None
    assert outcomes(gateway) == {"answered": 1}


@pytest.mark.parametrize("name", ["file", "image"])
async def test_a_form_with_an_image_is_answered(bench: Bench, frame: bytes, name: str) -> None:
    """A multipart form may carry the image as `file` or `image`, beside other fields."""
    async with http_to(bench()) as http:
        response = await http.post("/v1/detect", files={name: ("f.png", frame)}, data={"note": "x"})
    assert response.status_code == 200, response.text


async def test_server_timing_has_every_stage(bench: Bench, frame: bytes) -> None:
    """Queue, decoding, each stage and the total stand in Server-Timing."""
    response = await post(bench(FakeEngine(rows={"tiny-0": DOUBTFUL, "tiny-1": LARGE})), frame)
    names = [part.split(";dur=")[0] for part in response.headers["server-timing"].split(", ")]
    assert names == ["queue", "decode", "stage-tiny-0", "stage-tiny-1", "total"]


async def test_the_request_id_is_echoed_or_made_up(bench: Bench, frame: bytes) -> None:
    """A plain id comes back in header and body; one that is not plain is replaced."""
    gateway = bench()
    response = await post(gateway, frame, {"X-Request-Id": "belt-7.frame:12"})
    assert response.headers["x-request-id"] == response.json()["request_id"] == "belt-7.frame:12"
    response = await post(gateway, frame, {"X-Request-Id": 'a"b'})
    assert response.headers["x-request-id"] == response.json()["request_id"] != 'a"b'


async def test_the_operating_point_header_is_honoured(bench: Bench, frame: bytes) -> None:
    """X-Operating-Point chooses the plan."""
    response = await post(bench(), frame, {"X-Operating-Point": "fast"})
    assert (response.json()["operating_point"], response.json()["plan"]) == ("fast", "tiny-0")


async def test_an_unknown_operating_point_is_told_those_known(bench: Bench, frame: bytes) -> None:
    """400, with the list of what is published."""
    gateway = bench()
    document = problem(
        await post(gateway, frame, {"X-Operating-Point": "nope"}), 400, "unknown-operating-point"
    )
    assert document.operating_points == ["fast", "balanced", "accurate"]
    assert outcomes(gateway) == {"rejected": 1}


@pytest.mark.parametrize("value", ["soon", "-5", "0", "", "1e9", "nan"])
async def test_a_malformed_budget_names_the_header(bench: Bench, frame: bytes, value: str) -> None:
    """400, naming X-Latency-Budget-Ms."""
    response = await post(bench(), frame, {"X-Latency-Budget-Ms": value})
    assert "X-Latency-Budget-Ms" in problem(response, 400, "malformed-budget").detail


async def test_a_budget_that_nothing_can_meet_is_refused(bench: Bench, frame: bytes) -> None:
    """422 at once, without any inference."""
    engine = FakeEngine()
    problem(await post(bench(engine), frame, {"X-Latency-Budget-Ms": "0.5"}), 422, "unmeetable-budget")
    assert engine.calls == []


@pytest.mark.parametrize("kind", ["image/gif", "text/plain", "application/x-www-form-urlencoded", ""])
async def test_other_types_are_unsupported(bench: Bench, frame: bytes, kind: str) -> None:
    """415, naming what is accepted."""
    document = problem(await post(bench(), frame, {"Content-Type": kind}), 415, "unsupported-type")
    assert "image/jpeg" in document.detail


async def test_bytes_of_another_type_are_unsupported(bench: Bench) -> None:
    """415 for a GIF that claims to be a PNG."""
    problem(await post(bench(), b"GIF89a" + b"\0" * 100), 415, "unsupported-type")


@pytest.mark.parametrize("cut", [0, 5, 20, 60])
async def test_broken_images_are_unprocessable(bench: Bench, frame: bytes, cut: int) -> None:
    """422 for nothing and for truncated images."""
    response = await post(bench(), frame[:cut])
    # Less than the magic number is no PNG at all.
    assert response.status_code == (415 if cut == 5 else 422)


async def test_a_declared_length_above_the_limit_is_refused_unread(bench: Bench) -> None:
    """413 from the header alone, closing the connection."""
    gateway = bench(max_bytes=1000)
    messages: list[MutableMapping[str, Any]] = []  # Any: as ASGI defines its messages

    async def receive() -> MutableMapping[str, Any]:  # Any: as ASGI defines its messages
        raise AssertionError("the body was read")

    async def send(message: MutableMapping[str, Any]) -> None:  # Any: as ASGI defines its messages
        messages.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/v1/detect", "query_string": b"", "http_version": "1.1",
        "headers": [(b"content-type", b"image/png"), (b"content-length", b"1001")], "root_path": "",
    }  # fmt: skip
    await gateway.app(scope, receive, send)
    assert messages[0]["status"] == 413
    assert (b"connection", b"close") in messages[0]["headers"]


async def test_a_streamed_body_is_refused_as_soon_as_it_is_too_large(bench: Bench) -> None:
    """413 while streaming: what comes after the limit is not asked for."""
    gateway = bench(max_bytes=1000)
    asked = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal asked
        for _ in range(1000):
            asked += 1
            yield b"x" * 100

    async with http_to(gateway) as http:
        response = await http.post("/v1/detect", content=chunks(), headers=PNG)
    problem(response, 413, "too-large")
    assert asked <= 12


async def test_too_many_pixels_are_refused_before_they_are_decoded(bench: Bench, frame: bytes) -> None:
    """413 by the size in the header."""
    document = problem(await post(bench(max_pixels=1000), frame), 413, "too-large")
    assert "64x64" in document.detail


async def test_bodies_in_flight_are_bounded_together(bench: Bench, frame: bytes) -> None:
    """A body that does not fit beside those in flight is shed with Retry-After."""
    gateway = bench(max_bytes=1000, max_buffered_bytes=1000)
    first_chunk, rest = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield frame[:100]
        first_chunk.set()
        await rest.wait()
        yield frame[100:]

    async with http_to(gateway) as http:
        slowly = asyncio.create_task(http.post("/v1/detect", content=slow(), headers=PNG))
        await first_chunk.wait()
        response = await http.post("/v1/detect", content=b"\x89PNG" * 240, headers=PNG)
        problem(response, 503, "overloaded")
        assert int(response.headers["retry-after"]) >= 1
        rest.set()
        assert (await slowly).status_code == 200


async def test_a_full_gateway_says_when_to_come_back(bench: Bench, frame: bytes) -> None:
    """503 with Retry-After in whole seconds."""
    began, go_on = threading.Event(), threading.Event()

    def rows(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        began.set()
        assert go_on.wait(30)
        return SURE

    gateway = bench(FakeEngine(rows={"tiny-0": rows}), max_queue=0)
    running = asyncio.create_task(post(gateway, frame))
    assert await asyncio.to_thread(began.wait, 30)
    response = await post(gateway, frame)
    document = problem(response, 503, "overloaded")
    assert int(response.headers["retry-after"]) >= 1
    assert document.retry_after_s is not None
    go_on.set()
    assert (await running).status_code == 200
    assert outcomes(gateway) == {"answered": 1, "shed": 1}


async def test_inference_stays_off_the_event_loop(bench: Bench, frame: bytes) -> None:
    """While a model runs, the loop answers other requests."""
    began, go_on = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []

    def rows(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        threads.append(threading.current_thread())
        began.set()
        assert go_on.wait(30)
        return SURE

    gateway = bench(FakeEngine(rows={"tiny-0": rows}))
    running = asyncio.create_task(post(gateway, frame))
    assert await asyncio.to_thread(began.wait, 30)
    async with http_to(gateway) as http:
        assert (await http.get("/healthz")).status_code == 200
    assert not running.done()
    go_on.set()
    assert (await running).status_code == 200
    assert threading.main_thread() not in threads


async def test_decoding_stays_off_the_event_loop(
    bench: Bench, frame: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a frame is decoded, the loop answers other requests."""
    began, go_on = threading.Event(), threading.Event()

    def held(data: bytes, limits: FrameLimits) -> NDArray[np.uint8]:
        began.set()
        assert go_on.wait(30)
        return decode(data, limits)

    monkeypatch.setattr(router.execution, "decode", held)
    gateway = bench()
    running = asyncio.create_task(post(gateway, frame))
    assert await asyncio.to_thread(began.wait, 30)
    async with http_to(gateway) as http:
        assert (await http.get("/healthz")).status_code == 200
    assert not running.done()
    go_on.set()
    assert (await running).status_code == 200


async def test_a_failing_engine_is_told_without_a_traceback(bench: Bench, frame: bytes) -> None:
    """503 with Retry-After when the engine fails, counted as failed."""
    gateway = bench(FakeEngine(failures=deque([EngineUnavailable("gone")])))
    response = await post(gateway, frame)
    problem(response, 503, "engine-failed")
    assert response.headers["retry-after"] == "1"
    assert outcomes(gateway) == {"failed": 1}


async def test_an_unexpected_error_is_a_problem_too(
    bench: Bench, frame: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """500 without any detail of the error; the log has it under the request's id."""
    gateway = bench(FakeEngine(failures=deque([RuntimeError("secret detail")])))
    response = await post(gateway, frame, {"X-Request-Id": "odd-one"})
    problem(response, 500, "internal")
    assert "secret" not in response.text
    assert "odd-one" in caplog.text
    assert "secret detail" in caplog.text
    assert gateway.service.state().inside == 0


async def test_unknown_paths_and_methods_are_problems(bench: Bench) -> None:
    """404 and 405 come in the same form, the latter with Allow."""
    async with http_to(bench()) as http:
        problem(await http.get("/nope"), 404, "http-404")
        response = await http.get("/v1/detect")
    problem(response, 405, "http-405")
    assert response.headers["allow"] == "POST"


async def test_operating_points_are_listed(bench: Bench) -> None:
    """Each point has its plan, stages, accuracy and costs; classes and the point in force stand beside."""
    async with http_to(bench()) as http:
        response = await http.get("/v1/operating-points")
    document = PointsDocument.model_validate_json(response.content)
    assert document.classes == ["red", "green"]
    assert document.in_force == "balanced"
    assert document.profiles == "published"
    balanced = document.operating_points[1]
    assert (balanced.name, balanced.plan) == ("balanced", "tiny-0-then-tiny-1")
    assert balanced.stages == ["tiny-0", "tiny-1"]
    assert (balanced.split, balanced.escalated) == ("test", [0.5])
    assert balanced.map == pytest.approx(0.6)


async def test_readiness_follows_draining_and_health_does_not(bench: Bench) -> None:
    """A draining gateway is alive and not ready."""
    gateway = bench()
    async with http_to(gateway) as http:
        assert (await http.get("/readyz")).status_code == 200
        gateway.service.drain()
        response = await http.get("/readyz")
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert (await http.get("/healthz")).status_code == 200


async def test_openapi_describes_bodies_and_problems(bench: Bench) -> None:
    """The document names every path, the accepted bodies, and schemas that all exist."""
    async with http_to(bench()) as http:
        document = (await http.get("/openapi.json")).json()
    assert {"/v1/detect", "/v1/operating-points", "/healthz", "/readyz"} <= set(document["paths"])
    detect = document["paths"]["/v1/detect"]["post"]
    assert set(detect["requestBody"]["content"]) == {
        "image/jpeg",
        "image/png",
        "application/octet-stream",
        "multipart/form-data",
        "application/json",
    }
    assert {"200", "400", "413", "415", "422", "503"} <= set(detect["responses"])
    text = str(document)
    for name in {part.split("'")[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in document["components"]["schemas"]


async def test_doubtful_detections_are_left_out_as_asked(bench: Bench, frame: bytes) -> None:
    """Below the configured least score nothing is said, unless the request names another one."""
    engine = FakeEngine(rows={"tiny-0": rows_of((0, 0, 9, 9, 0.9, 0), (20, 20, 30, 30, 0.02, 0))})
    gateway = bench(engine, min_score=0.3)

    async def scores(wish: str | None) -> list[float]:
        headers = {"X-Operating-Point": "fast"} | ({} if wish is None else {"X-Min-Score": wish})
        found = (await post(gateway, frame, headers)).json()["detections"]
        return [one["score"] for one in found]

    sure, doubtful = await scores("0")
    assert sure > 0.3 > doubtful
    assert await scores(None) == [sure]
    assert await scores("0.999999") == []
    refused = await post(gateway, frame, {"X-Min-Score": "many"})
    assert refused.status_code == 400
    assert "X-Min-Score" in refused.json()["detail"]
