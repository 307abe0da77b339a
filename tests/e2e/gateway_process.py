"""A gateway as a process of its own, started and stopped by tests."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_SERVING = re.compile(
    r"serving on (https?://[^,\s]+)(?:, gRPC on ([^,\s]+))?(?:, UDP on ([^,\s]+))?,"
    r" metrics and administration on (\S+)"
)
_START_S = 120.0
_STOP_S = 60.0


@dataclass
class GatewayProcess:
    """A running `python -m router`; `log` is what it has written so far."""

    process: subprocess.Popen[str]
    url: str = ""
    grpc_address: str = ""
    udp_address: str = ""
    admin_url: str = ""
    log: list[str] = field(default_factory=list)

    @property
    def port(self) -> int:
        """Return the HTTP port."""
        return int(self.url.rsplit(":", 1)[1])

    @property
    def alive(self) -> bool:
        """Return whether the process runs."""
        return self.process.poll() is None

    def terminate(self) -> int:
        """Send SIGTERM and return the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(_STOP_S)


@contextmanager
def gateway_process(repository: Path, *arguments: str) -> Iterator[GatewayProcess]:
    """Run a gateway on free ports; on leaving, stop it if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "router", "--repo", str(repository), "--port", "0", "--grpc-port", "0",
         "--admin-port", "0", "--measure", "never", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    gateway = GatewayProcess(process)
    serving = threading.Event()

    def read() -> None:
        assert process.stderr is not None, "it was asked for"
        for line in process.stderr:
            gateway.log.append(line)
            found = _SERVING.search(line)
            if found:
                gateway.url, gateway.grpc_address = found[1], found[2] or ""
                gateway.udp_address, gateway.admin_url = found[3] or "", found[4]
                serving.set()
        serving.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        assert serving.wait(_START_S), "the gateway did not start"
        assert gateway.url, "".join(gateway.log)
        yield gateway
    finally:
        if gateway.alive:
            gateway.terminate()
        reader.join(_STOP_S)
        assert process.stderr is not None, "it was asked for"
        process.stderr.close()
