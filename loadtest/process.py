"""Servers as processes of their own: started, waited for, pinned to a core, and stopped by their PID."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

HOST = "127.0.0.1"
# A repository that was measured on another machine is measured again at start.
_START_S = 120.0
_STOP_S = 15.0
_POLL_S = 0.1


class ServerError(RuntimeError):
    """A server did not start or ended by itself; the message shows its last words."""


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(
    command: Sequence[str], log: Path, *, core: int | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `python -m COMMAND…` until the context is left; its output goes to `log`.

    core: the only one it may use. It gets a session of its own, so that Ctrl-C reaches this process alone,
    which then stops it in order.
    """
    with log.open("wb") as stream, _termination_as_exit(), _on_core(core):
        process = subprocess.Popen(
            [sys.executable, "-m", *command], stdout=stream, stderr=stream, start_new_session=True
        )
    with _termination_as_exit():
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def gateway(
    repo: Path, port: int, log: Path, *options: str, core: int | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a gateway on 127.0.0.1 and wait until it is ready; raises ServerError when it is not.

    Its metrics are on any free port unless `options` say which.
    """
    command = ["router", "--repo", str(repo), "--host", HOST, "--port", str(port), "--grpc-port", "0"]
    command += ["--admin-port", "0"]
    with running([*command, *options], log, core=core) as process:
        wait_until_ready(process, f"http://{HOST}:{port}", log)
        yield process


def wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait until a gateway's /readyz answers 200; raises ServerError."""
    give_up_s = time.monotonic() + _START_S
    while time.monotonic() < give_up_s:
        if process.poll() is not None:
            raise ServerError(f"the gateway ended with status {process.returncode}:\n{last_words(log)}")
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=1.0):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(_POLL_S)
    raise ServerError(f"the gateway was not ready after {_START_S:g} s:\n{last_words(log)}")


def printed_port(process: subprocess.Popen[bytes], log: Path) -> int:
    """Wait until a server has printed the port that it listens on, and nothing else; raises ServerError."""
    give_up_s = time.monotonic() + _START_S
    while time.monotonic() < give_up_s:
        text = log.read_text(encoding="utf-8", errors="replace").strip()
        if text.isdecimal():
            return int(text)
        if process.poll() is not None:
            break
        time.sleep(_POLL_S / 2)
    raise ServerError(f"the server did not start:\n{last_words(log)}")


def last_words(log: Path) -> str:
    """Return the end of a server's output."""
    return tail(log.read_text(encoding="utf-8", errors="replace"))


def tail(text: str, lines: int = 20) -> str:
    """Return the last lines of a text."""
    return "\n".join(text.strip().splitlines()[-lines:])


@contextmanager
def _on_core(core: int | None) -> Iterator[None]:
    """Let what is started meanwhile inherit one core; this process gets its own cores back."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def _termination_as_exit() -> Iterator[None]:
    """Make SIGTERM unwind the stack, so that servers are stopped then as well."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
