"""Ten thousand mangled frames and messages through every parser leave the gateway serving, no larger.

Each is a well-formed one that was cut, lengthened, or had bytes changed, drawn from a seeded generator; some
happen to be well formed still. Whatever they are, they are answered with an answer or with a refusal that
blames the sender, nothing leaves a traceback, and the memory that the first half left is that of the end.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc.service_pb2 as oip_wire
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from loadtest.bench_load import resident_bytes
from router.wire import paretogate_pb2 as wire
from tests.e2e.gateway_process import GatewayProcess, gateway_process
from tests.fakes import Square, encode_image, squares_frame, tiny_repository

MESSAGES = 10_000
SEED = 20_261_123
MOST_GROWN = 0.03
_IMAGE = squares_frame([Square(0, 0, 0), Square(2, 1, 1, 200)], (160, 120))
FRAMES = (encode_image(_IMAGE), encode_image(_IMAGE, ".jpg"))
Rng = random.Random


def mangled(rng: Rng, data: bytes) -> bytes:
    """Return a message that is not quite what it was."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(6):
            case 0:
                del changed[at:]
            case 1:
                changed[at:at] = rng.randbytes(rng.randrange(64))
            case 2:
                del changed[at : at + rng.randrange(64)]
            case 3:
                changed[at : at + 4] = struct.pack("<I", rng.choice([0, 1, 2**16, 2**31, 2**32 - 1]))
            case 4:
                changed += changed[at : at + 200]
            case _:
                if at < len(changed):
                    changed[at] ^= 1 << rng.randrange(8)
    return bytes(changed)


def frame_body(rng: Rng) -> tuple[str, bytes, Mapping[str, str]]:
    return "/v1/detect", mangled(rng, rng.choice(FRAMES)), {"Content-Type": "application/octet-stream"}


def form_body(rng: Rng) -> tuple[str, bytes, Mapping[str, str]]:
    head = b'--B\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    body = mangled(rng, head + rng.choice(FRAMES) + b"\r\n--B--\r\n")
    return "/v1/detect", body, {"Content-Type": "multipart/form-data; boundary=B"}


def json_body(rng: Rng) -> tuple[str, bytes, Mapping[str, str]]:
    texts = [base64.b64encode(rng.choice(FRAMES)).decode() for _ in range(rng.randrange(1, 4))]
    document = {"images": texts} if rng.random() < 0.5 else {"image": texts[0]}
    return "/v1/detect", mangled(rng, json.dumps(document).encode()), {"Content-Type": "application/json"}


def oip_body(rng: Rng) -> tuple[str, bytes, Mapping[str, str]]:
    tensor: dict[str, object] = {"name": "image", "shape": [1], "datatype": "BYTES"}
    path, frame = "/v2/models/paretogate/infer", rng.choice(FRAMES)
    if rng.random() < 0.5:
        tensor["data"] = [base64.b64encode(frame).decode()]
        return path, mangled(rng, json.dumps({"inputs": [tensor]}).encode()), {}
    data = struct.pack("<I", len(frame)) + frame
    head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": len(data)}}]}).encode()
    length = len(head) if rng.random() < 0.7 else rng.randrange(2 * len(head))
    return path, mangled(rng, head + data), {"Inference-Header-Content-Length": str(length)}


def over_http(
    make: Callable[[Rng], tuple[str, bytes, Mapping[str, str]]],
) -> Callable[[GatewayProcess, Rng, int], Awaitable[Counter[str]]]:
    """Return what posts bodies over one connection and counts the answers."""

    async def send(gateway: GatewayProcess, rng: Rng, count: int) -> Counter[str]:
        told: Counter[str] = Counter()
        async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:
            for _ in range(count):
                path, body, headers = make(rng)
                answer = await client.post(path, content=body, headers=headers)
                fine = answer.status_code < 500 or "Retry-After" in answer.headers
                told["fine" if fine else f"{answer.status_code} {answer.text[:200]}"] += 1
        return told

    return send


