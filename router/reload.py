"""Change without a hole: a manifest is watched, and a new set takes the old one's place between requests.

A new set is verified, loaded, warmed and, where its latencies were measured elsewhere, measured before one
request reaches it; meanwhile the old one answers. What fails on the way is refused: the old set stays, and
the next look tries again, less and less often. Requests that the old set has begun end on it.

For a while after the change the old set is kept loaded. Should the engine fall ill in that time, it takes its
place back, and the manifest that brought the trouble is not tried again until it changes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from model_repo import publish
from model_repo.codec import ManifestError
from model_repo.publish import MANIFEST, Repository, RepositoryError
from model_repo.runtime.engine import EngineError
from router.budget import Clock
from router.engines import StartupError
from router.metrics import Metrics
from router.serving import Serving

_LOG = logging.getLogger(__name__)
_LONGEST_PAUSE_S = 60.0
_Stamp = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Steps:
    """What a change is made of, given by the composition root.

    prepare: load, warm and measure a set, blocking; the second argument is the set in force, whose models
    need not be loaded again. Raises StartupError or EngineError. took_over: called when a set has come into
    force. release: let go of the models of a set that nothing needs any more.
    """

    prepare: Callable[[Repository, Serving], Serving]
    took_over: Callable[[Serving], None]
    release: Callable[[Serving], None]


class Place(Protocol):
    """Where a set is in force."""

    @property
    def serving(self) -> Serving:
        """Return the set in force."""

    @property
    def well(self) -> bool:
        """Return whether the engine answers what is asked of the set in force."""

    def change(self, serving: Serving) -> Serving:
        """Put another set in force, for requests that arrive from now on; return the one before."""


class Reloader:
    """Look at a repository's manifest now and then; lives on the event loop.

    turn: held while it looks, so that of several only one at a time loads and unloads models. poll_s: between
    looks. probation_s: how long the set before is kept to fall back to.
    """

    def __init__(
        self,
        root: Path,
        place: Place,
        steps: Steps,
        metrics: Metrics,
        clock: Clock,
        *,
        turn: asyncio.Lock,
        poll_s: float,
        probation_s: float = 30.0,
    ) -> None:
        self._root, self._place, self._steps = root, place, steps
        self._metrics, self._clock, self._turn = metrics, clock, turn
        self._poll_s, self._probation_s = poll_s, probation_s
        self._seen = _stamp(root)
        self._again_ns: int | None = None
        self._pause_s = poll_s
        self._before: tuple[Serving, int] | None = None
        self._leaving: list[Serving] = []
        self._distrusted: set[str] = set()

    async def watch(self) -> None:
        """Look every `poll_s`, until cancelled."""
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                await self.look()
            except Exception:  # noqa: BLE001 - the edge of a background task: nobody else would be told
                _LOG.exception("looking for a new set failed; the one in force goes on")
                self._metrics.reloaded("refused")

    async def look(self) -> None:
        """Take over a new set if there is one, and tend those that leave."""
        async with self._turn:
            await self._look()

    async def _look(self) -> None:
        stamp = await asyncio.to_thread(_stamp, self._root)
        due = self._again_ns is not None and self._clock.now_ns() >= self._again_ns
        if stamp != self._seen or due:
            if stamp != self._seen:
                self._seen, self._pause_s = stamp, self._poll_s
                self._distrusted.clear()
            self._again_ns = None
            await self._try()
        self._tend()

    async def _try(self) -> None:
        present = self._place.serving
        try:
            repository = await asyncio.to_thread(publish.read, self._root)
            if repository.digest == present.repository.digest or repository.digest in self._distrusted:
                return
            serving = await asyncio.to_thread(self._steps.prepare, repository, present)
        except (RepositoryError, ManifestError, StartupError, EngineError) as error:
            _LOG.error("a new set is refused, %s goes on: %s", present.repository.digest[:12], error)
            self._metrics.reloaded("refused")
            self._again_ns = self._clock.now_ns() + round(self._pause_s * 1e9)
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            return
        self._take(serving)
        self._metrics.reloaded("taken")
        _LOG.info("%s took over from %s", repository.digest[:12], present.repository.digest[:12])

    def _take(self, serving: Serving) -> None:
        if self._before is not None:
            self._leaving.append(self._before[0])
        until_ns = self._clock.now_ns() + round(self._probation_s * 1e9)
        self._before = self._place.change(serving), until_ns
        self._steps.took_over(serving)

    def _tend(self) -> None:
        """Fall back from a set on which the engine fell ill, and unload what nothing needs any more."""
        if self._before is not None:
            before, until_ns = self._before
            if not self._place.well:
                failed = self._place.change(before)
                self._steps.took_over(before)
                self._leaving.append(failed)
                self._distrusted.add(failed.repository.digest)
                self._before = None
                self._metrics.reloaded("rolled back")
                _LOG.error(
                    "the engine failed on %s: back to %s",
                    failed.repository.digest[:12],
                    before.repository.digest[:12],
                )
            elif self._clock.now_ns() >= until_ns:
                self._leaving.append(before)
                self._before = None
        for gone in [serving for serving in self._leaving if serving.inside == 0]:
            self._leaving.remove(gone)
            self._steps.release(gone)


def _stamp(root: Path) -> _Stamp | None:
    """Return what changes when a manifest is replaced; None without one."""
    try:
        found = (root / MANIFEST).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
