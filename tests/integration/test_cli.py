"""The tools in people's hands, each as a process of its own, on a real Kafka with the service and the simulator."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.auditing import audited
from tests.waiting import eventually
from vpp_dispatch.demo.stack import Stack
from vpp_dispatch.dispatch.held import Held, HeldFiles, read
from vpp_dispatch.domain.device import shard_of


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


async def cli(stack: Stack, *arguments: str, given: str = "", **variables: str) -> Done:
    """Runs `vpp-dispatch` with the settings of the stack."""
    env = {**os.environ, **stack.variables(), **{f"VPP_DISPATCH_{k}": v for k, v in variables.items()}}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "vpp_dispatch", *arguments,
        env=env, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(60):
            out, err = await process.communicate(given.encode())
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())


async def until_set(stack: Stack, event_id: str, inverters: int) -> None:
    """Waits until so many inverters do it; a sample of them is read back, and so verified."""

    def there() -> bool:
        report = stack.report(event_id)
        return report is not None and report["devices"]["applied"] + report["devices"]["verified"] >= inverters

    await eventually(there, 30, f"{inverters} inverters to be set by {event_id}")


async def test_a_signal_is_sent_watched_and_cancelled_by_hand(stack: Stack) -> None:
    await stack.start(inverters=30, simulator=["--series", "ETU"])
    await stack.until_ready(stack.start_worker())
    limit = {"controls": [{"kind": "export_limit", "each_w": 500}], "targets": {"all": True}, "open_ended": True}
    everyone = ["signal", "send", "--all", "--watch"]
    sent, refused, long = await asyncio.gather(
        cli(stack, *everyone, "--control", "charge=1000", "--for", "20s", "--event-id", "short"),
        cli(stack, *everyone, "--control", "charge=total:9000", "--for", "5m", "--json"),
        cli(stack, "signal", "send", "-", given=json.dumps(limit | {"event_id": "long"})),
    )
    assert sent.code == 0, sent
    body, told, *lines = sent.out.splitlines()
    assert json.loads(body)["source"] == stack.source
    assert told.startswith(f"Sent to {stack.signals_topic} ") and "charge 1,000 W each, all inverters" in told
    assert any(line.endswith("response to r1: 1 received") for line in lines)
    assert lines[-1] == (
        f"short of {stack.source} is over: completed, 30 of 30 inverters did it, 30 of 30 releases confirmed."
    )
    assert refused.code == 7, refused
    assert json.loads(refused.out.splitlines()[-1])["ended"]["code"] == 252
    assert long.code == 0, long
    await until_set(stack, "long", 30)
    again, early, cancelled = await asyncio.gather(
        cli(stack, "signal", "watch", "short", "--json"),
        cli(stack, "signal", "watch", "long", "--timeout", "0.1s"),
        cli(stack, "signal", "cancel", "long", "--reason", "fault cleared", "--watch"),
    )
    ended = [json.loads(line) for line in again.out.splitlines()]
    assert again.code == 0 and ended[-1] == {"ended": {"code": 3, "status": "completed", "exit_code": 0}}
    assert [line["response"]["code"] for line in ended if "response" in line] == [1, 2, 3]
    assert early.code == 8, early
    assert cancelled.code == 0, cancelled
    assert json.loads(cancelled.out.splitlines()[0])["revision"] == 2
    assert "response to r2: 6 cancelled" in cancelled.out
    assert "30 of 30 releases confirmed" in cancelled.out
    await audited(stack, events=2)


async def test_a_fleet_goes_in_and_out_and_preflight_says_what_is_missing(stack: Stack, tmp_path: Path) -> None:
    many = {"KAFKA__REPLICATION_FACTOR": "10"}
    bare, copies = await asyncio.gather(
        cli(stack, "preflight", "--json"), cli(stack, "preflight", "--create-topics", **many)
    )
    missing = [f for f in map(json.loads, bare.out.splitlines()) if f["state"] == "failed"]
    assert bare.code == 1, bare
    assert {f["check"] for f in missing} == {"settings", "topic", "goodwe topic"}
    assert len([f for f in missing if f["check"] == "goodwe topic"]) == 6
    assert copies.code == 1 and "cannot be created with 10 copies" in copies.out, copies
    created = await cli(stack, "preflight", "--create-topics", "--json")
    assert "goodwe topic" in {f["check"] for f in map(json.loads, created.out.splitlines()) if f["state"] == "failed"}

    await stack.start(inverters=12, simulator=["--series", "ETU", "--no-consent", "0.3", "--sites", "4"])
    sheet = tmp_path / "fleet.csv"
    there, exported = await asyncio.gather(
        cli(stack, "preflight"), cli(stack, "fleet", "export", "--output", str(sheet))
    )
    assert there.code == 0, there
    assert "FAILED" not in there.out
    for word in ("shard-inbox.v1 has its 64 partitions", "clock", "devices may be dispatched: 12 are registered"):
        assert word in there.out
    assert exported.code == 0 and "12 devices" in exported.out, exported
    header, first, *rest = sheet.read_text().splitlines()
    moved, added = first.replace("site-0001", "site-0099"), "9010KETU000W9999,,,west,,,,,,,"
    same = await cli(stack, "fleet", "import", str(sheet))
    assert "0 new, 0 changed, 12 the same" in same.out
    sheet.write_text("\n".join([header, moved, *rest[:-1], added]))
    replaced = await cli(stack, "fleet", "import", str(sheet), "--replace", "--yes")
    assert "1 new, 1 changed, 10 the same, 1 removed" in replaced.out, replaced
    shown = await cli(stack, "fleet", "show", "--json")
    records = [json.loads(line) for line in shown.out.splitlines()]
    assert len(records) == 12 and [r["sn"] for r in records if r.get("site") == "site-0099"] == [first.split(",")[0]]
    assert rest[-1].split(",")[0] not in {r["sn"] for r in records}


async def test_without_kafka_every_command_ends_with_a_sentence(stack: Stack) -> None:
    nowhere = {"KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1"}
    commands = [
        ["signal", "send", "--control", "standby", "--all", "--for", "1m"],
        ["signal", "cancel", "x"],
        ["preflight", "--create-topics"],
    ]
    for ended in await asyncio.gather(*(cli(stack, *command, **nowhere) for command in commands)):
        assert ended.code == 1, ended
        assert "Kafka at 127.0.0.1:1 cannot be used" in ended.out + ended.err
        assert "Traceback" not in ended.err


async def test_r36_switches_and_aborts_are_turned_taken_and_told_by_hand(stack: Stack) -> None:
    await stack.start(inverters=20, simulator=["--series", "ETU"])
    early = await cli(stack, "switch", "drain", "on", "--reason", "no worker yet", "--timeout", "0.5s")
    assert early.code == 8 and "No worker has taken it" in early.err, early
    await stack.until_ready(stack.start_worker())
    drained, off = await cli(stack, "switch", "show", "--json"), {"releases_only": False, "drain": False}
    assert drained.code == 0, drained
    turned = await cli(stack, "switch", "drain", "off", "--reason", "there is one now", "--json")
    assert turned.code == 0, turned
    assert json.loads(turned.out).items() >= {"taken": True, **off}.items()

    sent = await cli(stack, "signal", "send", "--control", "charge=900", "--all", "--for", "5m", "--event-id", "e")
    assert sent.code == 0, sent
    await until_set(stack, "e", 20)
    killed = await cli(stack, "switch", "releases-only", "on", "--reason", "wrong watts")
    assert killed.code == 0 and "Taken: nothing but releases" in killed.out, killed
    aborted = await cli(stack, "signal", "abort", stack.source, "e", "--reason", "wrong watts", "--timeout", "30s")
    assert aborted.code == 0, aborted
    assert aborted.out.splitlines()[-1].startswith(f"e of {stack.source} is over: aborted, ")
    assert "20 of 20 releases confirmed" in aborted.out
    again = await cli(stack, "signal", "abort", stack.source, "e", "--reason", "again")
    assert again.code == 2 and "is over, by its final report" in again.err, again
    shown = await cli(stack, "switch", "show")
    assert shown.code == 0 and shown.out.startswith("releases-only  on"), shown
    assert all(device["EMS Power Mode"] == 1 for device in (await settings_of(stack)).values())


# ---------------------------------------------------------------------------------------------- break-glass


CHARGE = {"EMS Power Mode": 11, "EMS Power Set": 1500}


async def set_by_hand(stack: Stack, sns: list[str]) -> None:
    """What a service would have published before it and its Kafka were lost: these charge, until somebody tells them
    otherwise. The held files of one worker say so, in one folder."""
    for n, sn in enumerate(sns):
        parameters = [{"name": name, "value": value} for name, value in CHARGE.items()]
        command = {"requestId": f"00000000-0000-8000-8000-{n:012d}", "sn": sn, "parameters": parameters}
        topic = f"{stack.prefix}goodwe.control.multi.request"
        await stack.send(command | {"timestamp": 1}, topic=topic, key=sn.encode())
    files = HeldFiles(stack.folder / "worker")
    for shard in sorted(set(map(shard_of, sns))):
        mine = [sn for sn in sns if shard_of(sn) == shard]
        files.rewrite(shard, 3, [])
        files.append(
            shard, 3,
            [Held(sn=sn, row=row, actuator=1, generation=4, first=1, second=0) for row, sn in enumerate(mine)],
        )  # fmt: skip
    files.close_all()
    await eventually(lambda: charging(stack, sns), 20, "the inverters to charge")


async def charging(stack: Stack, sns: list[str]) -> bool:
    devices = await settings_of(stack)
    return all(devices[sn].items() >= CHARGE.items() for sn in sns)


async def settings_of(stack: Stack) -> dict[str, dict[str, int]]:
    """The settings of each inverter, as the inverter has them."""
    dump = await stack.ask("/sim/dump")
    return {sn: device["settings"] for sn, device in dump["devices"].items()}


@pytest.mark.parametrize("echoed", [True, False])
async def test_r36_release_needs_only_the_files_and_goodwes_cluster(stack: Stack, tmp_path: Path, echoed: bool) -> None:
    stack.profile.write_text(stack.profile.read_text().replace("echoed = true", f"echoed = {str(echoed).lower()}"))
    await stack.start(inverters=24, simulator=["--series", "ETU"])
    sns = sorted(await settings_of(stack))
    held, free, away = sns[:20], sns[20:], sns[0]
    await set_by_hand(stack, held)
    await stack.tell("/sim/online", {"sn": away, "online": False})
    rest = tmp_path / "rest.jsonl"
    gone = {
        "KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1",
        "GOODWE__KAFKA__BOOTSTRAP_SERVERS": stack.bootstrap_servers,
        "GOODWE__RESULT_TIMEOUT_S": "3",
        "DISPATCH__RELEASE_RETRY_S": "1",
    }
    worker = str(stack.folder / "worker")
    dry, alive = await asyncio.gather(
        cli(stack, "release", "--from", worker, "--dry-run"), cli(stack, "release", "--from", worker, "--yes")
    )
    assert dry.code == 0 and "Held: 20 ems, of 20 inverters." in dry.out, dry
    assert alive.code == 2 and "answers: workers that are alive would set again" in alive.err, alive
    assert await charging(stack, held), "neither has published anything"

    first = await cli(
        stack, "release", "--from", worker, "--yes", "--timeout", "8s", "--rest", str(rest), "--json", **gone
    )
    ended = json.loads(first.out.splitlines()[-1])["ended"]
    assert first.code == 3, first
    assert (ended["confirmed"], ended["pending"], ended["refused"]) == (19, 1, 0), first
    assert ended["reasons"] == {"offline": 1} and ended["rest"] == str(rest)
    devices = await settings_of(stack)
    assert [sn for sn in held if devices[sn]["EMS Power Mode"] != 1] == [away]
    assert [entry.sn for entries in read([rest]).held.values() for entry in entries] == [away]

    await stack.tell("/sim/online", {"sn": away, "online": True})
    second = await cli(stack, "release", "--from", str(rest), "--yes", "--timeout", "30s", "--rest", str(rest), **gone)
    assert second.code == 0, second
    assert second.out.splitlines()[-1] == "All 1 are confirmed as released." and not rest.exists()
    dump = await stack.ask("/sim/dump")
    assert all(dump["devices"][sn]["settings"]["EMS Power Mode"] == 1 for sn in held)
    assert not any(dump["devices"][sn]["commands"] for sn in free), "nobody else was told anything"
    ids = [c["correlation_id"] for device in dump["devices"].values() for c in device["commands"]]
    assert len(set(ids)) == len(ids), "every command, of both tries, had an id of its own"
