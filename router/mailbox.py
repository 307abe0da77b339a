"""From worker threads to the event loop.

`call_soon_threadsafe` wakes the loop's thread while the caller still holds the interpreter's lock, so that
it wakes only to wait for the one who woke it. A byte through a socket is sent with the lock let go: the loop
goes on at once, which on a core that both share saves two switches between threads for every frame.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable

Letter = Callable[[], None]
_BYTES = 4096


class Mailbox:
    """Have an event loop call what other threads post, in order; made on that loop."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._letters: deque[Letter] = deque()
        self._closed = False
        self._bell, self._heard = socket.socketpair()
        for end in (self._bell, self._heard):
            end.setblocking(False)
        self.loop.add_reader(self._heard, self._ring)

    def post(self, letter: Letter) -> None:
        """Have the loop call `letter`; from any thread. Does nothing after `close`."""
        self._letters.append(letter)
        try:
            self._bell.send(b"\0")
        except OSError:
            # Full, and so it rings already; or closed, and nobody waits any more.
            return

    def close(self) -> None:
        """Deliver what has been posted and stop; from any thread, for a loop that may be closed already."""
        if self._closed:
            return
        self._closed = True
        try:
            self.loop.call_soon_threadsafe(self._end)
        except RuntimeError:
            self._bell.close()
            self._heard.close()

    def _ring(self) -> None:
        self._heard.recv(_BYTES)
        self._deliver()

    def _end(self) -> None:
        self.loop.remove_reader(self._heard)
        self._deliver()
        self._bell.close()
        self._heard.close()

    def _deliver(self) -> None:
        while self._letters:
            letter = self._letters.popleft()
            try:
                letter()
            except Exception as error:  # noqa: BLE001 - as a callback of the loop: the others are delivered
                told = {"message": "a letter could not be delivered", "exception": error}
                self.loop.call_exception_handler(told)
