"""Whether everything is there that the service needs: looked at from here, one finding at a time, each with its remedy.

`vpp-dispatch preflight` prints them. Nothing is changed, unless topics are to be created; to compare the clocks a topic
of its own is made and removed again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar
from urllib.parse import urlsplit

import structlog

from vpp_dispatch import preflight
from vpp_dispatch.domain.answer import Refusal
from vpp_dispatch.errors import ConfigurationError, ExternalFault, RateLimited, VppDispatchError
from vpp_dispatch.fleet.freshness import Limits, freshness, verdicts
from vpp_dispatch.fleet.registry import Removed, decode_record
from vpp_dispatch.goodwe.profile import Profile, load_profile
from vpp_dispatch.goodwe.realtime import RealTimeApi
from vpp_dispatch.settings import SecuritySettings, Settings
from vpp_dispatch.topics import read_all

T = TypeVar("T")

STEP_S = 30.0
"""Longest time for one step against Kafka."""

API_S = 120.0
"""Longest time for the log-in and one list of authorized SNs."""

SKEW_ALARM_S = 1.0
SKEW_STOPS_S = 5.0
"""R7: above the first alarm, above the second only releases."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at. `note`: it works, but somebody should know. `says`: a sentence with its remedy."""

    check: str
    state: Literal["ok", "note", "failed"]
    says: str


def ok(check: str, says: str) -> Finding:
    return Finding(check=check, state="ok", says=says)


def note(check: str, says: str) -> Finding:
    return Finding(check=check, state="note", says=says)


def failed(check: str, says: str) -> Finding:
    return Finding(check=check, state="failed", says=says)


async def inspect(settings: Settings, *, create_topics: bool = False) -> AsyncIterator[Finding]:
    """Looks at everything in turn; a check whose ground is missing is left out. Never raises our own faults."""
    if unmet := settings.unmet():
        for sentence in unmet:
            yield failed("settings", sentence)
    else:
        yield ok("settings", "The settings fit and are complete.")
    for finding in _in_the_clear(settings):
        yield finding
    profile: Profile | None = None
    try:
        profile = load_profile(settings.goodwe.profile)
        yield ok("profile", f"The GoodWe profile {profile.name} ({settings.goodwe.profile}) can be used.")
    except ConfigurationError as error:
        yield failed("profile", str(error))
    registered: set[str] | None = None
    async for finding in _our_kafka(settings, create_topics=create_topics):
        yield finding
        if finding.check == "registry topic" and finding.state == "ok":
            try:
                registered = await _within(_registered(settings), STEP_S, "the registry")
            except VppDispatchError as error:
                yield failed("registry", str(error))
    if profile is None:
        return
    async for finding in _goodwe_kafka(settings, profile):
        yield finding
    if not unmet:
        async for finding in _realtime(settings, profile, registered):
            yield finding


async def _within(work: Awaitable[T], seconds: float, what: str) -> T:
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError:
        raise ExternalFault(f"There was no answer about {what} within {seconds:g} s: try again later.") from None


# ---------------------------------------------------------------------------------------------- our cluster


async def _our_kafka(settings: Settings, *, create_topics: bool) -> AsyncIterator[Finding]:
    servers = settings.kafka.bootstrap_servers
    try:
        if create_topics:
            await _within(preflight.create_for_trying_out(settings), STEP_S, "the topics")
            yield ok("create topics", "All topics of our side are there; those that were missing have been created.")
    except VppDispatchError as error:
        yield failed("create topics", str(error))
    try:
        cluster = await _within(preflight.look(servers, settings.kafka.security), STEP_S, f"Kafka at {servers}")
    except ConfigurationError as error:
        yield failed("kafka", str(error))
        return
    except VppDispatchError as error:
        yield failed("kafka", f"{error} The settings are VPP_DISPATCH_KAFKA__*.")
        return
    yield ok("kafka", f"Kafka at {servers} answers, with {cluster.brokers} broker{'s' * (cluster.brokers != 1)}.")
    for finding in _our_topics(settings, cluster):
        yield finding
    async for finding in _allowed("access", servers, settings.kafka.security, preflight.needs(settings)):
        yield finding
    if settings.topics.registry in cluster.topics:
        yield ok("registry topic", f"{settings.topics.registry} can be read.")
    try:
        yield _clock(await _within(preflight.clock_skew(settings), STEP_S, "the broker's clock"))
    except VppDispatchError as error:
        yield note("clock", f"The clocks could not be compared: {error} Keep both by NTP.")


