"""Ways to ask one gateway: each of its operating points by name, and as it adapts by itself."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from loadtest.bench_overhead import LOAD_CORE, SERVER_CORE
from loadtest.process import HOST, free_port, gateway
from loadtest.target import TargetError
from router.client import ClientTls, GatewayClient, GatewayError
from router.documents import PointDocument, PointsDocument

ADAPTIVE = "adaptive"


@dataclass(frozen=True, slots=True)
class Way:
    """A way to ask: its name, and the operating point that requests name; None for what adapts.

    published: what the gateway says of the point, None for what adapts.
    """

    name: str
    operating_point: str | None
    published: PointDocument | None


@contextmanager
def gateway_at(url: str, repo: Path | None, *, pinned: bool) -> Iterator[str]:
    """Yield the address of a gateway: the one that is named, or one that is started on a repository.

    pinned: one that is started keeps to the first core and this process to the second meanwhile, so that the
    two do not take turns. Raises ServerError when it does not start, ValueError when it cannot be pinned.
    """
    if repo is None:
        if pinned:
            raise ValueError("--pinned is for a gateway that is started here, on --repo")
        yield url
        return
    before = os.sched_getaffinity(0)
    if pinned and len(before) < 2:
        raise ValueError("--pinned: two cores are needed, one for the gateway and one for the load")
    port = free_port()
    with (
        TemporaryDirectory(prefix="paretogate-load-") as scratch,
        gateway(repo, port, Path(scratch) / "gateway.log", core=SERVER_CORE if pinned else None),
    ):
        if pinned:
            os.sched_setaffinity(0, {LOAD_CORE})
        try:
            yield f"http://{HOST}:{port}"
        finally:
            os.sched_setaffinity(0, before)


def what_is_served(url: str, ca: Path | None) -> PointsDocument:
    """Ask a gateway what it serves; raises TargetError when it does not answer.

    The environment's PARETOGATE_API_KEY is shown.
    """
    key = os.environ.get("PARETOGATE_API_KEY")
    try:
        with GatewayClient(url, api_key=key, tls=None if ca is None else ClientTls(ca)) as client:
            return client.operating_points()
    except GatewayError as error:
        raise TargetError(f"{url}: {error}") from error


def ways(served: PointsDocument, names: Sequence[str]) -> tuple[Way, ...]:
    """Return the ways asked for by name, all of them when none is; raises TargetError for an unknown one."""
    every = (
        *(Way(point.name, point.name, point) for point in served.operating_points),
        Way(ADAPTIVE, None, None),
    )
    by_name = {way.name: way for way in every}
    for name in names:
        if name not in by_name:
            raise TargetError(f"no operating point {name!r}; there are {', '.join(by_name)}")
    return tuple(by_name[name] for name in names) if names else every
