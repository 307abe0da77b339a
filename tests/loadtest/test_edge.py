"""The search for the highest rate that holds, and its pages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.baseline import this_machine
from loadtest.edge import Edge, Probe, Search, find_edge
from loadtest.edge_report import (
    Capacity,
    Place,
    Served,
    capacity_html,
    capacity_json,
    capacity_rows,
    frontier_html,
    frontier_json,
    frontier_rows,
    frontier_svg,
)
from loadtest.junit import to_junit
from loadtest.points import ADAPTIVE, Way, ways
from loadtest.target import TargetError
from loadtest.verdict import Conditions, Verdict, judge
from model_repo.detections import Detections
from model_repo.scoring import Truth
from router.documents import PointDocument, PointsDocument
from tests.loadtest.scripted import sample
from tests.loadtest.test_report import Balance

ASKED = Conditions(budget_ms=50.0)
TRUTH = Truth(np.array([[10, 10, 30, 30]], np.float32), np.array([0]), np.array([False]))
SEEN = Detections.make([[10, 10, 30, 30]], [0.9], [0])
PLACE = Place(
    "http://<gateway>", "frames", "poisson", 50.0, 1, 1, this_machine(), "openvino 2026", "0123456789abcdef"
)


def verdict(latency_ms: float, issue_delay_ms: float = 0.0) -> Verdict:
    """Return a run of equally fast answers."""
    samples = [
        sample(10.0 * i, latency_ms + issue_delay_ms, issue_delay_ms=issue_delay_ms, detections=SEEN)
        for i in range(500)
    ]
    return judge(samples, ASKED, [TRUTH], ("a",))


HOLDS, MISSES, BEHIND = verdict(20.0), verdict(80.0), verdict(80.0, 30.0)


def edge_of(judged: Callable[[float, int], Verdict], search: Search) -> Edge:
    """Look for the edge of a server that is judged so at a rate."""

    async def load_at(rate_hz: float, number: int) -> Verdict:
        return judged(rate_hz, number)

    return asyncio.run(find_edge(load_at, search, lambda _: None))


@settings(deadline=None)
@given(capacity_hz=st.floats(1.0, 900.0), start_hz=st.floats(1.0, 900.0), precision=st.floats(0.02, 0.5))
def test_the_edge_lies_between_what_held_and_what_did_not(
    capacity_hz: float, start_hz: float, precision: float
) -> None:
    """Wherever the search starts, the capacity ends up between the two rates, as close as asked for."""
    search = Search(start_hz, 0.5, 1_000.0, precision)
    edge = edge_of(lambda rate, _: HOLDS if rate <= capacity_hz else MISSES, search)
    assert edge.ended_by == "precision"
    assert edge.missed_hz is not None
    assert edge.held_hz <= capacity_hz < edge.missed_hz <= edge.held_hz * (1 + precision)
    assert edge.at_edge is not None
    assert edge.at_edge.rate_hz == edge.held_hz


def test_a_search_ends_at_its_bounds() -> None:
    """What holds everything is known up to the highest rate, what holds nothing down to the least."""
    search = Search(10.0, 1.0, 100.0)
    everything, nothing = edge_of(lambda *_: HOLDS, search), edge_of(lambda *_: MISSES, search)
    assert (everything.held_hz, everything.missed_hz, everything.ended_by) == (100.0, None, "most")
    assert (nothing.held_hz, nothing.missed_hz, nothing.ended_by) == (0.0, 1.0, "least")
    assert nothing.at_edge is None


def test_a_generator_that_falls_behind_ends_the_search() -> None:
    """Such a load is not the server's: the highest rate that held stays, as a lower bound."""
    edge = edge_of(lambda rate, _: HOLDS if rate < 50 else BEHIND, Search(10.0, 1.0, 1_000.0))
    assert (edge.held_hz, edge.missed_hz, edge.ended_by) == (40.0, None, "generator")


def test_a_miss_has_one_second_chance() -> None:
    """A hiccup does not end the search, two in a row at one rate do."""
    once = edge_of(lambda rate, number: MISSES if number == 0 else HOLDS, Search(10.0, 1.0, 40.0))
    assert once.held_hz == 40.0
    assert [probe.rate_hz for probe in once.probes[:2]] == [10.0, 10.0]


