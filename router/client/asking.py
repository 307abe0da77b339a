"""What a request may ask for beside its frame, and how long a client goes on asking."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TypedDict

from router.budget import BUDGET_HEADER
from router.client.errors import GatewayError, GatewayFailed, GatewayOverloaded
from router.documents import AnswerDocument
from router.wishes import (
    ACCURACY_HEADER,
    POINT_HEADER,
    PRIORITY_HEADER,
    SCORE_HEADER,
    SESSION_HEADER,
    Priority,
)

_FIRST_WAIT_S = 0.05


class Asked(TypedDict, total=False):
    """What `detect` takes by name; what is left out, or None, is the gateway's choice.

    budget_ms: milliseconds until an answer is worth nothing, retries included. operating_point: a published
    name. min_accuracy: the least published mAP, 0 to 1. min_score: of detections in the answer. request_id:
    echoed. session_id: the same for frames that are to be answered by the same set while two are compared.
    """

    budget_ms: float | None
    operating_point: str | None
    min_accuracy: float | None
    priority: Priority | None
    min_score: float | None
    request_id: str | None
    session_id: str | None


def wishes_of(asked: Asked) -> dict[str, str]:
    """Return the headers of wishes that have no field of their own over gRPC."""
    accuracy, score = asked.get("min_accuracy"), asked.get("min_score")
    said = {
        ACCURACY_HEADER: None if accuracy is None else f"{accuracy:.6f}",
        PRIORITY_HEADER: asked.get("priority"),
        SCORE_HEADER: None if score is None else f"{score:.6f}",
        SESSION_HEADER: asked.get("session_id"),
    }
    return {name: value for name, value in said.items() if value is not None}


def headers_of(asked: Asked, budget_ms: float | None) -> Mapping[str, str]:
    """Return the headers of a request with so much left of its budget."""
    headers = {"Content-Type": "application/octet-stream", **wishes_of(asked)}
    if budget_ms is not None:
        headers[BUDGET_HEADER] = f"{budget_ms:.3f}"
    for header, value in (
        (POINT_HEADER, asked.get("operating_point")),
        ("X-Request-Id", asked.get("request_id")),
    ):
        if value is not None:
            headers[header] = value
    return headers


class Patience:
    """How long one frame is asked for again: up to `retries` times, and never beyond its budget.

    Only what may succeed later is asked again: overload, when the gateway says that it should have passed,
    and failures of the gateway or the connection, after waits that double from 50 ms. What is asked again is
    told what is left of the budget.
    """

    def __init__(
        self, retries: int, budget_ms: float | None, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._left, self._budget_ms, self._clock_s = retries, budget_ms, clock_s
        self._began_s, self._next_s = clock_s(), _FIRST_WAIT_S

    @property
    def budget_ms(self) -> float | None:
        """Return what is left of the budget, None without one."""
        if self._budget_ms is None:
            return None
        return self._budget_ms - (self._clock_s() - self._began_s) * 1e3

    def wait_s(self, error: GatewayError) -> float | None:
        """Return how long to wait before asking again, None to give up."""
        if self._left <= 0 or not isinstance(error, GatewayOverloaded | GatewayFailed):
            return None
        if isinstance(error, GatewayFailed) and error.problem.status not in (0, 502, 503, 504):
            return None
        wait_s = error.problem.retry_after_s
        if wait_s is None:
            wait_s, self._next_s = self._next_s, self._next_s * 2
        left_ms = self.budget_ms
        if left_ms is not None and wait_s * 1e3 >= left_ms:
            return None
        self._left -= 1
        return wait_s


def waiting(ask: Callable[[float | None], AnswerDocument], patience: Patience) -> AnswerDocument:
    """Ask until there is an answer or patience ends; `ask` is told the budget left. Raises GatewayError."""
    while True:
        try:
            return ask(patience.budget_ms)
        except GatewayError as error:
            wait_s = patience.wait_s(error)
            if wait_s is None:
                raise
        time.sleep(wait_s)


async def waiting_async(
    ask: Callable[[float | None], Awaitable[AnswerDocument]], patience: Patience
) -> AnswerDocument:
    """Do what `waiting` does on an event loop."""
    while True:
        try:
            return await ask(patience.budget_ms)
        except GatewayError as error:
            wait_s = patience.wait_s(error)
            if wait_s is None:
                raise
        await asyncio.sleep(wait_s)
