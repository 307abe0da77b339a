"""Fixtures that tests of several folders share."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

from model_repo.publish import Repository
from tests.fakes import tiny_repository

# The same examples in every run, and no clock: a busy machine must not fail a test.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

# What gateways remember of the machine between starts goes with the run, not into the home folder.
_CACHE = tempfile.mkdtemp(prefix="paretogate-cache-")
os.environ["XDG_CACHE_HOME"] = _CACHE
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Return a published repository of two tiny real detectors and their plans."""
    return tiny_repository(tmp_path / "repository")
