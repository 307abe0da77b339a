"""The gateway's configuration: read once, from flags and `PARETOGATE_*` variables, into a frozen value."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from model_repo.latency import EmbeddedName, RuntimeName
from router.arms import Mode
from router.budget import MAX_BUDGET_MS

Port = Annotated[int, Field(ge=0, le=65535)]
Measure = Literal["auto", "always", "never"]
Network = IPv4Network | IPv6Network
LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
_LOOPBACK = "127.0.0.0/8,::1/128"


class Config(BaseModel):
    """Everything that can be set.

    udp_port: where cameras' datagrams are taken, None for nowhere; udp_allow: the networks that are heard,
    comma-separated, None for this machine; udp_query: what their streams ask for, as the query of
    `/v1/stream`; udp_callback: where results are posted, None for datagrams to the sender.
    admin_host and admin_port: where metrics are, and where an administrator may hold an operating point;
    nowhere without admin.
    keys: the file of API keys, see `router.keys`, None to let everybody in. tls_cert and tls_key: PEM files;
    tls_client_ca: who must have signed clients' certificates, None for no such certificates. insecure: lets
    the gateway be reached from elsewhere without them. cors_origin: whose pages may ask, `*` for all.
    max_connections: over HTTP, and again over gRPC; head_timeout_s, body_timeout_s, write_timeout_s,
    idle_timeout_s: how long a connection may take for a request's head and body, for taking its answer, and
    between requests.
    threads: cores per inference; workers: requests at work at once; None for what a short measurement at
    start finds best, which is remembered in the folder `cache`, None for the user's own.
    measure: when to measure at start: the variants again (auto: when the manifest's profiles are of another
    environment), and the cores (auto and always). max_wait_ms and max_queue bound the queue, see
    `router.admission`. answer_ms is kept back from every budget for encoding and sending;
    min_score: detections below it are left out of answers that ask for no other; aligned scores are expected
    shares of COCO thresholds met, so below a two-thousandth they are noise.
    default_budget_ms is for requests that say none, max_budget_ms cuts longer ones.
    challenger: a second repository, compared with the first one; of the frames, challenger_share are drawn
    for it, to answer (ab) or to look at what was answered (shadow).
    console_frames: recent frames that the page at `/` shows, made small, while it is open; 0 for none.
    reload_s: seconds between looks at the manifest, 0 for never.
    drift_interval_s: between looks at a variant's answers for drift, for neighbouring frames say little new.
    shadow_share: of the answers that a cascade gave early, those that its last stage looks at as well when a
    worker is idle.
    After a SIGTERM the gateway is not ready but answers for
    drain_delay_s, then finishes what is in flight for up to drain_s. otlp_endpoint: where OpenTelemetry spans
    go (http://collector:4318/v1/traces), None for nowhere; trace_share: of requests whose sender does not
    decide.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    repo: Path
    challenger: Path | None = None
    challenger_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    challenger_mode: Mode = "ab"
    host: str = "127.0.0.1"
    port: Port = 8080
    grpc: bool = True
    grpc_port: Port = 8081
    udp_port: Port | None = None
    udp_allow: str | None = None
    udp_query: str = ""
    udp_callback: str | None = None
    udp_streams: PositiveInt = 16
    admin: bool = True
    admin_host: str = "127.0.0.1"
    admin_port: Port = 8082
    keys: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    insecure: bool = False
    cors_origin: tuple[str, ...] = ()
    console_frames: Annotated[int, Field(ge=0, le=48)] = 0
    runtime: RuntimeName | None = None
    triton_url: str | None = None
    triton_shared_memory: bool = False
    triton_runs: EmbeddedName = "onnxruntime"
    threads: PositiveInt | None = None
    workers: PositiveInt | None = None
    cache: Path | None = None
    operating_point: str = "balanced"
    measure: Measure = "auto"
    max_queue: NonNegativeInt = 64
    max_wait_ms: PositiveFloat = 1000.0
    answer_ms: NonNegativeFloat = 1.0
    min_score: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0005
    default_budget_ms: PositiveFloat | None = None
    max_budget_ms: Annotated[float, Field(gt=0.0, le=MAX_BUDGET_MS)] = MAX_BUDGET_MS
    max_bytes: PositiveInt = 16 * 1024 * 1024
    max_pixels: PositiveInt = 40_000_000
    max_streams: PositiveInt = 64
    stream_idle_s: PositiveFloat = 60.0
    max_buffered_bytes: PositiveInt = 256 * 1024 * 1024
    max_connections: PositiveInt = 512
    head_timeout_s: PositiveFloat = 10.0
    body_timeout_s: PositiveFloat = 10.0
    write_timeout_s: PositiveFloat = 30.0
    idle_timeout_s: PositiveFloat = 30.0
    engine_timeout_s: PositiveFloat = 10.0
    reload_s: NonNegativeFloat = 2.0
    drift_interval_s: NonNegativeFloat = 0.2
    shadow_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.01
    drain_delay_s: NonNegativeFloat = 0.0
    drain_s: PositiveFloat = 20.0
    log_level: LogLevel = "info"
    log_format: LogFormat = "text"
    otlp_endpoint: str | None = None
    trace_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.01

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.runtime == "triton" and not self.triton_urls:
            raise ValueError("runtime triton needs --triton-url host:port")
        if self.max_buffered_bytes < self.max_bytes:
            raise ValueError("max_buffered_bytes must hold at least one body of max_bytes")
        if self.udp_port is not None and self.udp_allow is None and not _is_loopback(self.host):
            raise ValueError(
                f"--udp-port on {self.host} needs --udp-allow: the cameras' networks, such as 10.0.0.0/8"
            )
        if self.console_frames and self.keys is None and not _is_loopback(self.host):
            raise ValueError(
                f"--console-frames on {self.host} needs --keys: whoever reaches the gateway would see the"
                " frames of all others"
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("--tls-cert and --tls-key need each other")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("--tls-client-ca needs --tls-cert and --tls-key")
        return self

    @field_validator("udp_allow")
    @classmethod
    def _are_networks(cls, text: str | None) -> str | None:
        if text is not None:
            _networks(text)
        return text

    @field_validator("udp_callback")
    @classmethod
    def _is_http(cls, url: str | None) -> str | None:
        try:
            given = None if url is None else urlsplit(url)
            fine = given is None or (given.scheme in ("http", "https") and given.hostname and given.port != 0)
        except ValueError:
            fine = False
        if not fine:
            raise ValueError(f"{url!r} is no http:// or https:// address")
        return url

    @property
    def udp_networks(self) -> tuple[Network, ...]:
        """Return the networks whose datagrams are heard."""
        return _networks(_LOOPBACK if self.udp_allow is None else self.udp_allow)

    @property
    def triton_urls(self) -> tuple[str, ...]:
        """Return Triton's endpoints, host:port each, in the order given."""
        given = (self.triton_url or "").split(",")
        return tuple(dict.fromkeys(url.strip() for url in given if url.strip()))


def _networks(text: str) -> tuple[Network, ...]:
    """Read comma-separated networks or addresses; raises ValueError."""
    return tuple(ip_network(part.strip()) for part in text.split(","))


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
