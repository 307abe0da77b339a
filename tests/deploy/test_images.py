"""The images: what they copy exists, what they install is locked, what they run is known and not root."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from router.config import Config
from router.engines import StartupError
from router.running import check_exposure
from tests.deploy.documents import ROOT, accepts, entrypoint, instructions
from tests.deploy.promtool import DEPLOY

DOCKERFILES = sorted(DEPLOY.glob("*.Dockerfile"))
# Those that install something.
BUILT = [path for path in DOCKERFILES if path.name != "set.Dockerfile"]


def name_of(path: Path) -> str:
    """Return how a test calls a file."""
    return path.name


@pytest.mark.parametrize("dockerfile", BUILT, ids=name_of)
def test_dockerfiles_copy_what_exists(dockerfile: Path) -> None:
    """Sources of COPY are in the repository and not kept out by the .dockerignore beside it."""
    ignored = dockerfile.with_name(dockerfile.name + ".dockerignore").read_text().splitlines()
    copied = [shlex.split(arguments) for name, arguments in instructions(dockerfile) if name == "COPY"]
    sources = [source for words in copied if not words[0].startswith("--from") for source in words[:-1]]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source.rstrip('/')}" in ignored


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=name_of)
def test_images_run_a_known_command_without_root(dockerfile: Path) -> None:
    """The last stage sets a numeric user, tells its health, and starts Python with known options."""
    of_last_stage: dict[str, str] = {}
    for name, arguments in instructions(dockerfile):
        if name == "FROM":
            of_last_stage.clear()
        of_last_stage[name] = arguments
    assert int(of_last_stage["USER"]) > 0
    assert "HEALTHCHECK" in of_last_stage
    done = accepts(entrypoint(dockerfile))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dockerfile", BUILT, ids=name_of)
def test_images_install_from_locks_alone(dockerfile: Path) -> None:
    """Every pip install has a lock with hashes, or is of the wheel that was built there, or of torch."""
    runs = [arguments for name, arguments in instructions(dockerfile) if name == "RUN"]
    installs = [part for run in runs for part in run.split("&&") if " install " in part and "pip" in part]
    assert len(installs) >= 3
    for install in installs:
        words = shlex.split(install)
        if "--require-hashes" in words:
            assert "--no-deps" in words
            lock = words[words.index("-r") + 1]
            assert (ROOT / lock).read_text().count("--hash=sha256:") > 0
        elif "torch==2.13.0" in words:
            assert dockerfile.name == "search.Dockerfile"
        else:
            assert words[-2:] == ["--no-deps", "/wheels/*.whl"]
    assert any("pip --python /opt/paretogate/bin/python check" in run for run in runs)


def test_torch_is_in_the_search_image_alone() -> None:
    """The gateway's image and its lock have no torch, nor what comes along with it."""
    assert "torch==" not in (DEPLOY / "router.Dockerfile").read_text()
    lock = (DEPLOY / "locks" / "router.txt").read_text()
    for heavy in ("torch", "sympy", "nvidia", "cuda", "matplotlib", "scipy"):
        assert f"\n{heavy}" not in lock


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=name_of)
def test_hadolint_is_content(dockerfile: Path) -> None:
    """The linter of Dockerfiles finds nothing; its wheel is for Linux on x86-64."""
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if program is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run(
        [program, str(dockerfile)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_image_by_itself_does_not_start_unprotected() -> None:
    """It listens on all addresses, so that keys and TLS, or --insecure, have to be given."""
    words = entrypoint(DEPLOY / "router.Dockerfile")
    host = words[words.index("--host") + 1]
    with pytest.raises(StartupError, match="API keys"):
        check_exposure(Config(repo=Path("repository"), host=host))
