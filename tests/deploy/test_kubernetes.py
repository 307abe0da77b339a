"""The Kubernetes manifests: valid by the API's schemas, confined, and fitting the gateway and each other."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from model_repo.publish import read
from router.config import Config
from router.controller import ControllerSettings
from router.engines import StartupError
from router.running import check_exposure
from tests.deploy.documents import Yaml, accepts, entrypoint, read_yaml
from tests.deploy.kustomize import find, render
from tests.deploy.promtool import DEPLOY, promtool
from tests.fakes import tiny_repository

KUBERNETES = DEPLOY / "kubernetes"
OVERLAYS = ["cpu-embedded", "gpu-triton"]
VERSIONS = ["1.30", "1.33", "1.37"]
ROUTER = "paretogate-router"
TRITON = "paretogate-triton"


def overlay(name: str) -> list[Yaml]:
    """Return the objects of an overlay."""
    return render(KUBERNETES / "overlays" / name)


def everything() -> Iterator[Yaml]:
    """Yield the objects of every overlay and of the job that publishes."""
    for name in OVERLAYS:
        yield from overlay(name)
    yield from render(KUBERNETES / "publish")


def pods(objects: list[Yaml]) -> Iterator[tuple[str, Yaml]]:
    """Yield the name and the pod's specification of whatever makes pods."""
    for one in objects:
        if "template" in one.get("spec", {}):
            yield one["metadata"]["name"], one["spec"]["template"]["spec"]


def router_config(name: str) -> Config:
    """Return what the gateway of an overlay is configured with; raises ValidationError."""
    objects = overlay(name)
    variables = dict(find(objects, "ConfigMap", ROUTER)["data"])
    pod = dict(pods(objects))[ROUTER]
    limits = pod["containers"][0]["resources"]["limits"]
    for variable in pod["containers"][0].get("env", ()):
        given = variable.get("value")
        variables[variable["name"]] = (
            given or limits[variable["valueFrom"]["resourceFieldRef"]["resource"][7:]]
        )
    options = {name.removeprefix("PARETOGATE_").lower(): value for name, value in variables.items()}
    return Config.model_validate({"repo": "/repository", "host": "0.0.0.0", **options})


@pytest.mark.parametrize("version", VERSIONS)
def test_manifests_are_valid_by_the_schemas(version: str) -> None:
    """An older, a middle and the newest version of the API take each object, without unknown fields."""
    for one in everything():
        kubernetes_validate.validate(one, version, strict=True)


def test_the_schemas_see_a_mistake() -> None:
    """A field that is misspelt is not passed over."""
    broken = find(overlay("cpu-embedded"), "Deployment", ROUTER)
    broken["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_router_reads_what_it_is_configured_with(name: str) -> None:
    """Every variable is an option with a value that it accepts; without --insecure TLS would be asked for."""
    config = router_config(name)
    check_exposure(config)
    with pytest.raises(StartupError, match="TLS"):
        check_exposure(config.model_copy(update={"insecure": False}))
    assert config.threads == 1
    assert config.workers == {"cpu-embedded": 2, "gpu-triton": 8}[name]
    assert config.operating_point == Config(repo=Path("repository")).operating_point


def test_pods_are_confined() -> None:
    """No pod is root, writes to its root, keeps a capability, may gain one, or has a token of the cluster."""
    for name, pod in pods(list(everything())):
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["securityContext"]["runAsUser"] > 0, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["enableServiceLinks"] is False, name
        for container in [*pod.get("initContainers", ()), *pod["containers"]]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]), name
            assert "memory" in container["resources"]["limits"], name


def test_embedded_gateways_have_whole_cores_of_their_own() -> None:
    """What is asked for is what is limited, in whole cores: the class Guaranteed."""
    resources = dict(pods(overlay("cpu-embedded")))[ROUTER]["containers"][0]["resources"]
    assert resources["requests"] == resources["limits"]
    assert int(resources["limits"]["cpu"]) > 0


@pytest.mark.parametrize("name", OVERLAYS)
def test_volumes_are_claimed_mounted_and_written_by_the_publisher_alone(name: str) -> None:
    """Each mount has its volume, each claim its object; serving pods have the repository read-only."""
    objects = overlay(name)
    for owner, pod in pods(objects):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        templates = find(objects, "StatefulSet", owner)["spec"] if owner == TRITON else {}
        made = {template["metadata"]["name"] for template in templates.get("volumeClaimTemplates", ())}
        mounts = pod["containers"][0]["volumeMounts"]
        assert {mount["name"] for mount in mounts} == set(volumes) | made
        claim = volumes["repository"]["persistentVolumeClaim"]
        assert claim["readOnly"]
        find(objects, "PersistentVolumeClaim", claim["claimName"])
        assert all(mount["readOnly"] for mount in mounts if mount["name"] in ("repository", "keys"))
    ((_, publisher),) = pods(render(KUBERNETES / "publish"))
    (mount,) = (one for one in publisher["containers"][0]["volumeMounts"] if one["name"] == "repository")
    assert not mount.get("readOnly")


