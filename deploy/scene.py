"""A gateway with every feature turned on, its callers, and a Prometheus that watches it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.callers import Traffic, filming, streaming, traffic
from deploy.live import Prometheus, prometheus
from deploy.rules import Scale
from loadtest.process import HOST, free_port, running, wait_until_ready
from model_repo.publish import Repository
from router import keys

# Enough to keep their rate up while answers take a second.
_CLIENTS = 32
_STREAM_HZ, _CAMERA_HZ, _STRANGER_HZ = 2.0, 1.0, 0.5


@dataclass(frozen=True, slots=True)
class Served:
    """What is served, and how: two repositories of the same classes, `python -m MODULE`, and its options."""

    champion: Repository
    challenger: Repository
    options: tuple[str, ...] = ()
    module: str = "router"


@dataclass(frozen=True, slots=True)
class Scene:
    """What runs: where the gateway is reached, with which key; its process, its callers, and Prometheus."""

    served: Served
    url: str
    grpc_address: str
    udp_address: str
    key: str
    pid: int
    callers: Traffic
    prometheus: Prometheus


@contextmanager
def scene(
    served: Served, callers: Traffic, scale: Scale, folder: Path, *, others: Sequence[str] = ()
) -> Iterator[Scene]:
    """Run everything until the block ends.

    callers: frames like those of calibration, and how most requests are; the others are a stream, a camera,
    somebody at another operating point and somebody who sends no image. others: more gateways for Prometheus
    to scrape, host:port of their metrics. folder: for keys, logs and data. Raises ServerError or
    PrometheusError when one of them does not start.
    """
    token, identity, digest = keys.make_token()
    keys.write(folder / "keys.json", [keys.Key(name="belt-7", id=identity, sha256=digest)])
    port, grpc_port, udp_port, admin_port = (free_port() for _ in range(4))
    url, grpc_address, udp_address = f"http://{HOST}:{port}", f"{HOST}:{grpc_port}", f"{HOST}:{udp_port}"
    command = (
        served.module, "--repo", str(served.champion.root), "--host", HOST, "--port", str(port),
        "--grpc-port", str(grpc_port), "--udp-port", str(udp_port), "--admin-port", str(admin_port),
        "--keys", str(folder / "keys.json"), "--challenger", str(served.challenger.root),
        "--challenger-mode", "shadow", "--challenger-share", "0.1", "--shadow-share", "0.2",
        "--reload-s", "1", "--measure", "never", *served.options,
        *(() if callers.budget_ms is None else ("--udp-query", f"budget_ms={callers.budget_ms:g}")),
    )  # fmt: skip
    log = folder / "gateway.log"
    with ExitStack() as stack:
        process = stack.enter_context(running(command, log))
        wait_until_ready(process, url, log)
        watching = stack.enter_context(
            prometheus((f"{HOST}:{admin_port}", *others), scale, folder / "prometheus")
        )
        callers.key = token
        strangers = (
            Traffic(callers.frames, _STRANGER_HZ, callers.budget_ms, "fast", key=token),
            Traffic([b"no image"], _STRANGER_HZ, key=token),
        )
        stack.enter_context(traffic(url, callers, clients=_CLIENTS))
        for stranger in strangers:
            stack.enter_context(traffic(url, stranger, clients=1))
        stack.enter_context(streaming(grpc_address, token, callers.frames, _STREAM_HZ, callers.budget_ms))
        stack.enter_context(filming(udp_address, callers.frames, _CAMERA_HZ))
        yield Scene(served, url, grpc_address, udp_address, token, process.pid, callers, watching)
