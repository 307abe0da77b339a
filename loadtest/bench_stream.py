"""A stream that is faster than the gateway: its answers stay fresh, what is dropped is told, memory is flat.

First frames are sent one at a time, each after the result of the one before: that gives the plan's mean and
p99 over this connection. Then frames come at three times the rate that the mean allows, as 30 a second would
into a gateway that can do 10. The age of an answer runs from the moment its frame was sent until its result
has been received. The frame that waits is at most one interval old when its turn comes; with the interval of
clocks that do not beat together an answer should be no older than two intervals and the plan's p99.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import grpc
import numpy as np
from websockets.asyncio.client import ClientConnection, connect

from loadtest.bench_load import Served, resident_bytes
from loadtest.process import HOST
from router.wire import paretogate_pb2 as wire
from router.wire import paretogate_pb2_grpc as wire_grpc

TIMES_TOO_FAST, INTERVALS = 3.0, 2.0
QUANTILE = 0.99
MOST_GROWN = 0.02
_ALONE, _WARM = 300, 20
# The newest frame is always answered: a gateway that does not for so long never will.
_LAST_S = 30.0
Edge = Literal["websocket", "grpc"]


@dataclass(frozen=True, slots=True)
class Told:
    """A result: which frame, how many were dropped so far, and whether it is an answer."""

    number: int
    dropped: int
    answered: bool


class Line(Protocol):
    """An open stream."""

    async def send(self, frame: bytes) -> None:
        """Send a frame."""

    async def result(self) -> Told:
        """Wait for the next result."""


class _Socket:
    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket

    async def send(self, frame: bytes) -> None:
        await self._socket.send(frame)

    async def result(self) -> Told:
        said = json.loads(await self._socket.recv())
        return Told(said["number"], said["dropped"], "answer" in said)


class _Call:
    def __init__(self, call: grpc.aio.StreamStreamCall) -> None:
        self._call = call

    async def send(self, frame: bytes) -> None:
        await self._call.write(wire.StreamFrame(image=frame))

    async def result(self) -> Told:
        said = await self._call.read()
        return Told(said.number, said.dropped, said.HasField("answer"))


@asynccontextmanager
async def line_to(edge: Edge, port: int, point: str) -> AsyncIterator[Line]:
    """Open a stream at an operating point."""
    if edge == "websocket":
        url = f"ws://{HOST}:{port}/v1/stream?operating_point={point}"
        async with connect(url, proxy=None, compression=None) as socket:
            yield _Socket(socket)
        return
    async with grpc.aio.insecure_channel(f"{HOST}:{port}") as channel:
        call = wire_grpc.DetectionStub(channel).DetectStream(metadata=(("x-operating-point", point),))
        yield _Call(call)
        call.cancel()


@dataclass(frozen=True, slots=True)
class StreamResult:
    """Frames sent one at a time, mean_ms and p99_ms; and too fast, at rate_hz for some seconds.

    ages_ms: of the answers, in order. told: frames that the last result said were dropped; missing: frames
    before that result without one of their own. grown: of resident memory between the first tenth of the
    stream and its end, relative.
    """

    edge: Edge
    mean_ms: float
    p99_ms: float
    rate_hz: float
    sent: int
    ages_ms: tuple[float, ...]
    told: int
    missing: int
    grown: float

    @property
    def bound_ms(self) -> float:
        """Return two frames' intervals and the plan's p99."""
        return INTERVALS * 1e3 / self.rate_hz + self.p99_ms

    @property
    def age_ms(self) -> float:
        """Return the p99 of the answers' ages."""
        return float(np.quantile(self.ages_ms, QUANTILE))

    @property
    def holds(self) -> bool:
        """Whether answers stay fresh, what has no result was told as dropped, and memory is flat."""
        return self.age_ms <= self.bound_ms and self.told == self.missing and self.grown <= MOST_GROWN


async def stream(
    served: Served, edge: Edge, port: int, frames: Sequence[bytes], point: str, *, seconds: float
) -> StreamResult:
    """Stream to a gateway's edge, one frame at a time and then too fast."""
    async with line_to(edge, port, point) as line:
        alone_ms = await _one_at_a_time(line, frames)
    mean_ms, p99_ms = float(np.mean(alone_ms)), float(np.quantile(alone_ms, QUANTILE))
    interval_s = mean_ms / 1e3 / TIMES_TOO_FAST
    count = round(seconds / interval_s)
    sent_s: list[float] = []
    ages_ms: list[float] = []
    told: list[Told] = []
    memory: list[int] = []
    async with line_to(edge, port, point) as line:

        async def listen() -> None:
            while not told or told[-1].number < count - 1:
                result = await line.result()
                told.append(result)
                if result.answered:
                    ages_ms.append((time.perf_counter() - sent_s[result.number]) * 1e3)

        listening = asyncio.create_task(listen())
        began_s = time.perf_counter()
        for number, frame in zip(range(count), itertools.cycle(frames)):
            await asyncio.sleep(began_s + number * interval_s - time.perf_counter())
            sent_s.append(time.perf_counter())
            await line.send(frame)
            if number % max(count // 50, 1) == 0:
                memory.append(resident_bytes(served.pid))
        await asyncio.wait_for(listening, _LAST_S)
    last = told[-1]
    return StreamResult(
        edge=edge,
        mean_ms=mean_ms,
        p99_ms=p99_ms,
        rate_hz=1.0 / interval_s,
        sent=count,
        ages_ms=tuple(ages_ms),
        told=last.dropped,
        missing=count - len(told),
        grown=max(memory[-3:]) / memory[len(memory) // 10] - 1.0,
    )


async def _one_at_a_time(line: Line, frames: Sequence[bytes]) -> list[float]:
    times_ms = []
    for _, frame in zip(range(_WARM + _ALONE), itertools.cycle(frames)):
        began_s = time.perf_counter()
        await line.send(frame)
        await line.result()
        times_ms.append((time.perf_counter() - began_s) * 1e3)
    return times_ms[_WARM:]
