"""The one mapping of the gateway's errors to HTTP: RFC 9457 problem details.

A broken image is 422: the request was understood and its content cannot be processed. A budget that is
too small even for an idle gateway is 422 too, because repeating it is of no use; one that only the present
load makes unmeetable is 503 with `Retry-After`, as every other overload.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from router.admission import Shed
from router.errors import (
    BodyTimeout,
    BrokenImage,
    Forbidden,
    MalformedRequest,
    RateLimited,
    Rejected,
    RouterError,
    StreamIdle,
    TooLarge,
    Unauthorized,
    Unavailable,
    UnknownModel,
    UnknownOperatingPoint,
    UnmeetableAccuracy,
    UnmeetableBudget,
    UnsupportedType,
)
from router.metrics import OutcomeName

CONTENT_TYPE = b"application/problem+json"
URN = "urn:paretogate:problem:"
OVERLOADED = "overloaded"
_STATUS: tuple[tuple[type[RouterError], int], ...] = (
    (MalformedRequest, 400),
    (UnknownOperatingPoint, 400),
    (Unauthorized, 401),
    (Forbidden, 403),
    (UnknownModel, 404),
    (BodyTimeout, 408),
    (StreamIdle, 408),
    (TooLarge, 413),
    (UnsupportedType, 415),
    (BrokenImage, 422),
    (UnmeetableAccuracy, 422),
    (UnmeetableBudget, 422),
    (RateLimited, 429),
    (Rejected, 400),
    (Unavailable, 503),
)


@dataclass(frozen=True, slots=True)
class Problem:
    """A request that ended without an answer, as the sender is told of it."""

    slug: str
    title: str
    status: int
    detail: str
    outcome: OutcomeName
    retry_after_s: float | None = None
    operating_points: tuple[str, ...] = ()

    def body(self, request_id: str) -> bytes:
        """Return the problem details as JSON."""
        document: dict[str, object] = {
            "type": URN + self.slug,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "request_id": request_id,
        }
        if self.retry_after_s is not None:
            document["retry_after_s"] = round(self.retry_after_s, 3)
        if self.operating_points:
            document["operating_points"] = list(self.operating_points)
        return json.dumps(document).encode()

    def headers(self) -> Mapping[bytes, bytes]:
        """Return the headers that belong to the problem, `Retry-After` in whole seconds, rounded up."""
        headers = {b"content-type": CONTENT_TYPE}
        if self.retry_after_s is not None:
            headers[b"retry-after"] = b"%d" % max(math.ceil(self.retry_after_s), 1)
        if self.status == 401:
            headers[b"www-authenticate"] = b"Bearer"
        return headers


def problem_of(error: RouterError | Shed) -> Problem:
    """Return the problem that an error or a shed request is."""
    if isinstance(error, Shed):
        return Problem(
            OVERLOADED, "The gateway is overloaded", 503, error.reason, "shed", error.retry_after_s
        )
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    return Problem(
        error.slug,
        error.title,
        status,
        str(error),
        "rejected" if isinstance(error, Rejected) else "failed",
        error.retry_after_s if isinstance(error, Unavailable | RateLimited) else None,
        error.known if isinstance(error, UnknownOperatingPoint) else (),
    )


def internal_problem() -> Problem:
    """Return the problem of an error that nobody expected; the log has the rest."""
    return Problem(RouterError.slug, RouterError.title, 500, "an unexpected error; see the log", "failed")


def status_problem(status: int, detail: str) -> Problem:
    """Return the problem of a plain HTTP status, as a router gives for an unknown path."""
    return Problem(f"http-{status}", detail, status, detail, "rejected")
