"""One signal to many inverters and back, on real Kafka and real HTTP. Each run is audited at its end."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from tests.auditing import audited
from vpp_dispatch.demo.stack import Stack

EMS_AUTO = 1


def states(outcomes: dict[tuple[str, str], dict[str, Any]]) -> dict[str, int]:
    return dict(Counter(row["state"] for row in outcomes.values()))


def told(report: dict[str, Any]) -> dict[str, int]:
    return {k: v for k, v in report["devices"].items() if v and k != "targeted"}


def done(report: dict[str, Any]) -> int:
    """How many devices are applied, those that were read back among them."""
    return int(report["devices"]["applied"] + report["devices"]["verified"])


def charge(watts: int) -> list[dict[str, Any]]:
    return [{"kind": "charge", "each_w": watts}]


async def fleet(stack: Stack) -> list[dict[str, Any]]:
    """The simulator's devices."""
    found = await stack.ask("/sim/fleet")
    return list(found["devices"] if isinstance(found, dict) else found)


async def test_a_dispatch_to_2000_inverters_adds_up(stack: Stack) -> None:
    await stack.start(inverters=2000, simulator=["--offline", "0.03", "--no-consent", "0.02", "--series", "ETU,ETT"])
    await stack.until_ready(stack.start_worker(), registered=2000)
    now = time.time()
    discharge = [{"kind": "discharge", "each_w": 1000}]
    signal = stack.signal("dis-1", start_at=now + 5, end_at=now + 15, targets={"all": True}, controls=discharge)
    await stack.send(signal)
    report = await stack.until_closed("dis-1")
    outcomes = stack.outcomes("dis-1")
    assert report["devices"]["targeted"] == len(outcomes) == 2000
    assert states(outcomes) == told(report)
    reasons = Counter(f"{r['state']}.{r['reason']}" for r in outcomes.values() if r["reason"])
    assert dict(reasons) == report["reasons"]
    assert set(reasons) <= {"skipped.consent_missing", "skipped.offline", "skipped.soc"}
    assert report["release"]["confirmed"] == report["release"]["due"] == done(report) > 1700
    assert stack.codes("dis-1") == [(1, 1), (1, 2), (1, 8)]
    await audited(stack, events=1)


async def test_a_stronger_event_is_cancelled_and_the_weaker_resumes(stack: Stack) -> None:
    await stack.start(inverters=60, simulator=["--series", "ETU"])
    await stack.until_ready(stack.start_worker(), registered=60)
    everyone = {"all": True}
    end = time.time() + 25
    await stack.send(stack.signal("weak", end_at=end, priority=200, targets=everyone, controls=charge(1500)))
    await stack.until_devices("weak", "applied", 60)
    strong = [{"kind": "discharge", "each_w": 2000}]
    await stack.send(stack.signal("strong", end_at=end + 30, priority=1, targets=everyone, controls=strong))
    await stack.until_devices("strong", "applied", 50)
    await stack.send(stack.signal("strong", revision=2, action="cancel", reason="fault cleared"))
    closed = await stack.until_closed("strong", 30)
    assert closed["revision"] == 2 and closed["release"]["due"] == 0, "whoever holds last owes the release"
    assert stack.codes("strong") == [(1, 1), (1, 2), (2, 1), (2, 6)]
    report = await stack.until_closed("weak", 60)
    assert done(report) == 60
    assert report["release"] == {"due": 60, "confirmed": 60, "pending": 0, "refused": 0}
    await audited(stack, events=2)


async def test_the_tightest_limit_holds_and_a_pv_family_in_percent_takes_part(stack: Stack) -> None:
    await stack.start(inverters=80, simulator=["--series", "ETU,DTU,DSN", "--registered-limits", "0.5"])
    await stack.until_ready(stack.start_worker(), registered=80)
    end = time.time() + 18
    everyone = {"all": True}
    for name, watts in (("tight", 1500), ("loose", 50_000)):
        limit = [{"kind": "export_limit", "each_w": watts}]
        await stack.send(stack.signal(name, end_at=end, targets=everyone, controls=limit))
    for name in ("tight", "loose"):
        report = await stack.until_closed(name, 60)
        assert done(report) + report["devices"]["skipped"] == 80
        assert done(report) > 60
    await audited(stack, events=2)


