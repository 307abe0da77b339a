"""Budgets and deadlines."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.budget import Budgets, Deadline
from router.errors import MalformedBudget

MS = b"x-latency-budget-ms"
GRPC = b"grpc-timeout"
ENVOY = b"x-envoy-expected-rq-timeout-ms"
SECONDS = b"x-request-timeout-seconds"
names = st.sampled_from([MS, GRPC, ENVOY, SECONDS])


def budget_ms(headers: dict[bytes, list[bytes]], budgets: Budgets | None = None) -> float:
    return (budgets or Budgets()).deadline(headers, 0).left_ms(0)


def test_nothing_said_means_no_deadline() -> None:
    """A request without any of the headers has no deadline, unless a default is configured."""
    assert Budgets().deadline({}, 7) == Deadline.none()
    assert budget_ms({}, Budgets(default_ms=80.0)) == 80.0
    assert budget_ms({MS: [b"90"]}, Budgets(default_ms=80.0)) == 90.0


@pytest.mark.parametrize(
    ("header", "text", "ms"),
    [
        (MS, b"1", 1.0), (MS, b" 12.5 ", 12.5), (MS, b"0.25", 0.25), (MS, b"3600000", 3.6e6),
        (GRPC, b"20m", 20.0), (GRPC, b"1S", 1e3), (GRPC, b"5000u", 5.0), (GRPC, b"2000000n", 2.0),
        (GRPC, b"1M", 6e4), (GRPC, b"99999999H", 3.6e6),
        (ENVOY, b"15000", 15e3), (SECONDS, b"0.05", 50.0), (SECONDS, b"3600", 3.6e6),
    ],
)  # fmt: skip
def test_budgets_are_read(header: bytes, text: bytes, ms: float) -> None:
    """Every header is read in its own unit; nothing is longer than the configured maximum."""
    assert budget_ms({header: [text]}) == pytest.approx(ms)
    assert budget_ms({header: [text]}, Budgets(most_ms=30.0)) == pytest.approx(min(ms, 30.0))


@pytest.mark.parametrize(
    ("header", "text"),
    [
        *((MS, text) for text in (
            b"", b"0", b"-1", b"+1", b"nan", b"inf", b"1e3", b"1_000", b"0x10", b"3600001", b"12ms", b"1,5",
            "１".encode(), b"9" * 5000,
        )),
        *((GRPC, text) for text in (b"", b"1", b"m", b"0m", b"1.5S", b"123456789m", b"1s", b"-1S")),
        (ENVOY, b"soon"), (SECONDS, b"3601"), (SECONDS, b"1h"),
    ],
)  # fmt: skip
def test_other_budgets_are_refused_by_name(header: bytes, text: bytes) -> None:
    """Anything else is malformed, and the message names the header."""
    with pytest.raises(MalformedBudget) as caught:
        budget_ms({header: [text]})
    assert str(caught.value).lower().startswith(header.decode())


def test_two_budgets_are_refused() -> None:
    """A header that stands twice is malformed."""
    with pytest.raises(MalformedBudget, match="2 times"):
        budget_ms({MS: [b"10", b"20"]})


@given(st.dictionaries(names, st.integers(1, 3_600), min_size=1), st.none() | st.floats(1e-3, 3_600))
def test_the_smallest_wins(seconds: dict[bytes, int], call_s: float | None) -> None:
    """Of all that say something, a call's own deadline among them, the shortest counts."""
    write = {
        MS: lambda s: b"%d" % (1000 * s), GRPC: lambda s: b"%dS" % s,
        ENVOY: lambda s: b"%d" % (1000 * s), SECONDS: lambda s: b"%d" % s,
    }  # fmt: skip
    headers = {header: [write[header](value)] for header, value in seconds.items()}
    least_s = min([*seconds.values()] + ([] if call_s is None else [call_s]))
    found = Budgets().deadline(headers, 1_000, call_s=call_s).left_ms(1_000)
    assert found == pytest.approx(least_s * 1e3, abs=1e-5)


@given(names, st.binary(max_size=40))
def test_any_bytes_are_a_budget_or_malformed(header: bytes, value: bytes) -> None:
    """No header value raises anything but MalformedBudget, and every budget is finite and positive."""
    try:
        found = budget_ms({header: [value]})
    except MalformedBudget:
        return
    assert 0 <= found <= 3.6e6


def test_a_deadline_counts_down_and_goes_below_zero() -> None:
    """What is left falls with time and is negative after the deadline."""
    deadline = Deadline.after(1_000_000, 5.0)
    assert deadline.left_ms(1_000_000) == 5.0
    assert deadline.left_ms(7_000_000) == -1.0
    assert Deadline.none().left_ms(10**18) == math.inf


def test_a_call_without_deadline_has_none() -> None:
    """gRPC tells a call without a deadline as None or as years."""
    assert Budgets().deadline({}, 0, call_s=None) == Deadline.none()
    assert Budgets().deadline({}, 0, call_s=1e9) == Deadline.none()
    assert Budgets().deadline({}, 0, call_s=0.02) == Deadline.after(0, 20.0)
    assert Budgets().deadline({}, 0, call_s=-0.5) == Deadline.after(0, -500.0)
