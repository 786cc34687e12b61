"""What `preflight` finds, and what it says: each failure has its remedy."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vpp_dispatch import checks, preflight
from vpp_dispatch.domain.device import Authorization
from vpp_dispatch.errors import ExternalFault, NotReachable, RateLimited
from vpp_dispatch.goodwe.profile import load_profile
from vpp_dispatch.settings import Settings
from vpp_dispatch.topics import Entry

SNS = [f"9010KETU000W{n:04d}" for n in range(250)]
Findings = list[tuple[str, str, str]]
Look = Callable[..., Any]


class Api:
    """A Real-Time Data API that lists these, or fails."""

    fault: Exception | None = None
    sns = SNS

    def __init__(self, **_: Any) -> None: ...

    async def authorized(self) -> list[Authorization]:
        if self.fault:
            raise self.fault
        return [Authorization(sn=sn, authorized_at=0.0) for sn in self.sns]

    async def aclose(self) -> None: ...


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Look:
    """Runs all checks against a cluster where everything is right, but for what is given."""

    async def run(
        *,
        cluster: Callable[[preflight.Cluster], preflight.Cluster] = lambda c: c,
        skew_s: float | Exception = 0.0,
        fault: Exception | None = None,
        registered: list[str] = SNS,
        lacking: Exception | list[preflight.Need] | None = None,
        **variables: str,
    ) -> Findings:
        password = tmp_path / "password"
        password.write_text("x")
        complete = {
            "KAFKA__REPLICATION_FACTOR": "1",
            "GOODWE__REALTIME__BASE_URL": "http://127.0.0.1:1",
            "GOODWE__REALTIME__ACCOUNT": "supplier",
            "GOODWE__REALTIME__PASSWORD_FILE": str(password),
        } | variables
        settings = Settings.load(None, {f"VPP_DISPATCH_{k}": v for k, v in complete.items()})
        ours = preflight.internal_topics(settings) | preflight.operators_topics(settings)
        theirs = load_profile("goodwe").topics.model_dump().values()
        right = preflight.Cluster(
            brokers=1,
            topics={name: count for name, (count, _) in ours.items()} | dict.fromkeys(theirs, 6),
            cleanup_policies={name: configs.get("cleanup.policy", "delete") for name, (_, configs) in ours.items()},
        )

        async def look(*_: Any) -> preflight.Cluster:
            return cluster(right)

        async def clock_skew(_: Settings) -> float:
            if isinstance(skew_s, Exception):
                raise skew_s
            return skew_s

        async def not_allowed(_: str, __: Any, wanted: list[preflight.Need]) -> list[preflight.Need]:
            if isinstance(lacking, Exception):
                raise lacking
            return [need for need in wanted if need in (lacking or [])]

        async def read_all(_: Settings, topic: str) -> AsyncIterator[Entry]:
            for n, sn in enumerate(registered):
                value = json.dumps({"sn": sn}).encode()
                yield Entry(topic=topic, partition=0, offset=n, at=float(n), key=sn.encode(), value=value)
            yield Entry(topic=topic, partition=0, offset=0, at=0.0, key=b"nonsense", value=b"")

        monkeypatch.setattr(preflight, "look", look)
        monkeypatch.setattr(preflight, "clock_skew", clock_skew)
        monkeypatch.setattr(preflight, "lacking", not_allowed)
        monkeypatch.setattr(checks, "read_all", read_all)
        monkeypatch.setattr(checks, "RealTimeApi", Api)
        monkeypatch.setattr(Api, "fault", fault)
        return [(f.check, f.state, f.says) async for f in checks.inspect(settings)]

    return run


def failures(findings: Findings) -> list[tuple[str, str]]:
    return [(check, says) for check, state, says in findings if state == "failed"]


async def test_where_everything_is_right_nothing_fails_and_all_is_looked_at(world: Look) -> None:
    found = await world()
    assert failures(found) == []
    seen = {check for check, _, _ in found}
    assert seen == {
        "settings", "profile", "kafka", "topic", "access", "registry topic", "clock", "goodwe kafka", "goodwe topic",
        "goodwe access", "api", "devices", "freshness",
    }  # fmt: skip
    assert len([1 for check, _, _ in found if check == "topic"]) == 10


def without(name: str) -> Callable[[preflight.Cluster], preflight.Cluster]:
    return lambda c: replace(c, topics={n: count for n, count in c.topics.items() if n != name})


@pytest.mark.parametrize(
    ("name", "check", "says"),
    [
        ("dispatch.signals.v1", "topic", "--create-topics"),
        ("fleet.devices.v1", "topic", "fleet.devices.v1 does not exist"),
        ("goodwe.query.result", "goodwe topic", "correct [topics] in the profile, or ask GoodWe"),
    ],
)
async def test_a_missing_topic_fails_with_its_remedy(world: Look, name: str, check: str, says: str) -> None:
    [(failed, sentence)] = failures(await world(cluster=without(name)))
    assert failed == check and says in sentence


async def test_a_missing_internal_topic_is_left_to_the_first_worker_if_it_can_be_created(world: Look) -> None:
    inbox = without("vpp-dispatch.shard-inbox.v1")
    found = await world(cluster=inbox)
    assert failures(found) == [] and any("created by the first worker" in says for _, _, says in found)
    [(check, says)] = failures(await world(cluster=inbox, KAFKA__REPLICATION_FACTOR="3"))
    assert check == "replication" and "3 copies on 1 broker" in says


async def test_wrong_partition_counts_and_a_registry_that_forgets_fail(world: Look) -> None:
    inbox = "vpp-dispatch.shard-inbox.v1"
    [(_, says)] = failures(await world(cluster=lambda c: replace(c, topics=c.topics | {inbox: 8})))
    assert "8 partitions and needs 64, for life" in says
    forgets = {"fleet.devices.v1": "delete"}
    [(check, says)] = failures(await world(cluster=lambda c: replace(c, cleanup_policies=c.cleanup_policies | forgets)))
    assert check == "compaction" and "set its cleanup.policy to compact" in says


@pytest.mark.parametrize(
    ("skew_s", "says"), [(1.5, "1.50 s ahead of the broker's, more than 1 s"), (-6.0, "6.00 s behind"), (0.5, None)]
)
async def test_r07_a_clock_that_differs_fails(world: Look, skew_s: float, says: str | None) -> None:
    told = [sentence for check, sentence in failures(await world(skew_s=skew_s)) if check == "clock"]
    assert (says is None and told == []) or (says is not None and says in told[0] and "NTP" in told[0])


async def test_clocks_that_cannot_be_compared_are_a_note(world: Look) -> None:
    found = await world(skew_s=ExternalFault("a topic cannot be made: allow it."))
    assert failures(found) == [] and ("clock", "note") in {(check, state) for check, state, _ in found}


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (ExternalFault("The log-in is refused: check account and password."), "VPP_DISPATCH_GOODWE__REALTIME__*"),
        (RateLimited("Wait 300 s.", retry_after_s=300), "its rate limit is reached: Wait 300 s."),
        (NotReachable("/v1/token: no connection (ConnectError)."), "no connection"),
    ],
)
async def test_an_api_that_does_not_answer_fails(world: Look, fault: Exception, says: str) -> None:
    [(check, sentence)] = failures(await world(fault=fault))
    assert check == "api" and says in sentence


async def test_a_cluster_that_is_away_fails_once_for_each_side(world: Look) -> None:
    def away(_: preflight.Cluster) -> preflight.Cluster:
        raise NotReachable("Kafka at x cannot be used: start it.")

    assert [check for check, _ in failures(await world(cluster=away))] == ["kafka", "goodwe kafka"]


async def test_missing_settings_and_a_wrong_profile_are_told_and_the_rest_is_looked_at(world: Look) -> None:
    found = await world(GOODWE__REALTIME__ACCOUNT="", GOODWE__PROFILE="gudwe")
    assert [check for check, _ in failures(found)] == ["settings", "profile"]
    assert ("kafka", "ok") in {(check, state) for check, state, _ in found}


async def test_devices_without_consent_and_an_empty_registry_are_told(world: Look) -> None:
    def told(findings: Findings) -> str:
        return next(says for check, _, says in findings if check == "devices")

    assert "250 devices may be dispatched: 250 are registered" in told(await world())
    assert "fleet import" in told(await world(registered=[]))
    assert "None of the 1 registered" in told(await world(registered=["9010KETU000W9999"]))


async def test_r16_r18_freshness_that_the_rate_does_not_allow(world: Look) -> None:
    slow = {"GOODWE__REALTIME__MAX_CALLS_PER_S": "0.005"}
    found = await world(**slow)
    assert [says for _, says in failures(found) if "raise VPP_DISPATCH_GOODWE__REALTIME__MAX_CALLS_PER_S" in says] == []
    required = failures(await world(FLEET__TELEMETRY_POLICY="require", **slow))
    assert [check for check, _ in required] == ["freshness"] and "most devices are skipped" in required[0][1]
    stale = failures(await world(GOODWE__REALTIME__MAX_CALLS_PER_S="0.001"))
    assert "nothing would start" in stale[0][1]


async def test_what_this_user_may_not_do_is_named_with_its_acl(world: Look) -> None:
    lacking = [("topic", "dispatch.outcomes.v1", "Write"), ("group", "vpp-dispatch-goodwe", "Read")]
    found = dict(failures(await world(lacking=lacking)))
    assert "may not write the topic dispatch.outcomes.v1: add the ACL Write" in found["access"]
    assert "may not read the group vpp-dispatch-goodwe: add the ACL Read" in found["goodwe access"]


async def test_where_a_cluster_does_not_tell_it_is_a_note(world: Look) -> None:
    found = await world(lacking=ExternalFault("too old to tell."))
    assert failures(found) == []
    assert [state for check, state, _ in found if check in ("access", "goodwe access")] == ["note", "note"]


async def test_what_crosses_a_network_in_the_clear_is_noted(world: Look) -> None:
    assert not [says for check, _, says in await world() if check == "encryption"]  # it stays on this machine
    found = await world(
        KAFKA__BOOTSTRAP_SERVERS="kafka-1:9092,kafka-2:9092", GOODWE__REALTIME__BASE_URL="http://api.example.org/x"
    )
    noted = [says for check, state, says in found if check == "encryption" and state == "note"]
    assert [says.split(" is ")[0] for says in noted] == [
        "kafka-1:9092,kafka-2:9092", "kafka-1:9092,kafka-2:9092", "api.example.org",
    ]  # fmt: skip
    assert "VPP_DISPATCH_GOODWE__REALTIME__*" in noted[2]
