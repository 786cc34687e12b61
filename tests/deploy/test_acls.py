"""The ACLs as a file: they are what the service needs, each operator has only its own, and the document says it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy.kafka import apply
from vpp_dispatch import preflight
from vpp_dispatch.errors import ConfigurationError
from vpp_dispatch.goodwe.profile import load_profile
from vpp_dispatch.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
TWO_SOURCES = {
    "SIGNALS__TOPICS": json.dumps({"signals.east": "east", "signals.west": "west", "signals.west.2": "west"}),
    "RESPONSES__TOPICS": json.dumps({"east": "responses.east", "west": "responses.west"}),
    "REPORTS__TOPICS": json.dumps({"east": "reports.east", "west": "reports.west"}),
    "KAFKA__GROUP": "workers",
    "GOODWE__KAFKA__BOOTSTRAP_SERVERS": "theirs:9093",
}


def settings(**variables: str) -> Settings:
    return Settings.load(None, {f"VPP_DISPATCH_{name}": value for name, value in variables.items()})


def rendered(loaded: Settings, **names: str) -> list[apply.Acl]:
    return apply.render(loaded, load_profile("goodwe"), names)


def of(acls: list[apply.Acl], role: str) -> set[tuple[str, str, str]]:
    return {(acl.resource, acl.name, acl.operation) for acl in acls if acl.role == role}


@pytest.mark.parametrize("variables", [{}, TWO_SOURCES], ids=["one source", "two sources"])
def test_the_service_is_granted_exactly_what_it_needs(variables: dict[str, str]) -> None:
    loaded = settings(**variables)
    acls = rendered(loaded)
    assert of(acls, "service") == set(preflight.needs(loaded))
    assert of(acls, "goodwe") == set(preflight.goodwe_needs(loaded, load_profile("goodwe")))
    assert {acl.principal for acl in acls if acl.role in ("service", "goodwe")} == {"User:vpp-dispatch"}


def test_every_topic_of_our_side_can_be_created_and_seen_by_who_creates_them() -> None:
    loaded = settings(**TWO_SOURCES)
    topics = preflight.internal_topics(loaded) | preflight.operators_topics(loaded)
    assert of(rendered(loaded), "topics") == {("topic", t, o) for t in topics for o in ("Create", "Describe")}


def test_r09_an_operator_has_only_its_own() -> None:
    acls = [acl for acl in rendered(settings(**TWO_SOURCES)) if acl.role == "operator"]
    by_principal: dict[str, set[tuple[str, str]]] = {}
    for acl in acls:
        by_principal.setdefault(acl.principal, set()).add((acl.name, acl.operation))
    assert by_principal == {
        "User:east": {
            ("signals.east", "Write"), ("responses.east", "Read"), ("reports.east", "Read"), ("east", "Read"),
        },
        "User:west": {
            ("signals.west", "Write"), ("signals.west.2", "Write"), ("responses.west", "Read"),
            ("reports.west", "Read"), ("west", "Read"),
        },
    }  # fmt: skip


@pytest.mark.parametrize("shared", ["RESPONSES__TOPICS", "REPORTS__TOPICS"])
def test_r09_sources_that_would_read_each_other_are_refused(shared: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"each of east, west its own in VPP_DISPATCH_{shared}"):
        rendered(settings(**TWO_SOURCES | {shared: ""}))


def test_only_the_service_writes_what_operators_read_and_only_operators_write_signals() -> None:
    loaded = settings(**TWO_SOURCES)
    writers: dict[str, set[str]] = {}
    for acl in rendered(loaded):
        if acl.operation == "Write":
            writers.setdefault(acl.name, set()).add(acl.role)
    told = {"responses.east", "responses.west", "reports.east", "reports.west", loaded.topics.outcomes}
    assert {name: roles for name, roles in writers.items() if name in told} == {name: {"service"} for name in told}
    assert writers["signals.east"] == {"operator"}
    assert writers[loaded.topics.event_inbox] == {"service", "on-call"}
    assert writers[loaded.topics.shard_inbox] == {"service"}
    assert writers[loaded.topics.pages_changelog] == {"service"}


def test_users_can_be_renamed_and_a_name_for_nobody_is_refused() -> None:
    acls = rendered(settings(**TWO_SOURCES), service="CN=vpp", **{"operator:east": "CN=east,O=Grid"})
    assert {acl.principal for acl in acls if acl.role == "service"} == {"User:CN=vpp"}
    assert {acl.principal for acl in acls if acl.role == "operator"} == {"User:CN=east,O=Grid", "User:west"}
    with pytest.raises(ConfigurationError, match="no principal operator:north"):
        rendered(settings(**TWO_SOURCES), **{"operator:north": "n"})


def run(*words: str, **variables: str) -> Any:
    env = {f"VPP_DISPATCH_{name}": value for name, value in variables.items()}
    return subprocess.run(
        [sys.executable, str(ROOT / "deploy" / "kafka" / "apply.py"), *words],
        capture_output=True, text=True, check=False, env=env, timeout=60,
    )  # fmt: skip


def test_the_program_prints_commands_for_kafka_acls() -> None:
    done = run("--role", "operator", "--name", "operator:east=CN=east, O=Grid", **TWO_SOURCES)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 9
    assert lines[0].endswith("--add --allow-principal 'User:CN=east, O=Grid' --operation Write --topic signals.east")


def test_the_program_refuses_to_apply_two_clusters_at_one(tmp_path: Path) -> None:
    admin = tmp_path / "admin.toml"
    admin.write_text('bootstrap_servers = "127.0.0.1:1"\n')
    done = run("--admin", str(admin), **TWO_SOURCES)
    assert (done.returncode, done.stdout) == (1, "")
    assert "--cluster" in done.stderr


def test_the_document_has_every_principal_with_what_it_may_do() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    for principal in apply.read():
        row = re.search(rf"^\| `{principal['role']}` \| `{re.escape(principal['name'])}` \|(.*)$", text, re.MULTILINE)
        assert row, principal["role"]
        for operation in ("Read", "Write", "Create", "Describe"):
            granted = [resource.strip("{}") for _, resource, o in principal["allow"] if o == operation]
            if granted:
                assert f"{operation}: {', '.join(granted)}" in row[1], (principal["role"], operation)
