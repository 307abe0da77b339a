"""Container files, compose and Kubernetes: everything that they name exists."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from router.config import Config
from router.engines import StartupError
from router.running import check_exposure
from tests.deploy.promtool import DEPLOY

ROOT = DEPLOY.parent
DOCKERFILES = sorted(DEPLOY.glob("*.Dockerfile"))
KUBERNETES = DEPLOY / "kubernetes"

# Any: documents of other projects' formats, as their parser gives them.
Yaml = dict[str, Any]


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Return a Dockerfile's instructions with their arguments, continued lines joined."""
    text = re.sub(r"\\\n", " ", dockerfile.read_text())
    lines = (line.strip() for line in text.splitlines())
    return [tuple(line.split(maxsplit=1)) for line in lines if line and not line.startswith("#")]  # type: ignore[misc]  # split once gives two


def entrypoint(dockerfile: Path) -> list[str]:
    """Return the command that a container of the image runs."""
    return [str(word) for word in json.loads(dict(instructions(dockerfile))["ENTRYPOINT"])]


def services() -> Yaml:
    """Return the services of the compose file by name."""
    document: Yaml = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services: Yaml = document["services"]
    return services


def documents() -> Iterator[Yaml]:
    """Yield every document that the kustomization lists."""
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    for name in kustomization["resources"]:
        yield from yaml.safe_load_all((KUBERNETES / name).read_text())


def document(kind: str) -> Yaml:
    """Return the only document of a kind."""
    (found,) = (d for d in documents() if d["kind"] == kind)
    return found


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


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles_copy_what_exists(dockerfile: Path) -> None:
    """Sources of COPY are in the repository and not kept out by the .dockerignore beside it."""
    ignored = dockerfile.with_name(dockerfile.name + ".dockerignore").read_text().splitlines()
    copied = [shlex.split(arguments) for name, arguments in instructions(dockerfile) if name == "COPY"]
    sources = [source for words in copied if not words[0].startswith("--from") for source in words[:-1]]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source.rstrip('/')}" in ignored


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_images_run_a_known_command_without_root(dockerfile: Path) -> None:
    """The last stage sets a numeric user, says how its health is seen, and starts with options that exist."""
    of_last_stage: dict[str, str] = {}
    for name, arguments in instructions(dockerfile):
        if name == "FROM":
            of_last_stage.clear()
        of_last_stage[name] = arguments
    assert int(of_last_stage["USER"]) > 0
    assert "HEALTHCHECK" in of_last_stage
    done = accepts(entrypoint(dockerfile))
    assert done.returncode == 0, done.stderr


def test_torch_is_in_the_search_image_alone() -> None:
    """The gateway's image installs no torch; the search's pins the version that is tested."""
    router, search = (dockerfile.read_text() for dockerfile in DOCKERFILES)
    assert ".[router]" in router
    assert "pip install torch" not in router
    assert "torch==2.13.0" in search
    assert '"torch==2.13.0"' in (ROOT / "pyproject.toml").read_text()


def test_compose_mounts_what_exists() -> None:
    """Bind mounts have their source, named volumes their entry, images a version, dependencies a service."""
    named = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["volumes"]
    for name, service in services().items():
        assert service["image"] == "paretogate-router" or re.search(r":v?\d", service["image"]), name
        for mount in service.get("volumes", ()):
            source = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", mount).split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), mount
            else:
                assert source in named, mount
        build = service.get("build")
        if build is not None:
            assert (DEPLOY / build["context"] / build["dockerfile"]).exists()
        for other in service.get("depends_on", ()):
            assert other in services()


def test_compose_starts_commands_with_options_that_exist() -> None:
    """The router and the renderer accept their command lines."""
    router = services()["router"]
    render = services()["render"]
    image = entrypoint(DEPLOY / "router.Dockerfile")
    for command in ([*image, *router["command"]], [*render["entrypoint"], *render["command"]]):
        done = accepts(command)
        assert done.returncode == 0, (command, done.stderr)


def test_compose_router_is_scraped_and_reaches_triton() -> None:
    """Prometheus' targets and the gateway's engine are services of the compose file."""
    scraped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    targets = [job["static_configs"][0]["targets"][0].split(":") for job in scraped]
    hosts = {host for host, _ in targets}
    assert dict(targets)["router"] == str(Config(repo=Path("repository")).admin_port)
    options = services()["router"]["command"]
    assert options[options.index("--admin-host") + 1] == "0.0.0.0"
    hosts.add(options[options.index("--triton-url") + 1].split(":")[0])
    assert hosts == {"router", "triton"}
    assert hosts <= set(services())


