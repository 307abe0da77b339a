"""A wired gateway as it runs: where it listens, what works beside it, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass

import numpy as np

from router.bootstrap import Gateway
from router.config import Config
from router.engines import StartupError
from router.grpc_server import CallLimits, GrpcServer
from router.http_server import ConnectionLimits, GatewayServer, make_server
from router.service import Service
from router.tls import Tls, loopback, missing
from router.udp import receiving

_LOG = logging.getLogger(__name__)
_PROBE_S = 1.0


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a gateway listens."""

    http: str
    grpc: str | None
    admin: str | None = None
    udp: str | None = None


def check_exposure(config: Config) -> None:
    """Raise StartupError when the gateway would be reached from elsewhere without keys or TLS.

    `--insecure` allows what is missing; what is configured is still enforced.
    """
    lacking = missing(config)
    if not lacking:
        return
    if not config.insecure:
        raise StartupError(
            f"--host {config.host}, --admin-host {config.admin_host}: beyond loopback the gateway needs"
            f" {' and '.join(lacking)}; --insecure does without"
        )
    _LOG.warning("--insecure: reachable from elsewhere without %s", " and ".join(lacking))


async def serve(
    config: Config,
    gateway: Gateway,
    http_socket: socket.socket,
    admin_socket: socket.socket | None,
    started: Callable[[Addresses], None],
) -> None:
    """Serve until SIGTERM or SIGINT, then drain and return; `started` is told where it listens.

    Raises StartupError when a certificate cannot be used or gRPC's port cannot be had.
    """
    tls = Tls.of(config)
    limits = ConnectionLimits.of(config)
    context = None if tls is None else tls.context()
    server = make_server(
        gateway.app,
        gateway.endpoint,
        limits,
        gateway.metrics,
        tls=context,
        drain_s=config.drain_s,
        max_message_bytes=config.max_bytes,
    )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        grpc_server, grpc_address = await _start_grpc(config, gateway, tls)
        if grpc_server is not None:
            stack.push_async_callback(grpc_server.stop, config.drain_s)
        await stack.enter_async_context(_running(server, http_socket))
        await stack.enter_async_context(_watching(gateway.service, grpc_server))
        await stack.enter_async_context(_in_background(_sweeping(gateway)))
        if config.reload_s > 0:
            for reloader in gateway.reloaders:
                await stack.enter_async_context(_in_background(reloader.watch()))
            if gateway.keys_file is not None:
                await stack.enter_async_context(_in_background(gateway.keys_file.watch()))
        admin = None
        if admin_socket is not None:
            admin_tls = None if loopback(config.admin_host) else context
            admin_server = make_server(
                gateway.admin, None, limits, gateway.metrics, tls=admin_tls, drain_s=config.drain_s
            )
            await stack.enter_async_context(_running(admin_server, admin_socket))
            admin = _url(admin_socket, admin_tls)
        udp = None
        if config.udp_port is not None:
            udp = await stack.enter_async_context(
                receiving(config, config.udp_port, gateway.streams, gateway.metrics)
            )
        started(Addresses(_url(http_socket, context), grpc_address, admin, udp))
        await stop.wait()
        _LOG.info("draining")
        gateway.service.drain()
        if grpc_server is not None:
            await grpc_server.show_ready(False)
        await asyncio.sleep(config.drain_delay_s)
        gateway.streams.drain()
        await gateway.streams.drained(config.drain_s)
    _LOG.info("stopped")


async def _start_grpc(
    config: Config, gateway: Gateway, tls: Tls | None
) -> tuple[GrpcServer | None, str | None]:
    if not config.grpc:
        return None, None
    limits = CallLimits(config.max_bytes, config.max_connections, config.head_timeout_s)
    server = GrpcServer(gateway.servicer, gateway.inference, limits, gateway.access)
    try:
        port = server.bind(f"{config.host}:{config.grpc_port}", None if tls is None else tls.credentials())
    except RuntimeError as error:
        raise StartupError(f"cannot listen on {config.host}:{config.grpc_port}: {error}") from error
    await server.start()
    return server, f"{config.host}:{port}"


def _url(listener: socket.socket, tls: ssl.SSLContext | None) -> str:
    host, port = listener.getsockname()[:2]
    return f"{'http' if tls is None else 'https'}://{f'[{host}]' if ':' in host else host}:{port}"


@contextlib.asynccontextmanager
async def _running(server: GatewayServer, http_socket: socket.socket) -> AsyncIterator[None]:
    """Run the HTTP server, listening; on leaving, let what is in flight finish."""
    task = asyncio.create_task(server.serve(sockets=[http_socket]))
    try:
        # uvicorn tells that it listens by this flag alone.
        while not server.started and not task.done():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        yield
    finally:
        server.should_exit = True
        await task


@contextlib.asynccontextmanager
async def _watching(service: Service, grpc_server: GrpcServer | None) -> AsyncIterator[None]:
    """Probe an ill engine until it is well, and show readiness to gRPC health checks."""
    image = np.zeros((480, 640, 3), dtype=np.uint8)

    async def watch() -> None:
        shown = False
        while True:
            if not service.well:
                await service.probe(image)
            if grpc_server is not None and service.ready != shown:
                shown = service.ready
                await grpc_server.show_ready(shown)
            await asyncio.sleep(_PROBE_S)

    async with _in_background(watch()):
        yield


async def _sweeping(gateway: Gateway) -> None:
    """Look once a second for streams that are to end, and for frames that nobody looks at any more."""
    while True:
        await asyncio.sleep(_PROBE_S)
        gateway.streams.sweep()
        if gateway.recent is not None:
            gateway.recent.sweep()


@contextlib.asynccontextmanager
async def _in_background(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Let work run until the context is left, then cancel it."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def bind(host: str, port: int) -> socket.socket:
    """Bind a TCP socket; raises StartupError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise StartupError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return listener
