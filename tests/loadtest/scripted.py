"""A target that follows a script in the loop's own time, and short ways to make samples."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from loadtest.sample import Outcome, Reply, Sample
from loadtest.target import Description
from model_repo.detections import Detections

ANSWER = Reply("answered", plan="small", stages=("small",))


@dataclass
class ScriptedTarget:
    """Answer request i after `delay_s(i)` with `reply(i)`; `sent_s` keeps when each one came in."""

    delay_s: Callable[[int], float] = lambda _: 0.0
    reply: Callable[[int], Reply] = lambda _: ANSWER
    sent_s: list[float] = field(default_factory=list)
    frames: list[bytes] = field(default_factory=list)
    asked: list[tuple[float | None, str | None]] = field(default_factory=list)
    closed: bool = False

    async def describe(self) -> Description:
        """Return two classes and two operating points."""
        return Description(("red", "green"), ("fast", "accurate"))

    async def send(self, frame: bytes, budget_ms: float | None, operating_point: str | None) -> Reply:
        """Follow the script."""
        position = len(self.sent_s)
        self.sent_s.append(asyncio.get_running_loop().time())
        self.frames.append(frame)
        self.asked.append((budget_ms, operating_point))
        await asyncio.sleep(self.delay_s(position))
        return self.reply(position)

    async def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True


def sample(
    due_ms: float,
    latency_ms: float,
    *,
    issue_delay_ms: float = 0.0,
    outcome: Outcome = "answered",
    frame: int = 0,
    plan: str | None = "small",
    stages: tuple[str, ...] = ("small",),
    detections: Detections | None = None,
    detail: str | None = None,
) -> Sample:
    """Return a sample due at `due_ms` and done `latency_ms` later."""
    reply = Reply(outcome, plan, stages, None, detections or Detections.empty(), detail)
    return Sample(
        round(due_ms * 1e6),
        round((due_ms + issue_delay_ms) * 1e6),
        round((due_ms + latency_ms) * 1e6),
        frame,
        reply,
    )
