"""The pages as files: where they come from, how they may be kept, what they may do."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import pytest

from router import pages
from tests.router.conftest import Bench, http_to
from tests.router.keyring import Keyring

pytestmark = pytest.mark.anyio
SOURCES = sorted(Path(str(files(pages))).glob("*.*"))


@pytest.mark.parametrize("path", pages.PATHS)
async def test_a_page_is_served_to_everybody_under_its_policy(
    bench: Bench, path: str, tmp_path: Path
) -> None:
    """Without a key, for it asks for one itself; its own scripts and styles alone, no framing."""
    keyring = Keyring(tmp_path / "keys.json")
    keyring.add("good")
    async with http_to(bench(keys=keyring.path)) as http:
        answer = await http.get(path)
        assert answer.status_code == 200
        assert "default-src 'none'; script-src 'self'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        again = await http.get(path, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert answer.headers["cache-control"] == again.headers["cache-control"] == "no-cache"
        assert (await http.get(path, headers={"If-None-Match": '"other"'})).status_code == 200


def test_every_file_is_served() -> None:
    """And none is named that is not there."""
    named = {path.rpartition("/")[2] for path in pages.PATHS} - {"", "live"}
    assert named | {"console.html", "live.html"} == {
        source.name for source in SOURCES if source.suffix in (".html", ".css", ".js")
    }


@pytest.mark.parametrize("source", [s for s in SOURCES if s.suffix != ".py"], ids=lambda source: source.name)
def test_pages_name_no_other_place(source: Path) -> None:
    """No address but this machine's in what is shown, and SVG's own name."""
    addresses = re.findall(r"\w+://[^\s\"'`)<]+", source.read_text())
    assert set(addresses) <= {"http://www.w3.org/2000/svg", "http://127.0.0.1:8082/operating-point"}
    assert "innerHTML" not in source.read_text()


def test_scripts_import_what_is_served() -> None:
    """Every import of a module is of a file beside it."""
    for source in SOURCES:
        for name in re.findall(r'from "\./([\w.]+)"', source.read_text()):
            assert f"/assets/{name}" in pages.PATHS
