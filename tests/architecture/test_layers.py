"""The layers: who may import whom, and what importing the gateway must not bring along."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "onnx", "sklearn", "matplotlib", "pymoo", "search", "loadtest")


def test_contracts_between_the_folders_hold() -> None:
    """Every import-linter contract in pyproject.toml is kept."""
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", ["router.__main__", "model_repo.plans", "loadtest.__main__"])
def test_serving_and_load_testing_need_no_torch(module: str) -> None:
    """Importing the gateway, the contract or the load test leaves torch out of sys.modules."""
    code = f"import sys, {module}; print(' '.join(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split()) - (
        {"loadtest", "matplotlib"} if module.startswith("loadtest") else set()
    )
    assert not loaded


@pytest.mark.parametrize("arguments", [["render", "--help"], ["triton", "--help"], ["--help"]])
def test_commands_that_train_nothing_need_no_torch(arguments: list[str]) -> None:
    """Help, rendering and re-rendering a repository work where torch is not installed."""
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['search', *sys.argv[1:]];"
        "from search.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
