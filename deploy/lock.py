"""`python -m deploy.lock`: do the lock files hold what pyproject.toml asks for?

A lock is a list of exact versions with their hashes, one for every use of the project (`LOCKS`), resolved
for all systems at once by `make lock` and installed by pip with `--no-deps --require-hashes`. This check
resolves nothing and needs no network. It asks of every lock that

  - each requirement of its extras, on each of `SYSTEMS`, has a pin there whose version it allows;
  - every pin has a SHA-256 and nothing else stands in the file: no index, no address, no option;
  - no two locks pin different versions of one distribution, so that what was tested is what is deployed.

torch stands in no lock: its build for CPUs and PyPI's have the same version and other files. pyproject.toml
pins it exactly, and the Makefile and the image of the search name the same version.

Requirements files: https://pip.pypa.io/en/stable/reference/requirements-file-format/
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import NormalizedName, canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = "paretogate"
FOLDER = Path("deploy/locks")
# The extras that each lock is for; the image of the gateway traces requests where it is told to.
LOCKS: Mapping[str, tuple[str, ...]] = {
    "router": ("router", "otel"),
    "loadtest": ("loadtest",),
    "search": ("search",),
    "dev": ("dev", "otel"),
}
APART = canonicalize_name("torch")
# (sys_platform, platform_machine, Python) for which a lock has to hold.
SYSTEMS = (
    ("linux", "x86_64", "3.11"),
    ("linux", "aarch64", "3.11"),
    ("darwin", "arm64", "3.12"),
    ("linux", "x86_64", "3.13"),
)
_HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}\b")


class LockError(ValueError):
    """A lock file is not of the form that `make lock` writes; the message names file and pin."""


@dataclass(frozen=True, slots=True)
class Pin:
    """One exact version, where it is needed, and how many files of it are allowed."""

    name: NormalizedName
    version: Version
    marker: Marker | None
    hashes: int

    def holds(self, system: Mapping[str, str]) -> bool:
        """Return whether the pin is for a system."""
        return self.marker is None or self.marker.evaluate(system)


def read_lock(text: str, source: str) -> tuple[Pin, ...]:
    """Read the text of a lock; raises LockError naming `source` and what is wrong."""
    joined = re.sub(r"\\\n", " ", text)
    lines = (line.strip() for line in joined.splitlines())
    return tuple(_read_pin(line, source) for line in lines if line and not line.startswith("#"))


def _read_pin(line: str, source: str) -> Pin:
    hashes = len(_HASH.findall(line))
    rest = _HASH.sub("", line).strip()
    try:
        requirement = Requirement(rest)
    except InvalidRequirement as error:
        raise LockError(f"{source}: {rest!r} is no pinned distribution") from error
    specifiers = list(requirement.specifier)
    if requirement.url or len(specifiers) != 1 or specifiers[0].operator != "==":
        raise LockError(f"{source}: {rest!r} is not pinned to one version")
    if not hashes:
        raise LockError(f"{source}: {requirement.name} has no SHA-256")
    name, version = canonicalize_name(requirement.name), Version(specifiers[0].version)
    return Pin(name, version, requirement.marker, hashes)


def declared(project: Mapping[str, Sequence[str]], extras: Sequence[str]) -> tuple[Requirement, ...]:
    """Return what a choice of extras requires, the project's references to its own extras followed.

    project: requirements by extra, those of the project itself under the empty name.
    """
    found: list[Requirement] = []
    seen: set[str] = set()
    waiting = ["", *extras]
    while waiting:
        extra = waiting.pop()
        if extra in seen:
            continue
        seen.add(extra)
        for requirement in map(Requirement, project[extra]):
            if canonicalize_name(requirement.name) == PROJECT:
                waiting.extend(requirement.extras)
            else:
                found.append(requirement)
    return tuple(found)


def read_project(text: str) -> Mapping[str, Sequence[str]]:
    """Return the requirements of a pyproject.toml by extra, those of the project itself under ""."""
    table = tomllib.loads(text)["project"]
    return {"": table["dependencies"], **table["optional-dependencies"]}


def system(platform: str, machine: str, python: str) -> dict[str, str]:
    """Return what markers are told about a system; whatever else they ask is of this one."""
    return {
        "sys_platform": platform,
        "platform_system": platform.capitalize(),
        "platform_machine": machine,
        "python_version": python,
        "python_full_version": f"{python}.0",
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }


def unmet(requirements: Sequence[Requirement], pins: Sequence[Pin]) -> Iterator[str]:
    """Yield a sentence for every requirement that a lock does not meet on one of `SYSTEMS`."""
    for platform, machine, python in SYSTEMS:
        there = system(platform, machine, python)
        pinned = {pin.name: pin for pin in pins if pin.holds(there)}
        where = f"on {platform} {machine}, Python {python}"
        for requirement in requirements:
            name = canonicalize_name(requirement.name)
            if requirement.marker is not None and not requirement.marker.evaluate(there):
                continue
            if name == APART:
                continue
            if name not in pinned:
                yield f"{requirement} is not there {where}"
            elif not requirement.specifier.contains(pinned[name].version, prereleases=True):
                yield f"{requirement} does not allow {pinned[name].version} {where}"


def disagreements(locks: Mapping[str, Sequence[Pin]]) -> Iterator[str]:
    """Yield a sentence for every distribution of which two locks pin different versions."""
    first: dict[NormalizedName, tuple[str, set[Version]]] = {}
    for lock, pins in locks.items():
        versions: dict[NormalizedName, set[Version]] = {}
        for pin in pins:
            versions.setdefault(pin.name, set()).add(pin.version)
        for name, found in versions.items():
            other, before = first.setdefault(name, (lock, found))
            if found != before:
                yield f"{name}: {_listed(before)} in {other}, {_listed(found)} in {lock}"


def _listed(versions: set[Version]) -> str:
    return " and ".join(map(str, sorted(versions)))


def pinned_apart(requirements: Sequence[Requirement], files: Mapping[str, str]) -> Iterator[str]:
    """Yield a sentence for every text that does not name torch as pyproject.toml pins it."""
    (wanted,) = (one for one in requirements if canonicalize_name(one.name) == APART)
    if [specifier.operator for specifier in wanted.specifier] != ["=="]:
        yield f"pyproject.toml does not pin {APART}: {wanted}"
    for name, text in files.items():
        if str(wanted) not in text:
            yield f"{name} does not install {wanted}"


def problems(root: Path = ROOT) -> list[str]:
    """Return what is wrong with the locks of a source tree, in sentences; raises LockError or OSError."""
    project = read_project((root / "pyproject.toml").read_text())
    locks = {name: read_lock((root / FOLDER / f"{name}.txt").read_text(), f"{name}.txt") for name in LOCKS}
    found = [
        f"{name}.txt: {problem}"
        for name, extras in LOCKS.items()
        for problem in unmet(declared(project, extras), locks[name])
    ]
    found.extend(disagreements(locks))
    places = ("Makefile", "deploy/search.Dockerfile")
    found.extend(
        pinned_apart(declared(project, ("search",)), {name: (root / name).read_text() for name in places})
    )
    return found


def main() -> int:
    """Print what is wrong and return the exit status: 0 when nothing is."""
    try:
        found = problems()
    except (LockError, OSError) as error:
        found = [str(error)]
    for problem in found:
        print(problem, file=sys.stderr)
    if found:
        print("`make lock` makes the locks again", file=sys.stderr)
        return 1
    print(f"{len(LOCKS)} locks hold what pyproject.toml asks for")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
