"""What became of one request, as the caller saw it.

Every request of a schedule ends in exactly one outcome:

  answered    detections came back, in time or late
  shed        the gateway refused it because of its load; later it might have been answered
  dropped     a newer frame of its stream took its place
  rejected    the gateway called the request at fault: malformed, or a budget that nothing can meet
  failed      the gateway or the connection broke
  timed_out   no answer within the generator's own limit
  unsent      the generator had too many requests open and did not send it (the run says nothing then)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from model_repo.detections import Detections

Outcome = Literal["answered", "shed", "dropped", "rejected", "failed", "timed_out", "unsent"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
_NS_PER_MS = 1e6


@dataclass(frozen=True, slots=True)
class Reply:
    """What a target makes of one request; `detail` says why there is no answer."""

    outcome: Outcome
    plan: str | None = None
    stages: tuple[str, ...] = ()
    cut: str | None = None
    detections: Detections = field(default_factory=Detections.empty)
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One request of a run: when it was due, sent and done (ns from the start), and the reply to it.

    `frame` is the position of the frame that was sent. Raises ValueError when the times run backwards.
    """

    scheduled_ns: int
    sent_ns: int
    done_ns: int
    frame: int
    reply: Reply

    def __post_init__(self) -> None:
        if not self.scheduled_ns <= self.sent_ns <= self.done_ns:
            raise ValueError(
                f"times run backwards: due {self.scheduled_ns}, sent {self.sent_ns}, done {self.done_ns}"
            )

    @property
    def latency_ms(self) -> float:
        """Return the latency that counts: from the moment it was due, whoever caused the delay."""
        return (self.done_ns - self.scheduled_ns) / _NS_PER_MS

    @property
    def service_ms(self) -> float:
        """Return the latency from the moment it was sent."""
        return (self.done_ns - self.sent_ns) / _NS_PER_MS

    @property
    def issue_delay_ms(self) -> float:
        """Return how late the generator sent it: its own fault, never the gateway's."""
        return (self.sent_ns - self.scheduled_ns) / _NS_PER_MS

    @property
    def answered(self) -> bool:
        """Return whether detections came back."""
        return self.reply.outcome == "answered"

    def met(self, budget_ms: float) -> bool:
        """Return whether it was answered within `budget_ms` of the moment it was due."""
        return self.answered and self.latency_ms <= budget_ms
