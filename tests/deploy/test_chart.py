"""The Helm chart: what it renders is valid, safe, and means to the service what the values say."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.deploy.chart import (
    CHART,
    ROOT,
    TOOL,
    VALUES,
    Object,
    containers,
    each_file,
    helm,
    mounted,
    objects,
    of_kind,
    settings,
    settings_of,
    worker,
)
from tests.deploy.command_lines import lines, parsed
from vpp_dispatch import configuration
from vpp_dispatch.goodwe.profile import load_profile
from vpp_dispatch.observability.metrics import Metrics
from vpp_dispatch.preflight import internal_topics, operators_topics
from vpp_dispatch.settings import Settings

OLDEST, NEWEST = "1.27", ".".join(kubernetes_validate.latest_version().split(".")[:2])
CRDS = [json.loads(path.read_text()) for path in sorted((Path(__file__).parent / "crds").glob("*.json"))]
CUSTOM: dict[tuple[str, str], dict[str, Any]] = {
    (crd["kind"], api): schema for crd in CRDS for api, schema in crd["schemas"].items()
}


# ---------------------------------------------------------------------------------------------- it is valid


def validate(found: Object, version: str) -> None:
    """Raises: ValidationError; for Kubernetes' own kinds and for custom ones alike."""
    custom = CUSTOM.get((found["kind"], found["apiVersion"]))
    if custom is None:
        kubernetes_validate.validate(found, version, strict=True)
    else:
        jsonschema.Draft202012Validator(custom).validate(found)


def test_there_are_the_files_that_are_worked_out() -> None:
    assert {"trying-it-out", "production", "mtls", "break-glass"} <= set(VALUES)


@each_file
def test_helm_lints_it_strictly(name: str) -> None:
    done = helm("lint", "--strict", CHART, "--values", VALUES[name])
    assert done.returncode == 0 and "0 chart(s) failed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@each_file
def test_every_object_fits_its_schema(name: str, version: str) -> None:
    validated = 0
    for found in objects(name):
        validate(found, version)
        validated += 1
    assert validated > 4


def test_the_custom_kinds_are_all_rendered_and_so_validated() -> None:
    rendered = {found["kind"] for name in VALUES for found in objects(name)}
    assert {kind for kind, _ in CUSTOM} <= rendered and len(CUSTOM) == 6


@pytest.mark.parametrize(
    ("kind", "at", "key"),
    [
        ("StatefulSet", ("spec", "template", "spec"), "terminationGraceSeconds"),
        ("NetworkPolicy", ("spec",), "podSelectors"),
        ("PodDisruptionBudget", ("spec",), "maxUnavailables"),
        ("ServiceMonitor", ("spec",), "endpoint"),
        ("PrometheusRule", ("spec",), "group"),
        ("ScaledObject", ("spec",), "maxReplicas"),
        ("KafkaTopic", ("spec",), "partition"),
        ("KafkaUser", ("spec", "authorization"), "acl"),
    ],
)
def test_the_validators_refuse_a_misspelt_field(kind: str, at: tuple[str, ...], key: str) -> None:
    found = json.loads(json.dumps(of_kind("production", kind)[0]))
    node = found
    for step in at:
        node = node[step]
    node[key] = 1
    with pytest.raises(Exception, match=key):
        validate(found, NEWEST)


def test_the_broker_to_try_it_with_is_valid() -> None:
    found = list(yaml.safe_load_all((CHART / "ci" / "kafka.yaml").read_text()))
    assert [kubernetes_validate.validate(part, NEWEST, strict=True) for part in found] and len(found) == 2


# ---------------------------------------------------------------------------------------------- it says what was meant


@each_file
def test_the_service_reads_what_the_values_say(name: str, tmp_path: Path) -> None:
    spec, container = worker(name)
    loaded = settings(spec, container, tmp_path)
    assert loaded.unmet() == []
    wished = yaml.safe_load(VALUES[name].read_text()).get("settings", {})
    given = 0
    for path, _ in configuration.leaves(Settings):
        node: Any = wished
        for step in path:
            node = node.get(step) if isinstance(node, dict) else None
        if node is not None:
            told = configuration.value_of(loaded, path)
            assert json.loads(json.dumps(told, default=lambda part: part.model_dump(exclude_unset=True))) == node, path
            given += 1
    assert given > 4
    assert loaded.data_dir == Path("/var/lib/vpp-dispatch")
    assert loaded.http.port == container["ports"][0]["containerPort"]


