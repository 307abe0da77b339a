"""What a request may ask for: an operating point or a least accuracy, a least score, and a priority.

Beside them it may say whose it is, which is heeded while two sets are compared.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from router.errors import MalformedRequest
from router.headers import Headers, only

POINT_HEADER = "X-Operating-Point"
ACCURACY_HEADER = "X-Min-Accuracy"
SCORE_HEADER = "X-Min-Score"
PRIORITY_HEADER = "X-Priority"
# Of streams alone.
IN_FLIGHT_HEADER = "X-Stream-In-Flight"
REUSE_HEADER = "X-Reuse-Within"
SESSION_HEADER = "X-Session-Id"
Priority = Literal["high", "normal", "low"]
_PRIORITIES: Mapping[str, Priority] = {name: name for name in get_args(Priority)}
RANK: Mapping[str, int] = {name: rank for rank, name in enumerate(_PRIORITIES)}
"""Of a priority in the workers' queue, 0 first."""
BEHIND_ALL = len(RANK)
"""The rank of what nobody waits for."""
_KEYS = frozenset(
    name.lower().encode()
    for name in (POINT_HEADER, ACCURACY_HEADER, SCORE_HEADER, PRIORITY_HEADER, SESSION_HEADER)
)
_SHARE = re.compile(r"0(\.[0-9]{1,6})?|1(\.0{1,6})?")


@dataclass(frozen=True, slots=True)
class Wishes:
    """A request's wishes; None where it leaves the choice to the gateway.

    min_map: the least published mAP of the plan, a fraction. min_score: of the detections in the answer.
    priority: who is queued and let in first. model: a variant's name, to be answered by it alone. session:
    requests that say the same are answered by the same of two sets that are compared. allowed: the operating
    points that the sender's key is for, None for all.
    """

    operating_point: str | None = None
    min_map: float | None = None
    priority: Priority = "normal"
    min_score: float | None = None
    model: str | None = None
    session: str | None = None
    allowed: frozenset[str] | None = None

    @classmethod
    def of(cls, headers: Headers, *, operating_point: str | None = None) -> Wishes:
        """Read the wishes of a request; `operating_point` is one that was said elsewhere.

        Raises MalformedRequest, which names the header.
        """
        if _KEYS.isdisjoint(headers):
            return _NONE if operating_point is None else cls(operating_point)
        point = only(headers, POINT_HEADER) if operating_point is None else operating_point
        accuracy = _share(headers, ACCURACY_HEADER)
        if accuracy is not None and point is not None:
            raise MalformedRequest(f"{ACCURACY_HEADER} and {POINT_HEADER} exclude each other")
        priority = only(headers, PRIORITY_HEADER)
        if priority is not None and priority not in _PRIORITIES:
            raise MalformedRequest(
                f"{PRIORITY_HEADER}: {priority[:40]!r} is none of {', '.join(_PRIORITIES)}"
            )
        return cls(
            point,
            accuracy,
            "normal" if priority is None else _PRIORITIES[priority],
            _share(headers, SCORE_HEADER),
            session=only(headers, SESSION_HEADER),
        )


_NONE = Wishes()


def _share(headers: Headers, name: str) -> float | None:
    text = only(headers, name)
    if text is not None and not _SHARE.fullmatch(text):
        raise MalformedRequest(f"{name}: {text[:40]!r} is not a decimal between 0 and 1")
    return None if text is None else float(text)
