"""From a schedule's description and a trace to a run's requests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.timetable import Schedule, ScheduleError, Timetable
from loadtest.trace import TraceError, TraceRow, read_trace, trace_ns, write_trace

FRAMES = ("a.jpg", "b.jpg", "c.jpg")
SPECS = (
    "constant",
    "poisson",
    "ramp:from=0.5x,to=3x",
    "step:1x/4x/10",
    "burst:high=5x,low_s=1,high_s=0.5",
    "diurnal:low=0,high=2x,days=3",
)


@pytest.mark.parametrize("text", SPECS)
def test_every_schedule_repeats_with_its_seed(text: str) -> None:
    """The same description, rate, duration and seed give the same requests; another seed others."""
    schedule = Schedule.parse(text)
    timetable = schedule.draw(40.0, 4.0, 7, FRAMES)
    again = Schedule.parse(str(schedule)).draw(40.0, 4.0, 7, FRAMES)
    assert len(timetable) > 20
    assert timetable.due_ns.tolist() == again.due_ns.tolist()
    assert (np.diff(timetable.due_ns) >= 0).all()
    assert timetable.due_ns[-1] < 4e9
    assert timetable.frame[:4].tolist() == [0, 1, 2, 0]
    assert np.isnan(timetable.budget_ms).all()
    if text != "constant":
        assert timetable.due_ns.tolist() != schedule.draw(40.0, 4.0, 8, FRAMES).due_ns.tolist()


def test_multiples_follow_the_runs_rate() -> None:
    """A step of 4x holds four times the rate's requests, one without x as many as it says."""
    timetable = Schedule.parse("step:1x/4x/10").draw(100.0, 30.0, 1, FRAMES)
    counts, _ = np.histogram(timetable.due_ns / 1e9, (0, 10, 20, 30))
    assert counts == pytest.approx([1000, 4000, 100], abs=5 * np.sqrt(4000))
    assert counts[2] == pytest.approx(100, abs=50)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sawtooth", "there are constant, poisson"),
        ("ramp:up=2", "there are from, to"),
        ("ramp:to", "cannot read 'to'"),
        ("ramp:to=1,to=2", "cannot read 'to=2'"),
        ("ramp:to=fast", "expected a rate such as 30 or 2x, got 'fast'"),
        ("burst:low_s=soon", "low_s: expected a number"),
        ("constant:x=1", "there are no parameters"),
        ("replay", "needs a file"),
    ],
)
def test_a_description_that_makes_no_sense_says_what_may_be_said(text: str, message: str) -> None:
    """An unknown name, parameter or number is a ScheduleError."""
    with pytest.raises(ScheduleError, match=message):
        Schedule.parse(text).draw(10.0, 1.0, 0, FRAMES)


@settings(deadline=None, max_examples=30)
@given(
    gaps_ns=st.lists(st.integers(0, 10**9), min_size=1, max_size=30),
    seed=st.integers(0, 100),
)
def test_a_recorded_run_replays_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, gaps_ns: list[int], seed: int
) -> None:
    """What `rows` and `write_trace` keep, `replay` sends: times to a nanosecond, frames and budgets."""
    rng = np.random.default_rng(seed)
    due_ns = np.cumsum(gaps_ns)
    budgets = np.where(rng.random(len(due_ns)) < 0.5, np.nan, rng.uniform(5, 50, len(due_ns)))
    timetable = Timetable(due_ns, rng.integers(0, 3, len(due_ns)), budgets)
    path = tmp_path_factory.mktemp("trace") / "trace.jsonl"
    write_trace(path, timetable.rows(FRAMES, None))
    again = Schedule.parse(f"replay:{path}").draw(1.0, 1.0, 0, FRAMES)
    assert np.abs(again.due_ns - timetable.due_ns).max() <= 1
    assert again.frame.tolist() == timetable.frame.tolist()
    np.testing.assert_array_equal(again.budget_ms, timetable.budget_ms)
    assert np.isfinite(Timetable.of(due_ns, 3).rows(FRAMES, 40.0)[0].budget_ms or np.nan)


def test_csv_with_columns_and_plain_numbers_are_traces(tmp_path: Path) -> None:
    """A CSV names its columns, empty cells are unknown; a line of JSONL may be a number alone."""
    (tmp_path / "t.csv").write_text("timestamp, frame,budget_ms\n1700000000.5,b.jpg,40\n1700000001.75,,\n")
    assert read_trace(tmp_path / "t.csv") == (TraceRow(0.0, "b.jpg", 40.0), TraceRow(1.25))
    (tmp_path / "t.jsonl").write_text('0.5\n\n{"at_s": 2, "frame": "c.jpg"}\n')
    assert read_trace(tmp_path / "t.jsonl") == (TraceRow(0.5), TraceRow(2.0, "c.jpg"))
    timetable = Schedule.parse(f"replay:{tmp_path / 't.jsonl'},speed=2").draw(1.0, 1.0, 0, FRAMES)
    assert timetable.due_ns.tolist() == [250_000_000, 1_000_000_000]
    assert timetable.frame.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.txt", "1", r"ends in \.jsonl or \.csv"),
        ("t.jsonl", "", "holds no request"),
        ("t.jsonl", "1\nx\n", r"t\.jsonl:2: not JSON"),
        ("t.jsonl", "1\n-1\n", r"t\.jsonl:2: at_s: .*greater than or equal to 0"),
        ("t.jsonl", "2\n1\n", r"t\.jsonl:2: 1 s comes before"),
        ("t.jsonl", '{"frame": "a"}', r"t\.jsonl:1: give either at_s or timestamp"),
        ("t.jsonl", '{"at_s": 1, "colour": 2}', r"t\.jsonl:1: colour"),
        ("t.jsonl", "NaN", r"t\.jsonl:1: at_s"),
        ("t.csv", "when\n1\n", r"t\.csv:1: the header"),
        ("t.csv", "at_s,frame\n1,a,b\n", r"t\.csv:2: expected 2 columns"),
        ("t.csv", "at_s\n1\nsoon\n", r"t\.csv:3: at_s"),
    ],
)
def test_a_broken_trace_names_file_and_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    """What is wrong with a trace is said with its place."""
    (tmp_path / name).write_text(text)
    with pytest.raises(TraceError, match=message):
        read_trace(tmp_path / name)


def test_a_trace_that_is_not_there_or_asks_for_an_unknown_frame_is_an_error(tmp_path: Path) -> None:
    """No file and no such frame are told apart."""
    with pytest.raises(TraceError, match="No such file"):
        read_trace(tmp_path / "none.jsonl")
    (tmp_path / "t.jsonl").write_text('{"at_s": 1, "frame": "z.jpg"}')
    with pytest.raises(ScheduleError, match=r"request 1 asks for the frame 'z\.jpg'"):
        Schedule.parse(f"replay:{tmp_path / 't.jsonl'}").draw(1.0, 1.0, 0, FRAMES)
    with pytest.raises(ValueError, match="speed"):
        trace_ns([TraceRow(1.0)], 0.0)
