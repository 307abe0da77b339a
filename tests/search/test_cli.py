from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from search.run_folder import Journal, RunFolder, StepRecord, check_settings, write_text
from search.settings import Settings
from tests.fakes import tiny_repository
from tests.search.tiny import tiny_dataset

WITHOUT_TORCH = """
import sys
sys.argv = ["search", *{arguments!r}]
from search.__main__ import main
try:
    status = main()
except SystemExit as stop:
    status = stop.code or 0
assert status == 0, status
assert "torch" not in sys.modules, "torch was imported"
"""


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "search", *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def without_torch(*arguments: str) -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH.format(arguments=arguments)], check=True, timeout=200)


def test_help_shows_the_steps() -> None:
    """`--help` names every step and tool."""
    shown = cli("--help").stdout
    for name in (
        "run",
        "data",
        "train",
        "explore",
        "export",
        "measure",
        "route",
        "publish",
        "report",
        "render",
    ):
        assert name in shown


def test_rendering_data_and_repositories_needs_no_torch(tmp_path: Path) -> None:
    """`render` and `triton` do their work without importing torch."""
    without_torch(
        "render", "--out", str(tmp_path / "set"), "--frames", "train=1", "--workers", "1", "--seed", "1"
    )
    assert json.loads((tmp_path / "set/train/_annotations.coco.json").read_text())["images"]
    tiny_repository(tmp_path / "repo")
    arguments = ("--repo", str(tmp_path / "repo"), "--platform", "python", "--out", str(tmp_path / "triton"))
    without_torch("triton", *arguments)
    assert len(list((tmp_path / "triton").glob("*/config.pbtxt"))) == 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("train", "--run", "{tmp}/none"), "is no run yet"),
        (("data", "--run", "{tmp}/r", "--data", "{tmp}/nothing"), "no such folder"),
        (("render", "--out", "{tmp}/c", "--frames", "train=x"), "frames: "),
        (("triton", "--platform", "abacus", "--repo", "{tmp}", "--out", "{tmp}/t"), "platform: "),
        (("triton", "--platform", "python", "--batch", "0", "--repo", "{tmp}", "--out", "{tmp}/t"), "batch "),
        (("run", "--data", "{tmp}", "--out", "{tmp}/r", "--repo", "{tmp}/p", "--keep", "1"), "keep: "),
    ],
)
def test_a_mistake_is_one_line_and_status_two(tmp_path: Path, arguments: tuple[str, ...], named: str) -> None:
    """What the user can mend is said in one line that names it, without a traceback."""
    done = cli(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert named in done.stderr
    assert "Traceback" not in done.stderr


def test_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    """A journal whose last line was cut by a kill goes on after the last whole one."""
    path = tmp_path / "journal"
    first = Journal(path)
    first.append('{"a": 1}')
    path.write_bytes(path.read_bytes() + b'{"a": 2')
    again = Journal(path)
    again.append('{"a": 3}')
    assert list(again.lines()) == ['{"a": 1}', '{"a": 3}']


def test_a_file_is_whole_or_absent(tmp_path: Path) -> None:
    """Writing replaces a file in one rename and leaves nothing else behind."""
    for text in ("old", "new"):
        write_text(tmp_path / "deep" / "file", text)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file"]
    assert (tmp_path / "deep" / "file").read_text() == "new"


def test_a_record_tells_which_setting_changed(tmp_path: Path) -> None:
    """A step that was finished with other settings is refused with the names of the fields."""
    folder = RunFolder(tmp_path)
    record = StepRecord(step="export", settings={"keep": 24, "seed": 0}, inputs={}, outputs={}, seconds=1.0)
    folder.finish(record)
    stored = folder.record("export")
    assert stored == record
    check_settings(record, {"keep": 24, "seed": 0}, {}, tmp_path)
    with pytest.raises(ValueError, match="keep: was 24, is now 12"):
        check_settings(record, {"keep": 12, "seed": 0}, {"keep": 12}, tmp_path)


def test_a_setting_that_is_new_is_what_was_done_before(tmp_path: Path) -> None:
    """A record from before there was such a setting stands while it has its default."""
    record = StepRecord(step="train", settings={"seed": 0}, inputs={}, outputs={}, seconds=1.0)
    check_settings(record, {"seed": 0, "paste": 0.0}, {"seed": 0, "paste": 0.0}, tmp_path)
    with pytest.raises(ValueError, match=r"paste: was 0\.0, is now 0\.5"):
        check_settings(record, {"seed": 0, "paste": 0.5}, {"seed": 0, "paste": 0.0}, tmp_path)
    assert Settings.defaults_of_step("train")["paste"] == 0.0


def test_broken_images_stop_a_run_before_it_trains(tmp_path: Path) -> None:
    """Step `data` decodes every image and names all that are broken, with their ids."""
    data = tiny_dataset(tmp_path / "set", {"train": 6, "valid": 2, "test": 2})
    for name in ("train/2.png", "test/1.png"):
        path = data / name
        path.write_bytes(path.read_bytes()[:-60])
    done = cli("data", "--data", str(data), "--out", str(tmp_path / "run"))
    assert done.returncode == 2
    assert "2 images cannot be decoded" in done.stderr
    for name, number in (("train/2.png", 3), ("test/1.png", 2)):
        assert f"{data / name}: image {number}: broken PNG" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_is_said_in_one_line(tmp_path: Path) -> None:
    """Writing to a full disk ends with what to do, no traceback, and goes on once there is room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        arguments = ("render", "--out", str(disk / "set"), "--frames", "test=8", "--workers", "1")
        done = cli(*arguments)
        assert done.returncode == 2
        assert "No space left on device" in done.stderr
        assert "give the same command again" in done.stderr
        assert "Traceback" not in done.stderr
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert cli(*arguments).returncode == 0
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
