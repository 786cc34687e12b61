"""The chart as Helm renders it: objects, pods, and what a pod's environment says to the service."""

from __future__ import annotations

import runpy
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from vpp_dispatch.settings import Settings

ROOT = Path(__file__).parents[2]
TOOL = runpy.run_path(str(ROOT / "deploy" / "tools" / "chart.py"))
CHART = ROOT / "helm" / "vpp-dispatch"
VALUES = {path.name.removesuffix("-values.yaml"): path for path in sorted(CHART.glob("ci/*-values.yaml"))}

Object = dict[str, Any]

each_file = pytest.mark.parametrize("name", VALUES)


def helm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs helm. Raises: FileNotFoundError; it is not there."""
    command = [TOOL["program"]("helm"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@cache
def text(name: str, *more: str) -> str:
    """What `helm template` prints for a file in ci/."""
    rendered: str = TOOL["render"](VALUES[name], *more)
    return rendered


@cache
def objects(name: str, *more: str) -> tuple[Object, ...]:
    """The objects of a rendering."""
    return tuple(found for found in yaml.safe_load_all(text(name, *more)) if found)


def of_kind(name: str, kind: str, *more: str) -> list[Object]:
    return [found for found in objects(name, *more) if found["kind"] == kind]


def pods(name: str, *more: str) -> Iterator[tuple[str, Object, Object]]:
    """(kind/name, metadata, spec) of each pod that the objects make."""
    for found in objects(name, *more):
        if found["kind"] == "Pod":
            yield f"Pod/{found['metadata']['name']}", found["metadata"], found["spec"]
        elif "template" in found.get("spec", {}) and "containers" in found["spec"]["template"].get("spec", {}):
            template = found["spec"]["template"]
            yield f"{found['kind']}/{found['metadata']['name']}", template["metadata"], template["spec"]


def containers(name: str, *more: str) -> Iterator[tuple[str, Object, Object]]:
    """(kind/name/container, pod's spec, container)."""
    for where, _, spec in pods(name, *more):
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            yield f"{where}/{container['name']}", spec, container


def worker(name: str, *more: str) -> tuple[Object, Object]:
    """The spec of the workers' pods, and their container."""
    (found,) = of_kind(name, "StatefulSet", *more)
    spec = found["spec"]["template"]["spec"]
    return spec, spec["containers"][0]


def mounted(spec: Object, container: Object) -> dict[str, Object]:
    """Path -> source, of each file that Secrets and ConfigMaps put into a container."""
    files = {}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    for mount in container["volumeMounts"]:
        volume = volumes.get(mount["name"], {})  # a claim of the StatefulSet stands elsewhere
        sources = volume.get("projected", {}).get("sources") or [volume]
        for source in sources:
            for item in source.get("secret", source.get("configMap", {})).get("items", []):
                files[f"{mount['mountPath']}/{item['path']}"] = source
    return files


def settings(spec: Object, container: Object, folder: Path) -> Settings:
    """The settings as the service reads them from this container: files from `folder`, one for each that is mounted.

    A `..._FILE` that names a file that is not mounted stays as it is, and so is refused.
    """
    found = {entry["name"]: entry["value"].replace("$$(", "$(") for entry in container["env"]}
    assert len(found) == len(container["env"])
    for number, path in enumerate(mounted(spec, container)):
        file = folder / str(number)
        file.write_text("name: value")
        found = {name: str(file) if value == path else value for name, value in found.items()}
    return Settings.load(None, found)


def settings_of(name: str, folder: Path) -> Settings:
    """What the workers of a file in ci/ are told."""
    return settings(*worker(name), folder)
