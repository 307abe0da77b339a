"""Reading and publishing a repository: immutable folders, verified digests, the manifest renamed last.

A repository is the old one or the new one, never a mix: new folders are staged beside the old ones under a
name that no reader looks at, renamed into place, and only then the manifest is replaced by one rename.
Folders that no manifest names any more are collected after a grace period, because a router may still be
loading them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from model_repo import codec
from model_repo.files import sync, write_whole
from model_repo.frontier import Frontier, Segment

MANIFEST = "frontier.json"
MODELS = "models"
GRACE_S = 600.0


class RepositoryError(ValueError):
    """A repository cannot be read or published; the message names the file."""


@dataclass(frozen=True, slots=True)
class Repository:
    """A published frontier and where its files are; `digest` is the sha256 of the manifest's bytes."""

    root: Path
    frontier: Frontier
    digest: str

    def path(self, segment: Segment) -> Path:
        """Return a segment's file."""
        return self.root / segment.file


def file_digest(path: Path) -> str:
    """Return the sha256 of a file in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read(root: Path, *, verify: bool = True) -> Repository:
    """Read a repository and, unless told otherwise, verify every file's size and digest.

    Raises RepositoryError naming the file, or codec.ManifestError naming the field.
    """
    manifest = root / MANIFEST
    try:
        content = manifest.read_bytes()
    except OSError as error:
        raise RepositoryError(f"{manifest}: {error.strerror}; is {root} a published repository?") from error
    frontier = codec.decode(content, source=str(manifest))
    repository = Repository(root, frontier, hashlib.sha256(content).hexdigest())
    if verify:
        for variant in frontier.variants:
            for segment in variant.segments:
                _verify(repository.path(segment), segment)
    return repository


def _verify(path: Path, segment: Segment) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise RepositoryError(f"{path}: {error.strerror}") from error
    if size != segment.bytes:
        raise RepositoryError(f"{path}: {size} bytes, the manifest says {segment.bytes}")
    if file_digest(path) != segment.sha256:
        raise RepositoryError(f"{path}: its sha256 is not the one in the manifest")


def publish(
    root: Path,
    frontier: Frontier,
    folders: Mapping[str, Path],
    *,
    grace_s: float = GRACE_S,
    clock_s: Callable[[], float] = time.time,
) -> Repository:
    """Publish a frontier: `folders` gives, for each new folder under models/, the prepared source folder.

    A folder that is already published stays untouched (its name carries its digest). Every file that the
    manifest names is verified before the manifest is replaced. Raises RepositoryError; the repository is
    then as it was, but for folders that nothing names.
    """
    for variant in frontier.variants:
        for segment in variant.segments:
            if _folder_of(segment) is None:
                raise RepositoryError(
                    f"{segment.file}: not in a folder under {MODELS}/, which is all that is served"
                )
    models = root / MODELS
    models.mkdir(parents=True, exist_ok=True)
    staging = models / f".staging-{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        for name, source in folders.items():
            target = models / name
            if target.exists():
                continue
            shutil.copytree(source, staging / name)
            _sync_tree(staging / name)
            os.rename(staging / name, target)
        sync(models)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    text = codec.encode(frontier).encode()
    checked = Repository(
        root, codec.decode(text, source="the new manifest"), hashlib.sha256(text).hexdigest()
    )
    for variant in frontier.variants:
        for segment in variant.segments:
            _verify(checked.path(segment), segment)
    write_whole(root / MANIFEST, text)
    collect(root, frontier, grace_s=grace_s, clock_s=clock_s)
    return checked


def copy(repository: Repository, root: Path) -> Repository:
    """Publish a repository's set into another one, with the models that are not there yet.

    Raises RepositoryError or OSError; the repository at `root` is then as it was, as after `publish`.
    """
    folders = {name: repository.root / MODELS / name for name in _named(repository.frontier)}
    return publish(root, repository.frontier, folders)


def collect(
    root: Path, frontier: Frontier, *, grace_s: float = GRACE_S, clock_s: Callable[[], float] = time.time
) -> list[Path]:
    """Remove model folders that the manifest does not name, once unnamed for `grace_s` seconds.

    The time a folder was first seen unnamed is kept as an empty file beside it, so that a grace period
    survives the process. Returns what was removed.
    """
    named = _named(frontier)
    removed = []
    for folder in sorted((root / MODELS).iterdir()):
        if not folder.is_dir() or folder.name.startswith("."):
            continue
        mark = folder.parent / f".unnamed-{folder.name}"
        if folder.name in named:
            mark.unlink(missing_ok=True)
            continue
        if not mark.exists():
            mark.touch()
            os.utime(mark, (clock_s(), clock_s()))
        if clock_s() - mark.stat().st_mtime >= grace_s:
            shutil.rmtree(folder)
            mark.unlink()
            removed.append(folder)
    return removed


def _named(frontier: Frontier) -> set[str]:
    """Return the folders under models/ that a manifest names."""
    named = {variant.folder for variant in frontier.variants}
    for variant in frontier.variants:
        # A shared trunk may lie in the folder of a variant that is published no more.
        named |= {lies_in for segment in variant.segments if (lies_in := _folder_of(segment)) is not None}
    return named


def _folder_of(segment: Segment) -> str | None:
    """Return the folder under models/ that a segment's file lies in, None when it lies elsewhere."""
    parts = segment.file.split("/")
    return parts[1] if len(parts) > 2 and parts[0] == MODELS else None


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)