@pytest.mark.parametrize("name", OVERLAYS)
def test_selectors_choose_pods_that_there_are(name: str) -> None:
    """Services, budgets, policies and autoscalers are about pods of this overlay."""
    objects = overlay(name)
    apps = {one["metadata"]["name"] for one in objects if "template" in one.get("spec", {})}
    for one in objects:
        spec = one.get("spec", {})
        for selector in (spec.get("selector"), spec.get("podSelector")):
            if selector is not None:
                labels = selector.get("matchLabels", selector)
                assert labels["app.kubernetes.io/name"] in apps, one["metadata"]
        if one["kind"] == "HorizontalPodAutoscaler":
            find(objects, spec["scaleTargetRef"]["kind"], spec["scaleTargetRef"]["name"])
            assert "replicas" not in find(objects, "Deployment", ROUTER)["spec"]


@pytest.mark.parametrize("name", OVERLAYS)
def test_ports_are_the_gateways(name: str) -> None:
    """Probes, services, policies and scrapes use the ports it listens on; administration is in no service."""
    objects, config = overlay(name), router_config(name)
    pod = dict(pods(objects))[ROUTER]
    container = pod["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": config.port, "grpc": config.grpc_port, "admin": config.admin_port}
    probes = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")}
    assert {kind: (probe["path"], probe["port"]) for kind, probe in probes.items()} == {
        "startup": ("/readyz", "http"),
        "readiness": ("/readyz", "http"),
        "liveness": ("/healthz", "http"),
    }
    for service in ("paretogate-router", "paretogate-router-pods"):
        targets = {port["targetPort"] for port in find(objects, "Service", service)["spec"]["ports"]}
        assert targets <= {"http", "grpc"}
    ingress = find(objects, "NetworkPolicy", ROUTER)["spec"]["ingress"]
    open_to_all = {port["port"] for rule in ingress if "from" not in rule for port in rule["ports"]}
    assert open_to_all == {config.port, config.grpc_port}
    annotations = find(objects, "Deployment", ROUTER)["spec"]["template"]["metadata"]["annotations"]
    assert int(annotations["prometheus.io/port"]) == config.admin_port


def test_the_grace_period_covers_draining() -> None:
    """Kubernetes waits longer for a stopping pod than the gateway drains."""
    config = router_config("cpu-embedded")
    assert dict(pods(overlay("cpu-embedded")))[ROUTER]["terminationGracePeriodSeconds"] > (
        config.drain_delay_s + config.drain_s
    )


def test_keys_lie_where_the_gateway_looks() -> None:
    """The file that PARETOGATE_KEYS names is in the secret's mount, which only its owner may write."""
    config = router_config("cpu-embedded")
    pod = dict(pods(overlay("cpu-embedded")))[ROUTER]
    (volume,) = (volume for volume in pod["volumes"] if "secret" in volume)
    (mount,) = (one for one in pod["containers"][0]["volumeMounts"] if one["name"] == volume["name"])
    assert config.keys is not None
    assert config.keys.parent == Path(mount["mountPath"])
    assert not volume["secret"]["defaultMode"] & 0o022


def test_gateways_know_every_triton_by_its_address() -> None:
    """There are as many addresses as replicas, each the stable name of a pod, on the port let through."""
    objects = overlay("gpu-triton")
    triton = find(objects, "StatefulSet", TRITON)["spec"]
    service = find(objects, "Service", triton["serviceName"])
    assert service["spec"]["clusterIP"] == "None"
    port = service["spec"]["ports"][0]["port"]
    names = [f"{TRITON}-{index}.{triton['serviceName']}:{port}" for index in range(triton["replicas"])]
    assert list(router_config("gpu-triton").triton_urls) == names
    (rule,) = (
        rule
        for rule in find(objects, "NetworkPolicy", f"{ROUTER}-to-triton")["spec"]["egress"]
        if rule["ports"] == [{"port": port}]
    )
    assert rule["to"] == [{"podSelector": {"matchLabels": triton["selector"]["matchLabels"]}}]


def test_triton_keeps_its_engines_and_serves_the_published_folders() -> None:
    """The models are mounted as they are, and TensorRT's cache is on a volume that outlives the pod."""
    triton = find(overlay("gpu-triton"), "StatefulSet", TRITON)["spec"]
    container = triton["template"]["spec"]["containers"][0]
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert mounts["/models"]["subPath"] == "models"
    assert "--model-repository=/models" in container["args"]
    published = next((DEPLOY.parent / "model_repo" / "models").glob("*/config.pbtxt")).read_text()
    assert 'value: "/tmp/triton-engines/' in published
    assert mounts["/tmp/triton-engines"]["name"] == triton["volumeClaimTemplates"][0]["metadata"]["name"]


