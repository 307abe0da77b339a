"""The clients: retries within a budget, what answers become, and the command."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer import Typer
from typer.testing import CliRunner, Result

from router.bootstrap import Gateway
from router.client import (
    AsyncGatewayClient,
    AsyncGrpcGatewayClient,
    GatewayClient,
    GatewayError,
    GatewayFailed,
    GatewayOverloaded,
    GrpcGatewayClient,
    Patience,
    RequestRejected,
)
from router.client.__main__ import detect
from router.documents import AnswerDocument, ProblemDocument
from tests.fakes import FakeEngine, rows_of
from tests.router.conftest import SURE, Bench
from tests.router.test_grpc_api import serving as serving_grpc
from tests.router.test_http_server import serving as serving_http

pytestmark = pytest.mark.anyio


def problem(status: int, retry_after_s: float | None = None, slug: str = "x") -> ProblemDocument:
    """Return a problem."""
    return ProblemDocument(
        type=f"urn:paretogate:problem:{slug}",
        title="t",
        status=status,
        detail="d",
        retry_after_s=retry_after_s,
    )


class Gauge:
    """A clock that a test moves."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@given(
    retries=st.integers(0, 6),
    budget_ms=st.none() | st.floats(1, 2000),
    waits=st.lists(st.none() | st.floats(0.001, 2.0), min_size=8, max_size=8),
    asking_s=st.floats(0, 0.3),
)
def test_nobody_asks_again_beyond_the_budget(
    retries: int, budget_ms: float | None, waits: list[float | None], asking_s: float
) -> None:
    """At most so many times more, never after the budget, and each is told what is left then."""
    clock = Gauge()
    patience = Patience(retries, budget_ms, clock)
    again = 0
    for retry_after_s in waits:
        left_ms = patience.budget_ms
        assert left_ms == (None if budget_ms is None else pytest.approx(budget_ms - clock.now_s * 1e3))
        assert left_ms is None or left_ms > 0
        clock.now_s += asking_s
        wait_s = patience.wait_s(GatewayOverloaded(problem(503, retry_after_s, "overloaded")))
        if wait_s is None:
            break
        again += 1
        clock.now_s += wait_s
    assert again <= retries
    if budget_ms is None:
        assert again == min(retries, len(waits))


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (GatewayOverloaded(problem(503, 0.01, "overloaded")), True),
        (GatewayFailed(problem(503, None, "engine-failed")), True),
        (GatewayFailed(problem(0, None, "connection")), True),
        (GatewayFailed(problem(500)), False),
        (RequestRejected(problem(422)), False),
    ],
)
def test_only_what_may_pass_is_asked_again(error: GatewayError, again: bool) -> None:
    """A request at fault stays at fault, and so does a gateway with a defect."""
    assert (Patience(1, 100.0, Gauge()).wait_s(error) is not None) is again


def answering(statuses: list[int]) -> tuple[Callable[[httpx.Request], httpx.Response], list[str | None]]:
    """Return a server's handler with these statuses, and the budgets that it was told."""
    told: list[str | None] = []
    answer: dict[str, object] = {
        "request_id": "r", "operating_point": "fast", "plan": "p", "stages": [], "cut": None,
        "certificate": None, "image": {"width": 8, "height": 8}, "detections": [],
        "timing": {"queue_ms": 0, "decode_ms": 0, "total_ms": 1},
    }  # fmt: skip

    def handle(request: httpx.Request) -> httpx.Response:
        told.append(request.headers.get("X-Latency-Budget-Ms"))
        status = statuses.pop(0)
        body = answer if status == 200 else problem(status, 0.02, "overloaded").model_dump()
        return httpx.Response(status, json=body)

    return handle, told


async def test_a_shed_frame_is_asked_for_again_with_what_is_left() -> None:
    """Both clients over HTTP; without retries the first error is the last."""
    handle, told = answering([503, 503, 200])
    with GatewayClient("http://x", retries=2, transport=httpx.MockTransport(handle)) as client:
        assert client.detect(b"", budget_ms=500).plan == "p"
    budgets = [float(text or 0) for text in told]
    assert budgets[0] == pytest.approx(500, abs=20)
    assert budgets[0] - budgets[1] >= 20
    assert budgets[1] - budgets[2] >= 20
    handle, told = answering([503, 200])
    async with AsyncGatewayClient("http://x", retries=1, transport=httpx.MockTransport(handle)) as later:
        assert (await later.detect(b"")).plan == "p"
    assert told == [None, None]
    handle, told = answering([503])
    with (
        GatewayClient("http://x", transport=httpx.MockTransport(handle)) as client,
        pytest.raises(GatewayOverloaded),
    ):
        client.detect(b"", budget_ms=500)


