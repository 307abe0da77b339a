"""A run's folder: results that are whole or absent, and the record of which step made them from what.

Every file is written beside its final name, synced and renamed, so that a process killed at any moment leaves
either the old content or the new. A step is finished when its record stands in `steps/`; the record holds the
settings the step used and the digests of what it read and wrote, so that a run continued with other settings
is refused by the field's name and not silently mixed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from pydantic import NonNegativeFloat

from model_repo.files import write_whole
from model_repo.value import Value

Setting = str | int | float | bool | None | tuple[str, ...]
"""What a step's settings may hold: JSON scalars, and names."""


class RunError(ValueError):
    """A run folder and a command do not fit together; the message says what to change."""


class StepRecord(Value):
    """A finished step: its settings, the digests of the steps it read, and of the files it wrote."""

    step: str
    settings: dict[str, Setting]
    inputs: dict[str, str]
    outputs: dict[str, str]
    seconds: NonNegativeFloat

    @property
    def digest(self) -> str:
        """Return what later steps depend on: settings, inputs and outputs, not the time they took."""
        content = [self.settings, self.inputs, self.outputs]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Progress(Protocol):
    """Where a step says how far it is."""

    def start(self, description: str, total: float | None) -> None:
        """Begin a phase of `total` units; None when that is not known."""

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        """Report `amount` units done, and what came out last."""


class Silent:
    """A progress that shows nothing."""

    def start(self, description: str, total: float | None) -> None:
        """Do nothing."""

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        """Do nothing."""


class RunFolder:
    """Read and write one run's results below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, *parts: str) -> Path:
        """Return a path below the run folder, its parent made."""
        path = self.root.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def record(self, step: str) -> StepRecord | None:
        """Return the record of a finished step, None when it is not finished; RunError when it is damaged."""
        return _read_record(self.root / "steps" / f"{step}.json")

    def finish(self, record: StepRecord) -> None:
        """Mark a step as finished; all its files must be written by now."""
        write_text(self.path("steps", f"{record.step}.json"), record.model_dump_json(indent=2) + "\n")

    def claim(self, step: str) -> StepRecord | None:
        """Return what a step's own folder was begun with, None when it was not begun."""
        return _read_record(self.root / step / "begun.json")

    def begin(self, record: StepRecord) -> None:
        """Write down what a step's own folder is begun with."""
        write_text(self.path(record.step, "begun.json"), record.model_dump_json(indent=2) + "\n")

    def forget(self, step: str) -> None:
        """Make a step unfinished; its files stay until they are written again."""
        (self.root / "steps" / f"{step}.json").unlink(missing_ok=True)


def _read_record(path: Path) -> StepRecord | None:
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    try:
        return StepRecord.model_validate_json(text)
    except ValueError as error:
        raise RunError(f"{path}: not a step's record: {error}") from error


def check_settings(
    record: StepRecord, settings: Mapping[str, Setting], defaults: Mapping[str, Setting], root: Path
) -> None:
    """Raise RunError naming every field in which a finished step's settings differ from the command's.

    defaults: what a setting is that the record does not have, because there was none of that name yet.
    """
    now = json.loads(json.dumps(dict(settings)))
    then = json.loads(json.dumps({**defaults, **record.settings}))
    wrong = [
        f"{field}: was {then.get(field)!r}, is now {now.get(field)!r}"
        for field in sorted({*then, *now})
        if then.get(field) != now.get(field)
    ]
    if wrong:
        raise RunError(
            f"{root}: step {record.step!r} was done with other settings ({'; '.join(wrong)}). Use those"
            f" it had, another --run folder, or --again {record.step} to do it and all that follows again."
        )


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file that is whole or absent, and its folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content)


def write_text(path: Path, content: str) -> None:
    """Write a text file that is whole or absent."""
    write_bytes(path, content.encode())


class Journal:
    """Lines of JSON, appended one by one and synced; a last line torn by a kill is dropped on opening."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._drop_torn_line()

    def _drop_torn_line(self) -> None:
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) != len(content):
            write_bytes(self.path, whole)

    def lines(self) -> Iterator[str]:
        """Yield every finished line."""
        if self.path.exists():
            yield from self.path.read_text().splitlines()

    def append(self, line: str) -> None:
        """Add one line and wait until it is on the disk; raises ValueError on a line that holds a break."""
        if "\n" in line:
            raise ValueError("a journal's entry must be one line")
        with self.path.open("ab") as stream:
            stream.write(line.encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
