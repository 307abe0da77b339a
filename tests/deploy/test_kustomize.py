"""The small renderer against kustomize itself, where that is installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.kustomize import render
from tests.deploy.promtool import DEPLOY

KUBERNETES = DEPLOY / "kubernetes"
_BOTH = ["../../components/monitoring", "../../components/tls"]


def real(folder: Path) -> list[dict[str, Any]]:  # Any: documents of another project's format
    """Return what kustomize renders; without one the test is skipped."""
    if shutil.which("kustomize"):
        command = ["kustomize", "build"]
    elif shutil.which("kubectl"):
        command = ["kubectl", "kustomize"]
    else:
        pytest.skip("neither kustomize nor kubectl is installed")
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def plain(value: object) -> object:
    """Bring lists of objects into an order of their own, and drop the hashes of generated names."""
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return sorted((plain(one) for one in value), key=lambda one: json.dumps(one, sort_keys=True))
    if isinstance(value, str):
        return re.sub(r"^(paretogate-router)-[a-z0-9]{10}$", r"\1", value)
    return value


@pytest.fixture
def with_components(tmp_path: Path) -> Path:
    """Return an overlay with every component, in a copy of the folder."""
    shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    folder = tmp_path / "kubernetes" / "overlays" / "whole"
    folder.mkdir()
    whole = {"kind": "Kustomization", "resources": ["../gpu-triton"], "components": _BOTH}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(whole))
    return folder


@pytest.mark.parametrize("name", ["overlays/cpu-embedded", "overlays/gpu-triton", "publish"])
def test_overlays_render_as_kustomize_renders_them(name: str) -> None:
    """What the other tests look at is what `kubectl apply -k` sends."""
    assert plain(render(KUBERNETES / name)) == plain(real(KUBERNETES / name))


def test_components_render_as_kustomize_renders_them(with_components: Path) -> None:
    """The optional parts too, on top of an overlay."""
    assert plain(render(with_components)) == plain(real(with_components))


def test_what_is_not_known_is_refused(tmp_path: Path) -> None:
    """The renderer does not pass over a field that it does not implement."""
    (tmp_path / "kustomization.yaml").write_text("kind: Kustomization\nnamePrefix: a-\n")
    with pytest.raises(ValueError, match="namePrefix"):
        render(tmp_path)
