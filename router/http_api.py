"""The HTTP edge: every path but the hot one, the OpenAPI document, and errors as problem details."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, get_args

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Route

from router import pages
from router.access import Access
from router.budget import BUDGET_HEADER, ENVOY_HEADER, GRPC_TIMEOUT_HEADER, MAX_BUDGET_MS, SECONDS_HEADER
from router.compression import LEVEL, WORTH_BYTES
from router.documents import AnswersDocument, PointsDocument, ProblemDocument
from router.errors import NotReady
from router.http_body import FORM_TYPE, RAW_TYPES, Receive
from router.http_detect import DETECT_PATH, DetectEndpoint
from router.http_frames import JSON_TYPE, MOST_FRAMES, FramesEndpoint
from router.http_reply import ID_HEADER, Asgi, Scope, Send, refusal, request_id_of
from router.http_safety import guarded, hardened, shared_with
from router.oip_http import PREFIX as OIP_PATH
from router.problems import Problem, internal_problem, problem_of, status_problem
from router.stream_socket import STREAM_PATH, StreamSocket
from router.wishes import (
    ACCURACY_HEADER,
    POINT_HEADER,
    PRIORITY_HEADER,
    SCORE_HEADER,
    SESSION_HEADER,
    Priority,
)

JsonObject = dict[str, Any]  # Any: a part of an OpenAPI document


# A PNG of one pixel, for the examples.
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mNoaGgAAAMEAYF1LgG8AAAAAElFTkSuQmCC"


_SHARE = {"type": "number", "minimum": 0, "maximum": 1}


@dataclass(frozen=True, slots=True)
class Views:
    """What the paths beside detection show, asked at every request."""

    points: Callable[[], PointsDocument]
    alive: Callable[[], bool]
    ready: Callable[[], bool]


def release() -> str:
    """Return the version of this distribution."""
    try:
        return version("paretogate")
    except PackageNotFoundError:
        return "unknown"


def make_app(
    detect: DetectEndpoint,
    frames: FramesEndpoint,
    stream: StreamSocket,
    inference: Asgi,
    views: Views,
    max_bytes: int,
    access: Access | None = None,
    origins: Sequence[str] = (),
    more: Sequence[Route] = (),
) -> Asgi:
    """Return the ASGI application of a gateway; frames do not pass the layers that the other paths need.

    frames: answers those that come in JSON, stream: those of a WebSocket, inference: all paths of the Open
    Inference Protocol.
    access: who is let in, None for everybody. origins: whose pages may ask. more: paths that the OpenAPI
    document does not speak of.
    """
    others = _smaller(hardened(guarded(_others(detect, views, max_bytes, more), access, refusal)))
    # Of the protocol's replies, answers alone: some clients do not read others compressed.
    inferred = _smaller(inference)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if scope["type"] == "http" and path == DETECT_PATH and scope["method"] == "POST":
            await (frames if _says_json(scope) else detect)(scope, receive, send)
        elif scope["type"] == "websocket":
            await (stream if path == STREAM_PATH else _no_socket)(scope, receive, send)
        elif path == OIP_PATH or path.startswith(f"{OIP_PATH}/"):
            await (inferred if path.endswith("/infer") else inference)(scope, receive, send)
        else:
            await others(scope, receive, send)

    return shared_with(app, origins)


async def _no_socket(scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse a WebSocket where there is none: 403."""
    await receive()
    await send({"type": "websocket.close"})


def _smaller(app: Asgi) -> Asgi:
    """Return an application whose long replies are compressed for who takes them so."""
    return GZipMiddleware(app, minimum_size=WORTH_BYTES, compresslevel=LEVEL)


def _says_json(scope: Scope) -> bool:
    kinds = [value for name, value in scope["headers"] if name == b"content-type"]
    return len(kinds) == 1 and kinds[0].split(b";")[0].strip().lower() == JSON_TYPE


def _others(detect: DetectEndpoint, views: Views, max_bytes: int, more: Sequence[Route]) -> FastAPI:
    app = FastAPI(
        title="Paretogate",
        version=release(),
        summary="Object detection within a latency budget",
        # The pages that FastAPI would serve load their scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # For its other methods: they get a 405 that says which one there is.
        routes=[Route(DETECT_PATH, detect, methods=["POST"]), *pages.routes(), *more],
    )

    @app.get("/v1/operating-points", response_model=None, responses={200: {"model": PointsDocument}})
    async def operating_points() -> Response:
        """List the operating points: plans, stages, accuracy and cost."""
        return Response(views.points().model_dump_json(), media_type="application/json")

    @app.get("/healthz", response_model=None)
    async def healthz() -> Response:
        """Say whether the process works: 200, or 500 when it should be restarted."""
        if views.alive():
            return JSONResponse({"status": "alive"})
        return _problem(internal_problem(), "")

    @app.get("/readyz", response_model=None, responses={503: {"model": ProblemDocument}})
    async def readyz() -> Response:
        """Say whether requests can expect answers: 200 or 503."""
        if views.ready():
            return JSONResponse({"status": "ready"})
        return _problem(problem_of(NotReady("the gateway drains, or its engine does not answer")), "")

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException), "registered for HTTPException alone"
        values = [value for name, value in request.headers.raw if name == ID_HEADER.lower().encode()]
        response = _problem(status_problem(error.status_code, error.detail), request_id_of(values))
        for name, value in (error.headers or {}).items():
            response.headers[name] = value
        return response

    generate = app.openapi

    def openapi() -> JsonObject:
        if app.openapi_schema is None:
            document = generate()
            _describe_detect(document, max_bytes)
            app.openapi_schema = document
        return app.openapi_schema

    # FastAPI's documented way to extend the document is to replace this method.
    app.openapi = openapi  # type: ignore[method-assign]
    return app


