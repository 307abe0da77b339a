"""A request's headers, or a call's metadata, as every edge hands them on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

from router.errors import MalformedRequest

Headers = Mapping[bytes, Sequence[bytes]]
"""All values by lower-case name."""


@cache
def _key(name: str) -> bytes:
    return name.lower().encode()


def only(headers: Headers, name: str, error: type[MalformedRequest] = MalformedRequest) -> str | None:
    """Return a header's value, None without it; raises `error` when it stands more than once."""
    values = headers.get(_key(name))
    if not values:
        return None
    if len(values) > 1:
        raise error(f"{name} stands {len(values)} times, expected once")
    return values[0].decode("latin-1").strip()
