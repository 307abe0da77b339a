"""`python -m router`: serve a published repository over HTTP and gRPC."""

from __future__ import annotations

import gc
import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from pydantic import ValidationError

from model_repo.codec import ManifestError
from model_repo.latency import RuntimeName
from model_repo.publish import RepositoryError
from model_repo.runtime.engine import EngineError
from router import logs
from router.bootstrap import build
from router.config import Config
from router.engines import StartupError
from router.running import Addresses, bind, check_exposure, serve

_EPILOG = (
    "Every option can be given as PARETOGATE_<OPTION>, for example PARETOGATE_OPERATING_POINT=fast. "
    "Try it: curl --data-binary @frame.jpg -H 'Content-Type: image/jpeg' "
    "-H 'X-Latency-Budget-Ms: 50' http://127.0.0.1:8080/v1/detect"
)
# Objects between two runs of the collector, Python's own 700 is every few frames.
_YOUNG = 10_000
_DEFAULT = {name: field.default for name, field in Config.model_fields.items()}
_LOG = logging.getLogger("router")


def _option(name: str, text: str, panel: str) -> Any:  # Any: typer's own declaration
    flag = name.replace("_", "-")
    return typer.Option(f"--{flag}", envvar=f"PARETOGATE_{name.upper()}", help=text, rich_help_panel=panel)


