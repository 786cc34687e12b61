"""The Helm chart: what it renders is valid, safe, and means to the service what the values say."""

from __future__ import annotations

import http.server
import json
import re
import runpy
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
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
    helm,
    mounted,
    objects,
    of_kind,
    pods,
    settings,
    worker,
)
from tests.deploy.command_lines import lines, parsed
from vpp_dispatch import configuration
from vpp_dispatch.domain.device import SHARDS
from vpp_dispatch.goodwe.profile import load_profile
from vpp_dispatch.observability.metrics import Metrics
from vpp_dispatch.preflight import internal_topics, operators_topics
from vpp_dispatch.service import STOP_S
from vpp_dispatch.settings import Settings

OLDEST, NEWEST = "1.27", ".".join(kubernetes_validate.latest_version().split(".")[:2])
CRDS = [json.loads(path.read_text()) for path in sorted((Path(__file__).parent / "crds").glob("*.json"))]
CUSTOM: dict[tuple[str, str], dict[str, Any]] = {
    (crd["kind"], api): schema for crd in CRDS for api, schema in crd["schemas"].items()
}
each_file = pytest.mark.parametrize("name", VALUES)


def settings_of(name: str, folder: Path) -> Settings:
    """What the workers of a file in ci/ are told."""
    return settings(*worker(name), folder)


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


# ---------------------------------------------------------------------------------------------- it is safe


@each_file
def test_every_container_is_restricted(name: str) -> None:
    found = list(containers(name))
    assert len(found) >= 3
    for where, spec, container in found:
        pod, own = spec["securityContext"], container["securityContext"]
        assert pod["runAsNonRoot"] is True, where
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}, where
        assert own == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, where
        assert pod.get("runAsUser", 10001) == 10001, where
        assert ("runAsUser" in pod) == (name != "mtls"), where
        assert spec["automountServiceAccountToken"] is False, where
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), where
        assert not any("hostPath" in volume for volume in spec["volumes"]), where
        assert "memory" in container["resources"]["limits"], where


@each_file
def test_no_service_becomes_an_unknown_setting(name: str) -> None:
    """Kubernetes would set VPP_DISPATCH_PORT in every pod beside a Service vpp-dispatch."""
    assert [where for where, _, spec in pods(name) if spec["enableServiceLinks"] is not False] == []


@each_file
def test_no_secret_is_rendered(name: str) -> None:
    assert of_kind(name, "Secret") == []
    assert not any("kind: Secret" in path.read_text() for path in (CHART / "templates").rglob("*.*"))


def test_the_probes_ask_pages_that_exist() -> None:
    pages = re.findall(r'add_get\("(/\w+)"', (ROOT / "vpp_dispatch" / "observability" / "health.py").read_text())
    _, container = worker("production")
    asked = [container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "liveness", "readiness")]
    assert asked == ["/livez", "/livez", "/readyz"] and set(asked) <= set(pages)
    monitors = [*of_kind("production", "ServiceMonitor"), *of_kind("mtls", "PodMonitor")]
    ends = [end for m in monitors for end in m["spec"].get("endpoints", m["spec"].get("podMetricsEndpoints"))]
    assert len(ends) == 2
    for end in ends:
        assert end["path"] in pages and end["port"] == container["ports"][0]["name"]
        assert end["relabelings"] == [{"targetLabel": "job", "replacement": "vpp-dispatch"}]


@each_file
def test_a_stop_has_the_time_that_it_needs(name: str, tmp_path: Path) -> None:
    spec, _ = worker(name)
    grace = spec["terminationGracePeriodSeconds"]
    assert grace > STOP_S and grace > settings_of(name, tmp_path).kafka.rebalance_timeout_s


def matches(selector: Object, labels: Object) -> bool:
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


@pytest.mark.parametrize("name", ["trying-it-out", "production", "mtls"])
def test_the_network_policies_cover_every_port_in_use_and_no_other(name: str, tmp_path: Path) -> None:
    policies = of_kind(name, "NetworkPolicy")
    (denied,) = [p["spec"] for p in policies if set(p["spec"]) == {"podSelector", "policyTypes"}]
    assert denied["policyTypes"] == ["Ingress", "Egress"]
    every = list(pods(name))
    assert all(matches(denied["podSelector"], meta["labels"]) for _, meta, _ in every)
    loaded = settings_of(name, tmp_path)
    addresses = f"{loaded.kafka.bootstrap_servers},{loaded.goodwe_bootstrap_servers}"
    used = {53, 8000} | {int(part.rpartition(":")[2]) for part in addresses.split(",")}
    used |= {int(found) for found in re.findall(r":(\d+)", loaded.goodwe.realtime.base_url)} or {443}
    (out,) = [p["spec"] for p in policies if p["spec"]["policyTypes"] == ["Egress"]]
    assert all(matches(out["podSelector"], meta["labels"]) for _, meta, _ in every)
    given = {port["port"] for rule in out["egress"] for port in rule["ports"]}
    assert given == used | ({9096} if name == "mtls" else set())
    listening = {
        (where.split("/")[0], port["containerPort"]) for where, _, c in containers(name) for port in c.get("ports", [])
    }
    assert listening == {("StatefulSet", 8000)} | ({("Deployment", 8080)} if name == "trying-it-out" else set())
    for kind, port in listening:
        (labels,) = [meta["labels"] for where, meta, _ in every if where.startswith(kind)]
        into = [p["spec"] for p in policies if "ingress" in p["spec"] and matches(p["spec"]["podSelector"], labels)]
        assert [rule["ports"] for spec in into for rule in spec["ingress"]] == [[{"protocol": "TCP", "port": port}]]


