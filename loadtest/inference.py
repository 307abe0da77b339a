"""Servers of the Open Inference Protocol (KServe v2): the gateway's model `paretogate`, or a plain Triton.

Both are asked with `tritonclient`, as their users do. A Triton knows tensors alone, so what the gateway does
around a model is the caller's there: decoding, letterbox, suppression and alignment, from the published
repository. They count as latency, and happen in threads, so that they hold up no other request.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tritonclient.grpc as grpc_messages
import tritonclient.grpc.aio as grpc_client
import tritonclient.http as http_messages
import tritonclient.http.aio as http_client
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from loadtest.replies import ask_what_is_served
from loadtest.sample import Outcome, Reply
from loadtest.target import Description, TargetError
from model_repo import codec
from model_repo.alignment import Alignment
from model_repo.detections import Detections, nms
from model_repo.frame import FrameError, Letterbox, decode
from model_repo.frontier import Frontier, Variant
from router.client import AsyncGatewayClient, ClientTls
from router.client.tls import bearer

CASCADE = "paretogate"
_MANIFEST = "frontier.json"
_FRAMES, _ROWS = "frames", "detections"
_OUTPUTS = ("boxes", "scores", "class_ids")
_OVERLOADED = "The gateway is overloaded"
_REJECTED = frozenset(
    (
        *("400", "401", "403", "404", "413", "415", "422"),
        *(f"StatusCode.{name}" for name in ("INVALID_ARGUMENT", "NOT_FOUND", "UNAUTHENTICATED")),
        "StatusCode.PERMISSION_DENIED",
        # The gateway says so of a budget that nothing can meet: the protocol has no other word for it.
        "StatusCode.DEADLINE_EXCEEDED",
    )
)
# Both libraries' clients and messages, which ship no types.
Untyped = Any  # Any: see above


class OipTarget:
    """Send encoded frames to the gateway's model over HTTP or gRPC; the budget is the request's `timeout`.

    The protocol does not say which stages ran. What is served is asked for at the gateway's own address.
    """

    def __init__(
        self,
        url: str,
        http: AsyncGatewayClient,
        *,
        over: Literal["http", "grpc"],
        grpc_address: str,
        api_key: str | None,
        tls: ClientTls | None,
    ) -> None:
        self._url, self._http = url, http
        self._headers = {name.lower(): value for name, value in bearer(api_key).items()}
        self._messages = http_messages if over == "http" else grpc_messages
        secure = url.startswith("https:")
        if over == "grpc":
            credentials = None if tls is None else tls.credentials()
            self._client: Untyped = grpc_client.InferenceServerClient(
                grpc_address, ssl=credentials is not None, creds=credentials
            )
        else:
            place = url.split("://", 1)[1].rstrip("/")
            # 0 is no bound: a request that waited in the generator would look like a slow gateway.
            self._client = http_client.InferenceServerClient(
                place,
                conn_limit=0,
                ssl=secure,
                ssl_context=(tls or ClientTls()).context() if secure else None,
            )

    async def describe(self) -> Description:
        """Return classes and operating points; raises TargetError when the gateway does not answer."""
        return await ask_what_is_served(self._http, self._url)

    async def send(self, frame: bytes, budget_ms: float | None, operating_point: str | None) -> Reply:
        """Send one encoded frame; every error of the gateway or the connection is a Reply."""
        image = self._messages.InferInput("image", [1], "BYTES")
        image.set_data_from_numpy(np.array([frame], dtype=np.object_))
        wanted = [self._messages.InferRequestedOutput(name) for name in _OUTPUTS]
        try:
            result = await self._client.infer(
                CASCADE,
                [image],
                outputs=wanted,
                timeout=None if budget_ms is None else round(budget_ms * 1e3),
                headers=self._headers or None,
                parameters=None if operating_point is None else {"operating_point": operating_point},
            )
        except (InferenceServerException, OSError) as error:
            return _no_answer(error)
        told = _told(result.get_response())
        return Reply(
            "answered",
            plan=told.get("plan"),
            cut=told.get("cut"),
            detections=Detections.make(*(result.as_numpy(name) for name in _OUTPUTS)),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()
        await self._http.close()


class TritonTarget:
    """Ask a Triton at `address`, host:port of its gRPC, for one variant; `operating_point` is its name.

    What a variant takes and gives is read from the repository that the server's models were rendered from.
    Raises TargetError when that cannot be read. Budgets stay with the caller: a plain Triton knows none.
    """

    def __init__(self, address: str, repo: Path) -> None:
        try:
            text = (repo / _MANIFEST).read_bytes()
            self._frontier: Frontier = codec.decode(text, source=str(repo / _MANIFEST))
        except OSError as error:
            raise TargetError(f"{repo / _MANIFEST}: {error.strerror}") from error
        except codec.ManifestError as error:
            raise TargetError(str(error)) from error
        self._address = address
        self._client: Untyped = grpc_client.InferenceServerClient(address)

    async def describe(self) -> Description:
        """Return the classes, and the variants as operating points; raises TargetError."""
        try:
            ready = await self._client.is_server_ready(client_timeout=5.0)
        except InferenceServerException as error:
            raise TargetError(f"{self._address}: {error.message()}") from error
        if not ready:
            raise TargetError(f"{self._address}: the server is not ready")
        names = tuple(variant.name for variant in self._frontier.variants)
        return Description(tuple(self._frontier.dataset.classes), names)

    async def send(self, frame: bytes, budget_ms: float | None, operating_point: str | None) -> Reply:
        """Decode and letterbox a frame, ask the variant, suppress and align; raises TargetError without a
        variant's name."""
        del budget_ms
        if operating_point is None:
            names = ", ".join(variant.name for variant in self._frontier.variants)
            raise TargetError(f"a plain Triton has no plans: name a variant as operating point, of {names}")
        variant = self._frontier.variant(operating_point)
        try:
            letterbox, pixels = await asyncio.to_thread(_boxed, frame, variant)
        except FrameError as error:
            return Reply("rejected", detail=str(error))
        tensor = grpc_messages.InferInput(_FRAMES, list(pixels.shape), "UINT8")
        tensor.set_data_from_numpy(pixels)
        try:
            result = await self._client.infer(
                variant.folder, [tensor], outputs=[grpc_messages.InferRequestedOutput(_ROWS)]
            )
        except InferenceServerException as error:
            return _no_answer(error)
        rows: NDArray[np.float32] = result.as_numpy(_ROWS)[0]
        found = await asyncio.to_thread(_read, rows, variant, letterbox)
        return Reply("answered", plan=variant.name, stages=(variant.name,), detections=found)

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()


