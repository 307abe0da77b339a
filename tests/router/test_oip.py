"""The Open Inference Protocol as tritonclient speaks it, over HTTP and gRPC, to a real server."""

from __future__ import annotations

import asyncio
import base64
import queue
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

import numpy as np
import pytest
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from model_repo.frame import decode
from model_repo.runtime.engine import EngineUnavailable
from router.bootstrap import Gateway
from tests.fakes import FakeEngine
from tests.router.conftest import DOUBTFUL, LARGE, SURE, Bench, http_to, sample
from tests.router.test_grpc_api import serving as serving_grpc
from tests.router.test_http_server import serving as serving_http

pytestmark = pytest.mark.anyio
T = TypeVar("T")
# tritonclient's two modules have the same names in them, and no types.
Client = Any  # Any: see above
PROTOCOLS = ("http", "grpc")
IMAGE = b'{"name": "image", "datatype": "BYTES"'
PIXELS = b'{"name": "frame", "datatype": "UINT8"'


class Talk:
    """A blocking client in a thread of its own, the only one that gevent lets use it."""

    def __init__(self, module: Any, address: str) -> None:  # Any: see above
        self.module = module
        self._thread = ThreadPoolExecutor(1)
        self._client: Client = self._thread.submit(module.InferenceServerClient, address).result()

    async def call(self, ask: Callable[[Client], T]) -> T:
        """Ask something, away from the event loop that answers."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, ask, self._client)

    async def close(self) -> None:
        """Close the client."""
        await self.call(lambda client: client.close())
        self._thread.shutdown()

    def image(self, data: bytes) -> Any:
        """Return an encoded image as input."""
        tensor = self.module.InferInput("image", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([data], dtype=np.object_))
        return tensor

    def frame(self, pixels: NDArray[np.uint8]) -> Any:
        """Return pixels as input."""
        tensor = self.module.InferInput("frame", list(pixels.shape), "UINT8")
        tensor.set_data_from_numpy(pixels)
        return tensor

    async def infer(self, model: str, inputs: list[Any], **options: Any) -> Any:
        """Ask a model."""
        return await self.call(lambda client: client.infer(model, inputs, **options))


@asynccontextmanager
async def talking(gateway: Gateway, protocol: str) -> AsyncIterator[Talk]:
    """Serve a gateway and talk to it."""
    async with AsyncExitStack() as stack:
        if protocol == "http":
            port = await stack.enter_async_context(serving_http(gateway))
            talk = Talk(over_http, f"127.0.0.1:{port}")
        else:
            _, address = await stack.enter_async_context(serving_grpc(gateway))
            talk = Talk(over_grpc, address)
        stack.push_async_callback(talk.close)
        yield talk


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_the_cascade_is_one_model(bench: Bench, frame: bytes, protocol: str) -> None:
    """Encoded or as pixels, a frame gets the detections of the same request elsewhere."""
    gateway = bench(FakeEngine(rows={"tiny-0": DOUBTFUL, "tiny-1": LARGE}))
    async with http_to(gateway) as http:
        expected = (
            await http.post("/v1/detect", content=frame, headers={"Content-Type": "image/png"})
        ).json()
    async with talking(gateway, protocol) as talk:
        for given in (talk.image(frame), talk.frame(decode(frame)), talk.frame(decode(frame)[None])):
            result = await talk.infer("paretogate", [given], request_id="r1")
            found = expected["detections"]
            assert result.as_numpy("boxes").tolist() == [[b["box"][k] for k in b["box"]] for b in found]
            assert result.as_numpy("scores") == pytest.approx([one["score"] for one in found], abs=1e-6)
            assert result.as_numpy("class_ids").tolist() == [one["class_id"] for one in found]
            assert result.as_numpy("labels").tolist() == [one["label"].encode() for one in found]
            response = result.get_response()
            told = response if protocol == "http" else {"id": response.id, "model_name": response.model_name}
            assert (told["id"], told["model_name"]) == ("r1", "paretogate")
    assert sample(gateway, "paretogate_requests_total", protocol=protocol, outcome="answered") >= 3


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_variant_is_a_model_of_its_own(bench: Bench, frame: bytes, protocol: str) -> None:
    """It answers alone, however doubtful, and no other takes its place."""
    engine = FakeEngine(rows={"tiny-0": DOUBTFUL, "tiny-1": LARGE})
    gateway = bench(engine)
    async with talking(gateway, protocol) as talk:
        await talk.infer("tiny-0", [talk.image(frame)])
        await talk.infer("tiny-1", [talk.image(frame)])
        assert engine.calls == ["tiny-0", "tiny-1"]
        # The fast one needs 2 ms and the other one 6.
        with pytest.raises(InferenceServerException, match="on an idle gateway"):
            await talk.infer("tiny-1", [talk.image(frame)], timeout=5_000)
    assert engine.calls == ["tiny-0", "tiny-1"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_clients_find_what_they_ask_for(bench: Bench, frame: bytes, protocol: str) -> None:
    """Liveness, readiness, metadata, configuration, index and statistics."""
    gateway = bench()
    plain: dict[str, Any] = {} if protocol == "http" else {"as_json": True}
    async with talking(gateway, protocol) as talk:
        for ready in ("is_server_live", "is_server_ready"):
            assert await talk.call(lambda client, name=ready: getattr(client, name)())  # type: ignore[misc]  # mypy loses T here
        assert await talk.call(lambda client: client.is_model_ready("paretogate", "1"))
        server = await talk.call(lambda client: client.get_server_metadata(**plain))
        assert server["name"] == "paretogate"
        assert "statistics" in server["extensions"]
        for model in ("paretogate", "tiny-0"):
            described = await talk.call(lambda client, m=model: client.get_model_metadata(m, **plain))  # type: ignore[misc]  # mypy loses T here
            assert [tensor["name"] for tensor in described["inputs"]] == ["image", "frame"]
            assert [tensor["datatype"] for tensor in described["outputs"]] == [
                "FP32",
                "FP32",
                "INT32",
                "BYTES",
            ]
            config = await talk.call(lambda client, m=model: client.get_model_config(m, **plain))  # type: ignore[misc]  # mypy loses T here
            config = config.get("config", config)
            assert [tensor["data_type"] for tensor in config["input"]] == ["TYPE_STRING", "TYPE_UINT8"]
            assert all(tensor["optional"] for tensor in config["input"])
        index = await talk.call(lambda client: client.get_model_repository_index(**plain))
        models = index if protocol == "http" else index["models"]
        assert [model["name"] for model in models] == ["paretogate", "tiny-0", "tiny-1"]
        await talk.infer("paretogate", [talk.image(frame)])
        with pytest.raises(InferenceServerException):
            await talk.infer("paretogate", [talk.image(b"GIF89a")])
        counted = await talk.call(lambda client: client.get_inference_statistics("paretogate", **plain))
        counted = counted["model_stats"][0]["inference_stats"]
        assert int(counted["success"]["count"]) == int(counted["fail"]["count"]) == 1
        assert int(counted["success"]["ns"]) >= int(counted["compute_infer"]["ns"])
        every = await talk.call(lambda client: client.get_inference_statistics(**plain))
        assert len(every["model_stats"]) == 3


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("model", "given", "options", "word"),
    [
        ("nope", "image", {}, "none of paretogate, tiny-0"),
        ("paretogate", "image", {"model_version": "7"}, "no version"),
        ("paretogate", "gif", {}, "neither JPEG nor PNG"),
        ("paretogate", "flat", {}, "expected [height, width, 3]"),
        ("paretogate", "both", {}, "expected one, image or frame"),
        ("paretogate", "wrong", {}, "neither image nor frame"),
        ("paretogate", "image", {"timeout": 10}, "on an idle gateway"),
        ("paretogate", "image", {"sequence_id": 3}, "no sequences"),
    ],
)
async def test_errors_say_what_is_wrong(
    bench: Bench, frame: bytes, protocol: str, model: str, given: str, options: dict[str, Any], word: str
) -> None:
    """Each is told by the protocol's own means, and no engine is asked."""
    engine = FakeEngine(rows={"tiny-0": SURE})
    gateway = bench(engine)
    async with talking(gateway, protocol) as talk:
        wrong = talk.module.InferInput("pixels", [1], "UINT8")
        wrong.set_data_from_numpy(np.zeros(1, np.uint8))
        inputs = {
            "image": [talk.image(frame)],
            "gif": [talk.image(b"GIF89a")],
            "flat": [talk.frame(np.zeros((4, 4), np.uint8))],
            "both": [talk.image(frame), talk.frame(decode(frame))],
            "wrong": [wrong],
        }
        with pytest.raises(InferenceServerException) as raised:
            await talk.infer(model, inputs[given], **options)
        assert word in str(raised.value)
        assert (await talk.infer("paretogate", inputs["image"])).as_numpy("boxes") is not None
    assert engine.calls == ["tiny-0"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_shared_memory_is_refused_clearly(bench: Bench, protocol: str) -> None:
    """Registering says so; what clients do before, asking and cleaning up, works."""
    async with talking(bench(), protocol) as talk:
        await talk.call(lambda client: client.unregister_system_shared_memory())
        await talk.call(lambda client: client.unregister_cuda_shared_memory())
        assert not list(
            await talk.call(
                lambda client: client.get_system_shared_memory_status(
                    **({} if protocol == "http" else {"as_json": True})
                )
            )
        )
        with pytest.raises(InferenceServerException, match="shared memory is not offered"):
            await talk.call(lambda client: client.register_system_shared_memory("one", "/one", 64))
        tensor = talk.module.InferInput("frame", [2, 2, 3], "UINT8")
        tensor.set_shared_memory("one", 12)
        with pytest.raises(InferenceServerException, match="shared memory is not offered"):
            await talk.infer("paretogate", [tensor])


async def test_json_alone_is_enough(bench: Bench, frame: bytes) -> None:
    """Without binary data: an image as base64, pixels as numbers, detections as numbers and names."""
    gateway = bench(FakeEngine(rows={"tiny-0": SURE, "tiny-1": LARGE}))
    image = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(frame).decode()]}
    pixels = decode(frame)
    numbers = {
        "name": "frame",
        "datatype": "UINT8",
        "shape": list(pixels.shape),
        "data": pixels.ravel().tolist(),
    }
    async with http_to(gateway) as http:
        for given in (image, numbers):
            outputs = [{"name": "labels"}, {"name": "boxes"}]
            body = {
                "id": "7",
                "inputs": [given],
                "outputs": outputs,
                "parameters": {"operating_point": "fast"},
            }
            answer = (await http.post("/v2/models/paretogate/infer", json=body)).json()
            assert answer["id"] == "7"
            assert answer["parameters"]["plan"] == "tiny-0"
            assert [(one["name"], one["shape"], one["data"]) for one in answer["outputs"]] == [
                ("labels", [1], ["red"]),
                ("boxes", [1, 4], [0.0, 0.0, 16.0, 16.0]),
            ]


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"{", "no JSON"),
        (b"[]", "no JSON object"),
        (b'{"inputs": 3}', "inputs: expected list"),
        (b'{"inputs": [3]}', "inputs: expected objects"),
        (b'{"inputs": [%b, "shape": [1], "data": ["%%%%"]}]}' % IMAGE, "base64"),
        (b'{"inputs": [%b, "shape": ["1"], "data": []}]}' % IMAGE, "expected sizes"),
        (b'{"inputs": [%b, "shape": [1,1,3], "data": [1,2,300]}]}' % PIXELS, "0 to 255"),
        (b'{"inputs": [%b, "shape": [1,1,3], "data": [[1],2]}]}' % PIXELS, "inputs.frame.data"),
        (b'{"inputs": [%b, "shape": [9,9,3], "data": [1]}]}' % PIXELS, "has 243"),
        (b'{"inputs": [%b, "shape": [1,1,3], "parameters": {"binary_data_size": 4}}]}' % PIXELS, "are left"),
        (b'{"inputs": [], "outputs": [{"name": "masks"}]}', "none of boxes"),
        (b'{"inputs": [], "parameters": {"timeout": "soon"}}', "inputs: 0 are given"),
    ],
)
async def test_a_malformed_body_names_what_is_wrong(bench: Bench, body: bytes, word: str) -> None:
    """400 with the field."""
    gateway = bench()
    async with http_to(gateway) as http:
        response = await http.post("/v2/models/paretogate/infer", content=body)
    assert response.status_code == 400
    assert word in response.json()["error"]
    assert sample(gateway, "paretogate_requests_total", protocol="http", outcome="rejected") == 1