async def over_a_socket(gateway: GatewayProcess, rng: Rng, count: int) -> Counter[str]:
    """Send mangled frames, and now and then a mangled text, which ends the socket in words."""
    told: Counter[str] = Counter()
    url = f"{gateway.url.replace('http', 'ws')}/v1/stream?reuse_within={rng.randrange(20)}"
    left = count
    while left > 0:
        async with connect(url, proxy=None) as socket:
            try:
                for _ in range(min(left, 200)):
                    left -= 1
                    if rng.random() < 0.03:
                        text = mangled(rng, b'{"name": "gate", "budget_ms": 2000.5}')
                        await socket.send(text.decode("latin-1"))
                    await socket.send(mangled(rng, rng.choice(FRAMES)))
                    said = json.loads(await asyncio.wait_for(socket.recv(), 30))
                    fine = "answer" in said or said["problem"]["status"] in (413, 415, 422, 503)
                    told["fine" if fine else json.dumps(said)[:200]] += 1
            except ConnectionClosed as closed:
                code = None if closed.rcvd is None else closed.rcvd.code
                told["fine" if code == 1003 else f"closed with {code}"] += 1
    return told


FINE = (
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)


async def over_grpc(gateway: GatewayProcess, rng: Rng, count: int) -> Counter[str]:
    """Call with bytes that may be no message at all."""
    told: Counter[str] = Counter()
    inference = oip_wire.ModelInferRequest(model_name="paretogate")
    inference.inputs.add(name="image", datatype="BYTES", shape=[1])
    async with grpc.aio.insecure_channel(gateway.grpc_address) as channel:
        for _ in range(count):
            frame = rng.choice(FRAMES)
            if rng.random() < 0.5:
                path, message = "/paretogate.v1.Detection/Detect", wire.DetectRequest(image=frame)
                data = mangled(rng, message.SerializeToString())
            else:
                path = "/inference.GRPCInferenceService/ModelInfer"
                inference.ClearField("raw_input_contents")
                inference.raw_input_contents.append(struct.pack("<I", len(frame)) + frame)
                data = mangled(rng, inference.SerializeToString())
            call = channel.unary_unary(path)(data, timeout=30)
            code, details = await call.code(), await call.details()
            told["fine" if code in FINE else f"{code} {details}"] += 1
    return told


PARTS: tuple[Callable[[GatewayProcess, Rng, int], Awaitable[Counter[str]]], ...] = (
    over_http(frame_body),
    over_http(form_body),
    over_http(json_body),
    over_http(oip_body),
    over_a_socket,
    over_grpc,
)


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[GatewayProcess]:
    """A gateway of its own, whose memory nobody else uses."""
    tiny_repository(tmp_path / "repository")
    with gateway_process(tmp_path / "repository", "--max-pixels", "4000000") as it:
        yield it


def detections(gateway: GatewayProcess) -> object:
    """Return what a whole frame is answered with."""
    headers = {"Content-Type": "image/png", "X-Operating-Point": "accurate"}
    return httpx.post(f"{gateway.url}/v1/detect", content=FRAMES[0], headers=headers).json()["detections"]


@pytest.mark.timeout(300)
def test_ten_thousand_mangled_messages_leave_the_gateway_as_it_was(gateway: GatewayProcess) -> None:
    """No 5xx, no traceback, no growth of memory, and a frame is answered as before."""
    each = -(-MESSAGES // (2 * len(PARTS)))
    memory: list[int] = []
    told: Counter[str] = Counter()
    before = detections(gateway)
    assert before

    async def half(number: int) -> None:
        counts = await asyncio.gather(
            *(part(gateway, Rng(SEED + 100 * number + place), each) for place, part in enumerate(PARTS))
        )
        for count in counts:
            told.update(count)

    for number in range(2):
        asyncio.run(half(number))
        memory.append(resident_bytes(gateway.process.pid))
    assert set(told) == {"fine"}, told
    assert told.total() >= MESSAGES
    assert memory[1] <= memory[0] * (1 + MOST_GROWN), np.array(memory) / 2**20
    assert gateway.alive
    assert detections(gateway) == before
    assert gateway.terminate() == 0
    log = "".join(gateway.log)
    assert "Traceback" not in log, log[-3000:]
