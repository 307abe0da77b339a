"""Results to an HTTP address: the newest of every stream, and never waited for."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial

import httpx
import pytest

from router.callback import posting
from tests.router.test_service import until

pytestmark = pytest.mark.anyio
URL = "http://receiver/results"


class Receiver(httpx.AsyncBaseTransport):
    """An HTTP server that answers with a status once it is opened."""

    def __init__(self, status: int = 204, *, opened: bool = True) -> None:
        self.status, self.got = status, list[str]()
        self.opened = asyncio.Event()
        if opened:
            self.opened.set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Keep what was posted."""
        assert request.headers["content-type"] == "application/json"
        self.got.append((await request.aread()).decode())
        await self.opened.wait()
        if self.status == 0:
            raise httpx.ConnectError("refused")
        return httpx.Response(self.status)


def holds(got: list[str], count: int) -> bool:
    return len(got) == count


def counted(told: Counter[str], fate: str, count: int) -> bool:
    return told[fate] == count


async def test_a_slow_receiver_gets_the_newest_of_every_stream() -> None:
    """While four are being posted one of each stream waits; older ones are dropped, and nobody is held up."""
    receiver, told = Receiver(opened=False), Counter[str]()
    async with posting(URL, lambda fate: told.update([fate]), drain_s=30, transport=receiver) as callback:
        for number in range(4):
            callback.tell("busy", b"busy %d" % number)
            await until(partial(holds, receiver.got, number + 1))
        for number in range(4, 9):
            callback.tell("busy", b"busy %d" % number)
        callback.tell("calm", b"calm 0")
        receiver.opened.set()
    assert receiver.got == ["busy 0", "busy 1", "busy 2", "busy 3", "busy 8", "calm 0"]
    assert told == {"superseded": 4, "sent": 6}


@pytest.mark.parametrize("status", [0, 302, 500])
async def test_what_is_not_taken_is_counted_and_said_once(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A receiver that is away, redirects or fails costs its results alone: one line at both ends."""
    caplog.set_level("INFO", "router.callback")
    receiver, told = Receiver(status), Counter[str]()
    async with posting(URL, lambda fate: told.update([fate]), drain_s=30, transport=receiver) as callback:
        for number in range(3):
            callback.tell("camera", b"%d" % number)
            await until(partial(counted, told, "failed", number + 1))
        receiver.status = 200
        for number in range(3):
            callback.tell("camera", b"%d" % number)
            await until(partial(counted, told, "sent", number + 1))
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert URL in caplog.text


async def test_nobody_waits_for_a_receiver_that_hangs() -> None:
    """When the gateway stops, for as long as it drains and no longer."""
    receiver, told = Receiver(opened=False), Counter[str]()
    async with posting(URL, lambda fate: told.update([fate]), drain_s=0.01, transport=receiver) as callback:
        callback.tell("camera", b"0")
        await until(lambda: len(receiver.got) == 1)
    assert told == {}


async def test_only_so_many_results_wait() -> None:
    """More streams than that at once are told nothing."""
    receiver, told = Receiver(opened=False), Counter[str]()
    async with posting(URL, lambda fate: told.update([fate]), drain_s=0.01, transport=receiver) as callback:
        for number in range(300):
            callback.tell(f"camera {number}", b"{}")
        assert told == {"failed": 44}


async def test_what_nobody_expected_does_not_end_the_posting() -> None:
    """It is counted as failed, and what comes later is posted."""

    class Torn(Receiver):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if (await request.aread()).startswith(b"torn"):
                raise ValueError("torn")
            return await super().handle_async_request(request)

    receiver, told = Torn(), Counter[str]()
    async with posting(URL, lambda fate: told.update([fate]), drain_s=30, transport=receiver) as callback:
        for number in range(8):
            callback.tell("s", b"torn %d" % number)
            await until(partial(counted, told, "failed", number + 1))
        callback.tell("s", b"whole")
    assert (receiver.got, told) == (["whole"], {"failed": 8, "sent": 1})
