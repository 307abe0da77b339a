"""What the generator needs of the thing under load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from loadtest.sample import Reply


class TargetError(Exception):
    """The target cannot be put under load at all: it is not there, or it is not what was asked for."""


@dataclass(frozen=True, slots=True)
class Description:
    """What a gateway says of itself: the classes its labels come from, and its operating points by name."""

    classes: tuple[str, ...]
    operating_points: tuple[str, ...]


class Target(Protocol):
    """A gateway that answers frames."""

    async def describe(self) -> Description:
        """Return what it serves; raises TargetError when it does not answer or does not serve."""

    async def send(self, frame: bytes, budget_ms: float | None, operating_point: str | None) -> Reply:
        """Send one encoded frame and wait; whatever the gateway or the wire does is a Reply, not an error."""

    async def close(self) -> None:
        """Close the connections."""