@each_file
def test_every_secret_that_is_named_is_mounted_and_told(name: str, tmp_path: Path) -> None:
    spec, container = worker(name)
    named = yaml.safe_load(VALUES[name].read_text()).get("secrets", {})
    loaded, files = settings(spec, container, tmp_path), mounted(spec, container)
    told = {path for path, _ in configuration.leaves(Settings) if path[-1].endswith("_file")}
    wished = {}
    for path in told:
        node: Any = named
        for step in path:
            node = node.get(step) if isinstance(node, dict) else None
        if node is not None:
            wished[path] = node
    set_ = {path for path in told if configuration.value_of(loaded, path)}
    assert set_ == set(wished) | ({("goodwe", "realtime", "password_file")} if name == "trying-it-out" else set())
    values = {entry["name"]: entry["value"] for entry in container["env"]}
    for path, reference in wished.items():
        source = files[values[configuration.variable(path)]]
        kind = "secret" if "secret" in reference else "configMap"
        assert source[kind]["name"] == reference[kind]
        assert reference["key"] in [item["key"] for item in source[kind]["items"]]


@each_file
def test_every_container_of_ours_is_told_the_same(name: str) -> None:
    told = {json.dumps(c["env"]) for _, _, c in containers(name) if "env" in c}
    assert len(told) == 1
    assert {c["image"] for _, _, c in containers(name)} == {worker(name)[1]["image"]}


def test_a_profile_from_a_config_map_is_where_the_service_looks() -> None:
    spec, container = worker("production")
    (profile,) = [e["value"] for e in container["env"] if e["name"] == "VPP_DISPATCH_GOODWE__PROFILE"]
    assert mounted(spec, container)[profile]["configMap"]["name"] == "goodwe-profile"


@each_file
def test_commands_that_are_run_exist(name: str) -> None:
    ran = [parsed(c["args"]) for _, _, c in containers(name) if "command" not in c]
    assert {context.command.name for context in ran} >= {"run", "preflight"}


@each_file
def test_notes_name_commands_that_exist(name: str) -> None:
    done = helm("install", "try", CHART, "--namespace", "n", "--dry-run=client", "--values", VALUES[name])
    notes = done.stdout.split("\nNOTES:\n")[1]
    named = [words for words in lines(notes.replace("`", ""), "vpp-dispatch") if words and words[0] != "release"]
    assert all(line in notes for line in ("  1. ", "  2. ", "  3. "))
    if name != "break-glass":
        assert ["signal", "abort"] in [words[:2] for words in named]
        drain = next(words for words in named if words[:2] == ["switch", "drain"])
        assert parsed(drain).command.name == "drain"
    else:
        assert "vpp-dispatch release" in notes and "--dry-run" in notes


def test_what_is_held_and_owed_is_summed_from_the_real_metrics() -> None:
    (program,) = re.findall(r"awk '(.+)'", (CHART / "templates" / "NOTES.txt").read_text())
    metrics = Metrics()
    metrics.held_devices.set_all({"ems": 3, "export": 4})
    metrics.debts.set_all({"ems": 0, "export": 1})
    metrics.events.set_all({"active": 1})
    page = metrics.exposition().decode()
    done = subprocess.run(["awk", program], input=page * 2, capture_output=True, text=True, check=True, timeout=20)
    sums = dict(line.split() for line in done.stdout.splitlines())
    assert sums == {
        "vpp_dispatch_held_devices": "14",
        "vpp_dispatch_debts": "2",
        "vpp_dispatch_events": "2",
        "vpp_dispatch_owned_shards": "0",
    }


# ---------------------------------------------------------------------------------------------- topics and users


