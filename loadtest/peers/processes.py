"""A server that is many processes: found, weighed and ended as a whole.

Which processes are of it: those of the session that it was started in, and whatever descends from one of them
(servers put their daemons into sessions of their own).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from model_repo.value import Value

_BYTES_PER_MB = 1e6
_KB = 1024
_POLL_S = 0.1
_KILLED_S = 30.0


class Memory(Value):
    """Resident memory of all processes, in megabytes (10^6 bytes).

    rss_mb counts pages that several processes share once for each, pss_mb divides them among these.
    """

    processes: int
    rss_mb: float
    pss_mb: float


def tree(root: int) -> frozenset[int]:
    """Return the processes of a server: `root`, which leads its session, and all that come of it."""
    parents: dict[int, int] = {}
    found: set[int] = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        # One that ends meanwhile is none of it.
        with suppress(OSError):
            # The name, in parentheses, may hold anything: fields count from its end.
            state, parent, _, session, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
            if state in "ZX":
                continue
            parents[int(entry.name)] = int(parent)
            if int(session) == root:
                found.add(int(entry.name))
    grown = True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        found |= more
        grown = bool(more)
    return frozenset(found)


def memory_of(pids: frozenset[int]) -> Memory:
    """Return what processes hold; one that has ended holds nothing."""
    rss = pss = 0
    alive = 0
    for pid in pids:
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            sizes = {line.split(":")[0]: int(line.split()[1]) * _KB for line in lines[1:]}
            rss, pss, alive = rss + sizes["Rss"], pss + sizes["Pss"], alive + 1
    return Memory(processes=alive, rss_mb=rss / _BYTES_PER_MB, pss_mb=pss / _BYTES_PER_MB)


def end(root: int, is_over: bool, *, grace_s: float = 15.0) -> None:
    """End a server: its first process is asked, and what is left of all after a while is killed, by its id.

    is_over: the first process has ended already. grace_s: how long the others may take.
    """
    members = set(tree(root))
    if not is_over:
        with suppress(ProcessLookupError):
            os.kill(root, signal.SIGTERM)
    give_up_s = time.monotonic() + grace_s
    while _alive(members) and time.monotonic() < give_up_s:
        members |= tree(root)
        time.sleep(_POLL_S)
    give_up_s = time.monotonic() + _KILLED_S
    while (left := _alive(members | tree(root))) and time.monotonic() < give_up_s:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # A process that was killed goes when the kernel comes to it.
        time.sleep(_POLL_S)


@contextmanager
def termination_interrupts() -> Iterator[None]:
    """Make SIGTERM do what Ctrl-C does, so that the servers that run are ended on the way out."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _alive(pids: set[int] | frozenset[int]) -> set[int]:
    alive = set()
    for pid in pids:
        with suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                alive.add(pid)
    return alive
