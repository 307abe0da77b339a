"""A wired gateway over a scripted engine, and a client that reaches it without a socket."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from model_repo.publish import Repository
from router.bootstrap import Gateway, build
from router.budget import Clock
from router.config import Config
from tests.fakes import FakeEngine, Square, encode_image, rows_of, squares_frame, tiny_repository

SURE = rows_of((0, 0, 16, 16, 0.95, 0))
# Doubtful enough for the tiny cascade's rule to go on.
DOUBTFUL = rows_of((0, 0, 16, 16, 0.5, 0), (32, 32, 48, 48, 0.5, 1))
LARGE = rows_of((0, 0, 32, 32, 0.9, 1))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Run asynchronous tests on asyncio alone, as the gateway does."""
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
async def one_event_loop(anyio_backend: str) -> AsyncIterator[None]:
    """Keep one event loop for all tests: gRPC's single queue still tells of calls whose test is over, and a
    loop that was closed meanwhile would make the next test fail of it."""
    yield  # noqa: PT022 - the loop is held for as long as the fixture is


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """A published repository of two variants, at 2 and 6 ms, and a cascade of both."""
    return tiny_repository(tmp_path_factory.mktemp("tiny") / "repo")


@pytest.fixture(scope="session")
def frame() -> bytes:
    """A PNG of 64x64 pixels with two squares."""
    return encode_image(squares_frame([Square(0, 0, 0), Square(2, 1, 1, 120)]))


@dataclass
class Bench:
    """Build gateways over a repository and close them at the end of the test."""

    root: Path
    built: list[Gateway] = field(default_factory=list)

    def __call__(
        self, engine: FakeEngine | None = None, *, clock: Clock | None = None, **settings: object
    ) -> Gateway:
        """Return a gateway with one worker and the published latencies, unless told otherwise."""
        config = Config.model_validate(
            {
                "repo": self.root,
                "workers": 1,
                "measure": "never",
                "port": 0,
                "grpc_port": 0,
                "shadow_share": 0.0,
                **settings,
            }
        )
        engine = engine or FakeEngine(rows={"tiny-0": SURE, "tiny-1": LARGE})
        # Scripts are for requests: warming at start is not to use them up.
        script = engine.rows, engine.latency_ms, engine.failures
        engine.rows, engine.latency_ms, engine.failures = {}, {}, deque()
        gateway = build(config, engine=engine, clock=clock)
        engine.rows, engine.latency_ms, engine.failures = script
        engine.calls.clear()
        self.built.append(gateway)
        return gateway


@pytest.fixture
def bench(repository: Repository) -> Iterator[Bench]:
    """Return the builder of gateways."""
    bench = Bench(repository.root)
    yield bench
    for gateway in bench.built:
        gateway.close()


def http_to(gateway: Gateway) -> httpx.AsyncClient:
    """Return a client whose requests go straight into the application."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(gateway.app), base_url="http://gateway")


def admin_of(gateway: Gateway, *, host: str = "127.0.0.1") -> httpx.AsyncClient:
    """Return a client of metrics and administration, on a machine of that address."""
    transport = httpx.ASGITransport(gateway.admin, client=(host, 40000))
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8082")


def sample(gateway: Gateway, name: str, **labels: str) -> float:
    """Return a series' value, 0 when it does not exist yet."""
    return gateway.metrics.registry.get_sample_value(name, labels) or 0.0


Builder = Callable[..., Gateway]
