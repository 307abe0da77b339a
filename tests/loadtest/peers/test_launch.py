"""Peers as processes: the usual cascade for real, and those that cannot be installed or started."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from loadtest.peers.catalogue import PEERS
from loadtest.peers.environments import STAMP, PeerUnavailable, environment_of
from loadtest.peers.launch import Running, running_peer
from loadtest.peers.processes import memory_of
from loadtest.peers.servers.detector import Detector
from loadtest.peers.servers.serving import Serving
from loadtest.sample import Reply
from model_repo.publish import Repository
from tests.fakes import CLASSES, Square, encode_image, squares_frame
from tests.loadtest.peers.conftest import CASCADE, FASTAPI, write_environment

FRAME = encode_image(squares_frame([Square(0, 0, 0), Square(2, 1, 1)], (256, 256)))


def test_the_usual_cascade_asks_on_below_its_threshold(tiny: Repository, tmp_path: Path) -> None:
    """The FastAPI script answers with the small model, and below the threshold with the large one alone."""

    async def ask(server: Running) -> Reply:
        target = server.target()
        try:
            return await target.send(FRAME, 50.0, None)
        finally:
            await target.close()

    environment = write_environment(CASCADE, tmp_path)
    for threshold, model in ((0.0, "tiny-0"), (1.1, "tiny-1")):
        serving = Serving(tiny.root, "tiny-0", "tiny-1", threshold, 0.0005)
        alone = Detector(Serving(tiny.root, model, None, 0.0, 0.0005))
        with running_peer(CASCADE, environment, serving, FRAME, CLASSES) as server:
            reply = asyncio.run(ask(server))
            processes = server.processes()
            assert memory_of(processes).rss_mb > 10
        assert memory_of(processes).processes == 0
        assert reply.outcome == "answered"
        assert np.array_equal(reply.detections.xyxy, alone.rows(FRAME)[:, :4])
        assert np.array_equal(reply.detections.score, alone.rows(FRAME)[:, 4])


def test_a_peer_that_ends_by_itself_says_why(tiny: Repository, tmp_path: Path) -> None:
    """A server that ends before it answers is left out with its status and its last words."""
    script = "import sys; print('no such accelerator'); sys.exit(3)"
    peer = dataclasses.replace(FASTAPI, command=lambda place: (place.python, "-c", script))
    environment = write_environment(peer, tmp_path)
    serving = Serving(tiny.root, "tiny-0", None, 0.0, 0.0)
    with (
        pytest.raises(PeerUnavailable, match=r"status 3; no such accelerator"),
        running_peer(peer, environment, serving, FRAME, CLASSES),
    ):
        pass


def test_a_program_that_is_not_there_is_said(tiny: Repository, tmp_path: Path) -> None:
    """A command that does not exist is a reason, not a traceback."""
    peer = dataclasses.replace(FASTAPI, command=lambda place: ("/nonexistent/serve",))
    serving = Serving(tiny.root, "tiny-0", None, 0.0, 0.0)
    with (
        pytest.raises(PeerUnavailable, match=r"cannot be started: .*No such file"),
        running_peer(peer, write_environment(peer, tmp_path), serving, FRAME, CLASSES),
    ):
        pass


def test_a_complete_environment_is_left_alone(tmp_path: Path) -> None:
    """An environment that was made for the same requirements is used as it is, without a word."""
    said: list[str] = []
    folder = write_environment(FASTAPI, tmp_path)
    assert environment_of(FASTAPI, tmp_path, said.append) == folder
    assert said == []


@pytest.mark.timeout(900)  # venv and pip take their time on a busy machine
def test_what_cannot_be_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that no index has leaves the peer out with pip's own error, and no whole environment."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    said: list[str] = []
    peer = dataclasses.replace(FASTAPI, environment="missing", packages=("no-such-package==1",))
    with pytest.raises(PeerUnavailable, match="cannot be installed: ERROR"):
        environment_of(peer, tmp_path, said.append)
    assert len(said) == 1
    assert "no-such-package==1" in said[0]
    assert not (tmp_path / "missing" / STAMP).exists()


def test_every_peer_pins_what_it_installs() -> None:
    """Versions are pinned, and what decides about a frame is the gateway's own version for every peer."""
    for peer in PEERS:
        frameworks = [*peer.packages, *peer.alone]
        assert frameworks
        assert all("==" in each for each in frameworks)
        assert peer.requirements()[:3] == FASTAPI.requirements()[:3]
