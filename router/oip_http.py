"""The Open Inference Protocol over HTTP: JSON, with tensors in it or in binary form behind it.

Errors are `{"error": …}` with the status of the same problem elsewhere.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from router.access import Access, Stay, entered, limited
from router.admission import Shed
from router.budget import Budgets, Clock
from router.errors import MalformedRequest, RouterError, UnsupportedType
from router.execution import Answer
from router.headers import Headers, only
from router.http_body import Bodies, Receive, parsed
from router.http_reply import (
    Asgi,
    Lines,
    Scope,
    Send,
    count,
    grouped,
    problem_in,
    request_id_in,
    request_id_of,
    respond,
    unless_left,
)
from router.http_safety import guarded, hardened
from router.metrics import Metrics
from router.oip import (
    EXTENSIONS,
    INPUTS,
    NO_SHARED_MEMORY,
    OUTPUTS,
    SERVER,
    VERSION,
    GivenTensor,
    Models,
    OutputTensor,
    TensorSpec,
    as_bytes_tensor,
    outputs_of,
    parameters_of,
    question,
)
from router.problems import Problem, problem_of
from router.service import Outcome, Service

PREFIX = "/v2"
HEADER_LENGTH = "Inference-Header-Content-Length"
Json = Mapping[str, Any]  # Any: a JSON object from outside


def make_oip_app(
    service: Service,
    models: Models,
    bodies: Bodies,
    budgets: Budgets,
    metrics: Metrics,
    clock: Clock,
    access: Access | None = None,
) -> Asgi:
    """Return the application of all paths below /v2; access: who is let in, None for everybody."""
    infer = InferEndpoint(service, models, bodies, budgets, metrics, clock, access)

    async def server(_: Request) -> Response:
        return JSONResponse({"name": SERVER, "version": models.version, "extensions": EXTENSIONS})

    async def live(_: Request) -> Response:
        return Response(status_code=200 if models.live else 500)

    async def ready(_: Request) -> Response:
        return Response(status_code=200 if models.ready else 503)

    async def model_ready(request: Request) -> Response:
        _asked(models, request)
        return Response(status_code=200 if models.ready else 503)

    async def model(request: Request) -> Response:
        name = _asked(models, request)
        return JSONResponse(
            {
                "name": name,
                "versions": [VERSION],
                "platform": models.platform(name),
                "inputs": [_described(spec) for spec in INPUTS],
                "outputs": [_described(spec) for spec in OUTPUTS],
            }
        )

    async def config(request: Request) -> Response:
        return JSONResponse(models.config(_asked(models, request)))

    async def statistics(request: Request) -> Response:
        names = [_asked(models, request)] if "model" in request.path_params else models.names
        return JSONResponse({"model_stats": [_counted(models, name) for name in names]})

    async def index(_: Request) -> Response:
        return JSONResponse(
            [{"name": name, "version": VERSION, "state": "READY", "reason": ""} for name in models.names]
        )

    async def no_regions(_: Request) -> Response:
        return JSONResponse([])

    async def unregister(_: Request) -> Response:
        # Nothing is registered, and clients clean up before they begin.
        return JSONResponse({})

    async def register(_: Request) -> Response:
        return JSONResponse({"error": NO_SHARED_MEMORY}, 501)

    def of_model(path: str, endpoint: Any, method: str = "GET") -> list[Route]:  # Any: as Route takes it
        below = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
        return [Route(f"{start}{path}", endpoint, methods=[method]) for start in below]

    def of_memory(kind: str) -> list[Route]:
        start = f"/v2/{kind}sharedmemory"
        return [
            Route(f"{start}/status", no_regions),
            Route(f"{start}/unregister", unregister, methods=["POST"]),
            Route(f"{start}/region/{{region}}/status", no_regions),
            Route(f"{start}/region/{{region}}/register", register, methods=["POST"]),
            Route(f"{start}/region/{{region}}/unregister", unregister, methods=["POST"]),
        ]

    app = Starlette(
        routes=[
            Route("/v2", server),
            Route("/v2/", server),
            Route("/v2/health/live", live),
            Route("/v2/health/ready", ready),
            Route("/v2/models/stats", statistics),
            *of_model("/infer", infer, "POST"),
            *of_model("/ready", model_ready),
            *of_model("/config", config),
            *of_model("/stats", statistics),
            *of_model("", model),
            Route("/v2/repository/index", index, methods=["POST"]),
            *of_memory("system"),
            *of_memory("cuda"),
        ],
        exception_handlers={HTTPException: _on_http_error, RouterError: _on_router_error},
    )
    return hardened(guarded(app, access, lambda problem, _: (problem.status, *_refusal(problem))))


async def _on_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for HTTPException alone"
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)


async def _on_router_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RouterError), "registered for RouterError alone"
    problem = problem_of(error)
    return JSONResponse({"error": f"{problem.title}: {problem.detail}"}, problem.status)


def _asked(models: Models, request: Request) -> str:
    """Return the model that a path names; raises UnknownModel."""
    name = str(request.path_params["model"])
    models.check(name, str(request.path_params.get("version", "")))
    return name


def _described(spec: TensorSpec) -> dict[str, object]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _counted(models: Models, name: str) -> dict[str, object]:
    counted = models.statistics(name)
    durations = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
    return {
        "name": name,
        "version": VERSION,
        "last_inference": counted.last_ms,
        "inference_count": counted.success.count,
        "execution_count": counted.success.count,
        "inference_stats": {
            what: {"count": getattr(counted, what).count, "ns": getattr(counted, what).ns}
            for what in durations
        },
        "batch_stats": [],
    }


class InferEndpoint:
    """Answer `POST /v2/models/{model}/infer`."""

    def __init__(
        self,
        service: Service,
        models: Models,
        bodies: Bodies,
        budgets: Budgets,
        metrics: Metrics,
        clock: Clock,
        access: Access | None = None,
    ) -> None:
        self._service, self._models, self._bodies = service, models, bodies
        self._budgets, self._metrics, self._clock = budgets, metrics, clock
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        arrived_ns = self._clock.now_ns()
        headers = grouped(scope["headers"])
        arrival = self._metrics.arrived("http", headers)
        model, version = scope["path_params"]["model"], scope["path_params"].get("version", "")
        asked: list[_Asked] = []
        written: list[tuple[Lines, bytes]] = []
        outcome: Outcome
        try:
            with entered(self._access, headers) as stay:
                self._models.check(model, version)
                length = headers.get(b"content-length")
                body = await self._bodies.message(length[0] if length else None, receive)
                if isinstance(body, Shed):
                    outcome = body
                else:
                    asked.append(await parsed(partial(_Asked, headers), body))
                    outcome = await self._answer(
                        model, asked[0], stay, receive, arrived_ns, arrival.traceparent, written.append
                    )
        except asyncio.CancelledError:
            arrival.end("cancelled")
            raise
        except Exception as error:  # noqa: BLE001 - the edge of a request: whatever it is, it is told
            outcome = error
        given = asked[0].id if asked else ""
        request_id = request_id_of([given.encode()]) if given else request_id_in(headers)
        problem = problem_in(outcome)
        # Before anything that could be cancelled: every request is counted.
        count(outcome, problem, arrival, request_id)
        if isinstance(outcome, Answer):
            self._models.statistics(model).answered(outcome, time.time_ns() // 1_000_000)
        elif model in self._models.names:
            self._models.statistics(model).failed((self._clock.now_ns() - arrived_ns) / 1e6)
        answered = isinstance(outcome, Answer)
        del outcome  # an exception's traceback knows this frame
        if problem is not None:
            await respond(send, problem.status, *_refusal(problem))
        elif answered:
            await respond(send, 200, *written[0])

    async def _answer(
        self,
        model: str,
        asked: _Asked,
        stay: Stay | None,
        receive: Receive,
        arrived_ns: int,
        traceparent: str | None,
        write: Callable[[tuple[Lines, bytes]], None],
    ) -> Answer | Shed:
        wanted = question(
            model,
            asked.tensors,
            asked.parameters,
            asked.outputs,
            asked.headers,
            max_pixels=self._models.max_pixels,
        )
        work = self._service.detect(
            wanted.frame,
            self._budgets.deadline(asked.headers, arrived_ns, call_s=wanted.timeout_s),
            limited(stay, wanted.wishes),
            arrived_ns=arrived_ns,
            traceparent=traceparent,
            finish=lambda answer: write(_written(model, asked, answer, wanted.outputs)),
        )
        return await unless_left(receive, work)


class _Asked:
    """A request's body, read; raises MalformedRequest or UnsupportedType, which name what is wrong."""

    def __init__(self, headers: Headers, body: bytes) -> None:
        self.headers = headers
        if (only(headers, "Content-Encoding") or "identity") != "identity":
            raise UnsupportedType("Content-Encoding: compressed requests are not taken")
        length = _header_length(headers, len(body))
        try:
            document = orjson.loads(memoryview(body)[:length])
        except orjson.JSONDecodeError as error:
            raise MalformedRequest(f"the body's first {length} bytes are no JSON: {error}") from error
        if not isinstance(document, dict):
            raise MalformedRequest("the body is no JSON object")
        self.id = _typed(document, "id", str, "")
        self.parameters = _parameters(document, "")
        self.tensors = _tensors(_objects(document, "inputs"), memoryview(body)[length:])
        wanted = _objects(document, "outputs")
        self.outputs = [_typed(output, "name", str, "") for output in wanted]
        binary = self.parameters.get("binary_data_output") is True
        self.binary = {name for name in self.outputs if binary} | {
            _typed(output, "name", str, "")
            for output in wanted
            if _parameters(output, "outputs.").get("binary_data") is True
        }
        self.all_binary = binary


