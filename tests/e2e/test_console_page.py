"""The page `/` in a real browser: the point in force moves, images are tried, keys are asked for."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Literal

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.browsing import blue_pixels, errors_on
from tests.e2e.gateway_process import GatewayProcess, gateway_process
from tests.fakes import Square, encode_image, squares_frame, tiny_repository
from tests.router.keyring import Keyring

WAIT_MS = 60_000
DESKTOP, PHONE = (1440, 900), (390, 844)
FRAME = encode_image(squares_frame([Square(0, 0, 0)], (320, 320)))
# Published latencies at which a few requests a second are more than the costlier plans could take.
SLOW_MS = 200.0
# Whether the mark of what is in force stands on a plan's own.
_ON_PLAN = """(name) => {
  const middle = (node) => { const box = node.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; };
  const [mark, plan] = [document.querySelector("#live-point .core"), document.getElementById(`plan-${name}`)?.firstChild];
  if (!mark || !plan) return false;
  const [x, y] = middle(mark), [u, v] = middle(plan);
  return Math.hypot(x - u, y - v) < 1.5;
}"""  # noqa: E501 - a script
GROUNDS, TEXTS = ("paper", "panel"), ("ink", "faint", "accent", "good", "bad")
MARKS = ("edge", "answered", "shed", "failed", "rejected", "cancelled", "superseded")
_COLOURS = """(names) => {
  const style = getComputedStyle(document.documentElement);
  return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`)]));
}"""
_TRANSFER = """(frame) => {
  const bytes = Uint8Array.from(atob(frame), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], "frame.png", { type: "image/png" }));
  return transfer;
}"""
_PASTE = """(transfer) =>
  document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true }))"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that tests publish into."""
    root = tmp_path_factory.mktemp("console") / "repo"
    tiny_repository(root, mean_ms=SLOW_MS)
    return root


@pytest.fixture(scope="module")
def gateway(root: Path) -> Iterator[GatewayProcess]:
    """A gateway that shows recent frames."""
    with gateway_process(root, "--console-frames", "4", "--workers", "1", "--reload-s", "0.2") as gateway:
        yield gateway


@pytest.fixture
def page(browser: Browser, gateway: GatewayProcess) -> Iterator[Page]:
    """The page, which must report no error and ask nobody but its gateway."""
    with browser.new_context(viewport={"width": DESKTOP[0], "height": DESKTOP[1]}) as context:
        page = context.new_page()
        errors, asked = errors_on(page), set[str]()
        page.on("request", lambda request: asked.add(request.url))
        page.goto(f"{gateway.url}/")
        expect(page.locator("#state")).to_have_text("Connected", timeout=WAIT_MS)
        yield page
        # A refused request is the browser's own to report.
        assert [error for error in errors if "status of 422" not in error] == []
        inside = (f"{gateway.url}/", "data:", f"blob:{gateway.url}/")
        assert [url for url in asked if not url.startswith(inside)] == []


def detect(gateway: GatewayProcess, times: int, **headers: str) -> None:
    """Send frames to a gateway, as many at once as it may take."""

    def send(_: int) -> int:
        return httpx.post(
            f"{gateway.url}/v1/detect",
            content=FRAME,
            headers={"Content-Type": "image/png", **headers},
            timeout=60,
        ).status_code

    with ThreadPoolExecutor(min(times, 16)) as threads:
        assert set(threads.map(send, range(times))) <= {200, 503}


def hold(gateway: GatewayProcess, point: str | None) -> None:
    """Have an administrator hold an operating point, or let go."""
    httpx.put(f"{gateway.admin_url}/operating-point", json={"operating_point": point}).raise_for_status()


def wait_until_on(page: Page, plan: str) -> None:
    """Wait until the mark of what is in force stands on a plan."""
    page.wait_for_function(_ON_PLAN, arg=plan, timeout=WAIT_MS)


def test_the_live_point_moves_with_load(page: Page, gateway: GatewayProcess) -> None:
    """Load puts a cheaper plan in force, and the mark on it; when there is room again it goes back."""
    wait_until_on(page, "tiny-0-then-tiny-1")
    expect(page.locator("#point-figure")).to_have_text("balanced")
    detect(gateway, 48)
    wait_until_on(page, "tiny-0")
    expect(page.locator("#point-figure")).to_have_text("fast")
    expect(page.locator("#point-note")).to_contain_text("balanced gives way to load")
    expect(page.locator("#traffic-legend")).to_contain_text("answered")
    expect(page.locator("#frontier .halos circle").first).to_be_attached()
    for _ in range(30):
        page.wait_for_timeout(1000)
        detect(gateway, 1)
        if page.locator("#point-figure").inner_text() == "balanced":
            break
    wait_until_on(page, "tiny-0-then-tiny-1")


def test_a_held_point_is_shown_as_such(page: Page, gateway: GatewayProcess) -> None:
    """The mark stands on it as long as an administrator holds it."""
    hold(gateway, "accurate")
    try:
        wait_until_on(page, "tiny-1")
        expect(page.locator("#point-figure")).to_have_text("accurate")
        expect(page.locator("#point-note")).to_contain_text("held by an administrator")
    finally:
        hold(gateway, None)
    expect(page.locator("#point-note")).not_to_contain_text("held", timeout=WAIT_MS)


@pytest.mark.parametrize("way", ["drop", "choose", "paste"])
def test_an_image_is_tried(page: Page, way: Literal["drop", "choose", "paste"]) -> None:
    """However it comes, boxes are drawn on it, and its plan, stages and times are told."""
    page.locator("#try").get_by_label("Operating point").select_option("accurate")
    if way == "choose":
        page.locator("#try-file").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": FRAME})
    else:
        transfer = page.evaluate_handle(_TRANSFER, base64.b64encode(FRAME).decode())
        if way == "drop":
            page.dispatch_event("body", "drop", {"dataTransfer": transfer})
        else:
            page.evaluate(_PASTE, transfer)
    expect(page.locator("#try-summary")).to_contain_text("1 found by tiny-1 in", timeout=WAIT_MS)
    assert blue_pixels(page.locator("#try-picture")) > 100
    facts = page.locator("#try-facts")
    expect(facts).to_contain_text("accurate")
    expect(facts).to_contain_text("queue")
    expect(facts).to_contain_text("red")


def test_a_refused_image_says_why(page: Page) -> None:
    """A budget that no plan meets is told in the gateway's own words, beside the image without boxes."""
    page.get_by_label("Budget, ms").fill("2")
    with page.expect_response("**/v1/detect") as response:
        page.locator("#try-file").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": FRAME})
    assert response.value.status == 422
    expect(page.locator("#try-summary")).to_contain_text("No plan can meet the latency budget")
    assert blue_pixels(page.locator("#try-picture")) == 0


def test_what_is_no_image_is_not_sent(page: Page) -> None:
    """The page says so itself."""
    page.locator("#try-file").set_input_files({"name": "a.txt", "mimeType": "text/plain", "buffer": b"text"})
    expect(page.locator("#try-summary")).to_contain_text("a.txt is no image")


def test_recent_frames_show_what_answered(page: Page, gateway: GatewayProcess) -> None:
    """Each with its boxes and the stage that answered; no more than the gateway keeps."""
    for _ in range(6):
        detect(gateway, 1, **{"X-Operating-Point": "fast"})
        page.wait_for_timeout(600)
    thumb = page.locator("#frames li").first
    expect(thumb).to_contain_text("tiny-0", timeout=WAIT_MS)
    expect(thumb).to_contain_text("1 found")
    expect(thumb.locator("rect")).to_have_count(1)
    assert page.locator("#frames li").count() <= 4
    assert thumb.locator("img").evaluate("(image) => image.complete && image.naturalWidth") == 320


def test_everything_is_reached_by_keyboard(page: Page) -> None:
    """Tab goes from one control to the next, each visibly; arrow keys walk the plans and describe them."""
    reached = []
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement === document.body"):
            break
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        if reached[-1] == "frontier-points":
            page.keyboard.press("Home")
            first = page.locator("#frontier-readout").inner_text()
            page.keyboard.press("ArrowRight")
            assert page.locator("#frontier-readout").inner_text() != first
            assert first.startswith("tiny-0, operating point fast: ")
            outline = "getComputedStyle(document.getElementById('frontier-frame')).outlineStyle"
        elif reached[-1] == "try-file":
            outline = "getComputedStyle(document.activeElement.parentElement).outlineStyle"
        else:
            outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert page.evaluate(outline) != "none", reached[-1]
    places = [
        reached.index(name)
        for name in ("Live", "api", "frontier-points", "try-file", "try-point", "try-budget")
    ]
    assert places == sorted(places)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read(
    browser: Browser, gateway: GatewayProcess, scheme: Literal["light", "dark"]
) -> None:
    """In both schemes a text has a contrast of 4.5 at least on what it stands on, a mark 3."""
    with browser.new_context(color_scheme=scheme) as context:
        page = context.new_page()
        page.goto(f"{gateway.url}/")
        colours = page.evaluate(_COLOURS, [*GROUNDS, *TEXTS, *MARKS])
    assert (luminance(colours["paper"]) > 0.5) == (scheme == "light")
    for text, ground in product(TEXTS, GROUNDS):
        assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for mark in MARKS:
        assert contrast(colours[mark], colours["panel"]) >= 3.0, mark


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours, WCAG 2.2."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    """Return the relative luminance of #rgb or #rrggbb, WCAG 2.2."""
    digits = colour.strip().removeprefix("#")
    parts = [
        int(part * (2 // len(part)), 16) / 255
        for part in re.findall("." if len(digits) == 3 else "..", digits)
    ]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("size", [DESKTOP, PHONE, (320, 640)])
@pytest.mark.parametrize("path", ["/", "/live"])
def test_nothing_is_wider_than_the_window(
    browser: Browser, gateway: GatewayProcess, size: tuple[int, int], path: str
) -> None:
    """On a desktop, a phone, and at the width that zooming to 400 % leaves."""
    with browser.new_context(viewport={"width": size[0], "height": size[1]}) as context:
        page = context.new_page()
        page.goto(f"{gateway.url}{path}")
        if path == "/":
            expect(page.locator("#live-point")).to_be_attached(timeout=WAIT_MS)
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]


def test_who_wants_no_motion_sees_none(browser: Browser, gateway: GatewayProcess) -> None:
    """The mark then jumps instead of moving."""
    with browser.new_context(reduced_motion="reduce") as context:
        page = context.new_page()
        page.goto(f"{gateway.url}/")
        mark = page.locator("#live-point")
        expect(mark).to_be_attached(timeout=WAIT_MS)
        assert mark.evaluate("(mark) => getComputedStyle(mark).transitionDuration") == "0s"


def test_a_republished_set_is_shown(page: Page, root: Path) -> None:
    """While the page is open, the models of the new set come up, and the mark stands on one of them."""
    expect(page.locator("#plan-tiny-2")).to_have_count(0)
    tiny_repository(root, variants=3, mean_ms=SLOW_MS)
    expect(page.locator("#plan-tiny-2")).to_be_attached(timeout=WAIT_MS)
    wait_until_on(page, "tiny-0-then-tiny-1")


def test_a_gateway_that_comes_back_is_found_again(browser: Browser, tmp_path: Path) -> None:
    """The page says that it is gone, looks again by itself, and counts anew."""
    tiny_repository(tmp_path / "repo")
    with browser.new_context() as context:
        page = context.new_page()
        with gateway_process(tmp_path / "repo") as first:
            port = str(first.port)
            page.goto(f"{first.url}/")
            expect(page.locator("#state")).to_have_text("Connected", timeout=WAIT_MS)
            detect(first, 3)
        expect(page.locator("#state")).to_contain_text("does not answer", timeout=WAIT_MS)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        with gateway_process(tmp_path / "repo", "--port", port):
            expect(page.locator("#state")).to_have_text("Connected", timeout=WAIT_MS)
            wait_until_on(page, "tiny-0-then-tiny-1")
        assert errors == []


def test_with_keys_the_page_asks_for_one(browser: Browser, tmp_path: Path) -> None:
    """One that may watch shows everything; any other may try images; forgotten, it is asked for again."""
    tiny_repository(tmp_path / "repo")
    keyring = Keyring(tmp_path / "keys.json")
    plain, watcher = keyring.add("belt-7"), keyring.add("wall", watch=True)
    with (
        gateway_process(tmp_path / "repo", "--keys", str(keyring.path)) as gateway,
        browser.new_context() as context,
    ):
        page = context.new_page()
        page.goto(f"{gateway.url}/")
        key = page.get_by_label("This gateway asks for a key")
        expect(key).to_be_visible(timeout=WAIT_MS)
        expect(page.locator("#frontier")).to_be_hidden()
        key.fill(plain)
        key.press("Enter")
        expect(page.locator("#key-why")).to_contain_text("not for watching", timeout=WAIT_MS)
        expect(page.locator("#try-point option")).to_have_count(4)
        page.locator("#try-file").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": FRAME})
        expect(page.locator("#try-summary")).to_contain_text("1 found by", timeout=WAIT_MS)
        key.fill(watcher)
        key.press("Enter")
        expect(page.locator("#state")).to_have_text("Connected", timeout=WAIT_MS)
        expect(page.locator("#frontier")).to_be_visible()
        expect(key).to_be_hidden()
        page.get_by_role("button", name="Forget it").click()
        expect(key).to_be_visible(timeout=WAIT_MS)
        expect(page.locator("#frontier")).to_be_hidden()
        assert watcher not in page.content()
