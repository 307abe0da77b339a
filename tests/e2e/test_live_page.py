"""The page `/live` in a real browser: frames go out over the WebSocket, boxes come back and are drawn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.browsing import blue_pixels, drawn, errors_on
from tests.e2e.gateway_process import gateway_process
from tests.fakes import Square, encode_image, squares_frame, tiny_repository


@pytest.fixture(scope="module")
def live(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A gateway's `/live`."""
    root = tmp_path_factory.mktemp("live")
    tiny_repository(root / "repo")
    with gateway_process(root / "repo") as gateway:
        yield f"{gateway.url}/live"


@pytest.fixture
def page(browser: Browser, live: str) -> Iterator[Page]:
    """The page, which must not report an error."""
    with browser.new_context(viewport={"width": 1100, "height": 760}) as context:
        page = context.new_page()
        errors = errors_on(page)
        page.goto(live)
        yield page
        # A refused handshake is the browser's own to report.
        assert [error for error in errors if "WebSocket connection to" not in error] == []


def test_answered_frames_are_shown_with_their_boxes(page: Page, tmp_path: Path) -> None:
    """Two images in turn, at an operating point that is chosen; then the stream is stopped."""
    for number, square in enumerate([Square(0, 0, 0), Square(2, 2, 0)]):
        (tmp_path / f"{number}.png").write_bytes(encode_image(squares_frame([square], (320, 320))))
    page.get_by_label("Operating point").select_option("accurate")
    page.get_by_label("Frames per second").fill("5")
    page.locator("#files").set_input_files(sorted(tmp_path.glob("*.png")))
    expect(page.locator("#state")).to_have_text("Streaming.")
    expect(page.locator("#rate")).not_to_have_text("–", timeout=30_000)
    expect(page.locator("#caption")).to_contain_text("accurate: tiny-1")
    expect(page.locator("#caption")).to_contain_text("1 found")
    assert blue_pixels(page.locator("#picture")) > 100
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#state")).to_have_text("Stopped.")


def test_the_camera_is_streamed(page: Page) -> None:
    """Its frames are answered, within a budget, and equal ones may share an answer."""
    page.get_by_label("Budget, ms").fill("2000")
    page.get_by_label("Reuse within").fill("255")
    page.get_by_role("button", name="Camera").click()
    expect(page.locator("#state")).to_have_text("Streaming.")
    expect(page.locator("#reused")).not_to_have_text("–", timeout=30_000)
    expect(page.locator("#caption")).to_contain_text("the answer of frame", timeout=30_000)
    assert drawn(page.locator("#picture")).std() > 10


def test_a_refused_stream_is_told(page: Page) -> None:
    """A budget that is none never opens a socket: the page says that it was refused."""
    page.evaluate("document.getElementById('budget').type = 'text'")
    page.locator("#budget").fill("soon")
    with page.expect_console_message(lambda told: "WebSocket" in told.text):
        page.get_by_role("button", name="Camera").click()
    expect(page.locator("#state")).to_contain_text("refused")
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()
