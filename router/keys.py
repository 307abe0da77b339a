"""API keys: who may ask, for what, how often, and until when; a JSON file of hashes.

A token is `pg_<id>_<secret>`. The id finds the key; the secret is 256 random bits, of which the file holds
the SHA-256 alone. A slow, salted hash is for passwords, which people choose and attackers guess: nobody
guesses 256 bits, a plain hash of them is as hard to invert as they are to find, and it costs every request a
microsecond instead of a tenth of a second.

`python -m router.keys add --file keys.json --name belt-7` prints a new token, once. A gateway that serves
with `--keys keys.json` reads the file again when it changes.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Literal, NoReturn, Self

import typer
from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from model_repo.files import write_whole

_PREFIX: Final = "pg"
_TOKEN = re.compile(r"pg_([0-9a-f]{12})_([0-9a-f]{64})")
# Of a second's rate, where no burst is given: over ten seconds a limit is exceeded by 2.5 % at most. Two at
# the least: a bucket for one has no room for what is left over when a frame comes a little late, and a sender
# who always asks would get less than the rate.
_BURST_S, _LEAST_BURST = 0.25, 2.0

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]


class KeysError(Exception):
    """A file of keys cannot be used; the message names the file and what is wrong."""


class Key(BaseModel):
    """One key, without its secret.

    sha256: of the secret's text, in hexadecimal. expires: from when on it is refused. operating_points: those
    that it may be answered at, None for all that are published and for every variant by name. rate_per_s:
    frames per second; burst: of them at once, a quarter of a second's, at least two, unless given.
    concurrent: frames at the same time. watch: may see on the gateway's page how it does, and recent frames
    of whomever. admin: may change the gateway through its administration, and watch it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    expires: AwareDatetime | None = None
    operating_points: Annotated[frozenset[str], Field(min_length=1)] | None = None
    rate_per_s: PositiveFloat | None = None
    burst: PositiveInt | None = None
    concurrent: PositiveInt | None = None
    watch: bool = False
    admin: bool = False

    @property
    def most_at_once(self) -> float:
        """Return the bucket's size in frames, infinite without a rate."""
        if self.rate_per_s is None:
            return float("inf")
        return max(_LEAST_BURST, self.rate_per_s * _BURST_S) if self.burst is None else float(self.burst)

    def opens(self, secret: str) -> bool:
        """Return whether a secret is this key's, in a time that does not depend on how much of it is."""
        return secrets.compare_digest(_digest(secret), self.sha256)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.burst is not None and self.rate_per_s is None:
            raise ValueError("a burst is of a rate, and there is none")
        return self


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    keys: tuple[Key, ...] = ()

    @model_validator(mode="after")
    def _all_different(self) -> Self:
        for what in ("name", "id"):
            for value, count in Counter(getattr(key, what) for key in self.keys).items():
                if count > 1:
                    raise ValueError(f"{count} keys have the {what} {value!r}")
        return self


def token_parts(token: str) -> tuple[str, str] | None:
    """Return a token's id and secret, None where it has not the form of one."""
    found = _TOKEN.fullmatch(token)
    return None if found is None else (found[1], found[2])


def make_token() -> tuple[str, str, str]:
    """Return a new token, its id, and its secret's SHA-256."""
    identity, secret = secrets.token_hex(6), secrets.token_hex(32)
    return f"{_PREFIX}_{identity}_{secret}", identity, _digest(secret)


def read(path: Path) -> tuple[Key, ...]:
    """Return the keys of a file; raises KeysError.

    A file that others than its owner may write is refused: whoever writes it lets in whom they please.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read()
    except OSError as error:
        raise KeysError(f"{path}: {error.strerror}") from error
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise KeysError(f"{path}: others may write it; take that away: chmod go-w {path}")
    try:
        return _Document.model_validate_json(text).keys
    except ValidationError as error:
        raise KeysError(f"{path}: {_first(error)}") from error


def write(path: Path, keys: Iterable[Key]) -> None:
    """Replace a file of keys at once, for its owner's eyes alone; raises KeysError."""
    try:
        document = _Document(keys=tuple(keys))
    except ValidationError as error:
        raise KeysError(f"{path}: {_first(error)}") from error
    text = document.model_dump_json(indent=2, exclude_none=True) + "\n"
    try:
        write_whole(path, text.encode(), mode=0o600)
    except OSError as error:
        raise KeysError(f"{path}: {error.strerror}") from error


