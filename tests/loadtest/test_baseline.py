"""Baselines: what may be compared, and what counts as drift."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loadtest.baseline import (
    BaselineError,
    Setting,
    baseline_of,
    digest_of,
    drifts,
    read_baseline,
    this_machine,
    write_baseline,
)
from loadtest.frames import Frame
from loadtest.sample import Sample
from tests.loadtest.scripted import sample

SETTING = Setting(
    machine=this_machine(),
    protocol="http",
    operating_point="fast",
    request_budget_ms=50.0,
    schedule="poisson",
    rate_hz=100.0,
    frames="digest",
)


def run(seed: int, *, factor: float = 1.0, lost: float = 0.0, count: int = 1_500) -> list[Sample]:
    """Return a run of 15 s: latencies around 20 ms that swing slowly, as queues do."""
    rng = np.random.default_rng(seed)
    noise = np.convolve(rng.normal(size=count + 50), np.ones(50) / 50**0.5, "valid")[:count]
    times = 20.0 * np.exp(0.15 * noise + 0.1 * rng.normal(size=count)) * factor
    gone = rng.random(count) < lost
    return [
        sample(10.0 * i, float(time), outcome="shed" if gone[i] else "answered")
        for i, time in enumerate(times)
    ]


def verdicts(before: list[Sample], now: list[Sample], margin: float = 0.1) -> list[bool]:
    """Return, for p50 and p99, whether they have not drifted."""
    return [drift.check(margin).passed for drift in drifts(baseline_of(SETTING, before), now)]


def test_a_slower_run_has_drifted_and_a_faster_one_has_not() -> None:
    """A third slower is drift of p50 and p99, a third faster is none; the figures are said."""
    assert verdicts(run(1), run(2, factor=1.35)) == [False, False]
    assert verdicts(run(1), run(2, factor=0.75)) == [True, True]
    (p50, _) = drifts(baseline_of(SETTING, run(1)), run(2, factor=1.35))
    assert p50.low <= p50.now_ms / p50.before_ms <= p50.high
    assert "more than 1.1 times is drift" in p50.check(0.1).says


def test_equal_servers_are_hardly_ever_called_drifted() -> None:
    """Of 12 pairs of runs of one server none has drifted, though neighbours resemble each other."""
    assert all(all(verdicts(run(2 * seed, count=600), run(2 * seed + 1, count=600))) for seed in range(12))


def test_a_change_within_the_margin_is_no_drift() -> None:
    """Five percent slower passes a margin of ten, which is there for that."""
    assert verdicts(run(1), run(2, factor=1.05)) == [True, True]


def test_missing_answers_are_infinitely_late() -> None:
    """Shedding 5 % is a drift of p99 whatever the answers' latency; where both shed, nothing has changed."""
    assert verdicts(run(1), run(2, factor=0.8, lost=0.05)) == [True, False]
    assert verdicts(run(1, lost=0.05), run(2, lost=0.05)) == [True, True]


def test_a_baseline_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Times to a microsecond, missing answers, setting."""
    baseline = baseline_of(SETTING, run(1, lost=0.1, count=50))
    write_baseline(tmp_path / "b.json", baseline)
    assert read_baseline(tmp_path / "b.json", SETTING) == baseline
    assert None in baseline.latency_ms


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"machine": SETTING.machine.model_copy(update={"cores": 999})}, "machine"),
        ({"operating_point": None}, "operating_point 'fast', this run has None"),
        ({"frames": "others"}, "frames"),
        ({"rate_hz": 50.0}, r"rate_hz 100\.0, this run has 50\.0"),
        ({"protocol": "grpc", "schedule": "constant"}, "protocol .*; schedule"),
    ],
)
def test_another_setting_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    """What differs is named, both sides of it."""
    write_baseline(tmp_path / "b.json", baseline_of(SETTING, run(1, count=20)))
    with pytest.raises(BaselineError, match=message):
        read_baseline(tmp_path / "b.json", SETTING.model_copy(update=change))


def test_a_baseline_that_is_none_is_refused(tmp_path: Path) -> None:
    """No file, no JSON, another version and no request are errors that name the file."""
    path = tmp_path / "b.json"
    with pytest.raises(BaselineError, match="--save-baseline writes one"):
        read_baseline(path, SETTING)
    path.write_text("{")
    with pytest.raises(BaselineError, match=r"b\.json: \(the whole\)"):
        read_baseline(path, SETTING)
    whole = baseline_of(SETTING, run(1, count=20)).model_dump_json()
    path.write_text(whole.replace('"schema_version":1', '"schema_version":9'))
    with pytest.raises(BaselineError, match="schema_version"):
        read_baseline(path, SETTING)
    empty = baseline_of(SETTING, run(1, count=1)).model_copy(update={"latency_ms": ()})
    path.write_text(empty.model_dump_json())
    with pytest.raises(BaselineError, match="latency_ms: is empty"):
        read_baseline(path, SETTING)
    with pytest.raises(ValueError, match="no baseline"):
        baseline_of(SETTING, [])


def test_frames_are_told_apart_by_name_and_bytes() -> None:
    """Another byte, name or order is another digest."""
    a, b = Frame("a.jpg", b"1", ()), Frame("b.jpg", b"2", ())
    digests = {digest_of(frames) for frames in ((a, b), (b, a), (a,), (Frame("a.jpg", b"2", ()), b))}
    assert len(digests) == 4
    assert digest_of((a, b)) == digest_of((a, b))
