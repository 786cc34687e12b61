"""The simulator as a process on real topics and real HTTP, used as GoodWe is used; nothing of the service runs."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from tests.conftest import Kafka
from tests.waiting import eventually
from vpp_dispatch.demo.broker import Broker
from vpp_dispatch.simulator.profile import PROFILES, load_profile

AUTO = [{"name": "EMS Power Mode", "value": 1}, {"name": "EMS Power Set", "value": 0}]


def charge(power_w: int) -> list[dict[str, Any]]:
    return [{"name": "EMS Power Mode", "value": 11}, {"name": "EMS Power Set", "value": power_w}]


class Supplier:
    """What a supplier has: a producer, all results by correlation id, HTTP, and (not GoodWe's) /sim/."""

    def __init__(self, producer: AIOKafkaProducer, http: ClientSession, ready: Mapping[str, Any], prefix: str) -> None:
        self.producer = producer
        self.http = http
        self.ready = ready
        self.prefix = prefix
        self.results: dict[str, list[dict[str, Any]]] = {}
        self.keys_agree = True

    async def collect(self, consumer: AIOKafkaConsumer) -> None:
        async for message in consumer:
            body = json.loads(message.value)
            self.results.setdefault(body["requestId"], []).append(body)
            self.keys_agree &= message.key.decode() == body["sn"]

    async def send(self, role: str, sn: str, parameters: Any) -> str:
        correlation_id = str(uuid.uuid4())
        named = {"parameter": parameters} if role == "single" else {"parameters": parameters}
        body = {"requestId": correlation_id, "sn": sn, **named, "timestamp": int(time.time() * 1000)}
        topic = {"single": "control.single", "multi": "control.multi", "query": "query"}[role]
        await self.producer.send_and_wait(
            f"{self.prefix}goodwe.{topic}.request", json.dumps(body).encode(), key=sn.encode()
        )
        return correlation_id

    async def answer(self, correlation_id: str, timeout_s: float = 10) -> dict[str, Any]:
        answers = await eventually(lambda: self.results.get(correlation_id), timeout_s, f"a result of {correlation_id}")
        first: dict[str, Any] = answers[0]
        return first

    async def get(self, name: str) -> Any:
        async with self.http.get(f"{self.ready['control']}/{name}") as answer:
            assert answer.status == 200
            return await answer.json()

    async def post(self, name: str, **body: Any) -> None:
        async with self.http.post(f"{self.ready['control']}/{name}", json=body) as answer:
            assert answer.status == 200, await answer.text()

    async def operation(self, sn: str) -> dict[str, Any]:
        async with self.http.post(f"{self.ready['url']}/v1/token", json={"account": "a", "password": "b"}) as answer:
            token = (await answer.json())["data"]["token"]
        headers = {"Authorization": f"Bearer {token}"}
        url = f"{self.ready['url']}/v1/realtime/operation"
        async with self.http.post(url, json={"sns": [sn], "page": 1, "pageSize": 100}, headers=headers) as answer:
            row: dict[str, Any] = (await answer.json())["data"]["list"][0]
            return row


@asynccontextmanager
async def running(
    servers: str, prefix: str, folder: Path, options: Iterable[str] = ()
) -> AsyncIterator[tuple[asyncio.subprocess.Process, dict[str, Any]]]:
    """A simulator with topics of its own names."""
    profile = folder / "profile.toml"
    profile.write_text((PROFILES / "goodwe.toml").read_text().replace('"goodwe.', f'"{prefix}goodwe.'))
    command = ["-m", "vpp_dispatch.simulator", "--bootstrap-servers", servers, "--profile", str(profile)]
    command += ["--group", f"{prefix}simulator", "--create-topics", "--solar-hour", "12", *options]
    with (folder / "simulator.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, stdout=asyncio.subprocess.PIPE, stderr=log
        )
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 40)
        assert line, (folder / "simulator.log").read_text()
        yield process, json.loads(line)
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), 15)


