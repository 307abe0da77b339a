"""What a gateway's documents become as replies, over whichever protocol they came."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from loadtest.sample import Outcome, Reply
from loadtest.target import Description, TargetError
from model_repo.detections import Detections
from router.client import AsyncGatewayClient, GatewayError, GatewayOverloaded, RequestRejected
from router.client.errors import URN, error_for
from router.documents import ProblemDocument

# How the client says that a call's deadline passed before any answer came.
_DEADLINE_PASSED = "grpc-deadline-exceeded"
Json = Any  # Any: a JSON document from outside


async def ask_what_is_served(http: AsyncGatewayClient, url: str) -> Description:
    """Return classes and operating points; raises TargetError when the gateway does not answer."""
    try:
        points = await http.operating_points()
    except GatewayError as error:
        raise TargetError(f"{url}: {error}") from error
    return Description(tuple(points.classes), tuple(point.name for point in points.operating_points))


def answered(document: Json) -> Reply:
    """Return the reply that an answer in JSON is, unchecked: checking costs a core at some hundred a second.

    Raises KeyError or TypeError when it is no answer.
    """
    found, cut = document["detections"], document["cut"]
    return Reply(
        "answered",
        plan=document["plan"],
        stages=tuple(stage["variant"] for stage in document["stages"]),
        cut=None if cut is None else f"{cut['stage']}: {cut['reason']}",
        detections=Detections.make(
            [(b["x1"], b["y1"], b["x2"], b["y2"]) for b in (each["box"] for each in found)],
            [each["score"] for each in found],
            [each["class_id"] for each in found],
        ),
    )


def refused(status: int, content: bytes) -> Reply:
    """Return the reply that a status other than 200 is, with the problem it came with."""
    try:
        problem = ProblemDocument.model_validate_json(content)
    except ValidationError:
        # Something between here and the gateway answered.
        problem = ProblemDocument(
            type=f"{URN}http-{status}", title=f"HTTP status {status}", status=status, detail=""
        )
    return failed(error_for(problem))


def failed(error: GatewayError) -> Reply:
    """Return the reply that an error of the gateway or the connection is."""
    outcome = _outcome(error)
    late = outcome == "timed_out"
    return Reply(outcome, detail="The call's deadline passed" if late else error.problem.title)


def _outcome(error: GatewayError) -> Outcome:
    if isinstance(error, GatewayOverloaded):
        return "shed"
    if isinstance(error, RequestRejected):
        return "rejected"
    return "timed_out" if error.slug == _DEADLINE_PASSED else "failed"