def test_gateways_wait_until_one_triton_listens() -> None:
    """The init container ends as soon as one of the addresses takes connections."""
    (waiting,) = dict(pods(overlay("gpu-triton")))[ROUTER]["initContainers"]
    assert waiting["command"][:2] == ["python", "-c"]
    with socket.socket() as silent, socket.socket() as listening:
        for one in (silent, listening):
            one.bind(("127.0.0.1", 0))
        listening.listen()
        urls = ",".join(f"127.0.0.1:{one.getsockname()[1]}" for one in (silent, listening))
        done = subprocess.run(
            [sys.executable, *waiting["command"][1:]],
            env={"PARETOGATE_TRITON_URL": urls},
            timeout=120,
            check=False,
        )
    assert done.returncode == 0


def test_the_publisher_publishes_what_its_image_holds(tmp_path: Path) -> None:
    """The image's command, on other paths, leaves the same set in a repository; its options exist."""
    words = entrypoint(DEPLOY / "set.Dockerfile")
    assert accepts(words).returncode == 0
    source = tiny_repository(tmp_path / "set")
    replaced = {"/set": str(source.root), "/repository": str(tmp_path / "repository")}
    command = [replaced.get(word, word) for word in words[1:]]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=DEPLOY.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert read(tmp_path / "repository").frontier == source.frontier
    ((_, pod),) = pods(render(KUBERNETES / "publish"))
    mounts = {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert words[words.index("--to") + 1] in mounts


def adapter_rules() -> dict[str, str]:
    """Return the queries of the autoscaler's metrics by name, asked for the pods of a namespace."""
    (values,) = read_yaml(KUBERNETES / "prometheus-adapter.yaml")
    return {
        rule["name"]["as"]: rule["metricsQuery"]
        .replace("<<.LabelMatchers>>", 'namespace="paretogate",pod=~"a|b"')
        .replace("<<.GroupBy>>", "pod")
        for rule in values["rules"]["custom"]
    }


def test_the_autoscaler_asks_for_metrics_that_the_adapter_makes() -> None:
    """Names agree, and the target is below the load at which a gateway takes back accuracy it gave away."""
    metrics = find(overlay("cpu-embedded"), "HorizontalPodAutoscaler", ROUTER)["spec"]["metrics"]
    assert {one["pods"]["metric"]["name"] for one in metrics} == set(adapter_rules())
    for one in metrics:
        share = int(one["pods"]["target"]["averageValue"].removesuffix("m")) / 1000
        # The autoscaler leaves what is within 10 % of the target alone.
        assert share * 1.1 < ControllerSettings().headroom


def test_the_autoscalers_metrics_are_made_of_the_gateways(exposed_metrics: frozenset[str]) -> None:
    """Every series in the adapter's queries is one that the gateway exposes."""
    for query in adapter_rules().values():
        assert set(re.findall(r"paretogate_\w+", query)) - {"paretogate"} <= exposed_metrics


def test_the_autoscalers_metrics_are_the_shares_that_they_say(tmp_path: Path) -> None:
    """By Prometheus itself: demand is what arrives at the price of the configured point, busy the workers."""
    rules = [{"record": name, "expr": query} for name, query in adapter_rules().items()]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "adapter", "rules": rules}]}))
    labels = 'namespace="paretogate",pod="a"'
    series = {
        # 10 and 20 frames a second, in steps of 30 s; 40 ms each at the configured point; one of two busy.
        f'paretogate_arrivals_total{{{labels},protocol="http"}}': "0+300x10",
        f'paretogate_arrivals_total{{{labels},protocol="grpc"}}': "0+600x10",
        f'paretogate_operating_point_mean_seconds{{{labels},operating_point="balanced",plan="p"}}': "0.04x10",
        f'paretogate_operating_point_mean_seconds{{{labels},operating_point="fast",plan="q"}}': "0.01x10",
        f"paretogate_workers{{{labels}}}": "2x10",
        f"paretogate_workers_busy{{{labels}}}": "1x10",
    }
    cases = [
        {"expr": name, "eval_time": "5m", "exp_samples": [{"labels": f'{name}{{pod="a"}}', "value": value}]}
        for name, value in (("paretogate_demand_share", 0.6), ("paretogate_busy_share", 0.5))
    ]
    inputs = [{"series": name, "values": values} for name, values in series.items()]
    tests = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": "30s",
        "tests": [{"interval": "30s", "input_series": inputs, "promql_expr_test": cases}],
    }
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(tests))
    assert "SUCCESS" in promtool("test", "rules", "tests.yml", folder=tmp_path)
