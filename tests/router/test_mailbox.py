"""What other threads post, the event loop calls."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from router.mailbox import Mailbox
from tests.router.test_service import until

pytestmark = pytest.mark.anyio


async def test_letters_are_called_on_the_loop_in_order() -> None:
    """However many there are, more than the bell can hold among them."""
    mailbox = Mailbox()
    got: list[tuple[int, int]] = []

    def letter(number: int) -> None:
        got.append((number, threading.get_ident()))

    def post() -> None:
        for number in range(50_000):
            mailbox.post(lambda number=number: letter(number))  # type: ignore[misc]

    thread = threading.Thread(target=post)
    thread.start()
    # The loop stands still meanwhile, so that nobody empties the bell.
    thread.join()
    await until(lambda: len(got) == 50_000)
    assert got == [(number, threading.get_ident()) for number in range(50_000)]
    mailbox.close()


async def test_a_letter_that_fails_does_not_hold_up_the_next() -> None:
    """The loop's handler of exceptions is told."""
    mailbox = Mailbox()
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    got: list[int] = []

    def fail() -> None:
        raise ValueError("torn")

    mailbox.post(fail)
    mailbox.post(lambda: got.append(1))
    await until(lambda: got == [1])
    assert [str(context["exception"]) for context in told] == ["torn"]
    mailbox.close()


async def test_what_was_posted_before_it_is_closed_is_delivered() -> None:
    """What comes later is not, and harms nobody."""
    mailbox = Mailbox()
    got: list[int] = []
    mailbox.post(lambda: got.append(1))
    mailbox.close()
    await until(lambda: got == [1])
    mailbox.post(lambda: got.append(2))
    await asyncio.sleep(0.01)
    assert got == [1]


def test_it_may_outlive_its_loop() -> None:
    """A process that ends closes its loop first."""
    loop = asyncio.new_event_loop()

    async def make() -> Mailbox:
        return Mailbox()

    mailbox = loop.run_until_complete(make())
    loop.close()
    mailbox.post(lambda: None)
    mailbox.close()
