"""Virtual time: an event loop whose clock jumps to the next timer instead of waiting for it."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest

T = TypeVar("T")
# Any: what a coroutine yields and takes is asyncio's own business.
RunVirtually = Callable[[Coroutine[Any, Any, T]], T]


class _JumpingSelector(selectors.SelectSelector):
    """Give the loop its ready files at once; where it would have waited, let that much time pass.

    A round of the loop takes a microsecond, or whoever asks for the time until it has come never ends.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 100.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0.0)
        if not ready and timeout is not None:
            self.now_s += max(timeout, 1e-6)
        return ready


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=_VirtualLoop) as runner:
        return runner.run(coroutine)


@pytest.fixture
def run_virtually() -> RunVirtually[Any]:
    """Run a coroutine on a loop where sleeping takes no time."""
    return _run