async def _allowed(
    check: str, servers: str, security: SecuritySettings, wanted: list[preflight.Need]
) -> AsyncIterator[Finding]:
    """Whether this user may do all that the service does there."""
    try:
        lacking = await _within(preflight.lacking(servers, security, wanted), STEP_S, f"permissions at {servers}")
    except VppDispatchError as error:
        yield note(check, f"What this user may do is not known: {error}")
        return
    for kind, name, operation in lacking:
        yield failed(
            check,
            f"This user may not {operation.lower()} the {kind} {name}: add the ACL {operation} on it, or create it if "
            "it is not there. All that are needed are in deploy/kafka/acls.toml.",
        )
    if not lacking:
        yield ok(check, f"This user may do all of the {len(wanted)} things that the service does there.")


def _in_the_clear(settings: Settings) -> Iterator[Finding]:
    """What crosses a network where others may read it."""
    ways = {
        "KAFKA": (settings.kafka.bootstrap_servers, settings.kafka.security.uses_tls),
        "GOODWE__KAFKA": (settings.goodwe_bootstrap_servers, settings.goodwe_security.uses_tls),
    }
    base_url = settings.goodwe.realtime.base_url
    if base_url:
        parts = urlsplit(base_url)
        ways["GOODWE__REALTIME"] = (parts.netloc, parts.scheme == "https")
    for section, (servers, encrypted) in ways.items():
        hosts = {server.strip().rpartition(":")[0].strip("[]") or server for server in servers.split(",")}
        if not encrypted and hosts - {"127.0.0.1", "localhost", "::1", ""}:
            yield note(
                "encryption",
                f"{servers} is spoken to in the clear: whoever is on the way reads and changes it. Use TLS "
                f"(VPP_DISPATCH_{section}__*).",
            )


def _our_topics(settings: Settings, cluster: preflight.Cluster) -> Iterator[Finding]:
    internal, operators = preflight.internal_topics(settings), preflight.operators_topics(settings)
    absent = []
    for name, (count, _) in internal.items():
        there = cluster.topics.get(name)
        if there is None:
            absent.append(name)
        elif there != count:
            yield failed(
                "topic",
                f"{name} has {there} partitions and needs {count}, for life: delete it if nothing is held, or give it "
                "another name.",
            )
        else:
            yield ok("topic", f"{name} has its {count} partition{'s' * (count != 1)}.")
    if absent:
        yield note("topic", f"{', '.join(absent)} will be created by the first worker.")
        if cluster.brokers < settings.kafka.replication_factor:
            yield failed(
                "replication",
                f"Topics cannot be created with {settings.kafka.replication_factor} copies on {cluster.brokers} broker"
                f"{'s' * (cluster.brokers != 1)}: lower VPP_DISPATCH_KAFKA__REPLICATION_FACTOR, or add brokers.",
            )
    for name in operators:
        if name in cluster.topics:
            there = cluster.topics[name]
            yield ok("topic", f"{name} has {there} partition{'s' * (there != 1)}.")
        else:
            yield failed(
                "topic",
                f"{name} does not exist or has no leader: create it (`vpp-dispatch preflight --create-topics` does), "
                "or name the right one in the settings.",
            )
    for name, (_, wanted) in operators.items():
        policy = cluster.cleanup_policies.get(name)
        if wanted.get("cleanup.policy") == "compact" and policy is not None and "compact" not in policy:
            yield failed(
                "compaction",
                f"{name} is not compacted ({policy}), so it forgets records by age: set its cleanup.policy to compact.",
            )


def _clock(skew_s: float) -> Finding:
    told = f"This clock is {abs(skew_s):.2f} s {'ahead of' if skew_s > 0 else 'behind'} the broker's"
    if abs(skew_s) > SKEW_STOPS_S:
        return failed("clock", f"{told}; above {SKEW_STOPS_S:g} s only releases are sent: keep both by NTP.")
    if abs(skew_s) > SKEW_ALARM_S:
        return failed("clock", f"{told}, more than {SKEW_ALARM_S:g} s: keep both by NTP.")
    return ok("clock", f"{told}, within {SKEW_ALARM_S:g} s." if skew_s else "The clock agrees with the broker's.")


