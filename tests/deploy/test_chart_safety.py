"""The Helm chart: its pods may do little, stop in time, and `helm test` and break-glass work when they are needed."""

from __future__ import annotations

import http.server
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.chart import (
    CHART,
    ROOT,
    VALUES,
    Object,
    containers,
    each_file,
    mounted,
    objects,
    of_kind,
    pods,
    settings_of,
    worker,
)
from vpp_dispatch.domain.device import SHARDS
from vpp_dispatch.service import STOP_S

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
    used |= {int(found) for found in re.findall(r":(\d+)", loaded.tracing.endpoint)}
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


def test_keda_asks_kafka_as_the_service_does(tmp_path: Path) -> None:
    loaded = settings_of("production", tmp_path)
    (trigger,) = of_kind("production", "ScaledObject")[0]["spec"]["triggers"]
    assert trigger["metadata"]["topic"] == loaded.topics.shard_inbox
    assert trigger["metadata"]["consumerGroup"] == loaded.kafka.group
    assert trigger["metadata"]["bootstrapServers"] == loaded.kafka.bootstrap_servers
    assert (trigger["metadata"]["tls"], trigger["metadata"]["sasl"]) == ("enable", "scram_sha512")


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
        sources = [source for container in spec["containers"] for source in mounted(spec, container).values()]
        assert sources, job["metadata"]["name"]
        assert not {source.get("configMap", {}).get("name") for source in sources} & made
        assert "serviceAccountName" not in spec


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
