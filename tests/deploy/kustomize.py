"""The part of kustomize that deploy/kubernetes uses, so that what it renders can be looked at without it.

Resources, components, namespaces, literals of ConfigMaps and their merging, strategic merge patches by kind
and name, and additions of JSON patches by target. Whatever else a kustomization says is refused. The name of
a generated ConfigMap lacks the hash that kustomize appends. `test_kustomize.py` compares both.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path

import yaml

from tests.deploy.documents import Yaml, read_yaml

_KNOWN = {"apiVersion", "kind", "namespace", "resources", "components", "configMapGenerator", "patches"}
# By what the elements of a list are known; other lists are replaced as a whole.
_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
}


def render(folder: Path) -> list[Yaml]:
    """Return the objects of a kustomization; raises ValueError for what this does not know."""
    return _render(folder, [])


def _render(folder: Path, given: list[Yaml]) -> list[Yaml]:
    (kustomization,) = read_yaml(folder / "kustomization.yaml")
    unknown = set(kustomization) - _KNOWN
    if unknown:
        raise ValueError(f"{folder}: {sorted(unknown)} is not among what is rendered here")
    objects = list(given)
    for name in kustomization.get("resources", ()):
        path = folder / name
        objects.extend(_render(path, []) if path.is_dir() else read_yaml(path))
    for generator in kustomization.get("configMapGenerator", ()):
        _generate(objects, generator)
    for name in kustomization.get("components", ()):
        objects = _render(folder / name, objects)
    for patch in kustomization.get("patches", ()):
        _patch(objects, patch, folder)
    if "namespace" in kustomization:
        for one in objects:
            if one["kind"] != "Namespace":
                one["metadata"]["namespace"] = kustomization["namespace"]
    return objects


def _generate(objects: list[Yaml], generator: Yaml) -> None:
    if set(generator) - {"name", "literals", "behavior"}:
        raise ValueError(f"generator {generator['name']}: {sorted(generator)}")
    data = dict(literal.split("=", 1) for literal in generator["literals"])
    if generator.get("behavior") == "merge":
        find(objects, "ConfigMap", generator["name"])["data"].update(data)
        return
    metadata = {"name": generator["name"]}
    objects.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})


def _patch(objects: list[Yaml], patch: Yaml, folder: Path) -> None:
    if set(patch) == {"path"}:
        (change,) = read_yaml(folder / patch["path"])
        _merge(find(objects, change["kind"], change["metadata"]["name"]), change)
        return
    if set(patch) != {"target", "patch"}:
        raise ValueError(f"patch: {sorted(patch)}")
    target = patch["target"]
    for one in objects:
        if one["kind"] == target["kind"] and one["metadata"]["name"] == target["name"]:
            _add(one, yaml.safe_load(patch["patch"]))


def _add(into: Yaml, operations: Iterable[Yaml]) -> None:
    for operation in operations:
        if operation["op"] != "add":
            raise ValueError(f"operation {operation['op']}")
        *way, last = operation["path"].strip("/").split("/")
        place = into
        for step in way:
            place = place[int(step)] if isinstance(place, list) else place[step]
        place[last] = operation["value"]


def _merge(into: Yaml, change: Yaml) -> None:
    for name, value in change.items():
        if name.startswith("$"):
            raise ValueError(f"directive {name}")
        before = into.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            _merge(before, value)
        elif isinstance(before, list) and name in _KEYS:
            for element in value:
                key = _KEYS[name]
                same = [one for one in before if one.get(key) == element[key]]
                if same:
                    _merge(same[0], element)
                else:
                    before.append(deepcopy(element))
        else:
            into[name] = deepcopy(value)


def find(objects: Iterable[Yaml], kind: str, name: str) -> Yaml:
    """Return the one object of a kind and name; raises ValueError when there is another number of them."""
    (found,) = (one for one in objects if one["kind"] == kind and one["metadata"]["name"] == name)
    return found
