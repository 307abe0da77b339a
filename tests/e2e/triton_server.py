"""A real Triton server for tests: found, started on free ports of 127.0.0.1, stopped by its process id.

The environment is the one that make_triton_env.sh makes; PARETOGATE_TRITON_ENV names it when it is not
`.venv-triton` in the repository's root.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tritonclient.grpc import InferenceServerClient, InferenceServerException

_READY_S = 90.0
_STOP_S = 20.0


@dataclass(frozen=True, slots=True)
class TritonServer:
    """A server that runs: its gRPC endpoint, HTTP and metrics ports, process id and log."""

    url: str
    http_port: int
    metrics_port: int
    pid: int
    log: Path

    def kill(self) -> None:
        """End the server and its model processes at once, as a crash would."""
        os.killpg(self.pid, signal.SIGKILL)


def triton_environment() -> Path | None:
    """Return the folder of Triton's environment, or None when it has not been made."""
    named = os.environ.get("PARETOGATE_TRITON_ENV")
    folder = Path(named) if named else Path(__file__).parents[2] / ".venv-triton"
    return folder.resolve() if (folder / ".complete").exists() else None


@contextmanager
def run_triton(
    environment: Path,
    repository: Path,
    log: Path,
    *,
    control: Literal["none", "explicit"] = "none",
    models: tuple[str, ...] = (),
    grpc_port: int | None = None,
) -> Iterator[TritonServer]:
    """Serve a rendered repository until the block ends.

    grpc_port: a free one without. control: explicit starts with `models` alone and loads others when it is
    asked to.
    Raises RuntimeError with the end of the log when the server does not become ready.
    """
    site = environment / "lib" / "python3.11" / "site-packages"
    server = site / "pytriton" / "tritonserver"
    any_port, http_port, metrics_port = _free_ports(3)
    grpc_port = grpc_port or any_port
    prefix = f"paretogate-test-{os.getpid()}-{grpc_port}-"
    command = [
        str(server / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={server / 'backends'}",
        f"--model-control-mode={control}",
        # Rendered configurations are complete; completing them would start every model twice.
        "--disable-auto-complete-config",
        *(f"--load-model={name}" for name in models),
        "--grpc-address=127.0.0.1",
        f"--grpc-port={grpc_port}",
        "--http-address=127.0.0.1",
        f"--http-port={http_port}",
        "--metrics-address=127.0.0.1",
        f"--metrics-port={metrics_port}",
        # Each test server has its own; the default prefix would make two of them collide.
        f"--backend-config=python,shm-region-prefix-name={prefix}",
        "--exit-timeout-secs=5",
    ]
    variables = {
        "PATH": f"{environment / 'bin'}:{os.environ.get('PATH', '/usr/bin:/bin')}",
        "PYTHONPATH": str(site),
        "LD_LIBRARY_PATH": _libpython_folder(environment),
        "HOME": str(log.parent),
        "OMP_NUM_THREADS": "1",
    }
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, env=variables, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            url = f"127.0.0.1:{grpc_port}"
            _wait_ready(process, url, log)
            yield TritonServer(url, http_port, metrics_port, process.pid, log)
        finally:
            _stop(process)
            # A server that was killed leaves its shared memory behind.
            for region in Path("/dev/shm").glob(f"{prefix}*"):
                region.unlink(missing_ok=True)


def _libpython_folder(environment: Path) -> str:
    """Return the folder of libpython3.11.so of the interpreter that the environment was made from."""
    script = "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"
    found = subprocess.run(
        [str(environment / "bin" / "python"), "-c", script], check=True, capture_output=True, text=True
    )
    return found.stdout.strip() or str(sysconfig.get_config_var("LIBDIR"))


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _wait_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline_s = time.monotonic() + _READY_S
    client = InferenceServerClient(url)
    try:
        while time.monotonic() < deadline_s and process.poll() is None:
            try:
                if client.is_server_ready(client_timeout=2.0):
                    return
            except InferenceServerException:
                # Not listening yet.
                pass
            time.sleep(0.1)
    finally:
        client.close()
    end = log.read_text(errors="replace")[-4000:]
    raise RuntimeError(f"Triton did not become ready (exit status {process.poll()}); its log ends:\n{end}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_S)
    # Model processes of the Python backend are of the server's group and may outlive it.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(_STOP_S)