@asynccontextmanager
async def simulated(
    servers: str, prefix: str, folder: Path, options: Iterable[str] = ()
) -> AsyncIterator[tuple[asyncio.subprocess.Process, Supplier]]:
    """A simulator and somebody who uses it."""
    async with AsyncExitStack() as stack:
        process, ready = await stack.enter_async_context(running(servers, prefix, folder, options))
        http = await stack.enter_async_context(ClientSession())
        producer = AIOKafkaProducer(bootstrap_servers=servers)
        await producer.start()
        stack.push_async_callback(producer.stop)
        topics = [f"{prefix}goodwe.{role}.result" for role in ("control.single", "control.multi", "query")]
        consumer = AIOKafkaConsumer(*topics, bootstrap_servers=servers, auto_offset_reset="earliest")
        await consumer.start()
        stack.push_async_callback(consumer.stop)
        made = Supplier(producer, http, ready, prefix)
        reading = asyncio.create_task(made.collect(consumer))
        try:
            yield process, made
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


async def test_set_read_back_release(kafka: Kafka, topic_prefix: str, tmp_path: Path) -> None:
    servers, registry = kafka.bootstrap_servers, f"{topic_prefix}fleet.devices.v1"
    state = tmp_path / "state.json"
    options = ["--inverters", "20", "--series", "ETU", "--publish-fleet", registry, "--state-file", str(state)]
    async with simulated(servers, topic_prefix, tmp_path, options) as (process, goodwe):
        fleet = await goodwe.get("fleet")
        sn = fleet[0]["sn"]
        set_id = await goodwe.send("multi", sn, charge(4000))
        assert (await goodwe.answer(set_id))["code"] == "0"
        row = await goodwe.operation(sn)
        assert (row["emsMode"], row["emsPower"], row["batteryPower"]) == (11, 4000, -4000)
        query_id = await goodwe.send("query", sn, ["EMS Power Mode", "EMS Power Set"])
        assert [each["value"] for each in (await goodwe.answer(query_id))["parameters"]] == [11, 4000]
        limit_id = await goodwe.send("single", sn, {"name": "Active Power Limit", "value": 600})
        assert (await goodwe.answer(limit_id))["parameters"] == [
            {"name": "Active Power Limit", "value": 600, "code": "0"}
        ]

        await goodwe.post("faults", drop=[{"sn": sn, "kind": "release", "count": 1}])
        lost_id, kept_id = [await goodwe.send("multi", sn, AUTO) for _ in range(2)]
        assert (await goodwe.answer(kept_id))["code"] == "0"
        assert lost_id not in goodwe.results

        await goodwe.post("consent", sn=sn, authorized=False)
        refused_id = await goodwe.send("multi", sn, charge(1000))
        assert (await goodwe.answer(refused_id))["code"] == "1002"
        await goodwe.post("online", sn=fleet[1]["sn"], online=False)
        offline_id = await goodwe.send("multi", fleet[1]["sn"], charge(1000))
        assert (await goodwe.answer(offline_id))["code"] == "1001"
        assert goodwe.keys_agree

        dump = await goodwe.get("dump")
        device = dump["devices"][sn]
        assert device["settings"] == {**device["default_settings"], "Active Power Limit": 600}
        ids = [command["correlation_id"] for command in device["commands"]]
        assert ids == [set_id, query_id, limit_id, lost_id, kept_id, refused_id]
        by_id = {command["correlation_id"]: command for command in device["commands"]}
        assert [identifier for identifier in ids if by_id[identifier]["dropped"]] == [lost_id]
        for command in by_id.values():
            assert abs(command["seen_at"] - command["arrival_at"]) < 5
            assert command["arrival_at"] < command["effect_at"]

        process.send_signal(signal.SIGUSR1)
        await eventually(state.exists, what="the state file")
        await _registry_holds(servers, registry, {record["sn"]: record for record in fleet})
        await goodwe.post("registry", remove=[sn])
        await _registry_holds(servers, registry, {record["sn"]: record for record in fleet[1:]} | {sn: None})
    assert process.returncode == 0
    assert json.loads(state.read_text())["devices"][sn]["commands"][0]["correlation_id"] == set_id


