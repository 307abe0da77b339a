"""Long answers are compressed for who takes them so."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router import http_api
from router.compression import WORTH_BYTES, gzipped, takes_gzip
from tests.fakes import FakeEngine, Rows, rows_of
from tests.router.conftest import SURE, Bench, http_to

MANY = rows_of(
    *((8.0 * x, 8.0 * y, 8.0 * x + 8, 8.0 * y + 8, 0.9 - y / 10, 0) for y in range(7) for x in range(8))
)
RAW = {"Content-Type": "application/octet-stream", "X-Operating-Point": "fast"}


@pytest.mark.parametrize(
    ("said", "taken"),
    [
        ([], False),
        ([b"gzip"], True),
        ([b"br, GZIP;q=0.5"], True),
        ([b"deflate", b"gzip"], True),
        ([b"*"], True),
        ([b"identity"], False),
        ([b"gzip;q=0"], False),
        ([b"*, gzip; q=0.000"], False),
        ([b""], False),
    ],
)
def test_who_takes_gzip(said: list[bytes], taken: bool) -> None:
    """By name or by the star, unless the weight is zero."""
    assert takes_gzip({b"accept-encoding": said} if said else {}) == taken


@given(st.binary(max_size=2000))
def test_what_was_compressed_can_be_read(body: bytes) -> None:
    """Bit for bit, and the same bytes every time."""
    assert gzip.decompress(gzipped(body)) == body
    assert gzipped(body) == gzipped(body)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("rows", "headers", "compressed"),
    [
        (MANY, {"Accept-Encoding": "gzip"}, True),
        (MANY, {"Accept-Encoding": "identity"}, False),
        (SURE, {"Accept-Encoding": "gzip"}, False),
    ],
)
async def test_an_answer_is_compressed_where_that_pays(
    bench: Bench, frame: bytes, rows: Rows, headers: Mapping[str, str], compressed: bool
) -> None:
    """It says the same, raw or as JSON; short ones stay as they are."""
    gateway = bench(FakeEngine(rows={"tiny-0": rows}))
    async with http_to(gateway) as client:
        one = await client.post("/v1/detect", content=frame, headers={**RAW, **headers})
        with_query = await client.post("/v1/detect?format=json", content=frame, headers={**RAW, **headers})
    for answer in (one, with_query):
        assert ("Content-Encoding" in answer.headers) == compressed
        assert len(answer.json()["detections"]) == (56 if rows is MANY else 1)
        if compressed:
            assert int(answer.headers["Content-Length"]) < WORTH_BYTES


@pytest.mark.anyio
async def test_answers_together_are_compressed_as_one(bench: Bench, frame: bytes) -> None:
    """None of them by itself."""
    gateway = bench(FakeEngine(rows={"tiny-0": MANY}))
    texts = [base64.b64encode(frame).decode()] * 3
    async with http_to(gateway) as client:
        answer = await client.post(
            "/v1/detect",
            json={"images": texts},
            headers={"X-Operating-Point": "fast", "Accept-Encoding": "gzip"},
        )
    assert answer.headers["Content-Encoding"] == "gzip"
    assert [len(one["detections"]) for one in answer.json()["answers"]] == [56] * 3


@pytest.mark.anyio
async def test_the_document_of_the_interface_is_compressed(bench: Bench) -> None:
    """As every other long reply."""
    async with http_to(bench()) as client:
        answer = await client.get("/openapi.json", headers={"Accept-Encoding": "gzip"})
    assert answer.headers["Content-Encoding"] == "gzip"
    assert answer.json()["openapi"]


@pytest.mark.anyio
async def test_of_the_open_inference_protocol_answers_alone_are_compressed(
    bench: Bench, frame: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tritonclient's asynchronous client does not read anything else compressed."""
    monkeypatch.setattr(http_api, "WORTH_BYTES", 10)
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(frame).decode()]}
    takes = {"Accept-Encoding": "gzip"}
    async with http_to(bench(FakeEngine(rows={"tiny-0": MANY}))) as client:
        told = await client.get("/v2/models/paretogate/stats", headers=takes)
        infer = await client.post("/v2/models/paretogate/infer", json={"inputs": [tensor]}, headers=takes)
    assert "Content-Encoding" not in told.headers
    assert infer.headers["Content-Encoding"] == "gzip"
    assert infer.json()["outputs"]
