"""Running promtool, Prometheus' own checker, where it is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"


def promtool(*arguments: str, folder: Path) -> str:
    """Run promtool in a folder and return what it printed; an error fails the test, no promtool skips it."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (tests/install_system.sh installs it on Debian)")
    done = subprocess.run(
        [program, *arguments], cwd=folder, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