def test_a_search_without_sense_is_refused() -> None:
    """Bounds in the wrong order and no precision are a ValueError."""
    with pytest.raises(ValueError, match="rates must be positive"):
        Search(start_hz=0.1, least_hz=0.5)
    with pytest.raises(ValueError, match="precision"):
        Search(precision=0.0)


def point(name: str, accuracy: float, p99_ms: float) -> PointDocument:
    """Return what a gateway says of a point."""
    return PointDocument(
        name=name, plan=name, published_plan=name, stages=[name], split="test", map=accuracy, map50=0.9,
        escalated=[], mean_ms=p99_ms / 2, p99_ms=p99_ms, expected_ms=p99_ms / 2, certificate=None,
    )  # fmt: skip


POINTS = (point("fast", 0.7, 10.0), point("<accurate>", 0.9, 60.0))
WAYS = (*(Way(p.name, p.name, p) for p in POINTS), Way(ADAPTIVE, None, None))


def test_every_way_to_ask_is_offered_and_unknown_ones_are_refused() -> None:
    """All points and what adapts, or those named, in the order named."""
    served = PointsDocument(
        dataset="d", classes=["a"], runtime="r", runtime_version="1", manifest="m", profiles="published",
        in_force="fast", operating_points=list(POINTS),
    )  # fmt: skip
    assert [way.name for way in ways(served, [])] == ["fast", "<accurate>", ADAPTIVE]
    assert [way.operating_point for way in ways(served, [ADAPTIVE, "fast"])] == [None, "fast"]
    with pytest.raises(TargetError, match="there are fast, <accurate>, adaptive"):
        ways(served, ["slow"])


def check_page(page: str) -> None:
    """Assert that a page is well-formed, loads nothing and escapes what comes from outside."""
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    assert balance.loads == []
    assert "&lt;accurate&gt;" in page
    assert "<accurate>" not in page
    assert "nan" not in page.lower()


def test_capacity_is_shown_as_table_page_and_json() -> None:
    """Rates, the point that holds nothing, the curves."""
    edges = (
        Edge(40.0, 44.0, "precision", (Probe(40.0, HOLDS), Probe(44.0, MISSES))),
        Edge(0.0, 1.0, "least", (Probe(1.0, MISSES),)),
        Edge(20.0, None, "generator", (Probe(20.0, HOLDS), Probe(40.0, BEHIND))),
    )
    found = [
        Capacity(way, edge, (Probe(20.0, HOLDS), Probe(50.0, MISSES)))
        for way, edge in zip(WAYS, edges, strict=True)
    ]
    _, rows = capacity_rows(found)
    assert rows[0][:3] == ("fast", "40.0", "44.0")
    assert rows[1][:3] == ("<accurate>", "–", "1.0")
    check_page(capacity_html(PLACE, ASKED, found))
    said = json.loads(capacity_json(PLACE, ASKED, found))
    assert [one["held_hz"] for one in said["capacity"]] == [40.0, 0.0, 20.0]
    assert said["capacity"][0]["curve"][0]["effective_map"] == pytest.approx(1.0)
    check_page(capacity_html(PLACE, ASKED, [Capacity(way, edges[1], ()) for way in WAYS]))


def test_the_frontier_is_shown_as_table_page_picture_and_json() -> None:
    """Served beside published, and a picture that stands by itself."""
    found = [Served(way, HOLDS) for way in WAYS]
    _, rows = frontier_rows(found)
    assert rows[0][0] == "fast"
    assert "0.700" in rows[0]
    check_page(frontier_html(PLACE, ASKED, found))
    ElementTree.fromstring(frontier_svg(ASKED, found, standalone=True))
    said = json.loads(frontier_json(PLACE, ASKED, found))
    assert said["frontier"][0]["published"]["map"] == 0.7
    assert said["frontier"][2]["published"] is None


def test_junit_has_a_case_for_each_check() -> None:
    """What was kept and what was missed, with the reason; control characters do not break the document."""
    root = ElementTree.fromstring(to_junit("load\x00 <1>", MISSES, 1.5).encode())
    (suite,) = root
    assert suite.attrib["name"] == "load <1>"
    assert suite.attrib["failures"] == "1"
    assert [case.attrib["name"] for case in suite] == ["generator", "samples", "latency"]
    failure = suite.find("testcase[@name='latency']/failure")
    assert failure is not None
    assert "answered within 50 ms" in failure.attrib["message"]
    assert ElementTree.fromstring(to_junit("load", HOLDS, 1.5).encode()).attrib["failures"] == "0"
