"""A running server as a target, over whichever protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args
from urllib.parse import urlsplit

from loadtest.cameras import CamerasTarget
from loadtest.inference import OipTarget, TritonTarget
from loadtest.raw import RawTarget
from loadtest.replies import ask_what_is_served, failed
from loadtest.sample import Reply
from loadtest.target import Description, Target
from router.client import AsyncGatewayClient, AsyncGrpcGatewayClient, ClientTls, GatewayError

Protocol = Literal["http", "grpc", "stream", "oip-http", "oip-grpc", "triton"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)

# The runner's own limit strikes first; this one only keeps a lost connection from staying for ever.
_SPARE_S = 5.0


class GatewayTarget:
    """Send frames over `calls`, one of the project's own clients, as its users do; ask for what is served
    over HTTP, which gRPC has no call for."""

    def __init__(
        self, url: str, http: AsyncGatewayClient, calls: AsyncGatewayClient | AsyncGrpcGatewayClient
    ) -> None:
        self._url, self._http, self._calls = url, http, calls

    async def describe(self) -> Description:
        """Return classes and operating points; raises TargetError when the gateway does not answer."""
        return await ask_what_is_served(self._http, self._url)

    async def send(self, frame: bytes, budget_ms: float | None, operating_point: str | None) -> Reply:
        """Send one encoded frame; every error of the gateway or the connection is a Reply."""
        try:
            answer = await self._calls.detect(frame, budget_ms=budget_ms, operating_point=operating_point)
        except GatewayError as error:
            return failed(error)
        return Reply(
            "answered",
            plan=answer.plan,
            stages=tuple(stage.variant for stage in answer.stages),
            cut=f"{answer.cut.stage}: {answer.cut.reason}" if answer.cut is not None else None,
            detections=answer.as_detections(),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._calls.close()
        if self._calls is not self._http:
            await self._http.close()


def connect(
    url: str,
    protocol: Protocol,
    *,
    grpc_address: str | None = None,
    api_key: str | None = None,
    ca: Path | None = None,
    repo: Path | None = None,
    cameras: int = 1,
    timeout_s: float,
) -> Target:
    """Return a target at an HTTP address; over gRPC frames go to `grpc_address`, host:port.

    api_key: shown to a gateway that asks for one. ca: who signed the gateway's certificate, for https:// and
    for gRPC, which has TLS where the address is https:// or a ca is named. repo: what a plain Triton's models
    were rendered from. cameras: how many streams share the frames. To be called on the event loop that uses
    it; nothing is sent yet. Raises ValueError where an address or the repository is missing or is none,
    OSError when the ca cannot be read, TargetError when the repository cannot be.
    """
    if protocol != "triton" and urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"expected an address such as http://127.0.0.1:8080, got {url!r}")
    tls = ClientTls(ca) if ca is not None or url.startswith("https:") else None
    if protocol == "http":
        return RawTarget.at(url, api_key=api_key, tls=tls)
    if protocol in ("grpc", "oip-grpc", "triton") and grpc_address is None:
        raise ValueError("gRPC needs the address to call, host:port")
    if protocol == "triton":
        if repo is None:
            raise ValueError("a plain Triton needs the published repository that its models are from")
        assert grpc_address is not None, "checked above"
        return TritonTarget(grpc_address, repo)
    http = AsyncGatewayClient(url, api_key=api_key, tls=tls, timeout_s=timeout_s + _SPARE_S, connections=None)
    if protocol == "stream":
        return CamerasTarget(url, http, cameras=cameras, api_key=api_key, tls=tls)
    if protocol == "oip-http" or protocol == "oip-grpc":
        over: Literal["http", "grpc"] = "http" if protocol == "oip-http" else "grpc"
        return OipTarget(url, http, over=over, grpc_address=grpc_address or "", api_key=api_key, tls=tls)
    assert grpc_address is not None, "checked above"
    return GatewayTarget(url, http, AsyncGrpcGatewayClient(grpc_address, api_key=api_key, tls=tls))