def _header_length(headers: Headers, size: int) -> int:
    text = only(headers, HEADER_LENGTH)
    if text is None:
        return size
    if not text.isascii() or not text.isdigit() or len(text) > 12 or int(text) > size:
        raise MalformedRequest(f"{HEADER_LENGTH}: {text[:20]!r} is no length within a body of {size} bytes")
    return int(text)


def _typed(document: Json, name: str, kind: type[Any], default: Any) -> Any:  # Any: of that kind
    value = document.get(name, default)
    if not isinstance(value, kind):
        raise MalformedRequest(f"{name}: expected {kind.__name__}, got {type(value).__name__}")
    return value


def _objects(document: Json, name: str) -> list[Json]:
    values = _typed(document, name, list, [])
    if not all(isinstance(value, dict) for value in values):
        raise MalformedRequest(f"{name}: expected objects")
    return list(values)


def _parameters(document: Json, where: str) -> dict[str, Any]:  # Any: JSON's scalars
    values = _typed(document, "parameters", dict, {})
    for name, value in values.items():
        if not isinstance(value, bool | int | float | str):
            raise MalformedRequest(f"{where}parameters.{name[:80]}: expected a number, text or a truth value")
        if name.startswith("shared_memory"):
            raise MalformedRequest(f"{where}parameters: {NO_SHARED_MEMORY}")
    return dict(values)