def _first(error: ValidationError) -> str:
    """Return what is wrong first, and where; never what was given, which might be a secret."""
    first = error.errors(include_url=False, include_input=False)[0]
    return ": ".join(filter(None, (".".join(str(part) for part in first["loc"]), first["msg"])))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


_File = Annotated[Path, typer.Option("--file", help="the file of keys, as --keys of the router names it")]
_Name = Annotated[str, typer.Option("--name", help="letters, digits, dot, dash, underscore")]


def add(
    file: _File,
    name: _Name,
    expires: Annotated[
        str | None, typer.Option(help="RFC 3339: 2027-01-31T00:00:00Z; default: never")
    ] = None,
    operating_point: Annotated[
        list[str] | None, typer.Option(help="allowed; repeat for several; default: all, and variants by name")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="frames per second; default: no limit")] = None,
    burst: Annotated[int | None, typer.Option(help="frames at once; default: a quarter second's")] = None,
    concurrent: Annotated[int | None, typer.Option(help="frames at the same time; default: no limit")] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="may watch the gateway on its page, frames of others included")
    ] = False,
    admin: Annotated[bool, typer.Option("--admin", help="may change the gateway, and watch it")] = False,
) -> None:
    """Add a key to a file, which is made where there is none, and print its token: it is shown this once."""
    token, identity, sha256 = make_token()
    wanted = {
        "name": name, "id": identity, "sha256": sha256, "expires": expires,
        "operating_points": operating_point or None, "rate_per_s": rate, "burst": burst,
        "concurrent": concurrent, "watch": watch, "admin": admin,
    }  # fmt: skip
    try:
        key = Key.model_validate(wanted)
        write(file, (*(read(file) if file.exists() else ()), key))
    except ValidationError as error:
        _stop(_first(error))
    except KeysError as error:
        _stop(str(error))
    typer.echo(token)


def show(file: _File) -> None:
    """List the keys of a file, one a line."""
    try:
        keys = read(file)
    except KeysError as error:
        _stop(str(error))
    now = datetime.now(UTC)
    for key in keys:
        told = [f"{key.name} pg_{key.id}_…"]
        if key.expires is not None:
            told.append(f"{'expired' if key.expires <= now else 'expires'} {key.expires.isoformat()}")
        if key.operating_points is not None:
            told.append(f"only {', '.join(sorted(key.operating_points))}")
        if key.rate_per_s is not None:
            told.append(f"{key.rate_per_s:g}/s, {key.most_at_once:g} at once")
        if key.concurrent is not None:
            told.append(f"{key.concurrent} at the same time")
        if key.watch:
            told.append("watch")
        if key.admin:
            told.append("admin")
        typer.echo("; ".join(told))


def revoke(file: _File, name: _Name) -> None:
    """Take a key out of a file; running gateways refuse it from their next look on."""
    try:
        keys = read(file)
        kept = [key for key in keys if key.name != name]
        if len(kept) == len(keys):
            known = ", ".join(key.name for key in keys) or "none"
            _stop(f"{file}: no key is named {name!r}; there are {known}")
        write(file, kept)
    except KeysError as error:
        _stop(str(error))


def _stop(message: str) -> NoReturn:
    typer.echo(f"Error: {message}", err=True)
    raise typer.Exit(1)


def main() -> None:
    """Run the command line."""
    app = typer.Typer(add_completion=False, no_args_is_help=True, help="The gateway's API keys.")
    app.command()(add)
    app.command("list")(show)
    app.command()(revoke)
    app(prog_name="python -m router.keys")


if __name__ == "__main__":
    main()
