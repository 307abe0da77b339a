"""Budgets and deadlines."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.budget import Deadline, deadline_of_call, parse_budget_ms
from router.errors import MalformedBudget


def test_no_header_means_no_budget() -> None:
    """A request without the header has no budget."""
    assert parse_budget_ms([]) is None


@pytest.mark.parametrize(
    ("text", "ms"), [(b"1", 1.0), (b" 12.5 ", 12.5), (b"0.25", 0.25), (b"3600000", 3.6e6)]
)
def test_decimal_budgets_are_read(text: bytes, ms: float) -> None:
    """A plain decimal is a budget in milliseconds."""
    assert parse_budget_ms([text]) == ms


@pytest.mark.parametrize(
    "text",
    [b"", b"0", b"-1", b"+1", b"nan", b"inf", b"1e3", b"1_000", b"0x10", b"3600001", b"12ms", b"1,5",
     "１".encode(), b"9" * 5000],
)  # fmt: skip
def test_other_budgets_are_refused_by_name(text: bytes) -> None:
    """Anything else is malformed, and the message names the header."""
    with pytest.raises(MalformedBudget, match="X-Latency-Budget-Ms"):
        parse_budget_ms([text])


def test_two_budgets_are_refused() -> None:
    """A header that stands twice is malformed."""
    with pytest.raises(MalformedBudget, match="2 times"):
        parse_budget_ms([b"10", b"20"])


@given(st.binary(max_size=40))
def test_any_bytes_are_a_budget_or_malformed(value: bytes) -> None:
    """No header value raises anything but MalformedBudget, and every budget is finite and positive."""
    try:
        budget_ms = parse_budget_ms([value])
    except MalformedBudget:
        return
    assert budget_ms is not None
    assert 0 < budget_ms <= 3.6e6


def test_a_deadline_counts_down_and_goes_below_zero() -> None:
    """What is left falls with time and is negative after the deadline."""
    deadline = Deadline.after(1_000_000, 5.0)
    assert deadline.left_ms(1_000_000) == 5.0
    assert deadline.left_ms(7_000_000) == -1.0
    assert Deadline.none().left_ms(10**18) == math.inf


def test_a_call_without_deadline_has_none() -> None:
    """gRPC tells a call without a deadline as None or as years."""
    assert deadline_of_call(0, None) == Deadline.none()
    assert deadline_of_call(0, 1e9) == Deadline.none()
    assert deadline_of_call(0, 0.02) == Deadline.after(0, 20.0)