def _tensors(inputs: Sequence[Json], binary: memoryview) -> list[GivenTensor]:
    tensors, at = [], 0
    for given in inputs:
        name, datatype = _typed(given, "name", str, ""), _typed(given, "datatype", str, "")
        shape = _typed(given, "shape", list, [])
        if not all(isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in shape):
            raise MalformedRequest(f"inputs.{name[:80]}.shape: expected sizes")
        size = _parameters(given, f"inputs.{name[:80]}.").get("binary_data_size")
        if size is None:
            raw = _from_json(name, datatype, given.get("data"))
        else:
            if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(binary) - at:
                where = f"inputs.{name[:80]}.parameters.binary_data_size"
                raise MalformedRequest(f"{where}: {size!r}, {len(binary) - at} bytes are left")
            raw = bytes(binary[at : at + size])
            at += size
        tensors.append(GivenTensor(name, datatype, tuple(shape), raw))
    if at != len(binary):
        raise MalformedRequest(f"{len(binary) - at} bytes after the last tensor")
    return tensors


def _from_json(name: str, datatype: str, data: object) -> bytes:
    if not isinstance(data, list):
        raise MalformedRequest(f"inputs.{name[:80]}.data: expected a list, or binary_data_size")
    if datatype == "BYTES":
        try:
            return as_bytes_tensor([base64.b64decode(text, validate=True) for text in data])
        except (binascii.Error, TypeError, ValueError) as error:
            raise MalformedRequest(f"inputs.{name[:80]}.data: expected base64: {error}") from error
    try:
        values = np.asarray(data)
    except ValueError as error:
        raise MalformedRequest(f"inputs.{name[:80]}.data: {error}") from error
    if values.dtype.kind not in "iu" or (values.size and (values.min() < 0 or values.max() > 255)):
        raise MalformedRequest(f"inputs.{name[:80]}.data: expected whole numbers from 0 to 255")
    return values.astype(np.uint8).tobytes()


def _written(model: str, asked: _Asked, answer: Answer, names: Sequence[str]) -> tuple[Lines, bytes]:
    tensors = outputs_of(answer, names)
    binary = [tensor for tensor in tensors if asked.all_binary or tensor.spec.name in asked.binary]
    head = orjson.dumps(
        {
            "model_name": model,
            "model_version": VERSION,
            **({"id": asked.id} if asked.id else {}),
            "parameters": parameters_of(answer),
            "outputs": [_output(tensor, tensor in binary) for tensor in tensors],
        },
        option=orjson.OPT_SERIALIZE_NUMPY,
    )
    body = b"".join([head, *(tensor.raw for tensor in binary)])
    lines = [(b"content-length", b"%d" % len(body))]
    if not binary:
        return [(b"content-type", b"application/json"), *lines], body
    lines.append((HEADER_LENGTH.lower().encode(), b"%d" % len(head)))
    return [(b"content-type", b"application/octet-stream"), *lines], body


def _output(tensor: OutputTensor, binary: bool) -> dict[str, object]:
    told: dict[str, object] = {
        "name": tensor.spec.name,
        "datatype": tensor.spec.datatype,
        "shape": list(tensor.shape),
    }
    if binary:
        return told | {"parameters": {"binary_data_size": len(tensor.raw)}}
    values = tensor.values
    return told | {"data": values if isinstance(values, list) else np.ascontiguousarray(values).ravel()}


def _refusal(problem: Problem) -> tuple[Lines, bytes]:
    body = orjson.dumps({"error": f"{problem.title}: {problem.detail}"})
    lines = [line for line in problem.headers().items() if line[0] != b"content-type"]
    if problem.status in (408, 413):
        # What is left of the body is not wanted.
        lines.append((b"connection", b"close"))
    return [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *lines], body
