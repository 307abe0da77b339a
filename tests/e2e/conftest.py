"""Where the real components are, or a visible skip."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.triton_server import triton_environment


@pytest.fixture(scope="session")
def triton_env() -> Path:
    """Return the folder of Triton's environment; skips where it has not been made."""
    folder = triton_environment()
    if folder is None:
        pytest.skip("no Triton environment: bash tests/e2e/make_triton_env.sh makes .venv-triton")
    return folder