async def test_a_length_of_the_head_lies_within_the_body(bench: Bench) -> None:
    """Otherwise 400, naming the header."""
    async with http_to(bench()) as http:
        for length in ("99", "-1", "x"):
            headers = {"Inference-Header-Content-Length": length}
            response = await http.post("/v2/models/paretogate/infer", content=b"{}", headers=headers)
            assert response.status_code == 400
            assert "Inference-Header-Content-Length" in response.json()["error"]


async def test_unknown_paths_and_methods_are_told_in_the_protocol_s_form(bench: Bench) -> None:
    """404 and 405 with `error`."""
    async with http_to(bench()) as http:
        for method, path, status in (
            ("GET", "/v2/nothing", 404),
            ("GET", "/v2/models/paretogate/infer", 405),
        ):
            response = await http.request(method, path)
            assert (response.status_code, list(response.json())) == (status, ["error"])


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_an_engine_that_fails_is_told_and_counted(bench: Bench, frame: bytes, protocol: str) -> None:
    """As unavailable; the next request is answered."""
    engine = FakeEngine(rows={"tiny-0": SURE})
    gateway = bench(engine)
    engine.failures.append(EngineUnavailable("down"))
    async with talking(gateway, protocol) as talk:
        with pytest.raises(InferenceServerException, match="down"):
            await talk.infer("paretogate", [talk.image(frame)])
        await talk.infer("paretogate", [talk.image(frame)])
    assert sample(gateway, "paretogate_requests_total", protocol=protocol, outcome="failed") == 1


