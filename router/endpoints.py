"""Several servers as one engine: the least busy of those that are well, with retries and circuits.

A call goes to the endpoint with the fewest calls in flight. If that one does not run it, another is asked,
as long as time is left. An endpoint that fails `failures_allowed` times in a row is left alone (its circuit
is open) for a pause that doubles from trial to trial; a trial is one call that is given at most half of its
time where others could still answer it. One success and the circuit is closed.

An endpoint that was away may have come back without its models, so they are asked for again before the first
call. Calls come from many threads; the lock guards the book-keeping and is never held during a call.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_repo.frontier import Variant
from model_repo.latency import RuntimeName
from model_repo.runtime.engine import (
    Engine,
    EngineBusy,
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    Inference,
    Tensors,
    UnknownVariant,
)


@dataclass(slots=True)
class _Endpoint:
    name: str
    engine: Engine
    loaded: set[str] = field(default_factory=set)
    in_flight: int = 0
    failures: int = 0
    closed_again_s: float = 0.0
    pause_s: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True)
class EndpointState:
    """An endpoint as metrics show it."""

    name: str
    well: bool
    in_flight: int


class Endpoints:
    """Engines of one runtime, by name, used as one.

    failures_allowed: in a row, before an endpoint is left alone. pause_s, longest_pause_s: for how long, at
    first and at most.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        *,
        failures_allowed: int = 3,
        pause_s: float = 0.25,
        longest_pause_s: float = 8.0,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        if not engines:
            raise ValueError("at least one endpoint is needed")
        runtimes = {engine.runtime for engine in engines.values()}
        if len(runtimes) != 1:
            raise ValueError(f"endpoints of one runtime are needed, got {sorted(runtimes)}")
        self._endpoints = [_Endpoint(name, engine) for name, engine in engines.items()]
        self._allowed, self._first_pause_s, self._longest_s = failures_allowed, pause_s, longest_pause_s
        self._now_s = now_s
        self._wanted: dict[str, tuple[Path, Variant]] = {}
        self._lock = threading.Lock()

    @property
    def runtime(self) -> RuntimeName:
        """Return the runtime's name as the manifest spells it."""
        return self._endpoints[0].engine.runtime

    @property
    def version(self) -> str:
        """Return the version of the first endpoint that tells it; raises EngineUnavailable when none does."""
        for endpoint in self._endpoints:
            try:
                return endpoint.engine.version
            except EngineUnavailable as error:
                endpoint.error = str(error)
        raise self._none_is_well()

    @property
    def device(self) -> str:
        """Return what computes behind the endpoints: a latency measured on one of them is none of all."""
        return "; ".join(dict.fromkeys(endpoint.engine.device for endpoint in self._endpoints))

    @property
    def parallelism(self) -> int:
        """Return how many inferences may usefully run at once, on all endpoints together."""
        return sum(endpoint.engine.parallelism for endpoint in self._endpoints)

    def states(self) -> tuple[EndpointState, ...]:
        """Return how the endpoints are."""
        with self._lock:
            return tuple(EndpointState(one.name, self._well(one), one.in_flight) for one in self._endpoints)

    def load(self, root: Path, variant: Variant) -> None:
        """Make a variant ready on every endpoint that answers; the others get it when they come back.

        Raises EngineUnavailable when none has it.
        """
        self._wanted[variant.folder] = root, variant
        loaded = 0
        for endpoint in self._endpoints:
            try:
                self._load(endpoint, root, variant)
                loaded += 1
            except EngineError as error:
                self._failed(endpoint, error)
        if not loaded:
            del self._wanted[variant.folder]
            raise self._none_is_well()

    def unload(self, variant: Variant) -> None:
        """Forget a variant."""
        self._wanted.pop(variant.folder, None)
        for endpoint in self._endpoints:
            endpoint.loaded.discard(variant.folder)
            endpoint.engine.unload(variant)

    def infer(
        self,
        variant: Variant,
        frames: NDArray[np.uint8],
        *,
        done: Mapping[str, Tensors] | None = None,
        timeout_s: float | None = None,
    ) -> Inference:
        """Run a variant on the least busy endpoint, and on others if that fails.

        Raises UnknownVariant, EngineTimeout when the time is up, EngineUnavailable when no endpoint ran it
        (EngineBusy when one was only too busy), ValueError on a wrong shape or type.
        """
        if variant.folder not in self._wanted:
            raise UnknownVariant(f"{variant.name!r} is not loaded on any endpoint")
        ends_s = None if timeout_s is None else self._now_s() + timeout_s
        tried: set[str] = set()
        busy: EngineBusy | None = None
        while True:
            endpoint, others = self._take(tried)
            if endpoint is None:
                raise busy or self._none_is_well()
            tried.add(endpoint.name)
            try:
                left_s = None if ends_s is None else ends_s - self._now_s()
                if left_s is not None and left_s <= 0:
                    raise EngineTimeout(f"no time was left for {variant.name!r}")
                if others and left_s is not None and not self._well(endpoint):
                    left_s /= 2
                inference = self._run(endpoint, variant, frames, done, left_s)
            except EngineBusy as error:
                # It answers: nothing is held against it, and its models are still there.
                busy = error
            except EngineTimeout as error:
                self._failed(endpoint, error)
                if ends_s is not None and self._now_s() >= ends_s:
                    raise
            except EngineError as error:
                self._failed(endpoint, error)
            else:
                with self._lock:
                    endpoint.failures, endpoint.pause_s = 0, 0.0
                return inference
            finally:
                with self._lock:
                    endpoint.in_flight -= 1

    def close(self) -> None:
        """Let go of every endpoint."""
        for endpoint in self._endpoints:
            endpoint.engine.close()

    def _run(
        self,
        endpoint: _Endpoint,
        variant: Variant,
        frames: NDArray[np.uint8],
        done: Mapping[str, Tensors] | None,
        timeout_s: float | None,
    ) -> Inference:
        """Run a call on one endpoint, which is given the model first where it has lost it."""
        if variant.folder not in endpoint.loaded:
            self._load(endpoint, *self._wanted[variant.folder])
        try:
            return endpoint.engine.infer(variant, frames, done=done, timeout_s=timeout_s)
        except UnknownVariant:
            self._load(endpoint, *self._wanted[variant.folder])
            return endpoint.engine.infer(variant, frames, done=done, timeout_s=timeout_s)

    def _load(self, endpoint: _Endpoint, root: Path, variant: Variant) -> None:
        endpoint.loaded.discard(variant.folder)
        endpoint.engine.load(root, variant)
        endpoint.loaded.add(variant.folder)

    def _take(self, tried: set[str]) -> tuple[_Endpoint | None, bool]:
        """Choose an endpoint that was not tried and count the call as its own; say whether others are left.

        One whose pause is over goes first, or it would never be tried while others are idle.
        """
        with self._lock:
            now_s = self._now_s()
            left = [one for one in self._endpoints if one.name not in tried]
            well = [one for one in left if self._well(one)]
            due = [one for one in left if not self._well(one) and now_s >= one.closed_again_s]
            chosen = due[0] if due else min(well, key=lambda one: one.in_flight, default=None)
            if chosen is None:
                return None, False
            if due:
                # Nobody else tries it meanwhile.
                chosen.closed_again_s = now_s + max(chosen.pause_s, self._first_pause_s)
            chosen.in_flight += 1
            return chosen, bool(well)

    def _failed(self, endpoint: _Endpoint, error: EngineError) -> None:
        with self._lock:
            endpoint.failures += 1
            endpoint.error = str(error)
            if not isinstance(error, EngineTimeout):
                endpoint.loaded.clear()
            if not self._well(endpoint):
                doubled_s = 2 * endpoint.pause_s if endpoint.pause_s else self._first_pause_s
                endpoint.pause_s = min(doubled_s, self._longest_s)
                endpoint.closed_again_s = self._now_s() + endpoint.pause_s

    def _well(self, endpoint: _Endpoint) -> bool:
        return endpoint.failures < self._allowed

    def _none_is_well(self) -> EngineUnavailable:
        reasons = "; ".join(f"{one.name}: {one.error or 'left alone for now'}" for one in self._endpoints)
        return EngineUnavailable(f"no endpoint answers: {reasons}")
