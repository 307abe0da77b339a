"""A recorded trace: when requests came, and where it is known which frame each was and its budget.

Two forms are read, told apart by the file's ending:

    .jsonl   a line is a number of seconds, or {"at_s": 0.35, "frame": "belt.jpg", "budget_ms": 40}
    .csv     a header line that names the columns, `at_s` and optionally `frame` and `budget_ms`

`timestamp` in place of `at_s` is in seconds since any moment, such as 1970, and counts from the first line.
Times do not decrease. `frame` is a file name of the frames' folder; lines without one take frames in turn.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loadtest.schedule import MAX_ARRIVALS, NS_PER_S, Arrivals
from model_repo.files import write_whole

_COLUMNS = ("at_s", "timestamp", "frame", "budget_ms")


class TraceError(ValueError):
    """A trace cannot be read; the message names the file and the line."""


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One request: seconds from the run's start, its frame's file name and its budget where known."""

    at_s: float
    frame: str | None = None
    budget_ms: float | None = None


class _Line(BaseModel):
    # Not strict: a CSV file has text alone.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    at_s: float | None = Field(default=None, ge=0)
    timestamp: float | None = Field(default=None, ge=0)
    frame: str | None = Field(default=None, min_length=1)
    budget_ms: float | None = Field(default=None, gt=0)


def read_trace(path: Path) -> tuple[TraceRow, ...]:
    """Read a trace; raises TraceError naming file and line."""
    if path.suffix not in (".jsonl", ".csv"):
        raise TraceError(f"{path}: a trace ends in .jsonl or .csv")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TraceError(f"{path}: is not UTF-8: {error.reason} at byte {error.start}") from error
    rows: list[TraceRow] = []
    zero_s: float | None = None
    for number, said in _csv_rows(path, text) if path.suffix == ".csv" else _json_rows(path, text):
        where = f"{path}:{number}"
        line = _line(where, said)
        if (line.at_s is None) == (line.timestamp is None):
            raise TraceError(f"{where}: give either at_s or timestamp")
        if line.timestamp is not None:
            zero_s = line.timestamp if zero_s is None else zero_s
            at_s = line.timestamp - zero_s
        else:
            assert line.at_s is not None, "one of the two is there"
            at_s = line.at_s
        if at_s < (rows[-1].at_s if rows else 0.0):
            raise TraceError(f"{where}: {at_s:g} s comes before the line above; sort the trace by time")
        rows.append(TraceRow(at_s, line.frame, line.budget_ms))
        if len(rows) > MAX_ARRIVALS:
            raise TraceError(f"{where}: a trace has at most {MAX_ARRIVALS} requests")
    if not rows:
        raise TraceError(f"{path}: holds no request")
    return tuple(rows)


def write_trace(path: Path, rows: Sequence[TraceRow]) -> None:
    """Write a trace that `read_trace` reads, as JSONL, whole or not at all; raises OSError."""
    lines = []
    for row in rows:
        said: dict[str, object] = {"at_s": row.at_s}
        if row.frame is not None:
            said["frame"] = row.frame
        if row.budget_ms is not None:
            said["budget_ms"] = row.budget_ms
        lines.append(json.dumps(said, ensure_ascii=False))
    write_whole(path, ("\n".join(lines) + "\n").encode())


def trace_ns(rows: Sequence[TraceRow], speed: float = 1.0) -> Arrivals:
    """Return a trace's arrivals, t_i = at_i / speed; raises ValueError for a speed that is not positive."""
    if not (math.isfinite(speed) and speed > 0):
        raise ValueError(f"the speed of a replay must be positive and finite, got {speed}")
    return np.rint(np.array([row.at_s for row in rows]) / speed * NS_PER_S).astype(np.int64)


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            said = json.loads(line)
        except ValueError as error:
            raise TraceError(f"{path}:{number}: not JSON: {error}") from error
        yield number, said if isinstance(said, dict) else {"at_s": said}


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, object]]:
    reader = csv.DictReader(text.splitlines(), strict=True)
    try:
        columns = [name.strip() for name in reader.fieldnames or ()]
        if not {"at_s", "timestamp"} & set(columns) or set(columns) - set(_COLUMNS):
            raise TraceError(f"{path}:1: the header must name columns of {', '.join(_COLUMNS)}")
        reader.fieldnames = columns
        for said in reader:
            if None in said or None in said.values():
                raise TraceError(f"{path}:{reader.line_num}: expected {len(columns)} columns")
            yield reader.line_num, {name: cell.strip() for name, cell in said.items() if cell.strip()}
    except csv.Error as error:
        raise TraceError(f"{path}:{reader.line_num}: {error}") from error


def _line(where: str, said: object) -> _Line:
    try:
        return _Line.model_validate(said)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in problem["loc"]) or "(the whole)"
        raise TraceError(f"{where}: {field}: {problem['msg']}") from error
