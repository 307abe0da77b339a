"""Settings: a search space comes as JSON or in a file, and what is wrong with it is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from search.run_folder import RunError
from search.settings import merged_settings, read_space

SIZES = np.array([[640, 480]])


def test_a_space_comes_inline_or_in_a_file(tmp_path: Path) -> None:
    """JSON and a file that holds it give the same space; what they leave out is the default."""
    text = '{"resolutions": [160, 224], "neck_widths": [16, 24]}'
    (tmp_path / "space.json").write_text(text)
    space = read_space(text).space(3, SIZES)
    assert space == read_space(str(tmp_path / "space.json")).space(3, SIZES)
    assert space.resolutions == (160, 224)
    assert space.neck_widths == (16, 24)
    assert space.aspect == (4, 3)
    assert len(space.widths) == 4


def test_a_bad_space_is_refused_by_name(tmp_path: Path) -> None:
    """An unknown field, a missing file and a choice that no detector can have are named."""
    with pytest.raises(RunError, match=r"--space: .*(?s:.*)resolution\b"):
        read_space('{"resolution": [160]}')
    with pytest.raises(RunError, match=r"absent\.json: No such file"):
        read_space(str(tmp_path / "absent.json"))
    with pytest.raises(RunError, match=r"the search space: .*multiple of 32"):
        read_space('{"resolutions": [100, 160]}').space(3, SIZES)


def test_finishing_has_one_budget() -> None:
    """Minutes for all kept subnets together, or steps for each of them; both at once are refused by name."""
    assert merged_settings(None, {"data": "d", "finish_minutes": 3.0}).finish_minutes == 3.0
    with pytest.raises(RunError, match="finish_minutes and finish_steps exclude each other"):
        merged_settings(None, {"data": "d", "finish_minutes": 3.0, "finish_steps": 10})
