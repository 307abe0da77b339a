"""The load test's page in a real browser: nothing is fetched, nothing overflows, on desks and phones."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from playwright.sync_api import Browser, Request, sync_playwright

from loadtest.baseline import this_machine
from loadtest.report import Load, to_html
from loadtest.sample import Sample
from loadtest.verdict import Conditions, judge
from model_repo.detections import Detections
from model_repo.scoring import Truth
from tests.loadtest.scripted import sample

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
PLAN = "a-plan-of-a-long-name.that-goes-on-and-on.and-on"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the page of a run with everything in it: late, shed and dropped requests, long names."""
    truth = Truth(np.array([[1, 1, 9, 9]], np.float32), np.array([0]), np.array([False]))
    seen = Detections.make([[1, 1, 9, 9]], [0.9], [0])
    samples: list[Sample] = [
        *(sample(10.0 * i, 20.0 + i % 13, plan=PLAN, stages=("a", "b"), detections=seen) for i in range(500)),
        *(sample(5_000.0 + i, 90.0, detections=seen) for i in range(40)),
        *(sample(6_000.0 + i, 1.0, outcome="shed", detail="The gateway is overloaded") for i in range(20)),
        *(sample(7_000.0 + i, 1.0, outcome="dropped", detail="A newer frame") for i in range(20)),
    ]
    verdict = judge(samples, Conditions(50.0), [truth], ("a",))
    load = Load("http://gateway", "stream", "frames", "poisson", 60.0, 1, None, 50.0, 2, this_machine())
    path = tmp_path_factory.mktemp("page") / "load.html"
    path.write_text(to_html(load, verdict, samples), encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "shown"), [(1100, "desk"), (380, "phone")])
def test_the_page_fits_and_needs_nothing_else(
    browser: Browser, page_file: Path, width: int, shown: str, scheme: Literal["light", "dark"]
) -> None:
    """No sideways scrolling, one of the two sizes of each plot, a background of the scheme, one request."""
    with browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme) as context:
        page = context.new_page()
        errors: list[str] = []
        fetched: list[Request] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda told: errors.append(told.text))
        page.on("request", lambda request: fetched.append(request))
        page.goto(page_file.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        other = "phone" if shown == "desk" else "desk"
        plots = page.locator(f".{shown} > svg")
        assert plots.count() == 5
        assert all(plots.nth(i).is_visible() for i in range(5))
        assert not any(page.locator(f".{other} > svg").nth(i).is_visible() for i in range(5))
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (int(background.removeprefix("rgb(").split(",")[0]) < 100) == (scheme == "dark")
        assert page.get_by_text("INVALID", exact=True).is_visible()
        assert errors == []
        assert len(fetched) == 1