async def test_all_four_clients_get_the_same_answer(bench: Bench, frame: bytes) -> None:
    """Waiting or not, over HTTP or gRPC."""
    gateway = bench(FakeEngine(rows={"tiny-0": SURE}))

    def waiting(port: int, address: str) -> list[AnswerDocument]:
        with GatewayClient(f"http://127.0.0.1:{port}") as http, GrpcGatewayClient(address) as rpc:
            with pytest.raises(RequestRejected):
                rpc.detect(frame, operating_point="nope")
            return [http.detect(frame), rpc.detect(frame)]

    async with serving_http(gateway) as port, serving_grpc(gateway) as (_, address):
        answers = await asyncio.to_thread(waiting, port, address)
        async with (
            AsyncGatewayClient(f"http://127.0.0.1:{port}") as http,
            AsyncGrpcGatewayClient(address) as rpc,
        ):
            answers += [await http.detect(frame), await rpc.detect(frame)]
    assert len({tuple(found.label for found in answer.detections) for answer in answers}) == 1
    assert answers[0].as_coco(7) == [
        {
            "image_id": 7,
            "category_id": 0,
            "bbox": [0.0, 0.0, 16.0, 16.0],
            "score": answers[0].detections[0].score,
        }
    ]


async def test_an_answer_becomes_supervision_s_detections(bench: Bench, frame: bytes) -> None:
    """Boxes, scores, classes and names; an empty answer as well."""
    supervision = pytest.importorskip("supervision")
    for rows, count in ((SURE, 1), (rows_of(), 0)):
        gateway = bench(FakeEngine(rows={"tiny-0": rows, "tiny-1": rows}))
        transport = httpx.ASGITransport(gateway.app)
        async with AsyncGatewayClient("http://gateway", transport=transport) as client:
            found = (await client.detect(frame, operating_point="fast")).as_supervision()
        assert isinstance(found, supervision.Detections)
        assert len(found) == count
        assert found.xyxy.shape == (count, 4)
        assert list(found.data["class_name"]) == ["red"] * count


async def run(gateway: Gateway, *arguments: str) -> Result:
    """Run the command against a served gateway."""
    app = Typer()
    app.command()(detect)
    async with serving_http(gateway) as port:
        url = f"http://127.0.0.1:{port}"
        return await asyncio.to_thread(CliRunner().invoke, app, [*arguments, "--url", url])


async def test_the_command_prints_and_draws(bench: Bench, frame: bytes, tmp_path: Path) -> None:
    """A table of what was found, COCO's results, and the image with its boxes."""
    image, out = tmp_path / "in.png", tmp_path / "out.png"
    image.write_bytes(frame)
    gateway = bench(FakeEngine(rows={"tiny-0": SURE}))
    result = await run(gateway, str(image), "--save", str(out), "--budget-ms", "500")
    assert result.exit_code == 0, result.output
    assert "red" in result.output
    assert np.any(cv2.imread(str(out)) != cv2.imread(str(image)))
    result = await run(gateway, str(image), str(image), "--coco")
    assert [one["image_id"] for one in json.loads(result.stdout)] == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["missing.png"], "missing.png: No such file"),
        (["in.png", "--operating-point", "nope"], "no operating point 'nope'"),
        (["in.png", "--save", "none/out.png"], "none/out.png"),
        (["in.png", "in.png", "--save", "out.png"], "is no folder"),
    ],
)
async def test_the_command_says_what_is_wrong(
    bench: Bench,
    frame: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    word: str,
) -> None:
    """In one line, with status 1."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.png").write_bytes(frame)
    result = await run(bench(FakeEngine(rows={"tiny-0": SURE})), *arguments)
    assert result.exit_code == 1
    assert word in result.stderr
