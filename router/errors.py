"""Everything that can end a request other than an answer, as one tree.

RouterError
  Rejected                the request itself is at fault; repeating it unchanged is of no use
    MalformedRequest      headers or body break their own rules
      MalformedBudget     X-Latency-Budget-Ms is not a positive decimal number
    UnknownOperatingPoint the name is not published; the message lists those that are
    UnknownModel          no model of that name or version is served
    UnsupportedType       neither a JPEG nor a PNG, raw or in a form
    BrokenImage           claims to be a JPEG or PNG and cannot be decoded
    TooLarge              more bytes or pixels than the gateway takes
    BodyTimeout           the body did not arrive in time
    UnmeetableBudget      less than what even the fastest plan needs on an idle gateway
    StreamIdle            a stream had no frame for long
    Unauthorized          no key, or none that is known and has not expired
    Forbidden             the key does not allow what is asked for
    RateLimited           more than the key allows at this moment; later it may succeed
  PromotionFailed         a challenger did not become the champion
  Unavailable             the gateway is at fault; the same request may succeed later
    NotReady              models are loading, the engine is down, or the gateway drains
    EngineFailed          the engine did not run the model
      EngineFull          as much is waiting as it takes, and it is well

Shedding under load is no error but a value, `router.admission.Shed`. Each edge maps the tree to its own
protocol exactly once: `router.problems` to RFC 9457, `router.grpc_reply` to gRPC statuses.
"""

from __future__ import annotations

from typing import ClassVar


class RouterError(Exception):
    """A request ends without an answer; the message may be shown to whoever sent it."""

    slug: ClassVar[str] = "internal"
    title: ClassVar[str] = "The gateway failed"


class Rejected(RouterError):
    """The request itself is at fault."""

    slug = "rejected"
    title = "The request cannot be served"


class MalformedRequest(Rejected):
    """Headers or body break their own rules."""

    slug = "malformed-request"
    title = "The request is malformed"


class MalformedBudget(MalformedRequest):
    """The latency budget is not a positive decimal number of milliseconds."""

    slug = "malformed-budget"
    title = "The latency budget is malformed"


class UnknownOperatingPoint(Rejected):
    """No operating point of that name is published."""

    slug = "unknown-operating-point"
    title = "The operating point is unknown"

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        super().__init__(f"no operating point {name[:100]!r}; known are {', '.join(known)}")
        self.known = known


class UnmeetableAccuracy(Rejected):
    """No operating point was published with the accuracy that is asked for."""

    slug = "unmeetable-accuracy"
    title = "No operating point is that accurate"


class UnknownModel(Rejected):
    """No model of that name or version is served."""

    slug = "unknown-model"
    title = "Unknown model"


class UnsupportedType(Rejected):
    """The body is not of a type that is decoded here."""

    slug = "unsupported-type"
    title = "The type is not supported"


class BrokenImage(Rejected):
    """The image cannot be decoded."""

    slug = "broken-image"
    title = "The image is broken"


class TooLarge(Rejected):
    """The body or the image exceeds a limit."""

    slug = "too-large"
    title = "The image is too large"


class BodyTimeout(Rejected):
    """The body did not arrive in time."""

    slug = "body-timeout"
    title = "The body did not arrive in time"


class UnmeetableBudget(Rejected):
    """Not even the fastest plan on an idle gateway meets the budget."""

    slug = "unmeetable-budget"
    title = "No plan can meet the latency budget"


class StreamIdle(Rejected):
    """A stream had no frame for long."""

    slug = "stream-idle"
    title = "The stream was idle"


class Unauthorized(Rejected):
    """There is no key, or none that is known and has not expired."""

    slug = "unauthorized"
    title = "A valid API key is needed"


class Forbidden(Rejected):
    """The key does not allow what is asked for."""

    slug = "forbidden"
    title = "The API key does not allow it"


class RateLimited(Rejected):
    """More is asked for than the key allows at this moment; `retry_after_s` says when to ask again."""

    slug = "rate-limited"
    title = "The API key's limit is reached"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class PromotionFailed(RouterError):
    """A challenger did not become the champion; the message says what is in force and on disk."""

    slug = "promotion-failed"
    title = "The challenger was not promoted"


class Unavailable(RouterError):
    """The gateway is at fault; `retry_after_s` says when it is worth asking again."""

    slug = "unavailable"
    title = "The gateway is not available"

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotReady(Unavailable):
    """The gateway does not take requests now."""

    slug = "not-ready"
    title = "The gateway is not ready"


class EngineFailed(Unavailable):
    """The inference engine did not run the model."""

    slug = "engine-failed"
    title = "The inference engine failed"


class EngineFull(EngineFailed):
    """As much is waiting as the inference engine takes; for the sender a failure like any other."""
