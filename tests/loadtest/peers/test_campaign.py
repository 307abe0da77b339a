"""A whole comparison on tiny models: measured once, gone on with, left out, judged, drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loadtest.__main__ import app
from loadtest.frames import read_frames
from loadtest.peers.campaign import ADAPTIVE, JOURNAL, Campaign, Models, Settings
from loadtest.peers.command import command_of
from loadtest.peers.goodput import Served
from loadtest.peers.page import to_html
from loadtest.peers.processes import Memory
from loadtest.peers.records import Conditions, Goodput, Skipped
from loadtest.peers.summary import Row, Summary, bars_of, summarise
from loadtest.peers.tables import to_markdown
from model_repo.publish import Repository
from tests.loadtest.peers.conftest import FASTAPI, write_environment
from tests.loadtest.test_command_line import write_frames


def settings(tiny: Repository, tmp_path: Path, only: tuple[str, ...]) -> Settings:
    return Settings(
        tiny.root, tmp_path, only=only, rounds=1, seconds=0.4, budget_ms=5_000.0, cache=tmp_path / "cache"
    )


@pytest.mark.timeout(900)  # six servers start, one after the other on one core
def test_a_comparison_is_measured_once_and_gone_on_with(tiny: Repository, tmp_path: Path) -> None:
    """Every contender gets its figures, who cannot be installed is left out, and a second run asks nobody."""
    said: list[str] = []
    write_environment(FASTAPI, tmp_path / "cache")
    # Where the environment would be made there is a file.
    (tmp_path / "cache" / "litserve").write_text("")
    frames = read_frames(write_frames(tmp_path / "frames"))
    given = settings(tiny, tmp_path, ("fastapi", "cascade", "litserve"))
    outcome = Campaign(given, frames, said.append).run()
    assert outcome.complete
    assert {each.contender for each in outcome.skipped} == {"litserve"}
    summary = summarise(outcome)
    rows = {row.contender: row for row in summary.rows}
    assert set(rows) == {"fastapi", "cascade", "litserve"}
    assert rows["litserve"].skipped is not None
    assert "cannot be installed" in rows["litserve"].skipped
    fastapi, cascade = rows["fastapi"], rows["cascade"]
    assert fastapi.overhead_p50_ms is not None
    assert fastapi.overhead_hz is not None
    # The cascade is no single model.
    assert cascade.overhead_p50_ms is None
    for row in (fastapi, cascade):
        assert row.rss_mb is not None
        assert row.rss_mb > 10
        assert row.rush_effective_map is not None
        assert 0 <= row.rush_effective_map <= 1
    # Without the gateway nothing is shown, and so nothing holds.
    assert [bar.holds for bar in summary.bars] == [None, None, None]
    assert not summary.holds

    written = (given.cache / JOURNAL).read_text()
    said.clear()
    again = Campaign(given, frames, said.append).run()
    assert summarise(again).rows[0] == summary.rows[0]
    assert (given.cache / JOURNAL).read_text() == written
    assert not [text for text in said if "round" in text or "tried" in text]


def test_a_run_without_time_measures_nothing_more(tiny: Repository, tmp_path: Path) -> None:
    """Once the minutes are over no visit begins, and the table says that it is not whole."""
    write_environment(FASTAPI, tmp_path / "cache")
    given = Settings(
        tiny.root, tmp_path, only=("fastapi",), minutes=0.0, cache=tmp_path / "cache", seconds=0.3
    )
    outcome = Campaign(given, read_frames(write_frames(tmp_path / "frames")), lambda text: None).run()
    assert not outcome.complete
    assert outcome.journal.goodputs == ()


def test_the_models_are_read_off_the_manifest(tiny: Repository) -> None:
    """Overhead is compared on the point fast; the usual cascade ends where balanced ends."""
    models = Models.of(tiny.frontier)
    assert models.fast == "tiny-0"
    assert models.large == "tiny-1"
    assert models.fast in models.tried


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    """A name that is no contender's is an error that lists those there are, with exit status 2."""
    with pytest.raises(ValueError, match="unknown: flask; there are paretogate, fastapi"):
        Settings(tmp_path, tmp_path, only=("flask",))
    done = CliRunner().invoke(app, ["peers", "--repo", "x", "--frames", "y", "--only", "flask"])
    assert done.exit_code == 2
    missing = CliRunner().invoke(
        app, ["peers", "--repo", "x", "--frames", str(tmp_path), "--only", "fastapi"]
    )
    assert missing.exit_code == 2


