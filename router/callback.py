"""Results to an HTTP address: of every stream the newest, and never waited for.

A result waits while the ones before it are being posted, and a newer one of its stream takes its place: a
slow receiver gets fewer results, none that is old, and holds nobody up. Nothing is posted twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

import httpx

from router.metrics import TellFate

_LOG = logging.getLogger(__name__)
_POSTERS = 4
_MOST_WAITING = 256
_TIMEOUT_S = 5.0
_JSON = {"Content-Type": "application/json"}


class Callback:
    """Post results; lives on the event loop. Made by `posting`."""

    def __init__(self, url: str, http: httpx.AsyncClient, count: Callable[[TellFate], None]) -> None:
        self._url, self._http, self._count = url, http, count
        self._waiting: dict[str, bytes] = {}
        # Streams with something waiting, each once: a busy one does not hold back the others.
        self._line: asyncio.Queue[str] = asyncio.Queue()
        self._well = True

    def tell(self, stream: str, body: bytes) -> None:
        """Have a result of a stream posted, JSON; the one that waits is dropped."""
        if stream in self._waiting:
            self._count("superseded")
        elif len(self._waiting) == _MOST_WAITING:
            self._count("failed")
            return
        else:
            self._line.put_nowait(stream)
        self._waiting[stream] = body

    async def post(self) -> None:
        """Post what there is to post, one after another, until cancelled."""
        while True:
            body = self._waiting.pop(await self._line.get())
            try:
                response = await self._http.post(self._url, content=body, headers=_JSON)
                failure = None if response.is_success else f"status {response.status_code}"
            except Exception as error:  # noqa: BLE001 - the edge of a task: the next result may go through
                failure = str(error) or type(error).__name__
            self._count("sent" if failure is None else "failed")
            self._show(failure)
            self._line.task_done()

    async def finished(self) -> None:
        """Wait until all that waits has been posted."""
        await self._line.join()

    def _show(self, failure: str | None) -> None:
        """Log what is new: a line for every result would be one for every frame."""
        if (failure is None) != self._well:
            self._well = failure is None
            _LOG.log(
                logging.INFO if self._well else logging.WARNING,
                "results to %s: %s", self._url, failure or "received again",
            )  # fmt: skip


@contextlib.asynccontextmanager
async def posting(
    url: str,
    count: Callable[[TellFate], None],
    *,
    drain_s: float,
    transport: httpx.AsyncBaseTransport | None = None,
) -> AsyncIterator[Callback]:
    """Run a callback; on leaving, what waits is posted for up to `drain_s`. count: told of every result."""
    limits = httpx.Limits(max_connections=_POSTERS)
    async with httpx.AsyncClient(timeout=_TIMEOUT_S, limits=limits, transport=transport) as http:
        callback = Callback(url, http, count)
        posters = [asyncio.create_task(callback.post()) for _ in range(_POSTERS)]
        try:
            yield callback
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(callback.finished(), drain_s)
        finally:
            for poster in posters:
                poster.cancel()
            await asyncio.gather(*posters, return_exceptions=True)
