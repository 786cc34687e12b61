"""The service where nothing is open: SASL_SSL with SCRAM and mutual TLS on both clusters, default deny, exact ACLs.

Two guarded brokers with certificates made for this run, GoodWe's with an authority of its own; both are started once.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import GroupAuthorizationFailedError, TopicAuthorizationFailedError
from click.testing import CliRunner

from deploy.kafka import apply
from tests.certificates import Authority, Issued
from tests.waiting import eventually
from vpp_dispatch import preflight
from vpp_dispatch.checks import inspect
from vpp_dispatch.cli import main
from vpp_dispatch.cli.base import Refused
from vpp_dispatch.cli.paying import at_goodwe
from vpp_dispatch.cli.release import _our_kafka_is_gone
from vpp_dispatch.demo.broker import Broker
from vpp_dispatch.demo.secured import Secured
from vpp_dispatch.demo.stack import Child, Stack
from vpp_dispatch.goodwe.profile import load_profile
from vpp_dispatch.settings import KafkaSettings, SecuritySettings, Settings
from vpp_dispatch.simulator.topics import create_topics
from vpp_dispatch.topics import Draft, Reader, publish

Way = Literal["sasl", "mtls"]
DEVICES = 40
OURS = (
    "admin",
    *(p["name"] for p in apply.read() if p["cluster"] == "ours" and p["role"] != "operator"),
    "west",
    "east",
)


@dataclass
class Site:
    """A cluster: its authority, its broker, and who may come to it, by password or by certificate."""

    name: str
    folder: Path
    users: tuple[str, ...]
    super_users: tuple[str, ...] = ("admin",)
    planted: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.authority = Authority(self.folder, self.name)
        self._clients: dict[str, Issued] = {}
        self.passwords = {user: self.plant(f"{self.name}-{user}") for user in self.users}
        broker = self.authority.issue("broker", "127.0.0.1")
        self.broker = Broker(
            secured=Secured(
                keystore=broker.both,
                truststore=self.authority.file,
                users={user: file.read_text().strip() for user, file in self.passwords.items()},
                super_users=self.super_users,
            )
        )

    def plant(self, name: str, before: str = "") -> Path:
        """A file with a secret that can be recognised wherever it turns up; with something before it, if need be."""
        word = f"planted/{name}+word"
        file = self.folder / f"{name}.password"
        file.write_text(f"{before}{word}\n")
        self.planted.append(word)
        return file

    def servers(self, way: Way) -> str:
        return self.broker.bootstrap_servers if way == "sasl" else self.broker.mtls_servers

    def said(self, user: str, way: Way) -> dict[str, str]:
        """The keys of [kafka.security] for a user."""
        if way == "sasl":
            return {
                "protocol": "SASL_SSL",
                "username": user,
                "password_file": str(self.passwords[user]),
                "ca_file": str(self.authority.file),
            }
        if user not in self._clients:
            self._clients[user] = self.authority.issue(user)
            self.planted += self._clients[user].key.read_text().splitlines()[1:-1]
        cert, key, _ = self._clients[user]
        return {"protocol": "SSL", "ca_file": str(self.authority.file), "cert_file": str(cert), "key_file": str(key)}

    def security(self, user: str, way: Way = "sasl") -> SecuritySettings:
        return SecuritySettings.model_validate(self.said(user, way))

    def client(self, user: str, way: Way = "sasl") -> dict[str, Any]:
        """The arguments of an aiokafka client, its address among them."""
        return {"bootstrap_servers": self.servers(way), **self.security(user, way).aiokafka()}

    def variables(self, section: str, user: str, way: Way = "sasl") -> dict[str, str]:
        said = {f"{section}__SECURITY__{key.upper()}": value for key, value in self.said(user, way).items()}
        return {f"{section}__BOOTSTRAP_SERVERS": self.servers(way), **said}

    def file(self, user: str, way: Way) -> Path:
        """The same for the simulator."""
        file = self.folder / f"{self.name}-{user}-{way}.toml"
        file.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in self.said(user, way).items()))
        return file

    async def allow(self, acls: list[apply.Acl], *, remove: bool = False) -> None:
        """What the file grants, done by the program that is beside it."""
        kafka = KafkaSettings(bootstrap_servers=self.servers("sasl"), security=self.security("admin"))
        await apply.apply(acls, kafka, remove=remove)


@dataclass(frozen=True)
class Sites:
    ours: Site
    theirs: Site

    @property
    def planted(self) -> list[str]:
        return self.ours.planted + self.theirs.planted

    async def allow(self, acls: list[apply.Acl]) -> None:
        await self.ours.allow([acl for acl in acls if acl.cluster == "ours"])
        await self.theirs.allow([acl for acl in acls if acl.cluster == "goodwe"])


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sites]:
    folder = tmp_path_factory.mktemp("secured")
    found = Sites(
        Site("ours", folder, OURS),
        Site("goodwe", folder, ("admin", "vpp-dispatch", "cloud"), super_users=("admin", "cloud")),
    )
    brokers = [found.ours.broker, found.theirs.broker]
    try:
        with ThreadPoolExecutor() as pool:
            list(pool.map(Broker.start, brokers))
        yield found
    finally:
        for broker in brokers:
            broker.stop()


# ---------------------------------------------------------------------------------------------- whole runs


def run_of(sites: Sites, prefix: str, folder: Path, ours: Way, theirs: Way) -> Stack:
    """A run whose every connection is guarded; not started, and nothing is allowed yet."""
    api = sites.theirs.plant(f"api-{ours}")
    return Stack(
        bootstrap_servers=sites.ours.servers(ours),
        goodwe_servers=sites.theirs.servers(theirs),
        prefix=prefix,
        folder=folder,
        source="west",
        settings={
            **sites.ours.variables("KAFKA", "vpp-dispatch", ours),
            **sites.theirs.variables("GOODWE__KAFKA", "vpp-dispatch", theirs),
            "GOODWE__REALTIME__PASSWORD_FILE": str(api),
            "GOODWE__REALTIME__CA_FILE": str(sites.theirs.authority.file),
            "DISPATCH__VERIFY": "all",
            "LOG__LEVEL": "debug",  # where most is written, and most could be
        },
        operator=sites.ours.security("west", ours).aiokafka(),
        reader=sites.ours.security("vpp-dispatch-on-call", ours).aiokafka(),
    )


async def started(sites: Sites, stack: Stack, ours: Way, theirs: Way) -> None:
    """Grants what the file says, creates the topics as who may create them, and starts GoodWe's side."""
    stack.url = "https://127.0.0.1:1"
    loaded, profile = stack.loaded(), load_profile(str(stack.profile))
    await sites.allow(apply.render(loaded, profile))
    creator = sites.ours.variables("KAFKA", "vpp-dispatch-topics", ours)
    await preflight.create_for_trying_out(changed(stack, creator))
    await create_topics(
        bootstrap_servers=sites.theirs.servers("sasl"),
        topics={name: {"message.timestamp.type": "LogAppendTime"} for name in profile.topics.model_dump().values()},
        partitions=3,
        security=sites.theirs.security("cloud").aiokafka(),
    )
    served = sites.theirs.authority.issue("api", "127.0.0.1")
    password = stack.settings["GOODWE__REALTIME__PASSWORD_FILE"]
    guarded = ["--kafka-security", str(sites.theirs.file("cloud", theirs)), "--no-create-topics"]
    guarded += ["--fleet-kafka-security", str(sites.ours.file("vpp-dispatch-registry", ours))]
    guarded += ["--tls-cert", str(served.cert), "--tls-key", str(served.key)]
    guarded += ["--account", "demo", "--password-file", password]
    fleet = ["--series", "ETU", "--registered-limits", "1"]
    await stack.start(inverters=DEVICES, simulator=[*guarded, *fleet])


