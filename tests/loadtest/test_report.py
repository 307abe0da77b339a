"""The page and the JSON of a run."""

from __future__ import annotations

import html.parser
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.baseline import Machine
from loadtest.report import Load, to_html, to_json
from loadtest.sample import Sample
from loadtest.verdict import Conditions, judge
from model_repo.scoring import Truth
from model_repo.svg import Axes, ticks
from tests.loadtest.scripted import sample

MACHINE = Machine(cpu="a processor", cores=2, system="Linux")
LOAD = Load("http://<gateway>", "http", "frames", "poisson", 100.0, 1, None, 50.0, 1, MACHINE)


class Balance(html.parser.HTMLParser):
    """Keep the open elements of a page, and every address that it would load."""

    VOID = frozenset({"meta", "line", "circle", "rect", "path"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember an element that has to be closed."""
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Close the innermost element, which has to be this one."""
        if tag not in self.VOID:
            assert self.open.pop() == tag


def samples() -> list[Sample]:
    """Return 300 answers in time, four late ones and one that was shed."""
    return [
        *(sample(10.0 * i, 20.0 + i % 7) for i in range(300)),
        *(sample(3000.0 + i, 400.0, plan="cascade", stages=("small", "large")) for i in range(4)),
        sample(3010.0, 1.0, outcome="shed", detail="overload & <more>"),
    ]


def test_the_page_is_one_well_formed_file_that_loads_nothing() -> None:
    """Every element is closed, nothing is fetched, and text from outside is escaped."""
    verdict = judge(samples(), Conditions(budget_ms=50.0), [_blank()], ("red",))
    page = to_html(LOAD, verdict, samples())
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    assert balance.loads == []
    assert "INVALID" in page
    assert "overload &amp; &lt;more&gt;" in page
    assert "http://&lt;gateway&gt;" in page
    assert "<gateway>" not in page


@pytest.mark.parametrize("count", [1, 2, 300])
@pytest.mark.parametrize("outcome", ["answered", "failed"])
def test_any_run_makes_a_page(count: int, outcome: str) -> None:
    """One request, no answer at all: the plots cope."""
    run = [sample(10.0 * i, 5.0, outcome=outcome) for i in range(count)]  # type: ignore[arg-type]  # a parameter of the test
    verdict = judge(run, Conditions(budget_ms=50.0), [_blank()], ("red",))
    page = to_html(LOAD, verdict, run)
    assert "nan" not in page.lower()
    assert page.startswith("<!doctype html>")


def test_json_has_load_and_verdict() -> None:
    """What the page shows can be read by a program."""
    verdict = judge(samples(), Conditions(budget_ms=50.0), [_blank()], ("red",))
    document = json.loads(to_json(LOAD, verdict))
    assert document["load"]["rate_hz"] == 100.0
    assert document["verdict"]["valid"] is False
    assert document["verdict"]["outcomes"] == [["answered", 304], ["shed", 1]]
    assert document["verdict"]["latency"]["count"] == 304


@settings(deadline=None)
@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-3, 1e6))
def test_ticks_lie_inside_their_range_and_are_few(low: float, span: float) -> None:
    """Two to twelve ticks, equally far apart, none outside."""
    marks = ticks(low, low + span)
    assert 2 <= len(marks) <= 12
    assert all(low - 1e-6 * span - 1e-6 <= mark <= low + span + 1e-6 * span + 1e-6 for mark in marks)


@settings(deadline=None)
@given(value=st.floats(1.0, 1000.0), other=st.floats(1.0, 1000.0))
def test_axes_keep_order(value: float, other: float) -> None:
    """A larger value is never further left, nor lower, on linear and logarithmic axes."""
    for log_x in (False, True):
        axes = Axes((1.0, 1000.0), (1.0, 1000.0), "x", "y", log_x=log_x)
        if value < other:
            assert axes.x(value) <= axes.x(other)
            assert axes.y(value) >= axes.y(other)


def _blank() -> Truth:
    return Truth(np.empty((0, 4), np.float32), np.empty(0, np.int64), np.empty(0, np.bool_))
