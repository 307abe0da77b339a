"""What is measured, as values, and the file of JSON lines that keeps them: a run that was ended goes on.

The file begins with the conditions. Lines are added as soon as something is measured and never changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from loadtest.peers.goodput import Served, held
from loadtest.peers.processes import Memory
from model_repo.value import Value


class JournalError(ValueError):
    """The file of results cannot be gone on with; the message says why."""


class Conditions(Value):
    """What figures must share to stand in one table.

    manifest and frames: digests. seconds: a probe's; a step of the trace lasts half of it. versions: of
    Python and the packages that decide about a frame.
    """

    kind: Literal["conditions"] = "conditions"
    machine: str
    versions: tuple[str, ...]
    manifest: str
    frames: str
    budget_ms: float
    threshold: float
    seconds: float
    seed: int


class Unit(Value):
    """The server without HTTP at `fast`: its rate when saturated is the trace's unit."""

    kind: Literal["unit"] = "unit"
    saturated_hz: float
    p50_ms: float


class Trial(Value):
    """A peer that was tried with a model, to find the one that it should hold."""

    kind: Literal["trial"] = "trial"
    contender: str
    model: str
    saturated_hz: float


class Overhead(Value):
    """One client's latency and the saturated rate in a round, the same single model behind everybody."""

    kind: Literal["overhead"] = "overhead"
    contender: str
    round: int
    model: str
    p50_ms: float
    p99_ms: float
    saturated_hz: float


class Goodput(Value):
    """What a contender does within the budget in a round: Poisson rates that were tried, and the trace."""

    kind: Literal["goodput"] = "goodput"
    contender: str
    round: int
    model: str
    saturated_hz: float
    probes: tuple[Served, ...]
    rush: Served
    memory: Memory

    @property
    def held(self) -> Served | None:
        """Return the best probe that keeps the budget, None when none does."""
        return held(self.probes)

    @property
    def throughput_hz(self) -> float:
        """Return the highest rate that keeps the budget, 0 when none does."""
        return max((probe.rate_hz for probe in self.probes if probe.holds), default=0.0)


class Skipped(Value):
    """A contender that could not be compared, and why; tried again when the command is."""

    contender: str
    reason: str


Record = Annotated[Conditions | Unit | Trial | Overhead | Goodput, Field(discriminator="kind")]
_RECORD: TypeAdapter[Record] = TypeAdapter(Record)


class Journal:
    """The records of a run, on disk and in memory."""

    def __init__(self, path: Path, conditions: Conditions) -> None:
        """Read what is there, or begin.

        Raises JournalError when it was measured under other conditions or holds a line that is no record. A
        last line that was cut short is dropped.
        """
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._records: list[Record] = list(_read(path)) if path.exists() else []
        if not self._records:
            path.write_text("")
            self.add(conditions)
        elif self._records[0] != conditions:
            raise JournalError(
                f"{path}: {_difference(self._records[0], conditions)}; name another file or remove it"
            )

    def add(self, record: Record) -> None:
        """Keep a record."""
        self._records.append(record)
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(record.model_dump_json() + "\n")

    @property
    def unit(self) -> Unit | None:
        """Return the trace's unit, None before it is measured."""
        return next((each for each in self._records if isinstance(each, Unit)), None)

    def trials(self, contender: str) -> tuple[Trial, ...]:
        """Return the models that a contender was tried with."""
        return tuple(r for r in self._records if isinstance(r, Trial) and r.contender == contender)

    @property
    def overheads(self) -> tuple[Overhead, ...]:
        """Return every round's single-model figures."""
        return tuple(each for each in self._records if isinstance(each, Overhead))

    @property
    def goodputs(self) -> tuple[Goodput, ...]:
        """Return every round's figures within the budget."""
        return tuple(each for each in self._records if isinstance(each, Goodput))


def _read(path: Path) -> Iterable[Record]:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            yield _RECORD.validate_json(line)
        except ValidationError as error:
            if number == len(lines) and not line.endswith("\n"):
                # The run was ended while it was written.
                path.write_text("".join(lines[:-1]), encoding="utf-8")
                return
            problem = error.errors(include_url=False)[0]
            raise JournalError(f"{path}: line {number}: {problem['msg']}") from error


def _difference(before: Record, now: Conditions) -> str:
    if not isinstance(before, Conditions):
        return "does not begin with the conditions"
    then, here = before.model_dump(), now.model_dump()
    names = [name for name in then if then[name] != here[name]]
    return "was measured under other conditions: " + ", ".join(
        f"{name} {then[name]} and now {here[name]}" for name in names
    )
