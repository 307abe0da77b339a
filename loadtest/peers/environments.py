"""Virtual environments of the peers: made where they are missing, reused where they fit.

An environment is complete when its stamp holds the requirements that it was made for. One that was left half
made is made again from nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import loadtest
from loadtest.peers.catalogue import Peer

STAMP = "complete.txt"
_INSTALL_S = 1_200.0
_LAST_LINES = 3


class PeerUnavailable(Exception):
    """A peer cannot be compared here; the message says why, in a line that fits a table."""


def packages_root() -> Path:
    """Return the folder that holds `model_repo` and `loadtest`."""
    return Path(loadtest.__file__).resolve().parents[1]


def wanted(peer: Peer) -> str:
    """Return what the stamp of a peer's complete environment says."""
    return "\n".join((*peer.requirements(), *peer.alone, str(packages_root()), sys.version))


def environment_of(peer: Peer, cache: Path, say: Callable[[str], None]) -> Path:
    """Return the folder of a peer's environment, made first where it is missing; `say` is told of progress.

    Raises PeerUnavailable when it cannot be made.
    """
    folder = (cache / peer.environment).resolve()
    content = wanted(peer)
    stamp = folder / STAMP
    if stamp.exists() and stamp.read_text() == content:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    say(f"{peer.title}: installing {', '.join((*peer.packages, *peer.alone))} into {folder}")
    log = folder.parent / f"{peer.environment}.log"
    python = str(folder / "bin" / "python")
    install = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    with log.open("wb") as stream:
        _run((sys.executable, "-m", "venv", str(folder)), stream.fileno(), log)
        _run((*install, *peer.requirements()), stream.fileno(), log)
        if peer.alone:
            _run((*install, "--no-deps", *peer.alone), stream.fileno(), log)
        _run((python, "-c", _CHECK), stream.fileno(), log)
    (folder / "libpython").write_text(_library_folder(python))
    # The same sources as here, and after the environment's own packages.
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (site / "paretogate.pth").write_text(f"{packages_root()}\n")
    stamp.write_text(content)
    return folder


_CHECK = "import cv2, numpy, onnx, openvino, pydantic, simplejpeg"


def _run(command: Sequence[str], output: int, log: Path) -> None:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")
    }
    try:
        subprocess.run(command, check=True, stdout=output, stderr=output, timeout=_INSTALL_S, env=environment)
    except (OSError, subprocess.SubprocessError) as error:
        raise PeerUnavailable(f"cannot be installed: {_reason(log, error)}") from error


def _reason(log: Path, error: Exception) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines
    return "; ".join(errors[-_LAST_LINES:]) or str(error)


def _library_folder(python: str) -> str:
    script = "import sysconfig; print(sysconfig.get_config_var('LIBDIR') or '')"
    return subprocess.run((python, "-c", script), check=True, capture_output=True, text=True).stdout
