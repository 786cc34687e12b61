"""The Helm chart: what does not fit is refused with a sentence, before anything reaches a cluster."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.chart import (
    CHART,
    helm,
)
from vpp_dispatch import configuration
from vpp_dispatch.settings import Settings

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
    "less than no worker": ({"replicas": -1}, r"replicas.*want 0"),
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
    "break-glass of no worker": ({"breakGlass": {"enabled": True}, "replicas": 0}, r"breakGlass.claims is empty"),
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
