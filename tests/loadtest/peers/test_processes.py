"""Servers of several processes: found, weighed and ended together."""

from __future__ import annotations

import subprocess
import sys

from loadtest.peers.processes import end, memory_of, tree

# A child in a session of its own, as daemons are, that ignores being asked to end.
CHILD = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    " print(1, flush=True); time.sleep(600)"
)
PARENT = (
    "import subprocess, sys, time;"
    f"child = subprocess.Popen([sys.executable, '-c', {CHILD!r}], stdout=subprocess.PIPE,"
    " start_new_session=True); child.stdout.readline(); print(child.pid, flush=True); time.sleep(600)"
)


def test_a_tree_is_ended_as_a_whole() -> None:
    """The daemons of a server are found, counted in its memory, and gone after it was ended."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, start_new_session=True, text=True
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    members = tree(process.pid)
    assert members == {process.pid, child}
    memory = memory_of(members)
    assert memory.processes == 2
    assert 0 < memory.pss_mb <= memory.rss_mb
    end(process.pid, False, grace_s=0.5)
    process.wait(60)
    process.stdout.close()
    assert memory_of(members).processes == 0
    assert tree(process.pid) == frozenset()


# In a process of its own: pytest's fault handler gives signals a stack too small for AMX's registers.
TERMINATED = """
import signal
from loadtest.peers.processes import termination_interrupts
before = signal.getsignal(signal.SIGTERM)
try:
    with termination_interrupts():
        signal.raise_signal(signal.SIGTERM)
        signal.pause()
except KeyboardInterrupt:
    assert signal.getsignal(signal.SIGTERM) == before
    print("unwound")
"""


def test_being_terminated_is_being_interrupted() -> None:
    """SIGTERM unwinds the stack as Ctrl-C does, and does what it did before once the servers are ended."""
    done = subprocess.run([sys.executable, "-c", TERMINATED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "unwound"), done.stderr