async def test_a_stream_goes_on_after_an_error(bench: Bench, frame: bytes) -> None:
    """Answers come in order; a broken frame is told in its place."""
    gateway = bench(FakeEngine(rows={"tiny-0": SURE}))
    answers: asyncio.Queue[tuple[Any, Any]] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def heard(result: Any, error: Any) -> None:
        loop.call_soon_threadsafe(answers.put_nowait, (result, error))

    async with talking(gateway, "grpc") as talk:
        await talk.call(lambda client: client.start_stream(heard))
        for data in (frame, b"GIF89a", frame):
            await talk.call(lambda client, d=data: client.async_stream_infer("paretogate", [talk.image(d)]))  # type: ignore[misc]  # mypy loses T here
        told = [await asyncio.wait_for(answers.get(), 30) for _ in range(3)]
        await talk.call(lambda client: client.stop_stream())
    assert [error is None for _, error in told] == [True, False, True]
    assert "neither JPEG nor PNG" in str(told[1][1])
    assert told[2][0].as_numpy("labels").tolist() == [b"red"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_many_at_once(bench: Bench, frame: bytes, protocol: str) -> None:
    """The clients' asynchronous calls all come back."""
    gateway = bench(FakeEngine(rows={"tiny-0": SURE}), max_queue=64, max_wait_ms=60_000)

    def ask(client: Client, talk: Talk) -> list[Any]:
        if protocol == "http":
            calls = [client.async_infer("paretogate", [talk.image(frame)]) for _ in range(20)]
            return [call.get_result() for call in calls]
        done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(20):
            client.async_infer(
                "paretogate", [talk.image(frame)], lambda result, error: done.put(error or result)
            )
        return [done.get(timeout=30) for _ in range(20)]

    async with talking(gateway, protocol) as talk:
        results = await talk.call(lambda client: ask(client, talk))
    assert [result.as_numpy("labels").tolist() for result in results] == [[b"red"]] * 20
