"""What a run sends and when: from a schedule's description to every request's moment, frame and budget.

    constant                               every 1/rate seconds
    poisson                                independent arrivals
    ramp:from=0.2x,to=2x                   from the one rate to the other, evenly
    step:1x/4x/1x                          levels of equal length
    burst:high=5x,low=1x,high_s=2,low_s=8  a two-state Markov-modulated Poisson process, mean seconds in each
    diurnal:low=0.2x,high=1.8x,days=1      days compressed into the run
    replay:trace.jsonl,speed=2             a recorded trace; rate and duration are its own

A rate is a number of requests per second, or with an `x` behind it a multiple of the run's rate. All but
`constant` and `replay` are Poisson processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loadtest.runner import Request
from loadtest.schedule import NS_PER_S, Arrivals, arrivals_ns
from loadtest.shapes import Diurnal, Ramp, Steps, burst, thinned_ns
from loadtest.trace import TraceRow, read_trace, trace_ns

NAMES = ("constant", "poisson", "ramp", "step", "burst", "diurnal", "replay")
_PARAMETERS: Mapping[str, Mapping[str, str]] = {
    "constant": {},
    "poisson": {},
    "ramp": {"from": "0x", "to": "1x"},
    "step": {"levels": "1x/3x/1x"},
    "burst": {"low": "1x", "high": "5x", "low_s": "8", "high_s": "2"},
    "diurnal": {"low": "0.2x", "high": "1.8x", "days": "1"},
    "replay": {"file": "", "speed": "1"},
}
# What may be given without its name.
_FIRST = {"step": "levels", "replay": "file"}


class ScheduleError(ValueError):
    """A schedule's description makes no sense; the message says what may be said."""


@dataclass(frozen=True, slots=True, eq=False)
class Timetable:
    """Every request of a run: when it is due, ns int64 [n], not decreasing; its frame's position int64 [n];
    its own budget in ms float64 [n], NaN where the run's holds."""

    due_ns: Arrivals
    frame: NDArray[np.int64]
    budget_ms: NDArray[np.float64]

    def __post_init__(self) -> None:
        if not self.due_ns.shape == self.frame.shape == self.budget_ms.shape:
            raise ValueError("arrivals, frames and budgets differ in number")

    def __len__(self) -> int:
        return len(self.due_ns)

    @classmethod
    def of(cls, due_ns: Arrivals, frames: int) -> Timetable:
        """Take frames in turn, all under the run's budget; raises ValueError without frames."""
        if frames < 1:
            raise ValueError("a load needs at least one frame")
        return cls(due_ns, np.arange(len(due_ns)) % frames, np.full(len(due_ns), np.nan))

    def part(self, number: int, of: int) -> Timetable:
        """Return every `of`-th request from request `number` on."""
        return Timetable(self.due_ns[number::of], self.frame[number::of], self.budget_ms[number::of])

    def carried(self, request: Request) -> Callable[[int], Request]:
        """Return what request i carries, given what they all carry: its own budget wins."""

        def of(position: int) -> Request:
            own = float(self.budget_ms[position])
            return request if math.isnan(own) else replace(request, budget_ms=own)

        return of

    def rows(self, names: Sequence[str], budget_ms: float | None) -> tuple[TraceRow, ...]:
        """Return the timetable as a trace; names: of the frames, budget_ms: the run's."""
        return tuple(
            TraceRow(due / NS_PER_S, names[frame], budget_ms if np.isnan(own) else own)
            for due, frame, own in zip(
                self.due_ns.tolist(), self.frame.tolist(), self.budget_ms.tolist(), strict=True
            )
        )


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule's description, read: its name and every parameter, those not given at their defaults."""

    name: str
    parameters: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """Read `NAME` or `NAME:key=value,key=value`; raises ScheduleError."""
        name, _, rest = text.strip().partition(":")
        if name not in _PARAMETERS:
            raise ScheduleError(f"no schedule {name!r}; there are {', '.join(NAMES)}")
        said: dict[str, str] = {}
        for part in (part.strip() for part in rest.split(",")) if rest else ():
            key, equals, value = part.partition("=")
            if not equals and name in _FIRST and not said:
                key, value = _FIRST[name], part
            if key not in _PARAMETERS[name] or not value or key in said:
                there = ", ".join(_PARAMETERS[name]) or "no parameters"
                raise ScheduleError(f"{name}: cannot read {part!r}; there are {there}")
            said[key] = value
        if name == "replay" and not said.get("file"):
            raise ScheduleError("replay: needs a file, replay:trace.jsonl")
        return cls(name, tuple({**_PARAMETERS[name], **said}.items()))

    def __str__(self) -> str:
        parameters = ",".join(f"{key}={value}" for key, value in self.parameters)
        return f"{self.name}:{parameters}" if parameters else self.name

    def draw(self, rate_hz: float, duration_s: float, seed: int, names: Sequence[str]) -> Timetable:
        """Draw the run; names: the frames' file names. The same arguments give the same timetable.

        Raises ScheduleError or ValueError when a number makes no sense or there would be too many requests,
        TraceError when a trace cannot be read or names a frame that is not there.
        """
        said = dict(self.parameters)
        if self.name == "replay":
            return _replayed(Path(said["file"]), _number(said, "speed"), names)
        # Two generators: the chain of `burst` stays what it is when the rate changes.
        rng, chain = (np.random.default_rng([seed, which]) for which in (0xA221, 0xC4A1))

        def rate(key: str) -> float:
            return _rate(self.name, key, said[key], rate_hz)

        if self.name == "constant":
            due_ns = arrivals_ns("constant", rate_hz, duration_s, rng)
        elif self.name == "poisson":
            due_ns = arrivals_ns("poisson", rate_hz, duration_s, rng)
        elif self.name == "ramp":
            due_ns = thinned_ns(Ramp(rate("from"), rate("to"), duration_s), rng)
        elif self.name == "step":
            levels = [_rate("step", "levels", level, rate_hz) for level in said["levels"].split("/")]
            due_ns = thinned_ns(Steps.equal(tuple(levels), duration_s), rng)
        elif self.name == "diurnal":
            due_ns = thinned_ns(Diurnal(rate("low"), rate("high"), _number(said, "days"), duration_s), rng)
        else:
            times_s = _number(said, "low_s"), _number(said, "high_s")
            due_ns = thinned_ns(burst(rate("low"), rate("high"), *times_s, duration_s, chain), rng)
        return Timetable.of(due_ns, len(names))


def _replayed(path: Path, speed: float, names: Sequence[str]) -> Timetable:
    rows = read_trace(path)
    index = {name: position for position, name in enumerate(names)}
    for number, row in enumerate(rows):
        if row.frame is not None and row.frame not in index:
            raise ScheduleError(f"{path}: request {number + 1} asks for the frame {row.frame!r}, not there")
    return Timetable(
        trace_ns(rows, speed),
        np.array([n % len(names) if row.frame is None else index[row.frame] for n, row in enumerate(rows)]),
        np.array([np.nan if row.budget_ms is None else row.budget_ms for row in rows]),
    )


def _number(said: Mapping[str, str], key: str) -> float:
    try:
        return float(said[key])
    except ValueError:
        raise ScheduleError(f"{key}: expected a number, got {said[key]!r}") from None


def _rate(name: str, key: str, text: str, rate_hz: float) -> float:
    try:
        return float(text[:-1]) * rate_hz if text.endswith("x") else float(text)
    except ValueError:
        raise ScheduleError(f"{name}: {key}: expected a rate such as 30 or 2x, got {text!r}") from None
