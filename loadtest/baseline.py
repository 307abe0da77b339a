"""Latencies of an earlier run, and whether a new run's have drifted from them.

A baseline speaks of one machine, operating point, protocol, schedule and set of frames: a run under other
conditions is not compared at all. What is compared are p50 and p99 over all requests, one without an answer
counting as infinitely late, by the ratio of the new run's to the baseline's.

Latencies of neighbouring requests resemble each other, so the ratio's spread comes from a circular block
bootstrap (Politis and Romano, 1992): both runs are put together anew from blocks of about a second, a
thousand times, and the middle 99 % of the ratios are its interval. A quantile has drifted when the whole
interval lies above 1 + margin: the margin is what is practically of no matter, and what a shared machine does
from one run to the next; the interval sees to it that a few requests do not decide.
"""

from __future__ import annotations

import hashlib
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError

from loadtest.frames import Frame
from loadtest.sample import Sample
from loadtest.verdict import Check
from model_repo.files import write_whole
from model_repo.value import Value

VERSION: Literal[1] = 1
_LEVEL = 0.99
_RESAMPLES = 1_000
_BLOCK_S = 1.0
_QUANTILES: tuple[tuple[Literal["baseline p50", "baseline p99"], float], ...] = (
    ("baseline p50", 0.5),
    ("baseline p99", 0.99),
)
# Resampling holds so many latencies at a time.
_AT_ONCE = 4_000_000


class BaselineError(ValueError):
    """A baseline cannot be read, or is of another machine, point or load; the message says which."""


class Machine(Value):
    """What the latencies of a machine depend on; its name does not."""

    cpu: str
    cores: PositiveInt
    system: str


class Setting(Value):
    """The conditions of a run; two runs are compared only when these are equal.

    frames: the digest of their names and bytes. seed is left out: another draw of the same schedule will do.
    """

    machine: Machine
    protocol: str
    operating_point: str | None
    request_budget_ms: PositiveFloat | None
    schedule: str
    rate_hz: PositiveFloat
    frames: str


class Baseline(Value):
    """A stored run: latencies in milliseconds in the order of the schedule, None without an answer."""

    schema_version: Literal[1] = VERSION
    setting: Setting
    duration_s: PositiveFloat
    latency_ms: tuple[NonNegativeFloat | None, ...]


@dataclass(frozen=True, slots=True)
class Drift:
    """A quantile beside the baseline's: both in ms, and the interval of their ratio."""

    name: Literal["baseline p50", "baseline p99"]
    before_ms: float
    now_ms: float
    low: float
    high: float

    def check(self, margin: float) -> Check:
        """Return whether it has not drifted by more than a margin such as 0.1."""
        return Check(
            self.name,
            not self.low > 1.0 + margin,
            f"{self.name.removeprefix('baseline ')} {self.now_ms:.2f} ms, the baseline has"
            f" {self.before_ms:.2f} ms: {self.low:.2f} to {self.high:.2f} times as much with {_LEVEL:.0%}"
            f" confidence, more than {1 + margin:.10g} times is drift",
        )


def this_machine() -> Machine:
    """Return the machine that this process runs on."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return Machine(cpu=names[0] if names else cpu, cores=os.cpu_count() or 1, system=platform.system())


def digest_of(frames: Sequence[Frame]) -> str:
    """Return the sha256 of the frames' names and bytes, in their order."""
    hashed = hashlib.sha256()
    for frame in frames:
        hashed.update(f"{frame.file_name}\n{len(frame.content)}\n".encode())
        hashed.update(frame.content)
    return hashed.hexdigest()


def baseline_of(setting: Setting, samples: Sequence[Sample]) -> Baseline:
    """Return a run as a baseline; raises ValueError without samples."""
    if not samples:
        raise ValueError("a run without a request is no baseline")
    latencies = tuple(round(s.latency_ms, 3) if s.answered else None for s in samples)
    return Baseline(setting=setting, duration_s=_duration_s(samples), latency_ms=latencies)


def write_baseline(path: Path, baseline: Baseline) -> None:
    """Write a baseline, whole or not at all; raises OSError."""
    write_whole(path, baseline.model_dump_json().encode() + b"\n")


def read_baseline(path: Path, setting: Setting) -> Baseline:
    """Read the baseline of a setting; raises BaselineError when it is broken or of another one."""
    try:
        baseline = Baseline.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BaselineError(f"{path}: {error.strerror}; --save-baseline writes one") from error
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"]) or "(the whole)"
        raise BaselineError(f"{path}: {where}: {problem['msg']}") from error
    if not baseline.latency_ms:
        raise BaselineError(f"{path}: latency_ms: is empty")
    then, now = baseline.setting, setting
    differing = [
        f"{name} {getattr(then, name)!r}, this run has {getattr(now, name)!r}"
        for name in Setting.model_fields
        if getattr(then, name) != getattr(now, name)
    ]
    if differing:
        raise BaselineError(f"{path}: is of another setting: {'; '.join(differing)}")
    return baseline


def drifts(baseline: Baseline, samples: Sequence[Sample], seed: int = 0) -> tuple[Drift, ...]:
    """Compare a run with the baseline of its setting; raises ValueError without samples."""
    before = np.array([math.inf if ms is None else ms for ms in baseline.latency_ms])
    now = np.array([s.latency_ms if s.answered else math.inf for s in samples])
    if not len(now):
        raise ValueError("a run without a request cannot be compared")
    levels = [q for _, q in _QUANTILES]
    rng = np.random.default_rng([seed, 0xB007])
    spread = _ratios(
        _resampled(now, _block(len(now), _duration_s(samples)), levels, rng),
        _resampled(before, _block(len(before), baseline.duration_s), levels, rng),
    )
    low, high = np.quantile(spread, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], axis=0, method="nearest")
    return tuple(
        Drift(name, _quantile(before, q), _quantile(now, q), float(low[column]), float(high[column]))
        for column, (name, q) in enumerate(_QUANTILES)
    )


def _duration_s(samples: Sequence[Sample]) -> float:
    return max(max(sample.scheduled_ns for sample in samples) / 1e9, 1e-3)


def _block(count: int, duration_s: float) -> int:
    """Return how many neighbouring requests make a block; at least twenty blocks where there are as many."""
    return max(1, min(math.ceil(count * _BLOCK_S / duration_s), count // 20))


def _rank(count: int, q: float) -> int:
    return max(math.ceil(q * count) - 1, 0)


def _quantile(values: NDArray[np.float64], q: float) -> float:
    return float(np.sort(values)[_rank(len(values), q)])


def _resampled(
    values: NDArray[np.float64], block: int, levels: Sequence[float], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return quantiles [resamples, levels] of runs put together from blocks of a circle of values."""
    count = len(values)
    ranks = [_rank(count, q) for q in levels]
    out = np.empty((_RESAMPLES, len(levels)))
    step = max(1, _AT_ONCE // count)
    for begin in range(0, _RESAMPLES, step):
        rows = min(step, _RESAMPLES - begin)
        starts = rng.integers(0, count, (rows, math.ceil(count / block), 1))
        index = ((starts + np.arange(block)) % count).reshape(rows, -1)[:, :count]
        out[begin : begin + rows] = np.partition(values[index], ranks, axis=1)[:, ranks]
    return out


def _ratios(now: NDArray[np.float64], before: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return now / before; where neither has an answer nothing has changed."""
    both = np.isinf(now) & np.isinf(before)
    with np.errstate(invalid="ignore"):
        ratios = now / np.maximum(before, 1e-6)
    return np.where(both, 1.0, ratios)