def test_the_topics_are_those_of_the_service(tmp_path: Path) -> None:
    loaded = settings_of("production", tmp_path)
    wanted = internal_topics(loaded) | operators_topics(loaded)
    rendered = {topic["spec"]["topicName"]: topic for topic in of_kind("production", "KafkaTopic")}
    assert set(rendered) == set(wanted) and len(rendered) > 12
    for name, (partitions, config) in wanted.items():
        spec = rendered[name]["spec"]
        least = str(loaded.kafka.min_insync_replicas)
        assert spec["partitions"] == partitions and spec["replicas"] == loaded.kafka.replication_factor
        assert {key: str(value) for key, value in spec["config"].items()} == {**config, "min.insync.replicas": least}
        assert rendered[name]["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_the_users_have_the_rights_of_the_file_of_acls(tmp_path: Path) -> None:
    loaded = settings_of("production", tmp_path)
    acls = runpy.run_path(str(ROOT / "deploy" / "kafka" / "apply.py"))["render"](loaded, load_profile("goodwe"))
    wanted = {
        (acl.principal.removeprefix("User:"), acl.resource, acl.name, acl.operation)
        for acl in acls
        if acl.cluster == "ours" and acl.role != "topics"
    }
    rendered = {
        (user["metadata"]["name"], acl["resource"]["type"], acl["resource"]["name"], operation)
        for user in of_kind("production", "KafkaUser")
        for acl in user["spec"]["authorization"]["acls"]
        for operation in acl["operations"]
    }
    assert rendered == wanted and len(wanted) > 30
    assert loaded.kafka.security.username in {user for user, *_ in wanted}


# ---------------------------------------------------------------------------------------------- it is up to date


def test_what_is_written_by_the_tool_is_up_to_date() -> None:
    """`python deploy/tools/chart.py --write` writes schema, README, facts and the copies of rules and dashboards."""
    wanted = TOOL["wanted"]()
    assert len(wanted) > 3
    differ = [path for path, content in wanted.items() if not path.is_file() or path.read_text() != content]
    assert [str(path) for path in (*differ, *TOOL["stale"](wanted))] == []


def test_what_must_not_change_by_accident_has_not() -> None:
    """Meant? `python deploy/tools/chart.py --golden` renews them; then look at the difference."""
    golden = TOOL["golden"]()
    assert len(golden) == 2
    for path, content in golden.items():
        assert path.read_text().splitlines() == content.splitlines(), path.name


def test_the_versions_are_the_projects() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == version
    default = helm("template", "x", CHART, "--values", VALUES["mtls"], "--set", "image.tag=").stdout
    assert f"image: registry.example/energy/vpp-dispatch:{version}\n" in default


def test_rules_and_dashboards_are_whole_and_fit() -> None:
    rules = sorted((ROOT / "deploy" / "prometheus").glob("*.rules.yaml"))
    rendered = [found["spec"] for found in of_kind("production", "PrometheusRule")]
    assert rendered == [yaml.safe_load(path.read_text()) for path in rules] and rules
    boards = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))
    maps = [m for m in of_kind("production", "ConfigMap") if m["metadata"]["labels"].get("grafana_dashboard") == "1"]
    assert {name for m in maps for name in m["data"]} == {path.name for path in boards} and boards
    for found in maps:
        ((name, content),) = found["data"].items()
        assert json.loads(content) == json.loads((ROOT / "deploy" / "grafana" / "dashboards" / name).read_text())
        assert len(content.encode()) < 1 << 20  # the most that a ConfigMap holds


def test_the_package_leaves_out_what_only_the_checkout_needs(tmp_path: Path) -> None:
    assert helm("package", CHART, "--destination", tmp_path).returncode == 0
    (package,) = tmp_path.glob("vpp-dispatch-*.tgz")
    listed = subprocess.run(["tar", "tzf", package], capture_output=True, text=True, check=True, timeout=20).stdout
    assert "/templates/statefulset.yaml" in listed and "/ci/" not in listed and "schema.yaml" not in listed
    assert package.stat().st_size < 512 << 10  # Helm keeps it in a Secret of at most 1 MiB, in base64


def test_the_install_guide_names_values_and_commands_that_exist() -> None:
    guide = (ROOT / "docs" / "install.md").read_text()
    blocks = "\n".join(re.findall(r"```(?:sh|yaml)\n(.+?)```", guide, re.DOTALL))
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    for key in re.findall(r"--set ([A-Za-z.]+)=", blocks):
        node: Any = values
        for step in key.split("."):
            node = node[step]
    commands = list(lines(blocks, "vpp-dispatch"))
    known = [words for words in commands if words and words[0] in ("switch", "signal", "preflight", "config", "fleet")]
    assert len(known) > 3
    for words in known:
        assert parsed(words).command.name
