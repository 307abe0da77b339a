"""What the gateway tells Prometheus of two sets that are compared, in series of their own.

They are there only while there is a challenger; the other series go on counting the gateway as a whole.
"""

from __future__ import annotations

from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from router.arms import ARMS, ArmName
from router.execution import Answer
from router.metrics import BUCKETS_S, DISAGREEMENTS

Ending = Literal["answered", "refused", "failed", "dropped"]
"""refused: for want of budget. dropped: frames drawn for a shadow run that load left no time for."""


class ArmMetrics:
    """The series by arm."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str) -> dict[ArmName, Counter]:
            made = Counter(f"paretogate_arm_{name}", text, ["arm"], registry=registry)
            return {arm: made.labels(arm) for arm in ARMS}

        def histogram(name: str, text: str) -> dict[ArmName, Histogram]:
            made = Histogram(f"paretogate_arm_{name}", text, ["arm"], buckets=BUCKETS_S, registry=registry)
            return {arm: made.labels(arm) for arm in ARMS}

        requests = Counter(
            "paretogate_arm_requests", "Frames by arm and by how they ended in it", ["arm", "outcome"],
            registry=registry,
        )  # fmt: skip
        self._requests = {
            (arm, ending): requests.labels(arm, ending) for arm in ARMS for ending in get_args(Ending)
        }
        self._counts = dict.fromkeys(self._requests, 0)
        self._request_s = histogram("request_seconds", "From arrival to answer; a shadow run: from its turn")
        self._service_s = histogram(
            "service_seconds", "Decoding and stages; where frames are shadowed, of those that both looked at"
        )
        self._decisions = counter("escalation_decisions", "First rules asked, on uncut answers")
        self._escalations = counter("escalations", "First rules that said go on")
        self._missed = counter("budget_missed", "Answers after their deadline")
        self._disagreement = Histogram(
            "paretogate_arm_disagreement",
            "1 - F1 of the challenger's answers against the champion's, on shadowed frames",
            buckets=DISAGREEMENTS,
            registry=registry,
        )
        self._info = Gauge(
            "paretogate_arm_info",
            "What each arm serves; always 1",
            ["arm", "manifest"],
            registry=registry,
        )
        self._manifests: dict[ArmName, str] = {}
        self.share = Gauge(
            "paretogate_challenger_share", "Of frames, drawn for the challenger; 0 while it is stopped",
            registry=registry,
        )  # fmt: skip
        self.up = Gauge(
            "paretogate_challenger_up", "0 when the challenger is stopped: its models failed, or its classes"
            " are not the champion's", registry=registry,
        )  # fmt: skip

    def serves(self, arm: ArmName, digest: str) -> None:
        """Show which manifest an arm serves from now on."""
        before = self._manifests.get(arm)
        if before is not None:
            self._info.remove(arm, before)
        self._manifests[arm] = digest[:12]
        self._info.labels(arm, digest[:12]).set(1)

    def ended(self, arm: ArmName, ending: Ending) -> None:
        """Count how a frame ended in an arm."""
        self._requests[arm, ending].inc()
        self._counts[arm, ending] += 1

    def counts(self, arm: ArmName) -> dict[str, int]:
        """Return how many frames ended how in an arm."""
        return {ending: self._counts[arm, ending] for ending in get_args(Ending)}

    def answered(self, arm: ArmName, answer: Answer) -> None:
        """Record an answer of an arm."""
        self.ended(arm, "answered")
        self._request_s[arm].observe(answer.total_ms / 1e3)
        if answer.escalated is not None:
            self._decisions[arm].inc()
            if answer.escalated:
                self._escalations[arm].inc()
        if answer.left_ms < 0:
            self._missed[arm].inc()

    def worked(self, arm: ArmName, answer: Answer) -> None:
        """Record how long a worker was at an answer."""
        stages_ms = sum(stage.latency_ms for stage in answer.stages)
        self._service_s[arm].observe((answer.decode_ms + stages_ms) / 1e3)

    def compared(self, disagreement: float) -> None:
        """Record how far two answers to one frame differ."""
        self._disagreement.observe(disagreement)
