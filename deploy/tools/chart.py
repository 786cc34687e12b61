"""Keeps helm/vpp-dispatch true to the service: `python deploy/tools/chart.py --write | --check | --golden`.

    values.schema.json    from schema.yaml, and for `settings` and `secrets` from vpp_dispatch.settings
    files/service.json    from vpp_dispatch: settings with their variables, topics, shards, longest stop; and from
                          deploy/kafka/acls.toml who may do what
    files/rules/          copies of deploy/prometheus/*.rules.yaml
    files/dashboards/     copies of deploy/grafana/dashboards/*.json
    README.md             from values.yaml and its comments, and the schema

`--golden` renders what tests/deploy/golden holds against changes by accident.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_origin

import yaml

from vpp_dispatch import configuration
from vpp_dispatch.domain.device import SHARDS
from vpp_dispatch.preflight import internal_topics, operators_topics
from vpp_dispatch.service import STOP_S
from vpp_dispatch.settings import Settings

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "vpp-dispatch"
GOLDEN = ROOT / "tests" / "deploy" / "golden"
COPIES = {"rules": ("deploy/prometheus", "*.rules.yaml"), "dashboards": ("deploy/grafana/dashboards", "*.json")}
WORKED = ("trying-it-out", "production")
PUBLIC = ("ca_file", "cert_file")
"""Files that hold no secret, so that a ConfigMap may have them."""

Path_ = tuple[str, ...]


def program(name: str) -> str:
    """A program of `make tools`. Raises: FileNotFoundError."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name} is not there: run `make tools`.")
    return found


def is_file(path: Path_) -> bool:
    return path[-1].endswith("_file")


def is_ours(path: Path_) -> bool:
    """True for what the chart sets by itself, and for what only tests set."""
    return path in (("data_dir",), ("http", "host"), ("http", "port")) or path[0] == "fault"


# ---------------------------------------------------------------------------------------------- schema


def settings_schema() -> tuple[dict[str, Any], dict[str, Any]]:
    """Schemas of `settings` and `secrets`, both without definitions elsewhere."""
    whole = Settings.model_json_schema()
    settings, secrets = (
        _section(whole, whole["$defs"], (), files=False),
        _section(whole, whole["$defs"], (), files=True),
    )
    assert settings is not None and secrets is not None
    return settings, secrets


def _section(node: dict[str, Any], defs: dict[str, Any], path: Path_, *, files: bool) -> dict[str, Any] | None:
    """One section with its settings, or (`files`) with the `..._file` ones only; None where nothing is left."""
    leaves = dict(configuration.leaves(Settings))
    kept: dict[str, Any] = {}
    for name, value in node["properties"].items():
        here = (*path, name)
        if is_ours(here):
            continue
        if here not in leaves:
            section = _section(_resolved(value, defs), defs, here, files=files)
            if section is not None:
                kept[name] = section
        elif files and is_file(here):
            kept[name] = {"$ref": f"#/$defs/{'publicKey' if name in PUBLIC else 'secretKey'}"}
            kept[name]["description"] = value.get("description", "")
        elif not files and not is_file(here):
            kept[name] = _plain(value, defs)
    return {"type": "object", "properties": kept, "additionalProperties": False} if kept else None