def _problem(problem: Problem, request_id: str) -> Response:
    headers = {name.decode(): value.decode() for name, value in problem.headers().items()}
    if request_id:
        headers[ID_HEADER] = request_id
    return Response(problem.body(request_id), status_code=problem.status, headers=headers)


def _describe_detect(document: JsonObject, max_bytes: int) -> None:
    """Add the path of `DetectEndpoint` to an OpenAPI document."""
    _, schemas = models_json_schema(
        [(AnswersDocument, "serialization"), (ProblemDocument, "serialization")],
        ref_template="#/components/schemas/{model}",
    )
    document.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"])
    binary = {"type": "string", "format": "binary", "maxLength": max_bytes}
    form = {"type": "object", "required": ["file"], "properties": {"file": binary}}
    text = {"type": "string", "contentEncoding": "base64"}
    single = {
        "type": "object", "required": ["image"], "properties": {"image": text}, "additionalProperties": False
    }  # fmt: skip
    listed = {"type": "array", "items": text, "minItems": 1, "maxItems": MOST_FRAMES}
    several = single | {"required": ["images"], "properties": {"images": listed}}
    problem = {
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}}
    }
    retry = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds until it may succeed"}}
    document["paths"][DETECT_PATH] = {
        "post": {
            "operationId": "detect",
            "summary": "Find the objects in one frame",
            "description": (
                "Send one JPEG or PNG, raw or as the form field `file` (or `image`), or one or several as"
                " base64 in JSON. EXIF orientation is not applied: boxes are in the pixels as sent. Scores"
                " are aligned across models."
            ),
            "parameters": [
                _header(
                    BUDGET_HEADER,
                    "Milliseconds from the parsed headers to the answer. The smallest of this,"
                    f" {GRPC_TIMEOUT_HEADER}, {ENVOY_HEADER} and {SECONDS_HEADER} wins",
                    {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_BUDGET_MS},
                ),
                _header(POINT_HEADER, "A published operating point; without it, the one in force"),
                _header(
                    ACCURACY_HEADER,
                    "The least published mAP, 0 to 1: the one in force or, where that is less accurate, the"
                    " cheapest operating point that is not. Deadlines still cut stages",
                    _SHARE,
                ),
                _header(
                    SCORE_HEADER,
                    "The least score of a detection in the answer, 0 to 1; 0 for all, mostly noise",
                    _SHARE,
                ),
                _header(
                    PRIORITY_HEADER,
                    "Who waits and is turned away last; normal",
                    {"type": "string", "enum": list(get_args(Priority))},
                ),
                _header(
                    SESSION_HEADER,
                    "While two sets are compared: the same for frames that one of them is to answer",
                ),
                _header(ID_HEADER, "Echoed; made up when absent"),
                _query(
                    "format", "coco: a list of COCO results", {"type": "string", "enum": ["json", "coco"]}
                ),
                _query("render", "1: the image with its boxes drawn", {"type": "string", "enum": ["0", "1"]}),
                _query(
                    "image_id", "In COCO results; counts up for several", {"type": "integer", "minimum": 0}
                ),
            ],
            "requestBody": {
                "required": True,
                "content": {
                    **{kind: {"schema": binary} for kind in RAW_TYPES},
                    FORM_TYPE: {"schema": form},
                    "application/json": {
                        "schema": {"oneOf": [single, several]},
                        "examples": {
                            "one": {"value": {"image": PIXEL}},
                            "two": {"value": {"images": [PIXEL, PIXEL]}},
                        },
                    },
                },
            },
            "responses": {
                "200": {
                    "description": "Detections under aligned scores, best first",
                    "headers": {
                        "Server-Timing": {
                            "schema": {"type": "string"},
                            "description": "queue, decode, stage-<variant> and total in milliseconds",
                        }
                    },
                    "content": {
                        "application/json": {
                            "schema": {
                                "oneOf": [
                                    {"$ref": "#/components/schemas/AnswerDocument"},
                                    {"$ref": "#/components/schemas/AnswersDocument"},
                                    {"type": "array", "items": {"type": "object"}},
                                ]
                            }
                        },
                        "image/jpeg": {"schema": {"type": "string", "format": "binary"}},
                    },
                },
                "400": {"description": "Malformed request or budget, unknown operating point", **problem},
                "401": {"description": "No key, or none that is known and has not expired", **problem},
                "403": {"description": "The key does not allow it", **problem},
                "408": {"description": "The body did not arrive in time", **problem},
                "413": {"description": "Too many bytes or pixels", **problem},
                "415": {"description": "Neither JPEG nor PNG", **problem},
                "422": {"description": "Broken image, or a budget that no plan can meet", **problem},
                "429": {"description": "The key's rate or concurrency", "headers": retry, **problem},
                "503": {"description": "Overloaded or not ready", "headers": retry, **problem},
            },
        }
    }


def _header(name: str, description: str, schema: JsonObject | None = None) -> JsonObject:
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": description,
        "schema": schema or {"type": "string"},
    }


def _query(name: str, description: str, schema: JsonObject) -> JsonObject:
    return {"name": name, "in": "query", "required": False, "description": description, "schema": schema}
