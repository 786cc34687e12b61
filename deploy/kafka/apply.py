"""Turns acls.toml beside this file into commands for kafka-acls.sh, or applies it to a cluster.

    python deploy/kafka/apply.py --config vpp.toml
    python deploy/kafka/apply.py --config vpp.toml --role operator --role service --name service=CN=vpp-dispatch
    python deploy/kafka/apply.py --config vpp.toml --cluster ours --admin admin.toml [--remove]

Names of topics, groups and sources come from the service's own settings and profile (`--config`, and VPP_DISPATCH_
variables over it). `--admin` names a TOML file with the keys of [kafka]: `bootstrap_servers`, and a table [security] of
a user who may alter ACLs; without it nothing is changed, and commands are printed. Applying twice changes nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.admin import CreateAclsRequest, DeleteAclsRequest

from vpp_dispatch import configuration
from vpp_dispatch.errors import ConfigurationError, ExternalFault, VppDispatchError
from vpp_dispatch.goodwe.profile import Profile, load_profile
from vpp_dispatch.settings import ANY_SOURCE, KafkaSettings, Settings

FILE = Path(__file__).with_name("acls.toml")

RESOURCES = {"topic": 2, "group": 3}
OPERATIONS = {"Read": 3, "Write": 4, "Create": 5, "Describe": 8}
LITERAL = ALLOW = 3
"""Kafka's numbers on the wire."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Acl:
    """One grant: this principal (`User:...`) may do this operation on this resource, from any host."""

    role: str
    cluster: str
    principal: str
    resource: str
    name: str
    operation: str

    @property
    def command(self) -> str:
        """The arguments of kafka-acls.sh that add it."""
        words = ["--add", "--allow-principal", self.principal, "--operation", self.operation]
        words += [f"--{self.resource}", self.name]
        return shlex.join(words)


def read(file: Path = FILE) -> list[dict[str, Any]]:
    """The principals of acls.toml, as they stand there."""
    principals: list[dict[str, Any]] = tomllib.loads(file.read_text(encoding="utf-8"))["principal"]
    return principals


def render(
    settings: Settings, profile: Profile, names: Mapping[str, str] | None = None, principals: Any = None
) -> list[Acl]:
    """All grants for these settings; `names`: role, or `operator:SOURCE` -> the user's name in place of the file's.

    Raises:
        ConfigurationError: two sources share a topic of answers, so each would read the other's (R9); or a name is for
            no principal.
    """
    acls: list[Acl] = []
    unused = dict(names or {})
    everywhere = _resources(settings, profile)
    for principal in principals or read():
        role = principal["role"]
        for source, resources in _of_sources(settings, principal, everywhere):
            name = unused.pop(f"{role}:{source}" if source else role, None) or principal["name"].format(source=source)
            for kind, resource, operation in principal["allow"]:
                acls += [
                    Acl(
                        role=role,
                        cluster=principal["cluster"],
                        principal=f"User:{name}",
                        resource=kind,
                        name=found,
                        operation=operation,
                    )
                    for found in resources[resource.strip("{}")]
                ]
    if unused:
        raise ConfigurationError(f"There is no principal {', '.join(unused)}: {FILE.name} has the roles.")
    return list(dict.fromkeys(acls))


def _resources(settings: Settings, profile: Profile) -> dict[str, list[str]]:
    t, theirs = settings.topics, profile.topics
    one = {name: [value] for name, value in t.model_dump().items()}
    return one | {
        "group": [settings.kafka.group],
        "signals": list(settings.signals.topics),
        "responses": list(dict.fromkeys([t.responses, *settings.responses.topics.values()])),
        "reports": list(dict.fromkeys([t.reports, *settings.reports.topics.values()])),
        "goodwe_group": [settings.goodwe_group],
        "requests": [theirs.single_request, theirs.multi_request, theirs.query_request],
        "results": [theirs.single_result, theirs.multi_result, theirs.query_result],
    }


