"""One renderer for all tests of a process: building it takes seconds."""

from __future__ import annotations

import pytest

from search.data.conveyor.frames import Renderer, build_renderer


@pytest.fixture(scope="session")
def renderer() -> Renderer:
    """Build the shared sprites, belts and noise once."""
    return build_renderer()
