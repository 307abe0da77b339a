"""The file of results: gone on with, refused under other conditions, cut short."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.peers.records import Conditions, Journal, JournalError, Trial, Unit

CONDITIONS = Conditions(
    machine="a machine",
    versions=("Python 3",),
    manifest="m",
    frames="f",
    budget_ms=50.0,
    threshold=0.9,
    seconds=1.0,
    seed=1,
)
TRIAL = Trial(contender="fastapi", model="small", saturated_hz=10.0)


def test_what_was_measured_is_there_again(tmp_path: Path) -> None:
    """A journal opened again under the same conditions has its records, in their order."""
    journal = Journal(tmp_path / "deep" / "results.jsonl", CONDITIONS)
    journal.add(Unit(saturated_hz=100.0, p50_ms=5.0))
    journal.add(TRIAL)
    again = Journal(tmp_path / "deep" / "results.jsonl", CONDITIONS)
    assert again.unit == Unit(saturated_hz=100.0, p50_ms=5.0)
    assert again.trials("fastapi") == (TRIAL,)
    assert again.trials("litserve") == ()


def test_other_conditions_are_refused(tmp_path: Path) -> None:
    """Figures of another budget do not come into the same table; the message names what differs."""
    Journal(tmp_path / "results.jsonl", CONDITIONS)
    with pytest.raises(JournalError, match=r"budget_ms 50\.0 and now 80\.0"):
        Journal(tmp_path / "results.jsonl", CONDITIONS.model_copy(update={"budget_ms": 80.0}))


def test_a_line_cut_short_is_dropped(tmp_path: Path) -> None:
    """A run that was ended while it wrote goes on from the line before; a broken line elsewhere is named."""
    path = tmp_path / "results.jsonl"
    Journal(path, CONDITIONS).add(TRIAL)
    whole = path.read_text()
    path.write_text(whole + '{"kind": "tri')
    assert Journal(path, CONDITIONS).trials("fastapi") == (TRIAL,)
    assert path.read_text() == whole
    path.write_text(whole.replace('"kind":"trial"', '"kind":"rumour"') + "\n")
    with pytest.raises(JournalError, match="line 2"):
        Journal(path, CONDITIONS)