def _resolved(node: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = defs[node["$ref"].split("/")[-1]] if "$ref" in node else node
    return found


def _plain(node: Any, defs: dict[str, Any]) -> Any:
    """A leaf's schema without references and titles, and without room for names that its patterns do not allow."""
    if isinstance(node, list):
        return [_plain(item, defs) for item in node]
    if not isinstance(node, dict):
        return node
    node = {**_resolved(node, defs), **{k: v for k, v in node.items() if k != "$ref"}}
    out = {key: _plain(value, defs) for key, value in node.items() if key not in ("title", "properties", "hidden")}
    if "properties" in node:
        out["properties"] = {name: _plain(value, defs) for name, value in node["properties"].items()}
    if node.get("type") == "object":
        out.setdefault("additionalProperties", False)
    return out


def _closed(node: Any) -> Any:
    """`additionalProperties: false` wherever an object lists its keys."""
    if isinstance(node, list):
        return [_closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    out = {key: _closed(value) for key, value in node.items()}
    if node.get("type") == "object":
        out.setdefault("additionalProperties", False)
    return out


def schema() -> dict[str, Any]:
    """The content of values.schema.json."""
    base = _closed(yaml.safe_load((CHART / "schema.yaml").read_text(encoding="utf-8")))
    base["properties"]["settings"], base["properties"]["secrets"] = settings_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Values of vpp-dispatch", **base}


# ---------------------------------------------------------------------------------------------- facts


def service() -> dict[str, Any]:
    """The content of files/service.json, which the templates read."""
    leaves = []
    for path, field in configuration.leaves(Settings):
        if not is_ours(path):
            default = field.get_default(call_default_factory=True)
            kind = {dict: "map", tuple: "list"}.get(get_origin(field.annotation) or str, "scalar")
            plain = default if isinstance(default, dict | str | int | float | bool) else None
            leaves.append(
                {
                    "path": list(path),
                    "variable": configuration.variable(path),
                    "kind": "file" if is_file(path) else kind,
                    "default": plain,
                }
            )
    settings = Settings()
    by_topic = internal_topics(settings) | operators_topics(settings)
    roles = settings.topics.model_dump() | {"signals": next(iter(settings.signals.topics))}
    topics = {
        role: {
            "partitions": by_topic[name][0],
            "config": by_topic[name][1],
            "internal": name in internal_topics(settings),
        }
        for role, name in roles.items()
    }
    return {"shards": SHARDS, "stop_s": STOP_S, "settings": leaves, "topics": topics, "principals": principals()}


def principals() -> dict[str, Any]:
    """Role -> name, and ACLs as Strimzi has them, of each principal of our cluster in deploy/kafka/acls.toml.

    Names in braces stand as they are there, for the templates to fill in.
    """
    found = {}
    for principal in tomllib.loads((ROOT / "deploy" / "kafka" / "acls.toml").read_text(encoding="utf-8"))["principal"]:
        if principal["cluster"] == "ours":
            operations: dict[tuple[str, str], list[str]] = {}
            for kind, resource, operation in principal["allow"]:
                operations.setdefault((kind, resource.strip("{}")), []).append(operation)
            acls = [{"type": kind, "of": of, "operations": allowed} for (kind, of), allowed in operations.items()]
            found[principal["role"]] = {"name": principal["name"], "acls": acls}
    return found


# ---------------------------------------------------------------------------------------------- README


def comments(text: str) -> dict[str, str]:
    """Dotted key -> the comment above it; a comment that an empty line follows belongs to no key."""
    found: dict[str, str] = {}
    stack: list[tuple[int, str]] = []
    pending: list[str] = []
    for line in text.splitlines():
        if match := re.match(r"^( *)([A-Za-z]\w*):", line):
            depth = len(match[1])
            stack = [part for part in stack if part[0] < depth] + [(depth, match[2])]
            if pending:
                found[".".join(name for _, name in stack)] = " ".join(pending)
            pending = []
        elif line.strip().startswith("#"):
            pending.append(line.strip().lstrip("#").strip())
        else:
            pending = []
    return found


def rows(
    values: dict[str, Any], node: dict[str, Any], defs: dict[str, Any], under: str = ""
) -> Iterator[tuple[str, str, str]]:
    """(key, default, what is allowed) of each value, in the order of values.yaml."""
    for name, value in values.items():
        part = node["properties"][name]
        resolved = {**defs.get(part.get("$ref", "").split("/")[-1], {}), **part}
        key = f"{under}{name}"
        if (
            isinstance(value, dict)
            and value
            and "properties" in resolved
            and key not in ("resources", "simulator.resources")
        ):
            yield from rows(value, resolved, defs, f"{key}.")
        else:
            yield key, json.dumps(value), _allowed(resolved)


def _allowed(node: dict[str, Any]) -> str:
    if "enum" in node:
        return ", ".join(f"`{word}`" for word in node["enum"])
    kind = node.get("type", "object")
    kind = " or ".join(kind) if isinstance(kind, list) else kind
    low, high = node.get("minimum"), node.get("maximum")
    if low is not None and high is not None:
        return f"{kind}, {low} to {high}"
    return f"{kind}, {low} or more" if low is not None else str(kind)


README = """# Helm chart `vpp-dispatch`

Written by `python deploy/tools/chart.py --write` from `values.yaml`, `schema.yaml` and the service's own settings:
change it there.

Workers of [VPP dispatch](../../docs/architecture.md) as a StatefulSet. How to install it, see that it works, upgrade,
go back and take it out again without leaving an inverter set: [docs/install.md](../../docs/install.md). Why it is as it
is: [0012](../../docs/decisions/0012-chart.md).

    helm install vpp-dispatch helm/vpp-dispatch --namespace dispatch --create-namespace --values my-values.yaml

Two worked files to begin with: [ci/trying-it-out-values.yaml](ci/trying-it-out-values.yaml), a simulated GoodWe over
one plaintext Kafka, and [ci/production-values.yaml](ci/production-values.yaml), SASL_SSL to both clusters, three
workers, Strimzi, KEDA, monitors. The other files in `ci/` render the other branches.

## Values

| key | default | allowed | what |
|---|---|---|---|
"""

SETTINGS = """
## `settings` and `secrets`

What each means, its default and its range: [docs/configuration.md](../../docs/configuration.md). An unknown key is
refused by Helm, a value that does not fit by Helm or by the service.

| key | variable |
|---|---|
"""


def readme() -> str:
    """The content of README.md."""
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    told, whole = comments(text), schema()
    lines = [
        f"| `{key}` | `{default}` | {allowed} | {told.get(key, '')} |"
        for key, default, allowed in rows(yaml.safe_load(text), whole, whole["$defs"])
    ]
    leaves = [
        f"| `{'secrets' if leaf['kind'] == 'file' else 'settings'}.{'.'.join(leaf['path'])}` | `{leaf['variable']}` |"
        for leaf in service()["settings"]
    ]
    return README + "\n".join(lines) + "\n" + SETTINGS + "\n".join(leaves) + "\n"


# ---------------------------------------------------------------------------------------------- files


def wanted() -> dict[Path, str]:
    """File -> its content, of everything that is written here."""
    files = {
        CHART / "values.schema.json": json.dumps(schema(), indent=2, ensure_ascii=False) + "\n",
        CHART / "files" / "service.json": json.dumps(service(), indent=2) + "\n",
        CHART / "README.md": readme(),
    }
    for name, (folder, pattern) in COPIES.items():
        for source in sorted((ROOT / folder).glob(pattern)):
            files[CHART / "files" / name / source.name] = source.read_text(encoding="utf-8")
    return files


def stale(files: dict[Path, str]) -> list[Path]:
    """Copies whose source is gone."""
    return [path for name in COPIES for path in (CHART / "files" / name).glob("*.*") if path not in files]


def render(values: Path, *more: str) -> str:
    """What `helm template` makes of the chart. Raises: CalledProcessError; its `stderr` says why."""
    command = [
        program("helm"),
        "template",
        "vpp-dispatch",
        str(CHART),
        "--namespace",
        "dispatch",
        "--values",
        str(values),
    ]
    return subprocess.run([*command, *more], capture_output=True, text=True, check=True, timeout=60).stdout


def golden() -> dict[Path, str]:
    """File -> content of the renderings that are kept. Rules and dashboards have tests of their own."""
    more = ("--set", "metrics.rules=false,dashboards.enabled=false")
    return {GOLDEN / f"{name}.yaml": render(CHART / "ci" / f"{name}-values.yaml", *more) for name in WORKED}


def main(arguments: list[str]) -> int:
    """Writes or compares; returns the exit code."""
    if arguments not in (["--write"], ["--check"], ["--golden"]):
        print("Usage: python deploy/tools/chart.py --write | --check | --golden", file=sys.stderr)
        return 2
    files = golden() if arguments == ["--golden"] else wanted()
    gone = [] if arguments == ["--golden"] else stale(files)
    if arguments == ["--check"]:
        differ = [
            path for path, text in files.items() if not path.is_file() or path.read_text(encoding="utf-8") != text
        ]
        for path in [*differ, *gone]:
            print(f"{path.relative_to(ROOT)} differs: run `python deploy/tools/chart.py --write`.", file=sys.stderr)
        return 1 if differ or gone else 0
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for path in gone:
        path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