def _of_sources(
    settings: Settings, principal: Mapping[str, Any], everywhere: Mapping[str, list[str]]
) -> Iterable[tuple[str, Mapping[str, list[str]]]]:
    """(source, resources) for each principal that an entry stands for; the source is empty where it is only one."""
    if "{source}" not in principal["name"]:
        yield "", everywhere
        return
    sources = list(dict.fromkeys(settings.signals.topics.values()))
    for topic_of, setting in (
        (settings.responses_topic, "RESPONSES__TOPICS"),
        (settings.reports_topic, "REPORTS__TOPICS"),
    ):
        if len({topic_of(source) for source in sources}) < len(sources):
            raise ConfigurationError(
                f"Sources share a topic, so each could read what the others are told (R9): give each of "
                f"{', '.join(sources)} its own in VPP_DISPATCH_{setting}."
            )
    for source in sources:
        yield (
            "any-source" if source == ANY_SOURCE else source,
            {
                "source": ["any-source" if source == ANY_SOURCE else source],
                "signals": [topic for topic, bound in settings.signals.topics.items() if bound == source],
                "responses": [settings.responses_topic(source)],
                "reports": [settings.reports_topic(source)],
            },
        )


async def apply(acls: Sequence[Acl], kafka: KafkaSettings, *, remove: bool = False) -> None:
    """Adds ACLs to a cluster, or removes them.

    Raises:
        ExternalFault: the cluster cannot be used, or refuses one; those before it are done.
    """
    request = DeleteAclsRequest if remove else CreateAclsRequest
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers, **kafka.security.aiokafka())
    try:
        await admin.start()
        for acl in acls:
            answer = await admin._send_request(
                request(
                    RESOURCES[acl.resource],
                    acl.name,
                    LITERAL,
                    acl.principal,
                    "*",
                    OPERATIONS[acl.operation],
                    ALLOW,
                )
            )
            code, says = (answer.filter_responses if remove else answer.creation_responses)[0][:2]
            if code:
                raise ExternalFault(f"{acl.command}: refused ({for_code(code).__name__}: {says}).")
    except (KafkaError, OSError) as fault:
        raise ExternalFault(f"Kafka at {kafka.bootstrap_servers} cannot be used: {fault!r}.") from fault
    finally:
        await admin.close()


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="the service's settings, a TOML file")
    parser.add_argument("--cluster", choices=("ours", "goodwe"), help="only this cluster's")
    parser.add_argument("--role", action="append", help="only this principal's; may be repeated")
    parser.add_argument(
        "--name", action="append", default=[], metavar="ROLE=USER", help="its user; an operator is operator:SOURCE"
    )
    parser.add_argument("--admin", type=Path, help="TOML file with bootstrap_servers and [security]: apply them there")
    parser.add_argument("--remove", action="store_true", help="with --admin: take them away")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Prints the commands, or applies the ACLs. Returns the exit code."""
    asked = _arguments(words)
    try:
        settings = Settings.load(asked.config, os.environ)
        names = dict(text.split("=", 1) for text in asked.name)
        acls = [
            acl
            for acl in render(settings, load_profile(settings.goodwe.profile), names)
            if acl.cluster == (asked.cluster or acl.cluster) and acl.role in (asked.role or [acl.role])
        ]
        if asked.admin is None:
            for acl in acls:
                servers = "$OURS" if acl.cluster == "ours" else "$GOODWE"
                print(f'kafka-acls.sh --bootstrap-server "{servers}" --command-config admin.properties {acl.command}')
            return 0
        if len({acl.cluster for acl in acls}) > 1:
            raise ConfigurationError("Say which cluster's with --cluster: the admin file names only one.")
        kafka, _ = configuration.read(KafkaSettings, config=asked.admin, env={})
        asyncio.run(apply(acls, kafka, remove=asked.remove))
        print(f"{len(acls)} ACLs {'removed from' if asked.remove else 'are on'} {kafka.bootstrap_servers}.")
    except (VppDispatchError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