@pytest.mark.parametrize("name", ["production", "mtls"])
def test_what_selects_workers_selects_them_and_nothing_else(name: str) -> None:
    (stateful,) = of_kind(name, "StatefulSet")
    (service,) = of_kind(name, "Service")
    (budget,) = of_kind(name, "PodDisruptionBudget")
    assert stateful["spec"]["serviceName"] == service["metadata"]["name"]
    selectors = [
        stateful["spec"]["selector"],
        budget["spec"]["selector"],
        {"matchLabels": service["spec"]["selector"]},
        *(constraint["labelSelector"] for constraint in worker(name)[0]["topologySpreadConstraints"]),
    ]
    for selector in selectors:
        selected = {where.split("/")[0] for where, meta, _ in pods(name) if matches(selector, meta["labels"])}
        assert selected == {"StatefulSet"}, selector


def test_never_more_workers_than_partitions() -> None:
    (hpa,) = of_kind("mtls", "HorizontalPodAutoscaler")
    assert hpa["spec"]["maxReplicas"] == SHARDS
    assert all("replicas" not in of_kind(name, "StatefulSet")[0]["spec"] for name in ("production", "mtls"))


def test_break_glass_stops_the_workers_and_has_all_their_files() -> None:
    name = "break-glass"
    (stateful,) = of_kind(name, "StatefulSet")
    assert stateful["spec"]["replicas"] == 0
    claims = [f"{stateful['spec']['volumeClaimTemplates'][0]['metadata']['name']}-dispatch-{n}" for n in range(4)]
    (deployment,) = of_kind(name, "Deployment")
    spec = deployment["spec"]["template"]["spec"]
    found = {v["name"]: v["persistentVolumeClaim"]["claimName"] for v in spec["volumes"] if "held" in v["name"]}
    assert list(found.values()) == claims
    mounts = {m["name"]: m["mountPath"] for m in spec["containers"][0]["volumeMounts"]}
    assert [mounts[volume] for volume in found] == [f"/held/{n}" for n in range(4)]
    for mode in ("none", "job"):  # nothing that looks at Kafka stands in the way
        more = ("--set", f"topics.mode={mode}")
        hooks = [o for o in objects(name, *more) if "helm.sh/hook" in o["metadata"].get("annotations", {})]
        assert [o["metadata"]["annotations"]["helm.sh/hook"] for o in hooks] == ["test"]


def test_a_hook_needs_nothing_that_comes_after_it() -> None:
    """A job before the install runs where the release's own account and ConfigMaps are not yet."""
    early = [
        (o, o["spec"]["template"]["spec"])
        for name in VALUES
        for o in of_kind(name, "Job")
        if "pre-" in o["metadata"].get("annotations", {}).get("helm.sh/hook", "")
    ]
    assert {o["metadata"]["annotations"]["helm.sh/hook"] for o, _ in early} == {
        "pre-install,pre-upgrade",
        "pre-upgrade",
    }
    made = {o["metadata"]["name"] for name in VALUES for o in of_kind(name, "ConfigMap")}
    for job, spec in early:
        assert "serviceAccountName" not in spec
        assert not {s.get("configMap", {}).get("name") for v in spec["volumes"] for s in [v]} & made, job["metadata"]


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


# ---------------------------------------------------------------------------------------------- bad values

