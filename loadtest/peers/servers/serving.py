"""What a peer serves, handed over in the environment.

Some of these servers are started by commands that take no arguments of ours, and start others themselves.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

REPO, MODEL, ESCALATE_TO, THRESHOLD, MIN_SCORE = (
    f"PARETOGATE_PEER_{name}" for name in ("REPO", "MODEL", "ESCALATE_TO", "THRESHOLD", "MIN_SCORE")
)
HTTP_PORT, GRPC_PORT = "PARETOGATE_PEER_HTTP_PORT", "PARETOGATE_PEER_GRPC_PORT"


@dataclass(frozen=True, slots=True)
class Serving:
    """What a peer serves.

    model: a variant's name. escalate_to: a second variant, asked when no detection of the first scores
    `threshold` (raw) or more; it then answers alone. min_score: detections that the gateway would leave out
    of its answers are left out here as well, before they are compared with each other.
    """

    repo: Path
    model: str
    escalate_to: str | None
    threshold: float
    min_score: float

    @classmethod
    def from_environment(cls) -> Serving:
        """Read what the load test has put there; raises KeyError naming what is missing."""
        return cls(
            Path(os.environ[REPO]),
            os.environ[MODEL],
            os.environ.get(ESCALATE_TO),
            float(os.environ.get(THRESHOLD, "0")),
            float(os.environ.get(MIN_SCORE, "0")),
        )

    def to_environment(self) -> dict[str, str]:
        """Return the variables that `from_environment` reads."""
        variables = {
            REPO: str(self.repo.resolve()),
            MODEL: self.model,
            THRESHOLD: str(self.threshold),
            MIN_SCORE: str(self.min_score),
        }
        if self.escalate_to is not None:
            variables[ESCALATE_TO] = self.escalate_to
        return variables


def http_port() -> int:
    """Return the port of 127.0.0.1 to listen on."""
    return int(os.environ[HTTP_PORT])
