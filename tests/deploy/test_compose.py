"""deploy/compose.yaml as far as it can be judged without an engine: its form, what it mounts, what it starts."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import jsonschema
import pytest
import yaml

from tests.conftest import IMAGE
from tests.deploy.command_lines import lines, parsed
from vpp_dispatch.goodwe.profile import load_profile
from vpp_dispatch.preflight import operators_topics
from vpp_dispatch.settings import Settings

DEPLOY = Path(__file__).parents[2] / "deploy"
FILE = DEPLOY / "compose.yaml"
SCHEMA = json.loads((Path(__file__).parent / "vendored" / "compose-spec.json").read_text())
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
WORKERS = ("worker-1", "worker-2")
ONCE = ("topics", "vpp-dispatch")
"""What ends by itself."""


def head() -> str:
    """The comment at the top, as it would be pasted."""
    return re.sub(r"(?m)^# ?", "", FILE.read_text().split("\nname:")[0])


def env(service: str) -> dict[str, str]:
    """The environment that a service gets, from its file."""
    found: dict[str, str] = {}
    for name in SERVICES[service].get("env_file", ()):
        for line in (DEPLOY / name).read_text().splitlines():
            if line and not line.startswith("#"):
                key, _, value = line.partition("=")
                # Without quotes and dollars every reader of such files takes the rest of the line as it stands.
                assert key not in found and "$" not in value and value[:1] not in ("'", '"'), line
                found[key] = value
    return found


def settings(service: str) -> Settings:
    """The service's settings, by the code that reads them at its start; a secret's file is the one that is mounted."""
    values = env(service)
    for name, value in values.items():
        if value.startswith("/run/secrets/"):
            values[name] = str(DEPLOY / COMPOSE["secrets"][value.removeprefix("/run/secrets/")]["file"])
    return Settings.load(None, values)


# ---------------------------------------------------------------------------------------------- its form


def test_it_is_a_compose_file() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(COMPOSE, SCHEMA, jsonschema.Draft202012Validator)


@pytest.mark.parametrize("wrong", [{"restrat": "always"}, {"ports": 8000}, {"depends_on": {"kafka": {}}}])
def test_what_is_no_compose_file_would_be_refused(wrong: dict[str, Any]) -> None:
    broken = copy.deepcopy(COMPOSE)
    broken["services"]["simulator"].update(wrong)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, SCHEMA, jsonschema.Draft202012Validator)


def test_it_starts_what_it_should() -> None:
    assert set(SERVICES) == {"kafka", "simulator", *WORKERS, *ONCE, "prometheus", "grafana"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_is_hardened_and_comes_back(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"] and "/tmp" in service["tmpfs"]
    assert service["security_opt"] == ["no-new-privileges:true"] and "privileged" not in service
    assert name in ONCE or (service["restart"] == "unless-stopped" and service["healthcheck"]["retries"] > 0)


def test_nothing_is_to_be_reached_from_elsewhere() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert len(published) == len(set(published)) == 5
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in published)
    assert not any("network_mode" in service for service in SERVICES.values())


def test_images_are_pinned_and_the_ones_used_elsewhere() -> None:
    ours = "${VPP_DISPATCH_IMAGE:-vpp-dispatch:dev}"
    assert "image=${IMAGE:-vpp-dispatch:dev}" in (DEPLOY / "image" / "build.sh").read_text()
    for name, service in SERVICES.items():
        if name in ("simulator", *WORKERS, *ONCE):
            assert (service["image"], service["pull_policy"]) == (ours, "never")
        else:
            assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+", service["image"])
    assert SERVICES["kafka"]["image"] == IMAGE


def test_what_is_waited_for_can_come_true() -> None:
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            condition = how["condition"]
            assert other in SERVICES and other != name
            if condition == "service_healthy":
                assert "healthcheck" in SERVICES[other]
            else:
                assert condition == "service_completed_successfully" and other == "topics"
    # The first try may come before the simulator has made GoodWe's topics.
    assert SERVICES["topics"]["restart"].startswith("on-failure")


# ---------------------------------------------------------------------------------------------- what it mounts


def test_everything_that_is_mounted_is_there() -> None:
    mounted: dict[str, list[str]] = {}
    for name, service in SERVICES.items():
        for volume in service.get("volumes", ()):
            source, target, *mode = volume.split(":")
            if source.startswith("./"):
                assert (DEPLOY / source).exists(), f"{name} mounts {source}"
                assert mode == ["ro"]
            else:
                mounted.setdefault(source, []).append(f"{name}:{target}")
        for file in service.get("env_file", ()):
            assert (DEPLOY / file).is_file()
    assert set(mounted) == set(COMPOSE["volumes"])
    assert all(len(users) == 1 for users in mounted.values()), "break-glass files of two workers would mix"
    assert all((DEPLOY / secret["file"]).is_file() for secret in COMPOSE["secrets"].values())


def test_dashboards_are_where_grafana_looks_for_them() -> None:
    targets = {v.split(":")[1]: DEPLOY / v.split(":")[0] for v in SERVICES["grafana"]["volumes"] if v[0] == "."}
    (provider,) = (targets["/etc/grafana/provisioning"] / "dashboards").glob("*.yaml")
    for entry in yaml.safe_load(provider.read_text())["providers"]:
        assert list(targets[entry["options"]["path"]].glob("*.json"))
    (source,) = (targets["/etc/grafana/provisioning"] / "datasources").glob("*.yaml")
    for entry in yaml.safe_load(source.read_text())["datasources"]:
        assert urlsplit(entry["url"]).hostname in SERVICES
    assert env("grafana")["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert not [name for name in env("grafana") if "PASSWORD" in name or name == "GF_SECURITY_ADMIN_USER"]


def test_prometheus_takes_its_configuration_and_asks_the_workers(tmp_path: Path) -> None:
    volumes = [volume.split(":")[:2] for volume in SERVICES["prometheus"]["volumes"] if volume[0] == "."]
    (file,) = [DEPLOY / source for source, target in volumes if target == "/etc/prometheus/prometheus.yml"]
    (rules,) = [(DEPLOY / source, target) for source, target in volumes if Path(DEPLOY / source).is_dir()]
    text = file.read_text()
    assert rules[1] + "/" in text
    here = tmp_path / "prometheus.yml"
    here.write_text(text.replace(rules[1] + "/", f"{rules[0].resolve()}/"))
    own = Path(sys.executable).parent / "promtool"
    promtool = str(own) if own.exists() else shutil.which("promtool")
    assert promtool, "promtool is not there: run `make tools`"
    done = subprocess.run([promtool, "check", "config", str(here)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "SUCCESS" in done.stdout, done.stdout + done.stderr
    config = yaml.safe_load(text)
    (job,) = [job for job in config["scrape_configs"] if job["job_name"] == "vpp-dispatch"]
    (static,) = job["static_configs"]
    assert static["targets"] == [f"{worker}:{Settings().http.port}" for worker in WORKERS]
    assert config["global"]["scrape_interval"] == "15s"


# ---------------------------------------------------------------------------------------------- what it starts


@pytest.mark.parametrize("name", [*WORKERS, *ONCE])
def test_the_settings_are_read_and_complete(name: str) -> None:
    loaded = settings(name)
    assert loaded.unmet() == [] and load_profile(loaded.goodwe.profile).name
    inside = SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"].split(",")[0]
    assert inside == f"INSIDE://{loaded.kafka.bootstrap_servers}"
    assert loaded.kafka.replication_factor == 1  # there is one broker
    api = urlsplit(loaded.goodwe.realtime.base_url)
    assert api.hostname == "simulator"
    assert f"--http-port={api.port}" in SERVICES["simulator"]["command"]


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_has_its_own_folder_and_the_time_to_stop(name: str) -> None:
    assert SERVICES[name]["volumes"] == [f"{name}:{Settings().data_dir}"]
    assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) > 40
    assert SERVICES[name]["healthcheck"]["test"][-1] == "/readyz"
    assert SERVICES[name]["ports"][0].endswith(f":{Settings().http.port}")


@pytest.mark.parametrize("name", [*WORKERS, "topics", "simulator"])
def test_the_command_is_one(name: str) -> None:
    context = parsed(SERVICES[name]["command"])
    if name == "simulator":
        assert context.params["registry_topic"] in operators_topics(settings("worker-1"))
        assert context.params["create_topics"] and context.params["http_host"] == "0.0.0.0"
        assert context.params["bootstrap_servers"] == settings("worker-1").kafka.bootstrap_servers


def test_a_command_that_is_none_would_be_found() -> None:
    with pytest.raises(click.UsageError):
        parsed(["simulate", "--bootstrap-servers=kafka:9092", "--http-prot=8000"])
    with pytest.raises(click.UsageError):
        parsed(["prefligth"])


def test_the_first_commands_in_its_head_are_real() -> None:
    run = [words for words in lines(head(), "vpp-dispatch") if words]
    assert [words[:2] for words in run] == [["signal", "send"], ["signal", "cancel"]]
    sent, cancelled = (parsed(words) for words in run)
    assert sent.params["event_id"] == cancelled.params["event"] == "try-1"
    composed = list(lines(head(), "compose"))
    assert len(composed) == 5 and all(words[:2] == ["-f", "deploy/compose.yaml"] for words in composed)


def test_kafka_is_told_everything_once() -> None:
    told = SERVICES["kafka"]["environment"]
    assert all(isinstance(value, str) for value in told.values())
    names = {part.split("://")[0] for part in told["KAFKA_LISTENERS"].split(",")}
    assert {part.split(":")[0] for part in told["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(",")} == names
    advertised = {part.split("://")[0] for part in told["KAFKA_ADVERTISED_LISTENERS"].split(",")}
    assert advertised == names - {told["KAFKA_CONTROLLER_LISTENER_NAMES"]}
    (outside,) = [part for part in told["KAFKA_ADVERTISED_LISTENERS"].split(",") if part.startswith("OUTSIDE")]
    assert SERVICES["kafka"]["ports"] == [f"{outside.removeprefix('OUTSIDE://')}:29092"]
