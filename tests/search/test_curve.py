"""The interactive curve of a report."""

from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.curve import Dot, Group, curve

dots = st.lists(
    st.builds(Dot, st.floats(0.05, 500), st.floats(0, 1), st.text(max_size=8)), min_size=1, max_size=12
)


def circles(html: str) -> list[tuple[float, float]]:
    found = re.findall(r'<circle class="point" cx="([-\d.]+)" cy="([-\d.]+)"', html)
    return [(float(x), float(y)) for x, y in found]


@settings(derandomize=True, deadline=None)
@given(dots)
def test_every_point_is_drawn_where_it_belongs(drawn: list[Dot]) -> None:
    """All points lie within the axes; slower ones lie further right, better ones higher up."""
    at = circles(curve([Group("all", "#123456", 3, drawn)], y_label="mAP"))
    assert len(at) == len(drawn)
    assert all(58 <= x <= 946 and 12 <= y <= 498 for x, y in at)
    by_latency = sorted(zip(drawn, at, strict=True), key=lambda pair: pair[0].ms)
    assert all(a[1][0] <= b[1][0] for a, b in pairwise(by_latency))
    by_accuracy = sorted(zip(drawn, at, strict=True), key=lambda pair: pair[0].accuracy)
    assert all(a[1][1] >= b[1][1] for a, b in pairwise(by_accuracy))


def test_names_are_text_and_not_markup() -> None:
    """What a point or a group is called cannot become part of the page's code."""
    hostile = '"><script>alert(1)</script>'
    html = curve([Group(hostile, "#123456", 3, [Dot(1.0, 0.5, hostile)])], y_label=hostile)
    assert html.count("<script>") == 1  # our own
    assert "alert(1)&lt;/script&gt;" in html


def test_it_is_well_formed_and_needs_nothing_from_elsewhere() -> None:
    """The drawing parses as XML, has an interval and a joining line where asked, and loads nothing."""
    html = curve(
        [
            Group("a", "#123456", 3, [Dot(1.0, 0.5, "one", 0.4, 0.6)]),
            Group("b", "#654321", 3, [Dot(3.0, 0.7, "two"), Dot(2.0, 0.6, "three")], joined=True),
        ],
        y_label="mAP",
    )
    picture = ElementTree.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])
    assert len(picture.findall(".//polyline")) == 1
    assert "http" not in html


def test_nothing_is_no_curve() -> None:
    """Without a point there is nothing to draw."""
    with pytest.raises(ValueError, match="at least one"):
        curve([Group("a", "#123456", 3, [])], y_label="mAP")
