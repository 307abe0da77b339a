"""Latency of a subnet without running it: a physical model fitted to a few measured ones.

A convolutional network's time is close to a sum: multiply-accumulates at each stage's efficiency, bytes
moved, and a fixed price per layer and per frame. So the estimate is a linear function with non-negative
coefficients of these amounts, fitted to the *relative* error. A few dozen measured subnets determine it.

The measured latencies are kept as a table, which a later search can be given instead of measuring again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt, ValidationError
from scipy.optimize import nnls

from model_repo.latency import Environment, Precision, RuntimeName
from model_repo.value import Value
from search.run_folder import RunError
from search.space import LEVEL_STRIDES, STAGES, Architecture, Space

# Keeps the fit determined when two amounts grow together; small against any real coefficient's effect.
_RIDGE = 1e-3
# Kernels compute channels in blocks of a vector register: 24 channels cost what 32 do. On 24 measured int8
# subnets, OpenVINO with AVX-512, this halves the error of a left-out one: 7.1 to 3.2 %; blocks of 32, 9.2 %.
_BLOCK = 16


class MeasuredLatency(Value):
    """One subnet's measured latency: the median over frames, resize and NMS included."""

    architecture: str
    p50_ms: PositiveFloat


class LatencyTable(Value):
    """Measured latencies of some subnets on one machine, runtime and precision."""

    runtime: RuntimeName
    precision: Precision
    threads: PositiveInt
    aspect: tuple[PositiveInt, PositiveInt]
    environment: Environment
    measured: Annotated[tuple[MeasuredLatency, ...], Field(min_length=2)]

    @classmethod
    def parse(cls, text: str, source: str) -> LatencyTable:
        """Read a table; raises RunError that names `source` and the fields."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            fields = "; ".join(
                f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()
            )
            raise RunError(f"{source}: not a latency table: {fields}") from error


def read_table(path: Path) -> LatencyTable:
    """Read a table's file; raises RunError that names it and the fields."""
    return LatencyTable.parse(path.read_text(), str(path))


class PredictorError(Value):
    """How far estimates are off on subnets left out of the fit, relative; and how well they rank them."""

    subnets: PositiveInt
    mean_relative: Annotated[float, Field(ge=0.0)]
    worst_relative: Annotated[float, Field(ge=0.0)]
    rank_correlation: Annotated[float, Field(ge=-1.0, le=1.0)]


class LatencyModel:
    """Estimate subnets' latency in milliseconds; measured subnets answer with their measurement."""

    def __init__(self, space: Space, table: LatencyTable) -> None:
        self._space = space
        self._measured = {row.architecture: row.p50_ms for row in table.measured}
        amounts_, ms = _rows(space, table)
        self._coefficients = _fit(amounts_, ms)

    def __call__(self, architecture: Architecture) -> float:
        """Return the latency in milliseconds."""
        known = self._measured.get(architecture.name)
        return known if known is not None else self.estimate(architecture)

    def estimate(self, architecture: Architecture) -> float:
        """Return the fitted latency in milliseconds, measured or not."""
        return max(float(amounts(self._space, architecture) @ self._coefficients), 1e-3)


def held_out_error(space: Space, table: LatencyTable) -> PredictorError:
    """Return the error of estimating each measured subnet from all the others."""
    rows, ms = _rows(space, table)
    estimates = np.array(
        [rows[i] @ _fit(np.delete(rows, i, axis=0), np.delete(ms, i)) for i in range(len(ms))]
    )
    return error_of(estimates, ms)


def error_of(estimates_ms: NDArray[np.float64], measured_ms: NDArray[np.float64]) -> PredictorError:
    """Return how far estimates [n] are off what was measured [n]."""
    from scipy.stats import spearmanr

    relative = np.abs(estimates_ms / measured_ms - 1)
    correlation = float(spearmanr(estimates_ms, measured_ms).statistic) if len(measured_ms) > 2 else 1.0
    return PredictorError(
        subnets=len(measured_ms),
        mean_relative=float(relative.mean()),
        worst_relative=float(relative.max()),
        rank_correlation=float(np.nan_to_num(correlation)),
    )


def subnets_to_measure(space: Space, count: int, seed: int) -> list[Architecture]:
    """Return distinct subnets that determine the fit: the ends, and draws whose genes vary independently."""
    rng = np.random.default_rng([seed, 0x1A7])
    chosen = dict.fromkeys([space.smallest, space.largest])
    for _ in range(50 * count):
        if len(chosen) >= min(count, space.size()):
            break
        chosen[space.sample(rng)] = None
    return list(chosen)


def amounts(space: Space, architecture: Architecture) -> NDArray[np.float64]:
    """Return what a subnet's time is made of, float64 [amounts]: see the comments for each one's unit."""
    width, height = space.resolution_wh(architecture)
    pixels = width * height
    macs = dict.fromkeys(("stem", *range(STAGES), "neck", "predict"), 0.0)
    moved = layers = 0.0

    def conv(part: str | int, inputs: int, outputs: int, kernel: int, stride: int, copies: int = 1) -> None:
        nonlocal moved, layers
        cells = pixels / stride**2
        macs[part] += copies * _blocks(inputs) * _blocks(outputs) * kernel**2 * cells
        moved += copies * _blocks(outputs) * cells
        layers += copies

    conv("stem", 3, space.stem_width, 3, 2)
    channels = space.stem_width
    for k, (depth, stage_width) in enumerate(zip(architecture.depths, architecture.widths, strict=True)):
        conv(k, channels, stage_width, 3, 4 << k)
        conv(k, stage_width, stage_width, 3, 4 << k, copies=depth - 1)
        channels = stage_width
    neck = architecture.neck_width
    for stage_width, stride in zip(architecture.widths[1:], LEVEL_STRIDES, strict=True):
        conv("predict", stage_width, neck, 1, stride)
        conv("neck", neck, neck, 3, stride, copies=2 * architecture.head_depth)
        conv("predict", neck, space.classes, 1, stride)
        conv("predict", neck, 4, 1, stride)
    for stride in (8, 16, 16, 16, 32, 32):
        conv("neck", neck, neck, 3, stride)
    anchors = sum(pixels / stride**2 for stride in LEVEL_STRIDES)
    return np.array(
        [
            1.0,  # calls, copies, suppression
            layers,
            pixels * 1e-6,  # letterbox and the cast of pixels
            *(1e-9 * value for value in macs.values()),  # multiply-accumulates, in 10^9
            moved * 1e-6,  # millions of numbers that layers write
            anchors * space.classes * 1e-6,  # scores that the peak filter and the top 100 look at
        ]
    )


def _blocks(channels: int) -> int:
    return -(-channels // _BLOCK) * _BLOCK


def _rows(space: Space, table: LatencyTable) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if table.aspect != space.aspect:
        raise RunError(
            f"the latency table is for frames of aspect {table.aspect}, the data set has {space.aspect}"
        )
    known = [(Architecture.parse(row.architecture), row.p50_ms) for row in table.measured]
    rows = np.array([amounts(space, architecture) for architecture, _ in known])
    return rows, np.array([ms for _, ms in known])


def _fit(rows: NDArray[np.float64], ms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return non-negative coefficients that minimize the relative error."""
    relative = rows / ms[:, None]
    scale = np.linalg.norm(relative, axis=0)
    scale[scale == 0] = 1.0
    ridge = np.sqrt(_RIDGE) * np.eye(len(scale))
    system = np.vstack((relative / scale, ridge))
    solution, _ = nnls(system, np.concatenate((np.ones(len(ms)), np.zeros(len(scale)))))
    return np.asarray(solution / scale)
