"""The link on real Kafka: what goes out, what comes in, and what happens when GoodWe's cluster is gone."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
import tomllib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.partitioner import DefaultPartitioner

from tests.conftest import Kafka
from tests.unit.goodwe.batches import answer, commands
from tests.waiting import eventually
from vpp_dispatch.demo.broker import Broker
from vpp_dispatch.domain.command import ResultCode, Results
from vpp_dispatch.domain.device import shard_of
from vpp_dispatch.domain.inputs import SlotResults
from vpp_dispatch.domain.signal import QUERY_BIT, Actuator
from vpp_dispatch.errors import NotReachable
from vpp_dispatch.goodwe import link as link_module
from vpp_dispatch.goodwe.codec import Codec
from vpp_dispatch.goodwe.link import Link, RefusedRecord
from vpp_dispatch.goodwe.parameters import Catalogue
from vpp_dispatch.goodwe.profile import PROFILES, Profile, parse_profile
from vpp_dispatch.simulator import profile as simulated
from vpp_dispatch.simulator.cloud import Cloud
from vpp_dispatch.simulator.consent import Consent
from vpp_dispatch.simulator.faults import Faults
from vpp_dispatch.simulator.fleet import Device
from vpp_dispatch.simulator.inverter import Inverters
from vpp_dispatch.simulator.topics import Topics

PARTITIONS = 3


def _sn(n: int) -> str:
    return f"9010KETU000W{n:04d}"


class Inbox:
    """Where results go; can fail."""

    def __init__(self) -> None:
        self.delivered: list[Mapping[int, Results | SlotResults]] = []
        self.refused: list[RefusedRecord] = []
        self.failures = 0
        self.tried = 0

    async def deliver(self, by_shard: Mapping[int, Results | SlotResults]) -> None:
        self.tried += 1
        if self.failures:
            self.failures -= 1
            raise RuntimeError("the inbox does not take it")
        self.delivered.append(by_shard)

    async def refuse(self, records: list[RefusedRecord]) -> None:
        self.refused += records

    @property
    def ids(self) -> list[bytes]:
        return [i.tobytes() for results in self.parts if isinstance(results, Results) for i in results.ids]

    @property
    def parts(self) -> list[Results | SlotResults]:
        return [results for batch in self.delivered for results in batch.values()]


class Side:
    """GoodWe's side on one cluster: topics of this test, and links to them."""

    def __init__(self, bootstrap_servers: str, prefix: str, profile: str = "goodwe") -> None:
        self.bootstrap_servers = bootstrap_servers
        data = tomllib.loads((PROFILES / f"{profile}.toml").read_text(encoding="utf-8"))
        data["topics"] = {role: prefix + name for role, name in data["topics"].items()}
        self.data = data
        self.profile: Profile = parse_profile(data, "test")
        self.codec = Codec(self.profile, Catalogue(self.profile))
        self.group = prefix + "group"
        self.links: list[Link] = []

    async def create_topics(self) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap_servers)
        await admin.start()
        try:
            topics = [NewTopic(name, PARTITIONS, 1) for name in self.profile.topics.model_dump().values()]
            await admin.create_topics(topics)
        finally:
            await admin.close()

    def link(self, **more: Any) -> Link:
        options: dict[str, Any] = {"session_timeout_s": 6, "linger_s": 0.2, "request_timeout_s": 2}
        made = Link(
            profile=self.profile,
            codec=self.codec,
            bootstrap_servers=self.bootstrap_servers,
            client_id="test",
            group_id=self.group,
            **options | more,
        )
        self.links.append(made)
        return made

    async def started(self, inbox: Inbox | None = None, **more: Any) -> Link:
        link = self.link(**more)
        inbox = inbox or Inbox()
        await link.start(inbox.deliver, inbox.refuse)
        await asyncio.wait_for(link.wait_reachable(), 20)
        return link

    async def read(self, role: str) -> list[Any]:
        """All records that stand in a topic now."""
        topic = getattr(self.profile.topics, role)
        consumer = AIOKafkaConsumer(bootstrap_servers=self.bootstrap_servers, auto_offset_reset="earliest")
        await consumer.start()
        try:
            partitions = [TopicPartition(topic, n) for n in range(PARTITIONS)]
            consumer.assign(partitions)
            ends = await consumer.end_offsets(partitions)
            records: list[Any] = []
            deadline = time.monotonic() + 20
            while len(records) < sum(ends.values()):
                assert time.monotonic() < deadline, f"{len(records)} of {ends}"
                for batch in (await consumer.getmany(timeout_ms=200)).values():
                    records += batch
            return records
        finally:
            await consumer.stop()

    async def answer(self, role: str, values: list[bytes]) -> None:
        producer = AIOKafkaProducer(bootstrap_servers=self.bootstrap_servers)
        await producer.start()
        try:
            topic = getattr(self.profile.topics, role)
            await asyncio.gather(*[await producer.send(topic, value, key=b"k%d" % n) for n, value in enumerate(values)])
        finally:
            await producer.stop()

    async def committed(self, role: str) -> int:
        """The sum of the group's committed offsets."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap_servers)
        await admin.start()
        try:
            offsets = await admin.list_consumer_group_offsets(self.group)
        finally:
            await admin.close()
        topic = getattr(self.profile.topics, role)
        return sum(max(o.offset, 0) for tp, o in offsets.items() if tp.topic == topic)


@pytest.fixture
async def side(kafka: Kafka, topic_prefix: str) -> AsyncIterator[Side]:
    made = Side(kafka.bootstrap_servers, topic_prefix)
    await made.create_topics()
    yield made
    for link in made.links:
        await link.stop()


@pytest.fixture
async def breakable(broker: Broker, topic_prefix: str) -> AsyncIterator[Side]:
    """On the embedded broker, which a test may kill and freeze."""
    made = Side(broker.bootstrap_servers, topic_prefix)
    await made.create_topics()
    yield made
    for link in made.links:
        await link.stop()


def _batch(link: Link, n: int, actuator: int = Actuator.EMS, *, first: int = 0) -> Any:
    rows = [(actuator, _sn(first + i), 12 if actuator == Actuator.EMS else 1, 100 + i) for i in range(n)]
    return link.prepare(commands(rows, shard=shard_of(_sn(first))))


async def _publish(link: Link, prepared: Any, give_up_after_s: float = 5) -> None:
    await link.publish(prepared, now=time.time(), give_up_after_s=give_up_after_s)


async def _publish_when_back(link: Link, prepared: Any) -> None:
    """As the publisher does: until it is acknowledged. A broker that has just started may answer before it leads."""
    async with asyncio.timeout(40):
        while True:
            await link.wait_reachable()
            try:
                return await _publish(link, prepared)
            except NotReachable:
                continue


class TestOut:
    async def test_commands_arrive_once_where_the_default_partitioner_would_put_them(self, side: Side) -> None:
        link = await side.started()
        rows = [
            (int(kind), _sn(n), 1, 500) for n in range(100) for kind in (Actuator.EMS, Actuator.EXPORT, Actuator.ACTIVE)
        ]
        rows += [(Actuator.EMS | QUERY_BIT, _sn(n), 0, 0) for n in range(100)]
        prepared = link.prepare(commands(rows))
        now = time.time()
        await link.publish(prepared, now=now, give_up_after_s=5)
        roles, keys, values = side.codec.encode(prepared, now=now)
        for role, name in enumerate(("single_request", "multi_request", "query_request")):
            records = await side.read(name)
            wanted = sorted(zip(keys, values, strict=True), key=lambda pair: pair[1])
            mine = [pair for pair in wanted if json.loads(pair[1])["requestId"] in _ids(roles, values, role)]
            assert sorted(((r.key, r.value) for r in records), key=lambda pair: pair[1]) == mine
            for record in records:
                assert record.partition == DefaultPartitioner()(record.key, list(range(PARTITIONS)), [])
        assert link.published == 400

    async def test_commands_of_one_device_stay_in_order(self, side: Side) -> None:
        link = await side.started()
        for watts in range(20):
            await _publish(link, link.prepare(commands([(Actuator.EMS, _sn(1), 12, watts)])))
        records = await side.read("multi_request")
        assert [json.loads(r.value)["parameters"][1]["value"] for r in records] == list(range(20))

    async def test_a_batch_above_one_megabyte_arrives_whole(self, side: Side) -> None:
        link = await side.started()
        rows = [(Actuator.EMS, _sn(1), 12, n) for n in range(9000)]
        await _publish(link, link.prepare(commands(rows)), 20)
        assert len(await side.read("multi_request")) == 9000

    async def test_what_cannot_be_said_is_left_out(self, side: Side) -> None:
        link = await side.started()
        rows = [(Actuator.EMS, _sn(1), 12, 1), (Actuator.EMS, "no sn", 12, 1)]
        await _publish(link, link.prepare(commands(rows)))
        assert [r.key for r in await side.read("multi_request")] == [_sn(1).encode()]

    async def test_r28_a_connection_is_reset_when_it_closes(self, side: Side) -> None:
        """Else the system delivers what is in its buffers, long after the batch was given up."""
        link = await side.started()
        await _publish(link, _batch(link, 1))
        assert link._producer is not None
        connections = list(link._producer.client._conns.values())
        assert connections
        for connection in connections:
            sock = connection._writer.get_extra_info("socket")
            assert struct.unpack("ii", sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)) == (1, 0)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 2000

    async def test_no_time_left_means_nothing_is_sent(self, side: Side) -> None:
        link = await side.started()
        with pytest.raises(NotReachable):
            await _publish(link, _batch(link, 3), 0)
        assert link.reachable
        assert await side.read("multi_request") == []


def _ids(roles: list[int], values: list[bytes], role: int) -> set[str]:
    return {json.loads(value)["requestId"] for r, value in zip(roles, values, strict=True) if r == role}


@pytest.mark.parametrize("name", sorted(file.stem for file in PROFILES.glob("*.toml")))
async def test_what_is_sent_is_done_and_its_results_come_back(kafka: Kafka, topic_prefix: str, name: str) -> None:
    """Under every profile: the link, GoodWe's topics, the simulator, and back."""
    side = Side(kafka.bootstrap_servers, topic_prefix, name)
    await side.create_topics()
    profile = simulated.parse_profile(side.data)
    now, sns = time.time(), [_sn(n) for n in range(40)]
    consent = Consent()
    for sn in sns:
        consent.add(sn, authorized_at=now - 60)
    cloud = Cloud(
        profile=profile,
        inverters=Inverters(
            profile=profile,
            devices=[Device(sn=sn, site="s", groups=(), area="west", rated_w=10_000) for sn in sns],
            seed=1,
            now=now,
        ),
        consent=consent,
        faults=Faults(seed=1, results_per_command=profile.results_per_command),
        started_at=now,
    )
    cloud.faults.change({"latency_s": [0.1, 0.3]})
    topics = Topics(cloud=cloud, bootstrap_servers=side.bootstrap_servers, group=f"{topic_prefix}simulator")
    inbox = Inbox()
    try:
        await topics.start()
        link = await side.started(inbox)
        mode = side.profile.ems_modes.charge
        await _publish(link, link.prepare(commands([(Actuator.EMS, sn, mode, 3000) for sn in sns])))
        sets = 40 * side.profile.results.per_command
        await eventually(lambda: link.results == sets, what="the results of setpoints")
        await _publish(link, link.prepare(commands([(Actuator.EMS | QUERY_BIT, sn, 0, 0) for sn in sns])))
        await eventually(lambda: link.results == sets + 40, what="the results of queries")
    finally:
        await topics.stop()
        for each in side.links:
            await each.stop()
    assert inbox.refused == []
    assert all(isinstance(part, Results if side.profile.correlation.echoed else SlotResults) for part in inbox.parts)
    assert all((part.code == ResultCode.SUCCESS).all() for part in inbox.parts)
    assert sum(int(part.accepted.sum()) for part in inbox.parts) == sets - 40
    read = [pair for part in inbox.parts for pair in zip(part.first.tolist(), part.second.tolist(), strict=True)]
    assert read.count((mode, 3000)) == 40
    settings = cloud.inverters.settings[[simulated.MODE, simulated.POWER]]
    assert (settings[0] == mode).all()
    assert (settings[1] / profile.columns[simulated.POWER].scale == 3000).all()