async def _registry_holds(servers: str, topic: str, wanted: dict[str, Any]) -> None:
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=servers, auto_offset_reset="earliest")
    await consumer.start()
    held: dict[str, Any] = {}
    try:

        async def agrees() -> bool:
            for messages in (await consumer.getmany(timeout_ms=100)).values():
                held.update({m.key.decode(): json.loads(m.value) if m.value else None for m in messages})
            return held == wanted

        await eventually(agrees, what="the registry topic")
    finally:
        await consumer.stop()


async def test_a_restart_goes_on_behind_what_was_committed(kafka: Kafka, topic_prefix: str, tmp_path: Path) -> None:
    servers, options = kafka.bootstrap_servers, ["--inverters", "5", "--series", "ETU"]
    async with simulated(servers, topic_prefix, tmp_path, options) as (_, goodwe):
        sn = (await goodwe.get("fleet"))[0]["sn"]
        await goodwe.answer(await goodwe.send("multi", sn, charge(1000)))
    async with simulated(servers, topic_prefix, tmp_path, options) as (_, goodwe):
        again_id = await goodwe.send("multi", sn, charge(2000))
        await goodwe.answer(again_id)
        commands = (await goodwe.get("dump"))["devices"][sn]["commands"]
        assert [command["correlation_id"] for command in commands] == [again_id]


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_an_outage_of_the_broker_loses_no_command_and_no_result(
    broker: Broker, topic_prefix: str, tmp_path: Path, how: str
) -> None:
    servers, options = broker.bootstrap_servers, ["--inverters", "50", "--series", "ETU", "--latency", "1", "1"]
    async with simulated(servers, topic_prefix, tmp_path, options) as (_, goodwe):
        sns = [record["sn"] for record in await goodwe.get("fleet")]
        ids = [await goodwe.send("multi", sn, charge(1000)) for sn in sns]

        async def seen() -> bool:
            return bool((await goodwe.get("health"))["totals"].get("requests", 0) == len(ids))

        await eventually(seen, what="all requests read")
        if how == "killed":
            broker.kill()
        else:
            broker.freeze()

        async def all_due() -> bool:
            health = await goodwe.get("health")
            return bool(health["pending"] == 0 and health["totals"].get("executed.set") == len(ids))

        await eventually(all_due, what="effects during the outage")
        if how == "killed":
            await asyncio.to_thread(broker.restart)
        else:
            broker.thaw()
        for correlation_id in ids:
            assert (await goodwe.answer(correlation_id, 60))["code"] == "0"
        later_id = await goodwe.send("multi", sns[0], AUTO)
        assert (await goodwe.answer(later_id, 30))["code"] == "0"
        assert {len(goodwe.results[correlation_id]) for correlation_id in ids} == {1}
        assert (await goodwe.get("health"))["ok"] is True


async def test_ten_thousand_commands_within_seconds(kafka: Kafka, topic_prefix: str, tmp_path: Path) -> None:
    servers = kafka.bootstrap_servers
    async with simulated(servers, topic_prefix, tmp_path, ["--inverters", "10000"]) as (_, goodwe):
        topic = load_profile(str(tmp_path / "profile.toml")).request_topics["multi"]
        parameters = [{"name": "Export Limit Enable", "value": 1}, {"name": "Export Power Limit", "value": 50}]
        sent = []
        for record in await goodwe.get("fleet"):
            body = {"requestId": str(uuid.uuid4()), "sn": record["sn"], "parameters": parameters, "timestamp": 1}
            sent.append(await goodwe.producer.send(topic, json.dumps(body).encode(), key=record["sn"].encode()))
        await asyncio.gather(*sent)
        await eventually(lambda: len(goodwe.results) == 10_000, 20, "ten thousand results")
        assert {answers[0]["code"] for answers in goodwe.results.values()} == {"0"}
        totals = (await goodwe.get("health"))["totals"]
        assert totals["executed.set"] == totals["results.published"] == 10_000