async def _registered(settings: Settings) -> set[str]:
    latest: dict[str, tuple[float, bool]] = {}
    async for entry in read_all(settings, settings.topics.registry):
        record = decode_record(entry.key, entry.value)
        if not isinstance(record, Refusal) and entry.at >= latest.get(record.sn, (0.0, False))[0]:
            latest[record.sn] = (entry.at, not isinstance(record, Removed))
    return {sn for sn, (_, there) in latest.items() if there}


# ---------------------------------------------------------------------------------------------- GoodWe


async def _goodwe_kafka(settings: Settings, profile: Profile) -> AsyncIterator[Finding]:
    servers = settings.goodwe_bootstrap_servers
    try:
        cluster = await _within(
            preflight.look(servers, settings.goodwe_security), STEP_S, f"GoodWe's Kafka at {servers}"
        )
    except VppDispatchError as error:
        yield failed("goodwe kafka", f"{error} The settings are VPP_DISPATCH_GOODWE__KAFKA__*.")
        return
    yield ok("goodwe kafka", f"GoodWe's Kafka at {servers} answers.")
    for name in profile.topics.model_dump().values():
        if name in cluster.topics:
            there = cluster.topics[name]
            yield ok("goodwe topic", f"{name} has {there} partition{'s' * (there != 1)}.")
        else:
            yield failed(
                "goodwe topic",
                f"{name} does not exist there, or is not shown to this user: correct [topics] in the profile, or ask "
                "GoodWe for access.",
            )
    wanted = preflight.goodwe_needs(settings, profile)
    async for finding in _allowed("goodwe access", servers, settings.goodwe_security, wanted):
        yield finding


async def _realtime(settings: Settings, profile: Profile, registered: set[str] | None) -> AsyncIterator[Finding]:
    realtime = settings.goodwe.realtime
    try:
        api = RealTimeApi(
            profile=profile,
            base_url=realtime.base_url,
            account=realtime.account,
            password_file=realtime.password_file,
            max_calls_per_s=realtime.max_calls_per_s,
            ca_file=realtime.ca_file,
            connect_timeout_s=realtime.connect_timeout_s,
            read_timeout_s=realtime.read_timeout_s,
            log=structlog.wrap_logger(None, processors=[_drop]),
        )
    except ConfigurationError as error:
        yield failed("api", str(error))
        return
    try:
        listed = await _within(api.authorized(), API_S, f"consent from {realtime.base_url}")
    except RateLimited as fault:
        yield failed("api", f"{realtime.base_url} lets us in but its rate limit is reached: {fault} Try again then.")
        return
    except ExternalFault as fault:
        yield failed(
            "api",
            f"Consent cannot be read from {realtime.base_url}: {fault} Check VPP_DISPATCH_GOODWE__REALTIME__* and "
            "[realtime] in the profile.",
        )
        return
    finally:
        await api.aclose()
    authorized = {authorization.sn for authorization in listed}
    yield ok("api", f"{realtime.base_url} lets {realtime.account} in and lists {len(authorized):,} authorized SNs.")
    for finding in _devices(authorized, registered):
        yield finding
    for finding in _freshness(settings, profile, len(authorized & registered) if registered else len(authorized)):
        yield finding


def _drop(logger: object, name: str, event: object) -> str:
    raise structlog.DropEvent


def _devices(authorized: set[str], registered: set[str] | None) -> Iterator[Finding]:
    if registered is None:
        return
    both = len(authorized & registered)
    if both:
        yield ok(
            "devices",
            f"{both:,} devices may be dispatched: {len(registered):,} are registered, and the owners of "
            f"{len(registered) - both:,} of them do not consent.",
        )
    elif not registered:
        yield note(
            "devices", "The registry is empty, so nothing can be dispatched: `vpp-dispatch fleet import` fills it."
        )
    else:
        yield note(
            "devices",
            f"None of the {len(registered):,} registered devices has its owner's consent, so nothing can be "
            "dispatched: compare the SNs with GoodWe's list.",
        )


def _freshness(settings: Settings, profile: Profile, devices: int) -> Iterator[Finding]:
    limits = Limits.of(settings, page_size=profile.realtime.page_size, tells_modes=profile.realtime.modes.told)
    say = {"ok": ok, "note": note, "failed": failed}
    for verdict in verdicts(freshness(devices, limits), limits):
        yield say[verdict.state]("freshness", verdict.says)