class TestIn:
    async def test_results_come_by_shard_and_are_committed(self, side: Side) -> None:
        inbox = Inbox()
        link = await side.started(inbox)
        prepared = [link.prepare(commands([(Actuator.EMS, _sn(n), 12, n)], shard=n % 5)) for n in range(50)]
        requests = [side.codec.encode(p, now=1.0)[2][0] for p in prepared]
        await side.answer("multi_result", [answer(request) for request in requests])
        await eventually(lambda: len(inbox.ids) == 50, what="50 results")
        assert sorted(inbox.ids) == sorted(p.ids[0].tobytes() for p in prepared)
        for batch in inbox.delivered:
            for shard, results in batch.items():
                assert isinstance(results, Results)
                assert (results.ids[:, 0] == shard).all()
                assert (results.code == ResultCode.SUCCESS).all()
                assert abs(results.at - time.time()).max() < 60
        assert len(inbox.delivered) <= 5, "results were not gathered"
        await eventually(lambda: _is(side.committed("multi_result"), 50), what="the commit")

    async def test_r08_what_is_no_result_is_refused_whole_and_the_rest_goes_on(self, side: Side) -> None:
        inbox = Inbox()
        link = await side.started(inbox)
        request = side.codec.encode(_batch(link, 1), now=1.0)[2][0]
        await side.answer("multi_result", [b"\xff", answer(request), b"{}"])
        await eventually(lambda: inbox.ids and len(inbox.refused) == 2, what="the results")
        assert {(r.value, r.reason) for r in inbox.refused} == {(b"\xff", "undecodable"), (b"{}", "no_id")}
        assert all(r.topic == side.profile.topics.multi_result and r.key for r in inbox.refused)
        await eventually(lambda: _is(side.committed("multi_result"), 3), what="the commit")
        assert (link.results, link.refused_records) == (1, 2)

    async def test_nothing_is_committed_before_it_was_taken(self, side: Side) -> None:
        inbox = Inbox()
        inbox.failures = 10**9
        link = await side.started(inbox)
        request = side.codec.encode(_batch(link, 1), now=1.0)[2][0]
        await side.answer("multi_result", [answer(request)])
        await eventually(lambda: inbox.tried >= 3, what="attempts")
        assert await side.committed("multi_result") == 0
        await link.stop()  # as a worker that gives up
        inbox.failures = 0
        assert inbox.ids == []
        again = await side.started(inbox)
        await eventually(lambda: len(inbox.ids) == 1, 20, "the same result, from another worker")
        await eventually(lambda: _is(side.committed("multi_result"), 1), what="the commit")
        assert again.results == 1

    async def test_a_death_between_inbox_and_commit_repeats_and_loses_nothing(self, side: Side) -> None:
        inbox = Inbox()
        passed: list[str] = []

        def fault(name: str) -> None:
            passed.append(name)
            if len(passed) == 1:
                raise OSError("dies here")

        link = await side.started(inbox, fault=fault)
        request = side.codec.encode(_batch(link, 1), now=1.0)[2][0]
        await side.answer("multi_result", [answer(request)])
        await eventually(lambda: len(passed) == 2, 30, "the same result again")
        assert passed == ["inbox-delivered"] * 2
        assert len(inbox.ids) == 2 and len(set(inbox.ids)) == 1
        await eventually(lambda: _is(side.committed("multi_result"), 1), what="the commit")