def command(
    repo: Annotated[Path, _option("repo", "Published model repository", "Models")] = Path("model_repo"),
    challenger: Annotated[
        Path | None, _option("challenger", "A second repository, compared with the first", "Models")
    ] = None,
    challenger_share: Annotated[
        float, _option("challenger_share", "Of frames, those drawn for the challenger", "Models")
    ] = _DEFAULT["challenger_share"],
    challenger_mode: Annotated[
        str, _option("challenger_mode", "ab: it answers its share; shadow: it looks on", "Models")
    ] = _DEFAULT["challenger_mode"],
    operating_point: Annotated[
        str,
        _option("operating_point", "For requests that name none; less under load", "Models"),
    ] = _DEFAULT["operating_point"],
    reload_s: Annotated[
        float, _option("reload_s", "Seconds between looks for a new set; 0 for never", "Models")
    ] = _DEFAULT["reload_s"],
    runtime: Annotated[
        str | None,
        _option(
            "runtime",
            f"{', '.join(get_args(RuntimeName))}; default: by processor",
            "Engine",
        ),
    ] = None,
    threads: Annotated[
        int | None, _option("threads", "Cores per inference; default: by a short measurement", "Engine")
    ] = None,
    workers: Annotated[
        int | None, _option("workers", "Requests at work at once; default: cores / threads", "Engine")
    ] = None,
    cache: Annotated[
        Path | None, _option("cache", "Remembers what was measured; default: ~/.cache/paretogate", "Engine")
    ] = None,
    measure: Annotated[
        str,
        _option("measure", "Measure at start: auto (if published elsewhere), always, never", "Engine"),
    ] = _DEFAULT["measure"],
    triton_url: Annotated[
        str | None, _option("triton_url", "host:port of Triton's gRPC endpoint; several: a,b,c", "Engine")
    ] = None,
    triton_shared_memory: Annotated[
        bool,
        typer.Option(
            envvar="PARETOGATE_TRITON_SHARED_MEMORY", help="Triton is on this host", rich_help_panel="Engine"
        ),
    ] = False,
    triton_runs: Annotated[
        str, _option("triton_runs", "What Triton runs, where nothing was measured on it", "Engine")
    ] = _DEFAULT["triton_runs"],
    drift_interval_s: Annotated[
        float, _option("drift_interval_s", "Between looks at a variant's answers for drift", "Models")
    ] = _DEFAULT["drift_interval_s"],
    shadow_share: Annotated[
        float, _option("shadow_share", "Of early answers, checked by idle workers", "Models")
    ] = _DEFAULT["shadow_share"],
    engine_timeout_s: Annotated[
        float, _option("engine_timeout_s", "Longest wait for one inference", "Engine")
    ] = _DEFAULT["engine_timeout_s"],
    host: Annotated[str, _option("host", "Address to listen on", "Network")] = _DEFAULT["host"],
    port: Annotated[int, _option("port", "HTTP port; 0 for any free one", "Network")] = _DEFAULT["port"],
    grpc: Annotated[
        bool, typer.Option(envvar="PARETOGATE_GRPC", help="Serve gRPC too", rich_help_panel="Network")
    ] = True,
    grpc_port: Annotated[int, _option("grpc_port", "gRPC port; 0 for any free one", "Network")] = _DEFAULT[
        "grpc_port"
    ],
    admin: Annotated[
        bool,
        typer.Option(envvar="PARETOGATE_ADMIN", help="Metrics and administration", rich_help_panel="Network"),
    ] = True,
    admin_host: Annotated[str, _option("admin_host", "Their address to listen on", "Network")] = _DEFAULT[
        "admin_host"
    ],
    admin_port: Annotated[int, _option("admin_port", "Their port; 0 for any free one", "Network")] = _DEFAULT[
        "admin_port"
    ],
    keys: Annotated[
        Path | None,
        _option("keys", "File of API keys: python -m router.keys add; default: none needed", "Security"),
    ] = None,
    tls_cert: Annotated[Path | None, _option("tls_cert", "Certificate chain, PEM", "Security")] = None,
    tls_key: Annotated[Path | None, _option("tls_key", "Its private key, PEM", "Security")] = None,
    tls_client_ca: Annotated[
        Path | None, _option("tls_client_ca", "Who must have signed clients' certificates, PEM", "Security")
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            envvar="PARETOGATE_INSECURE",
            help="Listen beyond loopback without keys or without TLS",
            rich_help_panel="Security",
        ),
    ] = False,
    cors_origin: Annotated[
        list[str] | None,
        _option("cors_origin", "Whose pages may ask: https://host; repeat, or * for all", "Security"),
    ] = None,
    console_frames: Annotated[
        int,
        _option("console_frames", "Recent frames that the page at / shows while it is open", "Security"),
    ] = _DEFAULT["console_frames"],
    udp_port: Annotated[
        int | None,
        _option("udp_port", "For cameras' datagrams; 0 for any free one; default: none", "Cameras"),
    ] = None,
    udp_allow: Annotated[
        str | None,
        _option("udp_allow", "Networks that are heard: 10.0.0.0/8,192.168.1.7; default: loopback", "Cameras"),
    ] = None,
    udp_query: Annotated[
        str, _option("udp_query", "For all frames: budget_ms=40&min_score=0.3 as of /v1/stream", "Cameras")
    ] = _DEFAULT["udp_query"],
    udp_callback: Annotated[
        str | None,
        _option("udp_callback", "Results are posted to it; default: datagrams to the sender", "Cameras"),
    ] = None,
    udp_streams: Annotated[int, _option("udp_streams", "Cameras at once", "Cameras")] = _DEFAULT[
        "udp_streams"
    ],
    max_queue: Annotated[
        int, _option("max_queue", "Requests that may wait; more are shed", "Limits")
    ] = _DEFAULT["max_queue"],
    max_wait_ms: Annotated[
        float, _option("max_wait_ms", "Longest predicted wait; beyond it requests are shed", "Limits")
    ] = _DEFAULT["max_wait_ms"],
    answer_ms: Annotated[
        float, _option("answer_ms", "Kept back from every budget for encoding and sending", "Limits")
    ] = _DEFAULT["answer_ms"],
    min_score: Annotated[
        float, _option("min_score", "Detections below are left out, if not asked for otherwise", "Models")
    ] = _DEFAULT["min_score"],
    default_budget_ms: Annotated[
        float | None,
        _option("default_budget_ms", "Budget of requests that say none; default: none", "Limits"),
    ] = None,
    max_budget_ms: Annotated[
        float, _option("max_budget_ms", "Longer budgets are cut to it", "Limits")
    ] = _DEFAULT["max_budget_ms"],
    max_bytes: Annotated[int, _option("max_bytes", "Largest encoded image", "Limits")] = _DEFAULT[
        "max_bytes"
    ],
    max_pixels: Annotated[int, _option("max_pixels", "Largest decoded image", "Limits")] = _DEFAULT[
        "max_pixels"
    ],
    max_streams: Annotated[
        int, _option("max_streams", "Streams open at once; half of them with one key", "Limits")
    ] = _DEFAULT["max_streams"],
    stream_idle_s: Annotated[
        float, _option("stream_idle_s", "Longest time of a stream without a frame", "Limits")
    ] = _DEFAULT["stream_idle_s"],
    max_buffered_bytes: Annotated[
        int, _option("max_buffered_bytes", "All request bodies in flight together", "Limits")
    ] = _DEFAULT["max_buffered_bytes"],
    body_timeout_s: Annotated[
        float, _option("body_timeout_s", "Longest wait for a request body", "Limits")
    ] = _DEFAULT["body_timeout_s"],
    max_connections: Annotated[
        int, _option("max_connections", "Open over HTTP, and again over gRPC", "Limits")
    ] = _DEFAULT["max_connections"],
    head_timeout_s: Annotated[
        float, _option("head_timeout_s", "Longest wait for a request's head", "Limits")
    ] = _DEFAULT["head_timeout_s"],
    write_timeout_s: Annotated[
        float, _option("write_timeout_s", "Longest wait for an answer to be taken", "Limits")
    ] = _DEFAULT["write_timeout_s"],
    idle_timeout_s: Annotated[
        float, _option("idle_timeout_s", "Longest pause between requests of a connection", "Limits")
    ] = _DEFAULT["idle_timeout_s"],
    drain_delay_s: Annotated[
        float, _option("drain_delay_s", "After SIGTERM: answer, but not ready, for this long", "Shutdown")
    ] = _DEFAULT["drain_delay_s"],
    drain_s: Annotated[
        float, _option("drain_s", "Then finish what is in flight for up to this long", "Shutdown")
    ] = _DEFAULT["drain_s"],
    log_level: Annotated[str, _option("log_level", "debug, info, warning or error", "Logging")] = _DEFAULT[
        "log_level"
    ],
    log_format: Annotated[str, _option("log_format", "text or json", "Logging")] = _DEFAULT["log_format"],
    otlp_endpoint: Annotated[
        str | None,
        _option("otlp_endpoint", "OpenTelemetry: http://host:4318/v1/traces; default: none", "Logging"),
    ] = None,
    trace_share: Annotated[
        float, _option("trace_share", "Of requests whose sender does not decide, those traced", "Logging")
    ] = _DEFAULT["trace_share"],
) -> None:
    """Serve detections within latency budgets from a published model repository."""
    # Every local is an option, and the configuration's fields have the same names.
    options = {name: value for name, value in locals().items() if value is not None}
    try:
        config = Config.model_validate(options)
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            name = "-".join(str(part) for part in problem["loc"]).replace("_", "-")
            typer.echo(f"Error: --{name}: {problem['msg']}" if name else f"Error: {problem['msg']}", err=True)
        raise typer.Exit(2) from error
    logs.set_up(config.log_level, as_json=config.log_format == "json")
    try:
        run(config)
    except (RepositoryError, ManifestError, StartupError, EngineError, ImportError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from error


def run(config: Config) -> None:
    """Build a gateway and serve until a signal says otherwise; raises what `build` and `serve` raise."""
    import uvloop

    check_exposure(config)
    # Before the models: a port that is taken should not cost the time to load them.
    with ExitStack() as stack:
        http_socket = stack.enter_context(bind(config.host, config.port))
        admin_socket = (
            stack.enter_context(bind(config.admin_host, config.admin_port)) if config.admin else None
        )
        gateway = build(config)
        # What is there now stays: the collector need not look through all of it again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_YOUNG)
        try:
            uvloop.run(serve(config, gateway, http_socket, admin_socket, _say))
        finally:
            gateway.close()


def _say(addresses: Addresses) -> None:
    grpc = f", gRPC on {addresses.grpc}" if addresses.grpc else ""
    admin = f", metrics and administration on {addresses.admin}" if addresses.admin else ""
    udp = f", UDP on {addresses.udp}" if addresses.udp else ""
    _LOG.info("serving on %s%s%s%s", addresses.http, grpc, udp, admin)


def main() -> None:
    """Run the command line."""
    app = typer.Typer(add_completion=False, rich_markup_mode="rich")
    app.command(epilog=_EPILOG)(command)
    app(prog_name="paretogate-router")


if __name__ == "__main__":
    main()
