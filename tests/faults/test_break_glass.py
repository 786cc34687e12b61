"""Our Kafka is gone while inverters are held: break-glass gives them back by GoodWe's cluster alone (R36), and a
service that comes back afterwards finds out.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Any

from tests.audit import Case, Limits, Rule, Topics, Wire, collect, examine
from tests.waiting import eventually
from vpp_dispatch.demo.broker import Broker
from vpp_dispatch.demo.stack import Stack

DEVICES = 60
CHARGE, AUTO = 11, 1


async def devices_of(stack: Stack) -> dict[str, dict[str, Any]]:
    dump = await stack.ask("/sim/dump")
    return dict(dump["devices"])


async def at_default(stack: Stack) -> bool:
    return all(told["settings"] == told["default_settings"] for told in (await devices_of(stack)).values())


async def release_by_hand(stack: Stack) -> tuple[int, str]:
    """`vpp-dispatch release` on the workers' folder with GoodWe's cluster alone; its exit code and output."""
    assert stack.goodwe_servers is not None
    needed = {
        "GOODWE__KAFKA__BOOTSTRAP_SERVERS": stack.goodwe_servers,
        "GOODWE__PROFILE": str(stack.profile),
        "GOODWE__RESULT_TIMEOUT_S": "10",
        "DISPATCH__RELEASE_RETRY_S": "2",
        "KAFKA__BOOTSTRAP_SERVERS": stack.bootstrap_servers,  # where nobody is any more
    }
    foreign = {name: value for name, value in os.environ.items() if not name.startswith("VPP_DISPATCH_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "vpp_dispatch", "release", "--from", str(stack.folder), "--yes", "--timeout", "60s",
        "--rest", str(stack.folder / "rest.jsonl"),
        env=foreign | {f"VPP_DISPATCH_{name}": value for name, value in needed.items()},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(90):
            out, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return process.returncode, out.decode()


async def test_r36_without_our_kafka_all_that_is_held_is_given_back_and_the_service_finds_out(
    apart: Stack, broker: Broker
) -> None:
    """Two events hold: one is over before the service is back, the other is not."""
    stack = apart
    await stack.start(inverters=DEVICES, simulator=["--series", "ETU"])
    worker = stack.start_worker()
    await stack.until_ready(worker)
    await stack.until(lambda: stack.gauge(worker, "devices_authorized") == DEVICES, 20, "the whole fleet to be known")
    sns = sorted(await devices_of(stack))
    over, running = sns[:30], sns[30:50]
    now = time.time()
    end = now + 18
    charge = [{"kind": "charge", "each_w": 1000}]
    limit = [{"kind": "export_limit", "each_w": 500}, {"kind": "generation_limit", "each_percent": 50}]
    await stack.send(stack.signal("over", end_at=end, targets={"devices": over}, controls=charge))
    await stack.send(stack.signal("running", end_at=now + 300, targets={"devices": running}, controls=limit))
    await stack.until_devices("over", "applied", len(over))
    await stack.until_devices("running", "applied", len(running))
    worker.kill()
    broker.kill()
    gone = time.time()

    code, said = await release_by_hand(stack)
    assert code == 0, said
    assert said.splitlines()[-1] == "All 70 are confirmed as released.", said
    assert not (stack.folder / "rest.jsonl").exists()
    assert await at_default(stack), "by the inverters' own state"
    free = {sn: told for sn, told in (await devices_of(stack)).items() if sn in sns[50:]}
    assert not any(told["commands"] for told in free.values()), "nobody else was told anything"

    await stack.until(lambda: time.time() > end, 20, "the first window to be over")
    await asyncio.to_thread(broker.start)
    back = time.time()
    await stack.until_ready(stack.start_worker())
    report = await stack.until_closed("over", 60)
    release = report["release"]
    assert report["devices"]["targeted"] == release["due"] == release["confirmed"] == 30
    assert stack.codes("over") == [(1, 1), (1, 2), (1, 3)], "it was done, and nobody else stood in its way"
    # The window of the other lasts: what its devices lost is asserted again, above what break-glass had published.
    await eventually(lambda: _limited(stack, running), 40, "the running event to be asserted again")
    await stack.send(stack.signal("running", revision=2, action="cancel", reason="seen enough"))
    report = await stack.until_closed("running", 60)
    assert report["release"]["due"] == report["release"]["confirmed"] == 40
    assert await at_default(stack)
    since = {
        sn: [c for c in told["commands"] if c["kind"] == "set" and c["arrival_at"] > back]
        for sn, told in (await devices_of(stack)).items()
    }
    assert not [sn for sn in over if since[sn]], "a window that is over sets nothing"
    ids = [c["correlation_id"] for told in (await devices_of(stack)).values() for c in told["commands"]]
    assert len(set(ids)) == len(ids), "no id of break-glass came again"
    await _audited(stack, gone, back)


async def _audited(stack: Stack, gone: float, back: float) -> None:
    """The audit, which cannot know why anybody releases before an event's end: what break-glass published is excused
    from that, and from nothing else."""
    settings = stack.loaded()
    evidence = await collect(
        stack.bootstrap_servers,
        topics=Topics.of_profile(stack.profile, prefix=stack.prefix),
        goodwe_bootstrap_servers=stack.goodwe_servers,
        dumps=[await stack.ask("/sim/dump")],
    )
    limits = Limits(
        consent_refresh_s=settings.fleet.consent_refresh_s,
        result_timeout_s=settings.goodwe.result_timeout_s,
        max_in_flight=settings.goodwe.max_in_flight,
        expect_events=2,
    )
    wire = Wire.read(stack.profile)
    verdict = examine(evidence, limits, wire)
    by_hand = {c.record.where for c in Case(evidence, limits, wire).commands if gone < c.at < back}
    early = [
        v for v in verdict.violations if v.rule is Rule.RELEASE and v.where in by_hand and "before the end" in v.what
    ]
    assert len(early) >= 40, f"those of the event that lasts were before its end\n{verdict}"
    others = [v for v in verdict.violations if v not in early]
    assert not others, f"the audit found\n{verdict}"


async def _limited(stack: Stack, sns: list[str]) -> bool:
    devices = await devices_of(stack)
    wanted = {"Export Limit Enable": 1, "Export Power Limit": 500, "Active Power Limit": 500}
    return all(devices[sn]["settings"].items() >= wanted.items() for sn in sns)
