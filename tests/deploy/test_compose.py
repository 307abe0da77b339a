"""The compose files: valid by compose's own schema, and everything that they name exists."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest

from router.__main__ import command as router_command
from router.config import Config
from router.running import check_exposure
from tests.deploy.documents import Yaml, accepts, entrypoint, instructions, read_yaml
from tests.deploy.promtool import DEPLOY

BASE = "compose.yaml"
FILES = [BASE, "compose.gpu.yaml", "compose.secure.yaml"]
WAYS = [[BASE], [BASE, "compose.gpu.yaml"], [BASE, "compose.secure.yaml"], FILES]


def merged(names: list[str]) -> Yaml:
    """Return files as compose puts them together: mappings merge, mounts go by target, the rest replaces."""
    whole: Yaml = {}
    for name in names:
        (document,) = read_yaml(DEPLOY / name)
        _merge(whole, document)
    return whole


def _merge(into: Yaml, change: Yaml) -> None:
    for name, value in change.items():
        before = into.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            _merge(before, value)
        elif name == "volumes" and isinstance(before, list):
            replaced = {_mount(one)[1] for one in value}
            into[name] = [one for one in before if _mount(one)[1] not in replaced] + value
        elif isinstance(before, list) and name != "command":
            raise ValueError(f"lists under {name} are not merged here")
        else:
            into[name] = deepcopy(value)


def _mount(volume: str) -> tuple[str, str]:
    source, target = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", volume).split(":")[:2]
    return source, target


def name_of(names: list[str]) -> str:
    """Return how a test calls files together."""
    return " ".join(names)


@pytest.mark.parametrize("name", FILES)
def test_files_are_valid_by_the_schema(name: str) -> None:
    """The schema of the Compose Specification, as check-jsonschema carries it, accepts each file."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "check_jsonschema",
            "--builtin-schema",
            "vendor.compose-spec",
            str(DEPLOY / name),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("names", WAYS, ids=name_of)
def test_what_is_mounted_exists(names: list[str]) -> None:
    """Mounts have their source, volumes and secrets their entry, images a version, dependencies a service."""
    whole = merged(names)
    for name, service in whole["services"].items():
        assert service["image"] == "paretogate-router" or re.search(r":v?\d", service["image"]), name
        for mount in service.get("volumes", ()):
            source, _ = _mount(mount)
            if source.startswith("."):
                assert (DEPLOY / source).exists(), mount
            else:
                assert source in whole["volumes"], mount
        assert set(service.get("secrets", ())) <= set(whole.get("secrets", ()))
        assert set(service.get("depends_on", ())) <= set(whole["services"])
        if "build" in service:
            assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).exists()


@pytest.mark.parametrize("names", WAYS, ids=name_of)
def test_services_are_confined(names: list[str]) -> None:
    """Every service is read-only, without capabilities, bounded, checked, and for this machine alone."""
    for name, service in merged(names)["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["mem_limit"], name
        assert service["pids_limit"], name
        assert service["restart"] == "unless-stopped", name
        if service["image"] != "paretogate-router":
            assert service["healthcheck"]["test"][0] == "CMD", name
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), (name, port)


@pytest.mark.parametrize("names", WAYS, ids=name_of)
def test_the_router_starts_with_options_that_exist(names: list[str]) -> None:
    """Command line and variables are the router's own, fit together, and do not expose it unprotected."""
    service = merged(names)["services"]["router"]
    words = [*entrypoint(DEPLOY / "router.Dockerfile"), *service["command"]]
    done = accepts(words)
    assert done.returncode == 0, done.stderr
    given = dict(zip(words[3::2], words[4::2]))
    options = {name.removeprefix("--").replace("-", "_"): value for name, value in given.items()}
    variables = {
        name.removeprefix("PARETOGATE_").lower(): value
        for name, value in service["environment"].items()
        if name.startswith("PARETOGATE_")
    }
    assert set(variables) <= set(router_command.__annotations__)
    config = Config.model_validate({**variables, **options})
    check_exposure(config)
    published = {int(port.rsplit(":", 1)[1]) for port in service["ports"]}
    assert published == {config.port, config.grpc_port}
    assert config.admin_host == "0.0.0.0"
    assert float(service["stop_grace_period"].removesuffix("s")) > config.drain_delay_s + config.drain_s


@pytest.mark.parametrize("names", WAYS, ids=name_of)
def test_prometheus_reaches_the_router_as_it_speaks(names: list[str]) -> None:
    """The target is the service's name and admin port, over https where the router has a certificate."""
    services = merged(names)["services"]
    mounts = {target: source for source, target in map(_mount, services["prometheus"]["volumes"])}
    (configuration,) = read_yaml(DEPLOY / mounts["/etc/prometheus/prometheus.yml"])
    assert [f"/etc/prometheus/{name}" in mounts for name in configuration["rule_files"]] == [True]
    (job,) = (one for one in configuration["scrape_configs"] if one["job_name"] == "paretogate")
    assert job["static_configs"][0]["targets"] == [f"router:{Config(repo=Path('repository')).admin_port}"]
    secure = "PARETOGATE_TLS_CERT" in services["router"]["environment"]
    assert job.get("scheme", "http") == ("https" if secure else "http")


def test_secrets_lie_where_the_router_looks() -> None:
    """Keys, certificate and its key are files that compose mounts, and the health is asked for over https."""
    whole = merged([BASE, "compose.secure.yaml"])
    environment = whole["services"]["router"]["environment"]
    paths = {environment[f"PARETOGATE_{name}"] for name in ("KEYS", "TLS_CERT", "TLS_KEY")}
    assert paths == {f"/run/secrets/{name}" for name in whole["services"]["router"]["secrets"]}
    assert environment["PARETOGATE_INSECURE"] == "false"
    assert environment["HEALTH_URL"].startswith("https://")


def test_the_router_writes_to_volumes_alone() -> None:
    """Under a read-only root the image's writable folders are mounted, and Triton keeps its engines."""
    router = merged([BASE])["services"]["router"]
    image = " ".join(
        arguments for name, arguments in instructions(DEPLOY / "router.Dockerfile") if name == "ENV"
    )
    folder = dict(word.split("=", 1) for word in shlex.split(image))["PARETOGATE_CACHE"]
    assert folder in {_mount(one)[1] for one in router["volumes"]}
    triton = merged([BASE, "compose.gpu.yaml"])["services"]["triton"]
    mounted = {_mount(one)[1] for one in triton["volumes"]}
    published = next((DEPLOY.parent / "model_repo" / "models").glob("*/config.pbtxt")).read_text()
    (engines,) = set(re.findall(r'trt_engine_cache_path"\s*value: "(/[^"]+)/[^/"]+"', published))
    assert engines in mounted
    assert f"--model-repository={'/models'}" in triton["command"]
    assert "/models" in mounted
