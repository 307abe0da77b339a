"""What tests of the comparison share: an environment that is this process's own, labelled frames."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from loadtest.peers.catalogue import PEERS, Peer
from loadtest.peers.environments import STAMP, packages_root, wanted
from model_repo.publish import Repository
from tests.fakes import tiny_repository

FASTAPI = next(peer for peer in PEERS if peer.name == "fastapi")
CASCADE = next(peer for peer in PEERS if peer.name == "cascade")


def write_environment(peer: Peer, cache: Path) -> Path:
    """Write a peer's environment that runs this process's packages, and pass for complete."""
    folder = cache / peer.environment
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin" / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={packages_root()} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (folder / STAMP).write_text(wanted(peer))
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Return a published repository of two tiny detectors, `tiny-0` and the slower `tiny-1`."""
    return tiny_repository(tmp_path_factory.mktemp("peers") / "repository")
