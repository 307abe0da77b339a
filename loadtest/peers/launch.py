"""Servers under comparison, each pinned with all its processes to one core, and how to reach them."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from loadtest.bench_overhead import LOAD_CORE, SERVER_CORE
from loadtest.closed import Conversation, ConversationError
from loadtest.peers.catalogue import Peer, Place
from loadtest.peers.environments import PeerUnavailable, packages_root
from loadtest.peers.processes import end, tree
from loadtest.peers.servers.serving import GRPC_PORT, HTTP_PORT, Serving
from loadtest.peers.wire import HttpLoop, HttpTarget, OipLoop, OipTarget, request_head
from loadtest.process import ServerError, free_port, gateway, last_words
from loadtest.raw import RawTarget
from loadtest.target import Target

_START_S = 180.0
_POLL_S = 0.25
_NAMES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Connect(Protocol):
    """Open one more conversation with a server, at an operating point where it has such."""

    def __call__(self, point: str | None = None) -> Conversation:
        """Return it; raises OSError or ConversationError."""


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers: how to open a conversation with it and a target, and its processes."""

    connect: Connect
    target: Callable[[], Target]
    root: int

    def processes(self) -> frozenset[int]:
        """Return the ids of all its processes."""
        return tree(self.root)


@contextmanager
def pinned_load() -> Iterator[None]:
    """Keep this process on the load's core; raises ServerError where there are no two."""
    before = os.sched_getaffinity(0)
    if not {SERVER_CORE, LOAD_CORE} <= before:
        raise ServerError("cores 0 and 1 are needed, one for the servers and one for the load")
    os.sched_setaffinity(0, {LOAD_CORE})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def running_gateway(repo: Path, cache: Path) -> Iterator[Running]:
    """Run the gateway; raises ServerError when it is not ready in time."""
    port = free_port()
    with TemporaryDirectory(prefix="paretogate-peers-") as scratch:
        log = Path(scratch) / "gateway.log"
        options = ("--cache", str(cache.resolve()))
        with gateway(repo, port, log, *options, core=SERVER_CORE) as process:

            def connect(point: str | None = None) -> Conversation:
                wish = () if point is None else (("X-Operating-Point", point),)
                return HttpLoop(port, request_head("/v1/detect", "application/octet-stream", wish))

            yield Running(connect, lambda: RawTarget(port), process.pid)


@contextmanager
def running_peer(
    peer: Peer, environment: Path, serving: Serving, frame: bytes, classes: tuple[str, ...]
) -> Iterator[Running]:
    """Run a peer until the context is left; it is ready when it has answered `frame`.

    Raises PeerUnavailable with its last words when it is not in time.
    """
    # A process that is being killed may still write there.
    with TemporaryDirectory(prefix="paretogate-peers-", ignore_cleanup_errors=True) as scratch:
        place = Place(environment, free_port(), free_port(), Path(scratch), packages_root())
        log = Path(scratch) / "server.log"
        with log.open("wb") as stream:
            try:
                process = _start(
                    peer.command(place), _variables(peer, place, serving), scratch, stream.fileno()
                )
            except OSError as error:
                raise PeerUnavailable(f"cannot be started: {error}") from error
            try:
                ready = _reached(peer, place, classes, process.pid)
                _wait(ready, process, frame, log)
                yield ready
            finally:
                end(process.pid, process.poll() is not None)
                process.wait()


def _start(
    command: Sequence[str], variables: Mapping[str, str], folder: str, output: int
) -> subprocess.Popen[bytes]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {SERVER_CORE})
    try:
        return subprocess.Popen(
            command, env=variables, cwd=folder, stdout=output, stderr=output, start_new_session=True
        )
    finally:
        os.sched_setaffinity(0, before)


def _variables(peer: Peer, place: Place, serving: Serving) -> dict[str, str]:
    """Return a peer's environment: nothing of ours but what is named here."""
    return {
        "PATH": f"{place.environment / 'bin'}:{os.environ.get('PATH', '/usr/bin:/bin')}",
        "HOME": str(place.scratch),
        "LANG": "C.UTF-8",
        **dict.fromkeys(_NAMES, "1"),
        HTTP_PORT: str(place.http_port),
        GRPC_PORT: str(place.grpc_port),
        **serving.to_environment(),
        **peer.variables(place),
    }


def _reached(peer: Peer, place: Place, classes: tuple[str, ...], root: int) -> Running:
    if peer.wire == "oip":
        return Running(
            lambda point=None: OipLoop(place.grpc_port), lambda: OipTarget(place.grpc_port, classes), root
        )
    head = request_head("/detect", peer.content_type)
    return Running(
        lambda point=None: HttpLoop(place.http_port, head),
        lambda: HttpTarget(place.http_port, head, classes),
        root,
    )


def _wait(server: Running, process: subprocess.Popen[bytes], frame: bytes, log: Path) -> None:
    give_up_s = time.monotonic() + _START_S
    problem: Exception | None = None
    while time.monotonic() < give_up_s and process.poll() is None:
        try:
            conversation = server.connect()
        except OSError as error:
            problem = error
        else:
            try:
                conversation.ask(frame)
                return
            except (ConversationError, OSError) as error:
                problem = error
            finally:
                conversation.close()
        time.sleep(_POLL_S)
    ended = f"it ended with status {process.returncode}" if process.poll() is not None else str(problem)
    raise PeerUnavailable(f"does not answer: {ended}; {' / '.join(last_words(log).splitlines()[-3:])}")
