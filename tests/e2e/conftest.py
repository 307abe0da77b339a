"""Where the real components are, or a visible skip."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.e2e.triton_server import triton_environment


@pytest.fixture(scope="session")
def triton_env() -> Path:
    """Return the folder of Triton's environment; skips where it has not been made."""
    folder = triton_environment()
    if folder is None:
        pytest.skip("no Triton environment: bash tests/e2e/make_triton_env.sh makes .venv-triton")
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless browser with a camera that shows a test pattern; skips where none is installed."""
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next((path for path in map(shutil.which, names) if path is not None), None)
    if chromium is None:
        pytest.skip("no Chromium is installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--no-sandbox"],
        )
        yield browser
        browser.close()