GOOD: dict[str, Any] = {
    "image": {"repository": "registry.example/vpp-dispatch"},
    "settings": {"goodwe": {"realtime": {"base_url": "https://goodwe.example", "account": "example"}}},
    "secrets": {"goodwe": {"realtime": {"password_file": {"secret": "realtime", "key": "password"}}}},
}
GOODWE = {"goodwe": {"kafka": {"bootstrap_servers": "goodwe.example:9093"}}}
PASSWORD = {"password_file": {"secret": "a", "key": "b"}}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a misspelt setting": ({"settings": {"kafka": {"session_timeout": 5}}}, r"settings/kafka.*'session_timeout' not"),
    "a misspelt value": ({"replica": 3}, r"'replica' not allowed"),
    "a section that is none": ({"settings": {"kafkas": {}}}, r"'kafkas' not allowed"),
    "a planted death": ({"settings": {"fault": {"point": "x:1:KILL"}}}, r"'fault' not allowed"),
    "a range": ({"settings": {"kafka": {"session_timeout_s": 301}}}, r"session_timeout_s.*want 300"),
    "a word": ({"settings": {"dispatch": {"verify": "some"}}}, r"verify.*one of 'none', 'sample', 'all'"),
    "a type": ({"settings": {"goodwe": {"max_in_flight": "many"}}}, r"max_in_flight.*want integer"),
    "a topic's name": ({"settings": {"signals": {"topics": {"no space": "west"}}}}, r"'no space' not allowed"),
    "a grant": ({"settings": {"grants": {"west": {"kind": ["charge"]}}}}, r"grants/west.*'kind' not allowed"),
    "a password in the values": (
        {"settings": {"kafka": {"security": {"password": "x"}}}},
        r"security.*'password' not allowed",
    ),
    "a password's file as a setting": (
        {"settings": {"kafka": {"security": {"password_file": "/x"}}}},
        r"'password_file' not allowed",
    ),
    "a password out of a ConfigMap": (
        {"secrets": {"goodwe": {"realtime": {"password_file": {"configMap": "a", "key": "b"}}}}},
        r"'configMap' not allowed",
    ),
    "a secret without a key": ({"secrets": {"kafka": {"security": {"ca_file": {"secret": "a"}}}}}, r"missing.*'key'"),
    "no image": ({"image": {"repository": ""}}, r"image.repository is empty: set it to where"),
    "a digest": ({"image": {"digest": "sha256:abc"}}, r"image/digest.*pattern"),
    "too many workers": ({"replicas": 65}, r"replicas is 65, but the shard inbox has 64 partitions.*set 64 or less"),
    "no worker": ({"replicas": 0}, r"replicas.*want 1"),
    "too many workers by scaling": (
        {"autoscaling": {"mode": "hpa", "maxReplicas": 80}},
        r"maxReplicas is 80, but the shard inbox has 64 partitions.*set 64 or less",
    ),
    "scaling upside down": (
        {"autoscaling": {"mode": "hpa", "minReplicas": 7}},
        r"minReplicas is 7 and above maxReplicas, which is 6",
    ),
    "KEDA without a login": (
        {
            "autoscaling": {"mode": "keda"},
            "settings": {"kafka": {"security": {"protocol": "SSL"}}},
        },
        r"asks for SSL: make a TriggerAuthentication",
    ),
    "a hasty scale down": ({"autoscaling": {"scaleDown": {"stabilizationWindowSeconds": 10}}}, r"want 300"),
    "too short a grace": ({"terminationGracePeriodSeconds": 30}, r"is 30, but a worker may take 40 s to stop"),
    "a grace below the rebalance": (
        {"settings": {"kafka": {"rebalance_timeout_s": 60}}},
        r"is 60, but a worker may take 60 s to stop",
    ),
    "SASL without a password": (
        {"settings": {"kafka": {"security": {"protocol": "SASL_SSL", "username": "u"}}}},
        r"protocol is SASL_SSL, which needs a user and a password",
    ),
    "SASL without a user at GoodWe": (
        {
            "settings": {"goodwe": {"kafka": {"security": {"protocol": "SASL_SSL"}}}},
            "secrets": {"goodwe": {"kafka": {"security": PASSWORD}}},
        },
        r"settings.goodwe.kafka.security.protocol is SASL_SSL, which needs a user",
    ),
    "a certificate without TLS": (
        {"secrets": {"kafka": {"security": {"ca_file": {"secret": "a", "key": "b"}}}}},
        r"protocol is PLAINTEXT, which is without TLS",
    ),
    "a certificate without its key": (
        {
            "settings": {"kafka": {"security": {"protocol": "SSL"}}},
            "secrets": {"kafka": {"security": {"cert_file": {"secret": "a", "key": "b"}}}},
        },
        r"set both cert_file and key_file in secrets.kafka.security",
    ),
    "a simulator beside GoodWe": ({"simulator": {"enabled": True}}, r"must not share the topics and the registry"),
    "two profiles": (
        {"profile": {"configMap": "mine"}, "settings": {"goodwe": {"profile": "goodwe-noid"}}},
        r"both name a profile",
    ),
    "no API": ({"settings": {"goodwe": {"realtime": {"base_url": ""}}}}, r"base_url is not set: without"),
    "no account": ({"settings": {"goodwe": {"realtime": {"account": ""}}}}, r"lets nobody in without an account"),
    "Strimzi without a cluster": ({"topics": {"mode": "strimzi"}}, r"name the Kafka resource"),
    "users without Strimzi": ({"topics": {"strimzi": {"users": {"enabled": True}}}}, r"but topics.mode is none"),
    "users on GoodWe's cluster": (
        {"topics": {"mode": "strimzi", "strimzi": {"cluster": "c", "users": {"enabled": True}}}},
        r"for a GoodWe on another cluster",
    ),
    "a user for any source": (
        {"settings": GOODWE, "topics": {"mode": "strimzi", "strimzi": {"cluster": "c", "users": {"enabled": True}}}},
        r'"\*" can be the name of none',
    ),
    "operators that share their answers": (
        {
            "settings": {**GOODWE, "signals": {"topics": {"a": "west", "b": "east"}}},
            "topics": {"mode": "strimzi", "strimzi": {"cluster": "c", "users": {"enabled": True}}},
        },
        r"lets east read only what is its own",
    ),
    "break-glass without files": (
        {"breakGlass": {"enabled": True}, "persistence": {"enabled": False}},
        r"persistence.enabled is false",
    ),
    "break-glass of nobody knows how many": (
        {"breakGlass": {"enabled": True}, "autoscaling": {"mode": "hpa"}},
        r"breakGlass.claims is empty",
    ),
    "a peer's address": ({"networkPolicy": {"kafka": {"to": [{"ipBlock": {"cidr": "10.0.0.0"}}]}}}, r"cidr.*pattern"),
}


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merged(out[key], value) if both else value
    return out