def test_grafana_is_provisioned_with_the_board() -> None:
    """The provisioned folder is where compose mounts the boards, and the source has the board's id."""
    provisioning = DEPLOY / "grafana" / "provisioning"
    boards = yaml.safe_load((provisioning / "dashboards" / "boards.yaml").read_text())
    path = boards["providers"][0]["options"]["path"]
    assert f"./grafana/dashboards:{path}:ro" in services()["grafana"]["volumes"]
    home = services()["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    board = DEPLOY / "grafana" / "dashboards" / Path(home).name
    assert Path(home).parent == Path(path)
    source = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"][0]
    used = set(re.findall(r'"uid": "([^"]+)"', board.read_text())) - {"paretogate-operating-points"}
    assert used == {source["uid"]}


def test_kubernetes_configures_the_router_with_variables_that_it_reads() -> None:
    """Every literal of the generated ConfigMap is an option of the router, with a value that it accepts."""
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    (generator,) = kustomization["configMapGenerator"]
    literals = dict(literal.split("=", 1) for literal in generator["literals"])
    options = {name.removeprefix("PARETOGATE_").lower(): value for name, value in literals.items()}
    config = Config.model_validate({"repo": "/repository", **options})
    # The image listens on all addresses: without what is set here the gateway would not start.
    exposed = config.model_copy(update={"host": "0.0.0.0"})
    check_exposure(exposed)
    with pytest.raises(StartupError, match="TLS"):
        check_exposure(exposed.model_copy(update={"insecure": False}))
    (container,) = document("Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["envFrom"] == [{"configMapRef": {"name": generator["name"]}}]


def test_kubernetes_names_fit_together() -> None:
    """Probes and service use the container's ports, which are the router's; the volume is claimed."""
    pod = document("Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    defaults = Config(repo=Path("repository"))
    assert ports == {"http": defaults.port, "grpc": defaults.grpc_port, "admin": defaults.admin_port}
    probes = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")}
    assert {kind: probe["path"] for kind, probe in probes.items()} == {
        "startup": "/readyz",
        "readiness": "/readyz",
        "liveness": "/healthz",
    }
    assert {probe["port"] for probe in probes.values()} <= set(ports)
    # Administration is for who reaches the pod itself.
    assert {port["targetPort"] for port in document("Service")["spec"]["ports"]} == set(ports) - {"admin"}
    scraped = document("Deployment")["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"]
    assert int(scraped) == ports["admin"]
    claims = {
        volume["persistentVolumeClaim"]["claimName"]
        for volume in pod["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert claims == {document("PersistentVolumeClaim")["metadata"]["name"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }


def test_kubernetes_mounts_the_keys_that_it_names() -> None:
    """The file that PARETOGATE_KEYS names lies in the secret's mount, which only its owner may write."""
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    (generator,) = kustomization["configMapGenerator"]
    literals = dict(literal.split("=", 1) for literal in generator["literals"])
    pod = document("Deployment")["spec"]["template"]["spec"]
    (volume,) = (volume for volume in pod["volumes"] if "secret" in volume)
    (container,) = pod["containers"]
    (mount,) = (mount for mount in container["volumeMounts"] if mount["name"] == volume["name"])
    assert Path(literals["PARETOGATE_KEYS"]).parent == Path(mount["mountPath"])
    assert mount["readOnly"]
    assert not volume["secret"]["defaultMode"] & 0o022


def test_the_image_by_itself_does_not_start_unprotected() -> None:
    """It listens on all addresses, so that keys and TLS, or --insecure, have to be given."""
    words = entrypoint(DEPLOY / "router.Dockerfile")
    host = words[words.index("--host") + 1]
    with pytest.raises(StartupError, match="API keys"):
        check_exposure(Config(repo=Path("repository"), host=host))


def test_compose_router_is_for_this_machine() -> None:
    """It does without keys and TLS because its ports, and the others', are published on loopback alone."""
    assert services()["router"]["environment"] == {"PARETOGATE_INSECURE": "true"}
    for name, service in services().items():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), (name, port)


def test_the_grace_period_covers_draining() -> None:
    """Kubernetes waits longer for a stopping pod than the gateway drains."""
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    literals = dict(literal.split("=", 1) for literal in kustomization["configMapGenerator"][0]["literals"])
    delay_s = float(literals["PARETOGATE_DRAIN_DELAY_S"])
    grace_s = document("Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace_s > delay_s + Config(repo=Path("repository")).drain_s
