"""What a client is told in place of an answer, and how HTTP says it.

GatewayError
  RequestRejected   the request is at fault (malformed, unknown point, a budget that nothing can meet)
  GatewayOverloaded the gateway sheds load; `problem.retry_after_s` says when to ask again
  GatewayFailed     the gateway or the connection to it failed
"""

from __future__ import annotations

from router.documents import ProblemDocument

URN = "urn:paretogate:problem:"
_OVERLOADED = "overloaded"


class GatewayError(Exception):
    """The gateway gave no answer; `problem` is what it said, or what the connection said in its place."""

    def __init__(self, problem: ProblemDocument) -> None:
        super().__init__(f"{problem.title}: {problem.detail}")
        self.problem = problem

    @property
    def slug(self) -> str:
        """Return the last part of the problem's type, such as `unmeetable-budget`."""
        return self.problem.type.removeprefix(URN)


class RequestRejected(GatewayError):
    """The request itself is at fault."""


class GatewayOverloaded(GatewayError):
    """The gateway sheds load."""


class GatewayFailed(GatewayError):
    """The gateway or the connection to it failed."""


def error_for(problem: ProblemDocument) -> GatewayError:
    """Return the error that a problem is."""
    if problem.type == URN + _OVERLOADED or problem.status == 429:
        return GatewayOverloaded(problem)
    if 400 <= problem.status < 500:
        return RequestRejected(problem)
    return GatewayFailed(problem)


def unreachable(error: Exception) -> GatewayFailed:
    """Return the error of a connection that failed."""
    return GatewayFailed(
        ProblemDocument(
            type=f"{URN}connection",
            title="The gateway cannot be reached",
            status=0,
            detail=str(error) or type(error).__name__,
        )
    )
