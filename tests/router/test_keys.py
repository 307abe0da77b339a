"""The file of API keys and its commands."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from router.keys import KeysError, make_token, read, token_parts, write
from tests.router.keyring import Keyring, make_key


def keys_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m router.keys`."""
    return subprocess.run(
        [sys.executable, "-m", "router.keys", *arguments], capture_output=True, text=True, check=False
    )


def test_a_key_is_added_listed_and_revoked(tmp_path: Path) -> None:
    """The token is printed once and opens its key; the file, its owner's alone, has no secret in it."""
    file = tmp_path / "keys.json"
    added = keys_command(
        "add", "--file", str(file), "--name", "belt-7", "--expires", "2031-01-31T00:00:00Z", "--rate", "30",
        "--concurrent", "4", "--operating-point", "fast", "--operating-point", "balanced", "--watch",
    )  # fmt: skip
    assert added.returncode == 0, added.stderr
    parts = token_parts(added.stdout.strip())
    assert parts is not None
    identity, secret = parts
    (key,) = read(file)
    assert key.opens(secret)
    assert not key.opens(secret[:-1] + ("0" if secret[-1] != "0" else "1"))
    assert (key.id, key.rate_per_s, key.concurrent, key.watch, key.admin) == (identity, 30.0, 4, True, False)
    assert key.operating_points == frozenset({"fast", "balanced"})
    assert secret not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    listed = keys_command("list", "--file", str(file))
    assert "belt-7" in listed.stdout
    assert "expires 2031-01-31" in listed.stdout
    assert listed.stdout.rstrip().endswith("; watch")
    assert secret not in listed.stdout
    assert keys_command("revoke", "--file", str(file), "--name", "belt-7").returncode == 0
    assert read(file) == ()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--name", "two words"), "name"),
        (("--name", "a", "--expires", "tomorrow"), "expires"),
        (("--name", "a", "--expires", "2031-01-31T00:00:00"), "timezone"),
        (("--name", "a", "--rate", "0"), "rate_per_s"),
        (("--name", "a", "--burst", "5"), "burst"),
        (("--name", "there"), "2 keys have the name"),
    ],
)
def test_what_cannot_be_added_changes_nothing(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    """The command says what is wrong and leaves the file as it was."""
    keyring = Keyring(tmp_path / "keys.json")
    keyring.add("there")
    before = keyring.path.read_bytes()
    done = keys_command("add", "--file", str(keyring.path), *arguments)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert keyring.path.read_bytes() == before


def test_an_unknown_name_cannot_be_revoked(tmp_path: Path) -> None:
    """The error lists the names there are."""
    keyring = Keyring(tmp_path / "keys.json")
    keyring.add("there")
    done = keys_command("revoke", "--file", str(keyring.path), "--name", "here")
    assert done.returncode == 1
    assert "there are there" in done.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda document: "no json", "JSON"),
        (lambda document: {**document, "version": 2}, "version"),
        (lambda document: {**document, "owner": "me"}, "owner"),
        (lambda document: {"keys": document["keys"] * 2}, "2 keys have the name 'a'"),
        (lambda document: {"keys": [{**document["keys"][0], "sha256": "secret"}]}, "keys.0.sha256"),
        (lambda document: {"keys": [{**document["keys"][0], "operating_points": []}]}, "operating_points"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, change: object, said: str) -> None:
    """The error has the file and the field, and nothing of what stands there."""
    file = tmp_path / "keys.json"
    write(file, [make_key("a")[1]])
    assert callable(change)
    changed = change(json.loads(file.read_text()))
    file.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    with pytest.raises(KeysError) as caught:
        read(file)
    assert str(file) in str(caught.value)
    assert said in str(caught.value)
    assert "'secret'" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    """Whoever may write it could let anybody in."""
    file = tmp_path / "keys.json"
    write(file, [])
    file.chmod(mode)
    with pytest.raises(KeysError, match="others may write it"):
        read(file)


def test_tokens_are_not_guessed() -> None:
    """Each has 256 random bits of its own, and nothing but its very form is taken for one."""
    tokens = {make_token()[0] for _ in range(100)}
    assert len({token.split("_")[2] for token in tokens}) == 100
    token = tokens.pop()
    for other in ("", token[:-1], token + "0", token.upper(), f" {token}", token + "\n", token[3:]):
        assert token_parts(other) is None
