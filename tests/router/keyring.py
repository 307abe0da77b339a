"""A file of API keys as tests fill it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from router.keys import Key, make_token, read, write

PAST = datetime(2020, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Keyring:
    """A file of keys."""

    path: Path

    def add(self, name: str, **limits: object) -> str:
        """Add a key and return its token."""
        token, key = make_key(name, **limits)
        write(self.path, (*(read(self.path) if self.path.exists() else ()), key))
        return token

    def revoke(self, name: str) -> None:
        """Take a key away."""
        write(self.path, [key for key in read(self.path) if key.name != name])


def make_key(name: str, **limits: object) -> tuple[str, Key]:
    """Return a new token and its key."""
    token, identity, sha256 = make_token()
    return token, Key.model_validate({"name": name, "id": identity, "sha256": sha256, **limits})


def bearer(token: str) -> dict[str, str]:
    """Return the header that shows a token."""
    return {"Authorization": f"Bearer {token}"}


def wrong_tokens(keyring: Keyring) -> dict[str, str | None]:
    """Return tokens that open nothing, by what is wrong with them, beside a file with a good key."""
    token = keyring.add("good")
    expired = keyring.add("old", expires=PAST)
    revoked = keyring.add("gone")
    keyring.revoke("gone")
    identity = token.split("_")[1]
    return {
        "missing": None,
        "malformed": "let-me-in",
        "unknown": make_token()[0],
        "wrong secret": f"pg_{identity}_{'0' * 64}",
        "hash for secret": f"pg_{identity}_{read(keyring.path)[0].sha256}",
        "expired": expired,
        "revoked": revoked,
    }