def template(values: dict[str, Any], folder: Path) -> subprocess.CompletedProcess[str]:
    file = folder / "values.yaml"
    file.write_text(json.dumps(values))
    return helm("template", "x", CHART, "--values", file)


def test_what_the_bad_values_begin_with_is_good(tmp_path: Path) -> None:
    done = template(GOOD, tmp_path)
    assert done.returncode == 0 and "kind: StatefulSet" in done.stdout, done.stderr


@pytest.mark.parametrize("case", BAD)
def test_bad_values_are_refused_with_a_sentence(case: str, tmp_path: Path) -> None:
    over, sentence = BAD[case]
    done = template(merged(GOOD, over), tmp_path)
    assert done.returncode != 0 and done.stdout == ""
    assert re.search(sentence, done.stderr, re.DOTALL), done.stderr


def closed(node: Any, at: str = "") -> Iterator[str]:
    """Where a schema lets an object have any key of any form."""
    if isinstance(node, dict):
        if node.get("type") == "object" and not (
            node.get("additionalProperties") is False or isinstance(node.get("additionalProperties"), dict)
        ):
            yield at
        for key, value in node.items():
            yield from closed(value, f"{at}/{key}")
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from closed(value, f"{at}/{number}")


def test_the_schema_is_closed_everywhere() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert list(closed(schema)) == ["/properties/global"]  # Helm's own, where the chart is part of another
    given = {
        ".".join(path)
        for path, field in configuration.leaves(Settings)
        if not configuration.is_hidden(field) and path not in (("data_dir",), ("http", "host"), ("http", "port"))
    }
    told = {".".join(leaf["path"]) for leaf in json.loads((CHART / "files" / "service.json").read_text())["settings"]}
    assert told == given and len(given) > 60


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


# ---------------------------------------------------------------------------------------------- helm test


class Page(http.server.BaseHTTPRequestHandler):
    """/readyz of a worker; `status` is what it says."""

    status = 200

    def do_GET(self) -> None:
        assert self.path == "/readyz"
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(b'{"reasons": ["The topic x does not exist"]}')

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: pytest shows what matters."""


@pytest.mark.parametrize(("status", "code", "says"), [(200, 0, "is ready: 200"), (503, 1, "The topic x does not")])
def test_helm_test_asks_the_workers(status: int, code: int, says: str) -> None:
    (pod,) = of_kind("production", "Pod")
    (container,) = [c for c in pod["spec"]["containers"] if c["name"] == "ready"]
    script, name = container["args"]
    assert name == of_kind("production", "Service")[0]["metadata"]["name"]
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Answer", (Page,), {"status": status}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        command = [sys.executable, "-c", script, "127.0.0.1", str(server.server_port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert done.returncode == code and says in done.stdout


def test_helm_test_fails_where_nobody_is() -> None:
    done = subprocess.run(
        [sys.executable, CHART / "files" / "ready.py", "nobody.invalid"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1 and "names no worker" in done.stderr


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
