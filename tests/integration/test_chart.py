"""The chart's trying-it-out values come up, dispatch, drain and stop: the pods' commands and environments, run here.

In place of Kubernetes: addresses of Services are loopback ones, what is mounted lies in a folder of the test, and a Job
is started again as its backoffLimit allows.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import yaml

from tests.deploy.chart import CHART, VALUES, Object, helm
from vpp_dispatch.demo.stack import Child, Stack


class Cluster:
    """The rendered pods, and what Kubernetes would do with them."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        ours = stack.loaded()
        values = yaml.safe_load(VALUES["trying-it-out"].read_text())
        values["settings"] |= {
            "kafka": values["settings"]["kafka"]
            | {"bootstrap_servers": stack.bootstrap_servers, "group": ours.kafka.group},
            "topics": ours.topics.model_dump(),
            "signals": {"topics": ours.signals.topics},
            "dispatch": {"release_retry_s": 3, "settle_grace_s": 30},
            "fleet": {"consent_refresh_s": 2, "telemetry_refresh_s": 3},
        }
        values |= {"profile": {"configMap": "of-this-run"}, "simulator": values["simulator"] | {"inverters": 40}}
        self.folder = folder
        file = folder / "values.yaml"
        file.write_text(json.dumps(values))
        done = helm("template", "vpp-dispatch", CHART, "--values", file)
        assert done.returncode == 0, done.stderr
        self.objects: list[Object] = [found for found in yaml.safe_load_all(done.stdout) if found]
        (held,) = [found["data"] for found in self.objects if found["kind"] == "ConfigMap"]
        self.files = {
            "/etc/vpp-dispatch/profile.toml": str(stack.profile),
            "/run/secrets/vpp-dispatch/goodwe-realtime-password": str(folder / "password"),
        }
        (folder / "password").write_text(held["password"])
        self.addresses = {"--http-host=0.0.0.0": "--http-host=127.0.0.1", "--http-port=8080": "--http-port=0"}

    def container(self, kind: str, name: str) -> Object:
        """A container by the kind of its object and its name."""
        for found in self.objects:
            spec = found.get("spec", {})
            spec = spec.get("template", {}).get("spec", spec)
            for container in spec.get("containers", []) if found["kind"] == kind else []:
                if container["name"] == name:
                    assert isinstance(container, dict)
                    return container
        raise AssertionError(f"there is no container {name} in a {kind}")

    def env(self, container: Object, data: Path) -> dict[str, str]:
        """Its environment, with the addresses and folders of this machine."""
        told = {entry["name"]: self.here(entry["value"]) for entry in container.get("env", [])}
        return told | {
            "VPP_DISPATCH_DATA_DIR": str(data),
            "VPP_DISPATCH_HTTP__HOST": "127.0.0.1",
            "VPP_DISPATCH_HTTP__PORT": "0",
        }

    def here(self, text: str) -> str:
        """What Kubernetes' names stand for on this machine."""
        for there, here in (self.files | self.addresses).items():
            text = text.replace(there, here)
        return text

    def run(self, name: str, container: Object, *arguments: str) -> Child:
        """Starts it; `arguments` in place of its own."""
        data = self.folder / name
        data.mkdir(exist_ok=True)
        words = arguments or tuple(self.here(word) for word in container["args"])
        return Child(name, ["vpp_dispatch", *words], self.env(container, data), self.folder)


async def ended(stack: Stack, child: Child, timeout_s: float) -> int:
    """The exit code of what ends by itself."""
    await stack.until(lambda: not child.running, timeout_s, f"{child.name} to end")
    return child.process.wait()


async def test_the_chart_to_try_it_with_comes_up_dispatches_drains_and_stops(stack: Stack, tmp_path: Path) -> None:
    cluster = Cluster(stack, tmp_path)
    simulator = cluster.run("simulator", cluster.container("Deployment", "simulator"))

    def url() -> str:
        assert simulator.running, simulator.tail()
        return next((line["url"] for line in simulator.lines() if line.get("ready")), "")

    await stack.until(url, 60, "the simulator")
    cluster.addresses["http://vpp-dispatch-simulator:8080"] = url()
    worker = cluster.container("StatefulSet", "worker")
    workers = [cluster.run(f"worker-{n}", worker) for n in range(2)]  # before the topics are there, as Kubernetes may

    job = cluster.container("Job", "preflight")
    (limit,) = [found["spec"]["backoffLimit"] for found in cluster.objects if found["kind"] == "Job"]
    codes: list[int] = []
    while 0 not in codes and len(codes) <= limit:
        codes.append(await ended(stack, cluster.run("topics", job), 60))
    assert codes[-1] == 0, (tmp_path / "topics.log").read_text()
    await stack.until_ready(*workers, timeout_s=90, registered=40)

    ready = cluster.container("Pod", "ready")["args"][0]
    (tmp_path / "ready_of_chart.py").write_text(ready)
    for each in workers:
        command = [sys.executable, str(tmp_path / "ready_of_chart.py"), "127.0.0.1", str(stack.port(each))]
        assert await _code(*command) == 0
    assert await ended(stack, cluster.run("test", cluster.container("Pod", "preflight")), 60) == 0

    send = ["signal", "send", "--control", "export_limit=1500", "--group", "feeder-01", "--for", "10s", "--watch"]
    sent = cluster.run("send", worker, *send)
    await stack.until(lambda: held(stack, workers)["held"] > 0, 40, "inverters to be set")
    assert await ended(stack, sent, 90) in (0, 3), sent.tail()  # all of them, or some: a few know no default yet

    drain = cluster.run("drain", worker, "switch", "drain", "on", "--reason", "taking it out")
    assert await ended(stack, drain, 40) == 0, drain.tail()
    await stack.until(lambda: not any(held(stack, workers).values()), 60, "everything to be released")
    assert [each.stop() for each in [*workers, simulator]] == [0, 0, 0]


def held(stack: Stack, workers: list[Child]) -> dict[str, float]:
    """Held and owed, summed over the workers as docs/install.md does."""
    sums: dict[str, float] = {"held": 0, "debts": 0}
    for worker in workers:
        for line in stack.metrics(worker).splitlines():
            for name, metric in (("held", "vpp_dispatch_held_devices{"), ("debts", "vpp_dispatch_debts{")):
                if line.startswith(metric):
                    sums[name] += float(line.split()[-1])
    return sums


async def _code(*command: str) -> int:
    process = await asyncio.create_subprocess_exec(*command)
    return await process.wait()