async def _is(value: Any, wanted: int) -> bool:
    return bool(await value == wanted)


class TestGone:
    async def test_a_cluster_that_is_absent_at_start_is_awaited(self, breakable: Side, broker: Broker) -> None:
        broker.kill()
        inbox = Inbox()
        link = breakable.link()
        started = time.monotonic()
        await link.start(inbox.deliver, inbox.refuse)
        assert time.monotonic() - started < 1
        with pytest.raises(NotReachable):
            await _publish(link, _batch(link, 1))
        assert not link.reachable
        broker.start()
        await _publish_when_back(link, _batch(link, 5))
        assert len({r.key for r in await breakable.read("multi_request")}) == 5

    async def test_a_cluster_that_dies_is_told_and_comes_back(self, breakable: Side, broker: Broker) -> None:
        inbox = Inbox()
        link = await breakable.started(inbox)
        await _publish(link, _batch(link, 5))
        broker.kill()
        started = time.monotonic()
        with pytest.raises(NotReachable):
            await _publish(link, _batch(link, 7, first=100), 1.0)
        assert time.monotonic() - started < 2.5
        assert not link.reachable
        broker.start()
        await _publish_when_back(link, _batch(link, 3, first=200))
        keys = {r.key for r in await breakable.read("multi_request")}
        assert keys == {_sn(n).encode() for n in [*range(5), *range(200, 203)]}
        request = breakable.codec.encode(_batch(link, 1), now=1.0)[2][0]
        await breakable.answer("multi_result", [answer(request)])
        await eventually(lambda: len(inbox.ids) >= 1, 30, "a result after the outage")

    async def test_r28_a_frozen_cluster_gets_nothing_that_it_could_act_on_later(
        self, breakable: Side, broker: Broker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(link_module, "PROBE_AFTER_S", 0.0)  # as after a quiet moment
        link = await breakable.started()
        await _publish(link, _batch(link, 5))
        broker.freeze()
        started = time.monotonic()
        with pytest.raises(NotReachable):
            await _publish(link, _batch(link, 7, first=100), 1.0)
        assert time.monotonic() - started < 2
        assert not link.reachable
        broker.thaw()
        await _publish_when_back(link, _batch(link, 3, first=200))
        keys = {r.key for r in await breakable.read("multi_request")}
        assert keys == {_sn(n).encode() for n in [*range(5), *range(200, 203)]}

    @pytest.mark.parametrize("where", ["connecting", "queued"])
    async def test_r28_nothing_of_a_batch_that_was_given_up_is_sent_later(
        self, side: Side, where: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The way to the broker opens again only after the batch was given up."""
        link = await side.started()
        producer = link._producer
        assert producer is not None
        gate, waiting = asyncio.Event(), asyncio.Event()

        def held(through: Callable[..., Any]) -> Callable[..., Any]:
            async def hold(*args: Any, **options: Any) -> Any:
                waiting.set()
                await gate.wait()
                return await through(*args, **options)

            return hold

        if where == "connecting":
            monkeypatch.setattr(producer, "_connect", held(producer._connect))
            monkeypatch.setattr(link_module, "PROBE_AFTER_S", 1e9)
        else:
            monkeypatch.setattr(producer.client, "send", held(producer.client.send))
        with pytest.raises(NotReachable):
            await _publish(link, _batch(link, 7, first=100), 0.5)
        assert waiting.is_set()
        gate.set()
        await _publish_when_back(link, _batch(link, 3, first=200))
        keys = {r.key for r in await side.read("multi_request")}
        assert keys == {_sn(n).encode() for n in range(200, 203)}

    async def test_a_cancelled_publish_leaves_nothing_behind(self, side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
        link = await side.started()
        producer = link._producer
        assert producer is not None
        sent = asyncio.Event()
        gate = asyncio.Event()
        through = producer.client.send

        async def held(*args: Any, **options: Any) -> Any:
            sent.set()
            await gate.wait()
            return await through(*args, **options)

        monkeypatch.setattr(producer.client, "send", held)
        publishing = asyncio.create_task(_publish(link, _batch(link, 3)))
        await asyncio.wait_for(sent.wait(), 10)
        publishing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await publishing
        gate.set()
        await asyncio.wait_for(link.wait_reachable(), 20)
        await _publish(link, _batch(link, 1, first=200))
        assert [r.key for r in await side.read("multi_request")] == [_sn(200).encode()]

    async def test_topics_that_do_not_exist_are_waited_for(self, kafka: Kafka, topic_prefix: str) -> None:
        side = Side(kafka.bootstrap_servers, topic_prefix)
        link = side.link(request_timeout_s=0.5)
        inbox = Inbox()
        await link.start(inbox.deliver, inbox.refuse)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(link.wait_reachable(), 1.5)
        await side.create_topics()
        await asyncio.wait_for(link.wait_reachable(), 20)
        await link.stop()