async def test_a_registry_change_and_a_withdrawal_in_mid_event_release_and_send_nothing_more(stack: Stack) -> None:
    await stack.start(inverters=40, simulator=["--series", "ETU"])
    await stack.until_ready(stack.start_worker(), registered=40)
    sns = [d["sn"] for d in await fleet(stack)]
    await stack.send(stack.signal("a", end_at=time.time() + 20, targets={"all": True}, controls=charge(1000)))
    await stack.until_devices("a", "applied", 40)
    await stack.tell("/sim/registry", {"remove": [sns[0]]})
    await stack.tell("/sim/consent", {"sn": sns[1], "authorized": False})
    await stack.until(
        lambda: (
            (stack.report("a") or {}).get("reasons", {}) == {"rejected.removed": 1, "rejected.consent_withdrawn": 1}
        ),
        15,
        "both to be let go",
    )
    report = await stack.until_closed("a", 60)
    assert done(report) == 38 and report["release"]["confirmed"] == 40
    await audited(stack, events=1)


async def test_signals_of_any_tool_and_bad_input_of_each_kind(stack: Stack) -> None:
    await stack.start(inverters=20, simulator=["--series", "ETU"])
    await stack.until_ready(stack.start_worker(), registered=20)

    def event(name: str, **more: Any) -> dict[str, Any]:
        fields: dict[str, Any] = {"end_at": time.time() + 12, "targets": {"all": True}, "controls": charge(500)}
        return stack.signal(name, **(fields | more))

    await stack.send(event("null-key"))
    await stack.send(event("foreign-partitioner", priority=7), key=b"foreign-partitioner", partition=2)
    headers = [("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")]
    await stack.send(event("with-headers"), key=b"with-headers", headers=headers)
    await stack.send(b"\xff\xfe not json")
    await stack.send(b"[]")
    await stack.send(event("unknown-field", colour="red"))
    await stack.send(event("out-of-range", controls=charge(-5)))
    await stack.send(event("too-many", controls=[*charge(1), {"kind": "discharge", "each_w": 2}]))
    await stack.send(event("foreign-source") | {"source": "somebody-else"})
    await stack.send(event("wrong-type"), headers=[("ce_type", b"vpp.dispatch.signal.v9")])
    await stack.send(event("late", end_at=time.time() - 5, start_at=time.time() - 60))
    expired = event("expired")
    await stack.send(expired | {"expires_at": expired["created_at"]})
    await stack.send(event("not-built", controls=[{"kind": "discharge", "total_w": 5000}]))
    again = event("null-key", priority=3)
    await stack.until(lambda: stack.codes("null-key"), 20, "the first signal to be answered")
    await stack.send(again)
    for name in ("null-key", "foreign-partitioner", "with-headers"):
        await stack.until_closed(name, 60)
    assert stack.codes("unknown-field") == [(1, 253)]
    assert stack.codes("out-of-range") == [(1, 253)]
    assert stack.codes("too-many") == [(1, 253)]
    assert stack.codes("late") == [(1, 254)]
    assert stack.codes("expired") == [(1, 254)]
    assert stack.codes("not-built") == [(1, 252)]
    assert stack.codes("wrong-type") == [(1, 253)]
    # The later ones ask for the same, so the first stands behind nothing from then on (R33: 7), or won by its bytes.
    assert (1, 253) in stack.codes("null-key") and {(1, 3), (1, 7)} & set(stack.codes("null-key"))
    assert stack.codes("foreign-source") == []
    reasons = Counter(letter.headers["dl_reason"] for letter in stack.dead_letters())
    assert reasons == {"undecodable": 2, "unknown_field": 1, "invalid": 2, "foreign_source": 1, "unknown_version": 1}
    traced = [r.headers.get("traceparent") for r in stack.records["dispatch.responses.v1"] if r.key == "with-headers"]
    assert traced and all(t and t.startswith("00-0af7651916cd43dd8448eb211c80319c") for t in traced)
    await audited(stack, events=3)