def _boxed(frame: bytes, variant: Variant) -> tuple[Letterbox, NDArray[np.uint8]]:
    image = decode(frame)
    letterbox = Letterbox((image.shape[1], image.shape[0]), variant.resolution_wh)
    return letterbox, letterbox.apply(image)[None]


def _read(rows: NDArray[np.float32], variant: Variant, letterbox: Letterbox) -> Detections:
    """Return what the gateway would: without duplicates, in source pixels, best first, scores aligned."""
    found = Detections.from_rows(rows)
    if variant.nms_iou is not None:
        found = nms(found, variant.nms_iou)
    return _alignment(variant).apply(found.with_xyxy(letterbox.to_source(found.xyxy))).top()


def _alignment(variant: Variant) -> Alignment:
    """Return the alignment measured on Triton, else that of the first runtime."""
    return variant.on("triton" if "triton" in variant.runtimes else variant.runtimes[0]).alignment


def _told(response: Untyped) -> dict[str, str]:
    """Return the texts among a response's parameters; a dict over HTTP, a message over gRPC."""
    if isinstance(response, dict):
        return {k: v for k, v in response.get("parameters", {}).items() if isinstance(v, str)}
    given = response.parameters.items()
    return {name: value.string_param for name, value in given if value.HasField("string_param")}


def _no_answer(error: InferenceServerException | OSError) -> Reply:
    if isinstance(error, OSError):
        return Reply("failed", detail=f"the connection broke: {type(error).__name__}")
    status, message = str(error.status()), str(error.message())
    outcome: Outcome
    if _OVERLOADED in message or status in ("429", "StatusCode.RESOURCE_EXHAUSTED"):
        outcome = "shed"
    elif status in _REJECTED:
        outcome = "rejected"
    else:
        outcome = "failed"
    return Reply(outcome, detail=message.split(":", 1)[0][:120] or status)
