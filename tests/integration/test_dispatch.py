"""One signal to many inverters and back, on real Kafka and real HTTP."""

from __future__ import annotations

import time
from collections import Counter

from vpp_dispatch.demo.stack import Stack


async def test_a_dispatch_to_2000_inverters_adds_up(stack: Stack) -> None:
    await stack.start(inverters=2000, simulator=["--offline", "0.03", "--no-consent", "0.02", "--series", "ETU,ETT"])
    worker = stack.start_worker()
    await stack.until_ready(worker)
    now = time.time()
    await stack.send(
        stack.signal(
            "dis-1",
            start_at=now + 5,
            end_at=now + 20,
            targets={"all": True},
            controls=[{"kind": "discharge", "each_w": 1000}],
        )
    )
    report = await stack.until_closed("dis-1", 90)
    outcomes = stack.outcomes("dis-1")
    assert report["devices"]["targeted"] == 2000 == len(outcomes)
    states = Counter(row["state"] for row in outcomes.values())
    assert states == Counter({k: v for k, v in report["devices"].items() if v and k != "targeted"})
    assert report["reasons"].get("skipped.consent_missing", 0) == 40
