"""Reading what deploy/ holds: Dockerfiles and the YAML of other projects."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.promtool import DEPLOY

ROOT = DEPLOY.parent
# Any: documents of other projects' formats, as their parser gives them.
Yaml = dict[str, Any]


def read_yaml(path: Path) -> list[Yaml]:
    """Return the documents of a file."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document is not None]


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Return a Dockerfile's instructions with their arguments, continued lines joined."""
    text = re.sub(r"\\\n", " ", dockerfile.read_text())
    lines = (line.strip() for line in text.splitlines())
    split = (line.split(maxsplit=1) for line in lines if line and not line.startswith("#"))
    return [(name, rest) for name, rest in split]


def entrypoint(dockerfile: Path) -> list[str]:
    """Return the command that a container of the image runs."""
    return [str(word) for word in json.loads(dict(instructions(dockerfile))["ENTRYPOINT"])]


def accepts(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Let a command line parse its options without running: unknown ones end with status 2, --help with 0."""
    assert command[0] == "python"
    return subprocess.run(
        [sys.executable, *command[1:], "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