def changed(stack: Stack, variables: Mapping[str, str]) -> Settings:
    """The settings of a run, with these in place of its own."""
    return Settings.load(None, environment(stack, variables))


def environment(stack: Stack, variables: Mapping[str, str]) -> dict[str, str]:
    """Of a user's own credentials nothing of the worker's is left."""
    kept = stack.variables()
    if any(name.startswith("KAFKA__SECURITY") for name in variables):
        kept = {k: v for k, v in kept.items() if not k.startswith("VPP_DISPATCH_KAFKA__SECURITY")}
    return kept | {f"VPP_DISPATCH_{name}": value for name, value in variables.items()}


async def ask(stack: Stack, *words: str, variables: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Exit code and all output of a command of the command line."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "vpp_dispatch", *words,
        env=os.environ | environment(stack, variables or {}), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, said.decode()


async def dispatched_and_released(stack: Stack) -> None:
    controls = [{"kind": "export_limit", "each_w": 1000}]
    await stack.send(stack.signal("limit", end_at=time.time() + 300, targets={"all": True}, controls=controls))
    await stack.until_devices("limit", "verified", DEVICES, 60)
    await stack.send(stack.signal("limit", revision=2, action="cancel"))
    report = await stack.until_closed("limit", 60)
    assert report["release"] == {"due": DEVICES, "confirmed": DEVICES, "pending": 0, "refused": 0}
    assert {row["state"] for row in stack.outcomes("limit").values()} == {"verified"}


def everything_written(stack: Stack, *more: str) -> dict[str, str]:
    """What a run left anywhere: files, pages, command lines and environments of its processes, messages."""
    found = {str(n): text for n, text in enumerate(more)}
    found |= {path.name: path.read_text(errors="replace") for path in stack.folder.rglob("*") if path.is_file()}
    assert stack.simulator is not None
    running: list[Child] = [child for child in (*stack.workers.values(), stack.simulator) if child.running]
    for child in running:
        for name in ("cmdline", "environ"):
            found[f"{child.name} {name}"] = Path(f"/proc/{child.pid}/{name}").read_bytes().decode(errors="replace")
        if child is not stack.simulator and stack.port(child) is not None:
            found[f"{child.name} metrics"] = stack.metrics(child)
    found["messages"] = json.dumps([[r.topic, r.key, r.value, r.headers] for rs in stack.records.values() for r in rs])
    return found


def forms(secret: str) -> set[str]:
    """A secret as it is, in base64 wherever it begins, in URLs, in JSON, and in hex."""
    raw = secret.encode()
    coded = {base64.b64encode(b"\0" * n + raw).decode()[-(-n * 8 // 6) : -4] for n in range(3)}
    web = {urllib.parse.quote(secret, safe=""), urllib.parse.quote_plus(secret)}
    return {
        secret,
        raw.hex(),
        json.dumps(secret)[1:-1],
        *web,
        *coded,
        *(c.translate({43: "-", 47: "_"}) for c in coded),
    }


def test_the_forms_of_a_secret_are_found() -> None:
    for text in ("u\0planted/x+word", "me:planted/x+word", "planted/x+word\n"):
        coded = base64.b64encode(text.encode()).decode()
        assert any(form in coded for form in forms("planted/x+word")), text
    assert not any(form in "nothing of it" for form in forms("planted/x+word"))


def nothing_leaked(sites: Sites, found: Mapping[str, str]) -> None:
    wanted = {form for secret in sites.planted for form in forms(secret)}
    assert len(found) > 8 and sum(map(len, found.values())) > 100_000  # there is something to look at
    assert [(where, form) for where, text in found.items() for form in wanted if form in text] == []
    logs = {where: text for where, text in found.items() if where.startswith("worker-")}
    assert len(logs) > 2 and [where for where, text in logs.items() if "9010KETU" in text] == []  # nor whose home it is


async def test_scram_here_and_certificates_there_by_exactly_the_acls(
    sites: Sites, topic_prefix: str, tmp_path: Path
) -> None:
    stack = run_of(sites, topic_prefix, tmp_path, "sasl", "mtls")
    try:
        await started(sites, stack, "sasl", "mtls")
        first, second = stack.start_worker(), stack.start_worker()
        await stack.until_ready(first, second, registered=DEVICES)
        wrong = {"KAFKA__SECURITY__PASSWORD_FILE": str(sites.ours.plant("wrong"))}
        refused = stack.start_worker(extra=wrong)
        await dispatched_and_released(stack)
        await stack.send(b"no signal at all")
        await stack.until(stack.dead_letters, 20, "the dead letter")
        await stack.until(lambda: "refuses the user 'vpp-dispatch' or its password" in refused.tail(), 30, "the reason")

        on_call = sites.ours.variables("KAFKA", "vpp-dispatch-on-call")
        turned = await ask(stack, "switch", "drain", "on", "--reason", "a trial", variables=on_call)
        assert turned[0] == 0 and "Taken" in turned[1]
        checked, shown, looked, failed = await asyncio.gather(
            ask(stack, "config", "check"),
            ask(stack, "config", "show"),
            ask(stack, "preflight"),
            ask(stack, "preflight", variables=wrong_everywhere(sites)),
        )
        assert (checked[0], shown[0], looked[0], failed[0]) == (0, 0, 0, 1), looked[1]
        assert "may do all of the" in looked[1] and "FAILED" not in looked[1]
        assert "The log-in is refused" in failed[1]
        await sees_the_lag_and_no_record(sites, stack)
        async with Reader(at_goodwe(stack.loaded()), [f"{stack.prefix}goodwe.query.result"]) as reader:
            assert await reader.batch(wait_s=10)  # break-glass reads without a group
        outputs = [said for _, said in (turned, checked, shown, looked, failed)]
        nothing_leaked(sites, everything_written(stack, *outputs))
    finally:
        await stack.stop()


def wrong_everywhere(sites: Sites) -> dict[str, str]:
    """Passwords that nobody takes, and that are to be seen nowhere either."""
    return {"GOODWE__REALTIME__PASSWORD_FILE": str(sites.theirs.plant("wrong-api"))}


async def sees_the_lag_and_no_record(sites: Sites, stack: Stack) -> None:
    """An exporter of lag, or KEDA: how far the group is, and what there is, but nothing of it."""
    group, topic, user = stack.loaded().kafka.group, stack.signals_topic, "vpp-dispatch-lag"
    admin = preflight.client(sites.ours.servers("sasl"), sites.ours.security(user))
    consumer = AIOKafkaConsumer(**sites.ours.client(user))
    try:
        await admin.start()
        await consumer.start()
        committed = await admin.list_consumer_group_offsets(group)
        ends = await consumer.end_offsets([tp for tp in committed if tp.topic == topic])
        assert sum(ends.values()) == sum(committed[tp].offset for tp in ends) == 3  # two signals, and no signal at all
    finally:
        await consumer.stop()
        await admin.close()
    with pytest.raises(TopicAuthorizationFailedError):
        await reads(sites, user, topic, None)
    with pytest.raises(GroupAuthorizationFailedError):
        await reads(sites, user, topic, group)


async def test_certificates_here_and_scram_there(sites: Sites, topic_prefix: str, tmp_path: Path) -> None:
    stack = run_of(sites, topic_prefix, tmp_path, "mtls", "sasl")
    headers = sites.ours.plant("collector", "authorization: Bearer ")
    stack.settings |= {"TRACING__ENDPOINT": "http://127.0.0.1:1/v1/traces", "TRACING__HEADERS_FILE": str(headers)}
    try:
        await started(sites, stack, "mtls", "sasl")
        await stack.until_ready(stack.start_worker(), registered=DEVICES)
        await dispatched_and_released(stack)
        # A worker that GoodWe lets in neither here nor there: it takes over shards, and says why it cannot serve them.
        shut_out = stack.start_worker(
            extra=wrong_everywhere(sites)
            | {"GOODWE__KAFKA__SECURITY__PASSWORD_FILE": str(sites.theirs.plant("wrong-kafka"))}
        )
        said = shut_out.out.read_text
        await stack.until(lambda: "link.unreachable" in said(), 40, "GoodWe's cluster to be told")
        await stack.until(lambda: "The log-in is refused" in said(), 40, "the refused log-in")
        nothing_leaked(sites, everything_written(stack))
    finally:
        await stack.stop()


# ---------------------------------------------------------------------------------------------- who may do what


@pytest.fixture
async def two_sources(sites: Sites, topic_prefix: str) -> Settings:
    """Settings of a service with two operators, whose topics exist and whose ACLs are in force."""
    p = topic_prefix
    names = {
        "SIGNALS__TOPICS": json.dumps({f"{p}signals.west": "west", f"{p}signals.east": "east"}),
        "RESPONSES__TOPICS": json.dumps({"west": f"{p}responses.west", "east": f"{p}responses.east"}),
        "REPORTS__TOPICS": json.dumps({"west": f"{p}reports.west", "east": f"{p}reports.east"}),
        "KAFKA__GROUP": f"{p}workers",
        "KAFKA__REPLICATION_FACTOR": "1",
        **{f"TOPICS__{name.upper()}": f"{p}{name}" for name in Settings().topics.model_dump()},
        **sites.theirs.variables("GOODWE__KAFKA", "vpp-dispatch"),
    }

    def loaded(user: str) -> Settings:
        variables = names | sites.ours.variables("KAFKA", user)
        return Settings.load(None, {f"VPP_DISPATCH_{name}": value for name, value in variables.items()})

    service = loaded("vpp-dispatch")
    await sites.allow(apply.render(service, load_profile("goodwe")))
    await until_lacking(sites.ours, service.kafka.security, preflight.needs(service), [])
    await preflight.create_for_trying_out(loaded("vpp-dispatch-topics"))
    return service


async def writes(sites: Sites, user: str, topic: str) -> None:
    producer = AIOKafkaProducer(request_timeout_ms=10_000, **sites.ours.client(user))
    try:
        await producer.start()
        await producer.send_and_wait(topic, b"{}")
    finally:
        await producer.stop()


async def reads(sites: Sites, user: str, topic: str, group: str | None) -> bytes:
    consumer = AIOKafkaConsumer(
        topic, group_id=group, auto_offset_reset="earliest", enable_auto_commit=False, **sites.ours.client(user)
    )
    try:
        await consumer.start()
        value: bytes = (await asyncio.wait_for(consumer.getone(), 20)).value
        return value
    finally:
        await consumer.stop()


async def test_r09_an_operator_reads_only_its_own_and_writes_only_signals(sites: Sites, two_sources: Settings) -> None:
    t = two_sources.topics
    for source in ("west", "east"):
        for topic in (two_sources.responses_topic(source), two_sources.reports_topic(source)):
            await publish(two_sources, topic, [Draft(key=b"e", value=source.encode())])
            assert await reads(sites, source, topic, source) == source.encode()
    for topic in (two_sources.responses_topic("west"), two_sources.reports_topic("west"), t.outcomes, t.registry):
        with pytest.raises(TopicAuthorizationFailedError):
            await reads(sites, "east", topic, None)
    with pytest.raises(GroupAuthorizationFailedError):
        await reads(sites, "east", two_sources.responses_topic("east"), "west")

    signals = {source: topic for topic, source in two_sources.signals.topics.items()}
    await writes(sites, "east", signals["east"])
    others = [signals["west"], two_sources.responses_topic("east"), t.event_inbox, t.shard_inbox, t.registry]
    others += [t.pages_changelog, t.events_changelog, t.dead_letters]
    for topic in others:
        with pytest.raises(TopicAuthorizationFailedError):
            await writes(sites, "east", topic)
    for user in ("vpp-dispatch-registry", "vpp-dispatch-lag", "vpp-dispatch-on-call", "vpp-dispatch"):
        with pytest.raises(TopicAuthorizationFailedError):
            await writes(sites, user, signals["west"])


async def test_no_line_of_the_services_acls_is_too_much(sites: Sites, two_sources: Settings) -> None:
    """Each is taken away in turn, and preflight's question names exactly that one."""
    profile = load_profile("goodwe")
    everything = apply.render(two_sources, profile)
    for site, role, security, wanted in (
        (sites.ours, "service", two_sources.kafka.security, preflight.needs(two_sources)),
        (sites.theirs, "goodwe", two_sources.goodwe_security, preflight.goodwe_needs(two_sources, profile)),
    ):
        lines = [acl for acl in everything if acl.role == role]
        assert len(lines) == len(wanted)
        for line in lines:
            await site.allow([line], remove=True)
            await until_lacking(site, security, wanted, [(line.resource, line.name, line.operation)])
            await site.allow([line])
        await until_lacking(site, security, wanted, [])


async def until_lacking(
    site: Site, security: SecuritySettings, wanted: list[preflight.Need], expected: list[Any]
) -> None:
    """A broker knows of a change a moment after the controller has answered."""
    found: list[Any] = []

    async def as_expected() -> bool:
        found[:] = await preflight.lacking(site.servers("sasl"), security, wanted)
        return found == expected

    try:
        await eventually(as_expected, 20)
    except AssertionError:
        assert found == expected  # which tells more


# ---------------------------------------------------------------------------------------------- what preflight says


def test_preflight_says_why_a_cluster_lets_nobody_in(sites: Sites, tmp_path: Path) -> None:
    ours = sites.ours
    foreign = Authority(tmp_path, "foreign")
    sasl, mtls = ours.variables("KAFKA", "vpp-dispatch"), ours.variables("KAFKA", "vpp-dispatch", "mtls")
    port = ours.broker.bootstrap_servers.rpartition(":")[2]

    def with_certificate(issued: Issued) -> dict[str, str]:
        return mtls | {"KAFKA__SECURITY__CERT_FILE": str(issued.cert), "KAFKA__SECURITY__KEY_FILE": str(issued.key)}

    without = {name: value for name, value in mtls.items() if "CERT_FILE" not in name and "KEY_FILE" not in name}
    said = {
        "refuses the user 'vpp-dispatch' or its password: compare USERNAME and PASSWORD_FILE": sasl
        | {"KAFKA__SECURITY__PASSWORD_FILE": str(ours.plant("wrong"))},
        "refuses the user 'nobody' or its password": sasl | {"KAFKA__SECURITY__USERNAME": "nobody"},
        "is of no CA that is believed here": sasl | {"KAFKA__SECURITY__CA_FILE": str(foreign.file)},
        "is for another name: use the name": sasl | {"KAFKA__BOOTSTRAP_SERVERS": f"localhost:{port}"},
        "does not take SCRAM-SHA-256: set SECURITY__MECHANISM": sasl | {"KAFKA__SECURITY__MECHANISM": "SCRAM-SHA-256"},
        "refuses our certificate: that has expired, or": with_certificate(
            ours.authority.issue("vpp-dispatch", expired=True)
        ),
        "or is of a CA that it does not know": with_certificate(foreign.issue("vpp-dispatch")),
        "it wants a client certificate: set CERT_FILE and KEY_FILE": without,
        "compare SECURITY__PROTOCOL": {"KAFKA__BOOTSTRAP_SERVERS": ours.broker.bootstrap_servers},
    }
    for sentence, variables in said.items():
        done = CliRunner().invoke(main, ["preflight"], env={f"VPP_DISPATCH_{k}": v for k, v in variables.items()})
        [line] = [line for line in done.output.splitlines() if line.startswith("FAILED  kafka ")]
        assert sentence in line, f"{sentence}: {line}"
        assert done.exit_code == 1 and "VPP_DISPATCH_KAFKA__*" in line
        assert not [secret for secret in sites.planted if secret in done.output]


@pytest.mark.parametrize("lacks", ["the password", "an ACL"])
def test_break_glass_takes_a_kafka_that_refuses_for_one_that_workers_use(sites: Sites, lacks: str) -> None:
    variables = sites.ours.variables("KAFKA", "vpp-dispatch")
    if lacks == "the password":
        variables["KAFKA__SECURITY__PASSWORD_FILE"] = str(sites.ours.plant("wrong"))
    settings = Settings.load(None, {f"VPP_DISPATCH_{name}": value for name, value in variables.items()})
    with pytest.raises(Refused, match="answers: workers that are alive would set again"):
        _our_kafka_is_gone(settings, force=False)


async def test_preflight_names_the_acl_that_is_missing(sites: Sites, two_sources: Settings) -> None:
    service = [acl for acl in apply.render(two_sources, load_profile("goodwe")) if acl.role == "service"]
    taken = [acl for acl in service if acl.resource == "group" or acl.name == two_sources.topics.outcomes]
    assert len(taken) == 2
    await sites.ours.allow(taken, remove=True)
    gone: list[Any] = [(acl.resource, acl.name, acl.operation) for acl in taken]
    await until_lacking(sites.ours, two_sources.kafka.security, preflight.needs(two_sources), gone)
    found = [finding async for finding in inspect(two_sources) if finding.check == "access"]
    assert {(finding.state, finding.says.split(":")[0]) for finding in found} == {
        ("failed", f"This user may not read the group {two_sources.kafka.group}"),
        ("failed", f"This user may not write the topic {two_sources.topics.outcomes}"),
    }
