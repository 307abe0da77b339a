"""The locks hold what the project asks for, and a lock that does not is found."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.version import Version

from deploy.lock import (
    FOLDER,
    LOCKS,
    ROOT,
    LockError,
    declared,
    disagreements,
    pinned_apart,
    problems,
    read_lock,
    read_project,
    unmet,
)

HASH = "--hash=sha256:" + "0" * 64


def lock(*lines: str) -> str:
    """Return the text of a lock with these pins."""
    return "# made by make lock\n" + "".join(f"{line} \\\n    {HASH}\n" for line in lines)


def test_the_locks_hold_what_the_project_asks_for() -> None:
    """What `make check` asks about this very tree."""
    assert problems() == []


def test_the_locks_name_no_index() -> None:
    """Whoever installs from them decides where from: no address, no option but hashes."""
    for name in (*LOCKS, "build"):
        text = (ROOT / FOLDER / f"{name}.txt").read_text()
        assert "://" not in text
        assert {word.split("=")[0] for word in text.split() if word.startswith("--")} == {"--hash"}
        assert read_lock(text, name)


def test_extras_of_the_project_itself_are_followed() -> None:
    """What an extra takes over from others is asked for as well, each of them once."""
    project = read_project(
        '[project]\ndependencies = ["numpy>=2"]\n[project.optional-dependencies]\n'
        'a = ["paretogate[b]", "x"]\nb = ["Paretogate[a]", "y>=1"]\n'
    )
    assert sorted(map(str, declared(project, ["a"]))) == ["numpy>=2", "x", "y>=1"]


@pytest.mark.parametrize(
    ("pins", "problem"),
    [
        (("other==1",), "is not there on linux x86_64"),
        (("wanted==1.9",), "does not allow 1.9"),
        (("wanted==2.1 ; sys_platform == 'linux'",), "is not there on darwin"),
    ],
)
def test_what_a_lock_lacks_is_said(pins: tuple[str, ...], problem: str) -> None:
    """A requirement without a pin, with one that it does not allow, or with none on another system."""
    found = list(unmet([Requirement("wanted>=2")], read_lock(lock(*pins), "a lock")))
    assert any(problem in one for one in found), found


def test_a_requirement_of_another_system_is_not_missed() -> None:
    """Markers of requirements count."""
    assert not list(unmet([Requirement("wanted; sys_platform == 'win32'")], ()))


@pytest.mark.parametrize(
    "text",
    ["wanted==2\n", f"wanted>=2 {HASH}\n", f"wanted @ https://example.org/w.whl {HASH}\n", "--index-url x\n"],
    ids=["no hash", "a range", "an address", "an option"],
)
def test_what_is_no_lock_is_refused(text: str) -> None:
    """Every line is one exact version of a distribution, with a hash."""
    with pytest.raises(LockError, match="a lock"):
        read_lock(text, "a lock")


@given(st.lists(st.integers(0, 9), min_size=1, max_size=4))
def test_a_version_is_read_as_it_is_written(numbers: list[int]) -> None:
    """Reading a pin gives back its version."""
    version = ".".join(map(str, numbers))
    (pin,) = read_lock(lock(f"Some_Name=={version}"), "a lock")
    assert (pin.name, pin.version, pin.hashes) == ("some-name", Version(version), 1)


def test_locks_that_disagree_are_found() -> None:
    """What is deployed is the version that was tested."""
    both = {
        "dev": read_lock(lock("a==1", "b==1"), "dev"),
        "router": read_lock(lock("a==2", "b==1"), "router"),
    }
    assert list(disagreements(both)) == ["a: 1 in dev, 2 in router"]


def test_torch_is_pinned_the_same_everywhere() -> None:
    """A file that installs another version of what stands in no lock is named."""
    wanted = [Requirement("torch==2.13.0")]
    files = {"Makefile": "TORCH ?= torch==2.12.0", "Dockerfile": "install torch==2.13.0"}
    assert list(pinned_apart(wanted, files)) == ["Makefile does not install torch==2.13.0"]