def test_the_command_beside_the_figures_makes_them() -> None:
    """The table names the options that differ from the defaults, and not the files of this machine."""
    given = Settings(Path("repo"), Path("my frames"), only=("fastapi",), rounds=5, cache=Path("/elsewhere"))
    assert command_of(given) == (
        "python -m loadtest peers --repo repo --frames 'my frames' --only fastapi --rounds 5"
    )
    plain = "python -m loadtest peers --repo repo --frames frames"
    assert command_of(Settings(Path("repo"), Path("frames"))) == plain


def row(contender: str, p50_ms: float, goodput: float, **more: float | str) -> Row:
    return Row.model_validate(
        {
            "contender": contender,
            "title": contender.title(),
            "settings": "plain",
            "rounds": 3,
            "model": "tiny-0",
            "overhead_p50_ms": p50_ms,
            "overhead_p99_ms": 2 * p50_ms,
            "overhead_hz": 1e3 / p50_ms,
            "held_goodput": goodput,
            "rush_goodput": goodput / 2,
            "rush_attainment": 0.5,
            **more,
        }
    )


def test_claims_hold_against_the_best_peer_alone() -> None:
    """The gateway is held against the best peer in each figure; a tie in latency is no lowest."""
    ours = (row(ADAPTIVE, 9.0, 150.0), row("paretogate:fast", 5.0, 120.0))
    held, rush, lowest = bars_of((*ours, row("one", 6.0, 99.0), row("two", 5.5, 60.0)))
    assert (held.holds, rush.holds, lowest.holds) == (True, True, True)
    assert "1.52 times: 150.0, and 99.0 of One" in held.found
    held, _, lowest = bars_of((*ours, row("one", 6.0, 101.0), row("two", 5.0, 60.0)))
    assert (held.holds, lowest.holds) == (False, False)
    assert [bar.holds for bar in bars_of(ours)] == [None, None, None]


def test_the_table_says_who_was_left_out_and_on_which_machine() -> None:
    """Markdown and page carry machine, command, figures, claims and the reason of who was left out."""
    conditions = Conditions(
        machine="a <machine>",
        versions=("Python 3",),
        manifest="m",
        frames="f",
        budget_ms=50.0,
        threshold=0.9,
        seconds=1.0,
        seed=1,
    )
    rows = (
        row(ADAPTIVE, 9.0, 150.0),
        row("one", 6.0, 99.0, late_generator=1),
        Row(
            contender="two", title="Two", settings="none", rounds=0, skipped="cannot be installed: <no wheel>"
        ),
    )
    summary = Summary(
        conditions=conditions,
        unit=None,
        rows=rows,
        bars=bars_of(rows),
        skipped=(Skipped(contender="two", reason="cannot be installed: <no wheel>"),),
        complete=False,
    )
    text = to_markdown(summary, "python -m loadtest peers")
    assert "`python -m loadtest peers`, on a <machine> (Python 3):" in text
    assert "| One† | tiny-0 | 6.00 | 12.0 | 167 |" in text
    assert "Two was left out: cannot be installed: <no wheel>" in text
    assert "The time was up before every round was done." in text
    assert "HOLDS, 1.52 times" in text
    page = to_html(summary, "python -m loadtest peers")
    assert "a &lt;machine&gt;" in page
    assert "left out: cannot be installed: &lt;no wheel&gt;" in page
    assert page.count("<svg") == 3
    assert not summary.holds
    assert json.loads(summary.model_dump_json())["rows"][2]["skipped"]


def test_the_rate_at_the_budget_is_the_highest_that_holds() -> None:
    """The throughput is the highest rate that keeps the budget, the goodput that of the best such rate."""

    def probe(rate_hz: float, attainment: float, found: float) -> Served:
        return Served(
            rate_hz=rate_hz,
            requests=300,
            attainment=attainment,
            p50_ms=1.0,
            p99_ms=2.0,
            effective_map=found,
            mean_map=found,
            issue_delay_ms=0.1,
        )

    figures = Goodput(
        contender="one",
        round=0,
        model="tiny-0",
        saturated_hz=100.0,
        probes=(probe(50, 1.0, 0.9), probe(80, 0.99, 0.5), probe(90, 0.98, 0.9)),
        rush=probe(10, 1.0, 0.5),
        memory=Memory(processes=1, rss_mb=1.0, pss_mb=1.0),
    )
    assert figures.throughput_hz == 80
    assert figures.held is not None
    assert figures.held.rate_hz == 50
    assert figures.model_copy(update={"probes": figures.probes[2:]}).throughput_hz == 0.0
