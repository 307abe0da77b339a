"""The bench of streams: what it counts, on a cheap gateway. No timing is asserted."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from loadtest.bench_load import Served
from loadtest.bench_stream import Edge, StreamResult, stream
from loadtest.process import free_port, gateway
from loadtest.raw import RawTarget
from tests.fakes import Square, encode_image, squares_frame, tiny_repository

FRAME = encode_image(squares_frame([Square(0, 0, 0)], (256, 256)))


@pytest.mark.parametrize("edge", ["websocket", "grpc"])
def test_every_frame_has_a_result_or_was_dropped(tmp_path: Path, edge: Edge) -> None:
    """The last result's count of dropped frames is that of the frames that have none."""
    repository = tiny_repository(tmp_path / "repository")
    port, grpc_port = free_port(), free_port()
    options = ("--measure", "never", "--grpc-port", str(grpc_port))
    with gateway(repository.root, port, tmp_path / "gateway.log", *options) as process:

        async def measure() -> StreamResult:
            served = Served(port, process.pid, RawTarget(port))
            return await stream(
                served, edge, port if edge == "websocket" else grpc_port, [FRAME], "accurate", seconds=0.5
            )

        result = asyncio.run(measure())
    assert result.sent >= 5
    assert 0 < len(result.ages_ms) <= result.sent
    assert result.told == result.missing == result.sent - len(result.ages_ms)


@pytest.mark.parametrize(
    ("ages_ms", "told", "grown", "holds"),
    [
        ([29.0] * 100, 5, 0.01, True),
        ([29.0] * 90 + [31.0] * 10, 5, 0.01, False),
        ([29.0] * 100, 4, 0.01, False),
        ([29.0] * 100, 5, 0.03, False),
    ],
)
def test_the_verdict(ages_ms: list[float], told: int, grown: float, holds: bool) -> None:
    """Two intervals of 5 ms and a p99 of 20 ms make 30 ms; drops are told; memory is flat."""
    result = StreamResult("grpc", 15.0, 20.0, 200.0, 105, tuple(ages_ms), told, 5, grown)
    assert result.bound_ms == 30
    assert result.holds == holds
