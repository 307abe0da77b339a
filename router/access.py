"""Who is let in: a request's key, what it allows, and how much of it is in use. Lives on the event loop.

Every edge asks before it reads a body, and before anything reaches the service:

    with entered(access, headers) as stay:            # one request, one frame; raises
        wishes = limited(stay, Wishes.of(headers))

A stream finds its account once, and enters with every frame of it, so that a key that is revoked, or expires,
ends the streams that it opened:

    account = access.account(headers)
    with account.enter() as stay:
        …

A rate is a token bucket: its level rises by `rate_per_s` up to `burst`, and a frame takes one. Over any time
t at most burst + rate·t frames are let in, and a sender who always asks gets no less than rate·t.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Self

from router.budget import Clock
from router.errors import Forbidden, RateLimited, Unauthorized
from router.headers import Headers, only
from router.keys import Key, KeysError, read, token_parts
from router.metrics import Metrics
from router.wishes import Wishes

_LOG = logging.getLogger(__name__)
KEY_HEADER = "X-Api-Key"
# How soon a place is free is not known; frames take milliseconds.
_PLACE_FREE_S = 0.1
# What rounding may take from a bucket.
_DUST = 1e-9


class Account:
    """A key while it is known, and what is in use of it: one for all its requests and streams."""

    def __init__(self, key: Key, clock: Clock, wall_s: Callable[[], float], metrics: Metrics) -> None:
        self._clock, self._wall_s, self._metrics = clock, wall_s, metrics
        self._inside = 0
        self._level, self._level_ns = key.most_at_once, clock.now_ns()
        self._revoked = False
        self._take(key)

    def _take(self, key: Key) -> None:
        self.key = key
        self._expires_s = float("inf") if key.expires is None else key.expires.timestamp()

    @property
    def inside(self) -> int:
        """Return how many of its frames are in flight."""
        return self._inside

    def check(self) -> None:
        """Raise Unauthorized when the key was revoked or has expired."""
        if self._revoked:
            self._metrics.refused("unknown key")
            raise Unauthorized("the API key has been revoked")
        if self._wall_s() >= self._expires_s:
            self._metrics.refused("expired")
            raise Unauthorized(f"the API key expired at {self.key.expires}")

    def enter(self, frames: int = 1) -> Stay:
        """Let frames in, all or none.

        Raises Unauthorized when the key does not hold any more, Forbidden when it never allows so many at
        once, RateLimited when it does not now.
        """
        self.check()
        self.take(frames, 0)
        return Stay(self, frames)

    def take(self, frames: int, held: int) -> None:
        """Count frames in, beside those that the same request holds; raises as `enter` does."""
        key, metrics = self.key, self._metrics
        most = min(key.most_at_once, key.concurrent or float("inf"))
        if frames + held > most:
            metrics.refused("rate")
            raise Forbidden(f"{frames + held} frames at once, the API key allows {most:g}")
        if key.concurrent is not None and self._inside + frames > key.concurrent:
            metrics.refused("concurrency")
            raise RateLimited(
                f"{self._inside} frames are in flight, the API key allows {key.concurrent}", _PLACE_FREE_S
            )
        if key.rate_per_s is not None:
            now_ns = self._clock.now_ns()
            risen = (now_ns - self._level_ns) / 1e9 * key.rate_per_s
            self._level, self._level_ns = min(self._level + risen, key.most_at_once), now_ns
            if self._level < frames - _DUST:
                metrics.refused("rate")
                raise RateLimited(
                    f"the API key allows {key.rate_per_s:g} frames per second",
                    (frames - self._level) / key.rate_per_s,
                )
            self._level -= frames
        self._inside += frames
        metrics.let_in(key.name, frames)

    def give_back(self, frames: int) -> None:
        """Count frames out."""
        self._inside -= frames

    def limited(self, wishes: Wishes) -> Wishes:
        """Return wishes within what the key allows; raises Forbidden where they name something else."""
        allowed = self.key.operating_points
        if allowed is None:
            return wishes
        if wishes.model is not None or (
            wishes.operating_point is not None and wishes.operating_point not in allowed
        ):
            self._metrics.refused("operating point")
            named = wishes.model or wishes.operating_point or ""
            raise Forbidden(f"{named[:100]!r}: the API key is for {', '.join(sorted(allowed))} alone")
        return replace(wishes, allowed=allowed)

    def renew(self, key: Key | None) -> None:
        """Go on with a changed key, or with none: then it is revoked."""
        if key is None:
            self._revoked = True
        else:
            self._take(key)


class Stay:
    """Frames of one request that were let in, until it ends."""

    __slots__ = ("_account", "_frames")

    def __init__(self, account: Account, frames: int) -> None:
        self._account, self._frames = account, frames

    def more(self, frames: int) -> None:
        """Let more frames of the same request in, all or none; raises Forbidden or RateLimited."""
        self._account.take(frames, self._frames)
        self._frames += frames

    def limited(self, wishes: Wishes) -> Wishes:
        """Return wishes within what the key allows; raises Forbidden where they name something else."""
        return self._account.limited(wishes)

    def leave(self) -> None:
        """Give the places back; once more does nothing."""
        frames, self._frames = self._frames, 0
        self._account.give_back(frames)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()


class Access:
    """Let in who has a key that holds; where there are no keys, there is no Access.

    wall_s: seconds since the epoch, which expiry is a moment of.
    """

    def __init__(
        self,
        keys: Iterable[Key],
        clock: Clock,
        metrics: Metrics,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self._clock, self._metrics, self._wall_s = clock, metrics, wall_s
        self._accounts: dict[str, Account] = {}
        self.renew(keys)

    def renew(self, keys: Iterable[Key]) -> None:
        """Go on with another set of keys: what is in use of those that stay is kept."""
        wanted = {key.id: key for key in keys}
        for identity in self._accounts.keys() - wanted.keys():
            self._accounts.pop(identity).renew(None)
        for identity, key in wanted.items():
            account = self._accounts.get(identity)
            if account is None or account.key.sha256 != key.sha256:
                if account is not None:
                    account.renew(None)
                self._accounts[identity] = Account(key, self._clock, self._wall_s, self._metrics)
            else:
                account.renew(key)

    def enter(self, headers: Headers) -> Stay:
        """Let one frame in; raises Unauthorized, Forbidden or RateLimited, or MalformedRequest."""
        return self._found(headers).enter()

    def account(self, headers: Headers) -> Account:
        """Return whose key a request has; raises Unauthorized or MalformedRequest."""
        account = self._found(headers)
        account.check()
        return account

    def administrator(self, headers: Headers) -> Account:
        """Return the account of a key that may change the gateway; raises Unauthorized or Forbidden."""
        account = self.account(headers)
        if not account.key.admin:
            self._metrics.refused("administration")
            raise Forbidden("the API key is not an administrator's")
        return account

    def watcher(self, headers: Headers) -> Account:
        """Return the account of a key that may watch the gateway; raises Unauthorized or Forbidden."""
        account = self.account(headers)
        if not (account.key.watch or account.key.admin):
            self._metrics.refused("watching")
            raise Forbidden("the API key is not for watching the gateway; one made with --watch is")
        return account

    def _found(self, headers: Headers) -> Account:
        parts = token_parts(_token(headers) or "")
        if parts is None:
            self._metrics.refused("no key")
            raise Unauthorized(f"expected Authorization: Bearer pg_<id>_<secret>, or {KEY_HEADER}")
        account = self._accounts.get(parts[0])
        if account is None or not account.key.opens(parts[1]):
            self._metrics.refused("unknown key")
            raise Unauthorized("the API key is not known")
        return account


class KeysFile:
    """Look at a file of keys now and then; a broken one changes nothing, and says so.

    poll_s: between looks.
    """

    def __init__(self, path: Path, access: Access, *, poll_s: float) -> None:
        self._path, self._access, self._poll_s = path, access, poll_s
        self._seen = _stamp(path)

    async def watch(self) -> None:
        """Look every `poll_s`, until cancelled."""
        while True:
            await asyncio.sleep(self._poll_s)
            await self.look()

    async def look(self) -> None:
        """Take over what the file holds, if it has changed."""
        stamp = await asyncio.to_thread(_stamp, self._path)
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            keys = await asyncio.to_thread(read, self._path)
        except KeysError as error:
            _LOG.error("the new keys are refused, those before go on: %s", error)
            return
        self._access.renew(keys)
        _LOG.info("%d keys are in force from now on", len(keys))


def entered(access: Access | None, headers: Headers) -> AbstractContextManager[Stay | None]:
    """Let one frame of a request in until the context is left; where there are no keys, everybody."""
    return nullcontext() if access is None else access.enter(headers)


def limited(stay: Stay | None, wishes: Wishes) -> Wishes:
    """Return wishes within what a request's key allows; raises Forbidden where they name something else."""
    return wishes if stay is None else stay.limited(wishes)


def _token(headers: Headers) -> str | None:
    said = only(headers, "Authorization")
    if said is None:
        return only(headers, KEY_HEADER)
    scheme, _, token = said.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _stamp(path: Path) -> tuple[int, int, int, int] | None:
    """Return what changes when the file is replaced or its mode is; None without one."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode
