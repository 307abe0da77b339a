"""Fixtures that tests of several folders share."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from model_repo.publish import Repository
from tests.fakes import tiny_repository

# The same examples in every run, and no clock: a busy machine must not fail a test.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Return a published repository of two tiny real detectors and their plans."""
    return tiny_repository(tmp_path / "repository")
