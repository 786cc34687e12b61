"""Rough weather: an API with faults, limits and moving lists, lost and late answers; devices unfit and fit again.

Each run is audited at its end.
"""

from __future__ import annotations

import json
import time
from typing import Any

from tests.auditing import audited, commands
from vpp_dispatch.demo.stack import Child, Stack

EVERYONE: dict[str, Any] = {"all": True}
CHARGE: list[dict[str, Any]] = [{"kind": "charge", "each_w": 1000}]


def gauge(stack: Stack, worker: Child, name: str) -> float:
    """A number on a worker's metrics page; `name` with its labels, if it has any."""
    page = stack.metrics(worker).splitlines()
    return float(next(line.split()[-1] for line in page if line.startswith(f"vpp_dispatch_{name} ")))


async def ready(stack: Stack, devices: int) -> Child:
    """Starts a worker; waits until it knows all devices with both keys."""
    worker = stack.start_worker()
    await stack.until_ready(worker)
    await stack.until(
        lambda: gauge(stack, worker, "devices_authorized") == devices, 60, "the registry and the consents"
    )
    return worker


def back_off_for(stack: Stack, seconds: int) -> None:
    """Changes the profile's wait after a rate limit that names no Retry-After, which is 300 s."""
    text = stack.profile.read_text()
    assert "backoff_s = 300" in text
    stack.profile.write_text(text.replace("backoff_s = 300", f"backoff_s = {seconds}"))


def reasons(stack: Stack, event_id: str) -> dict[str, int]:
    report = stack.report(event_id)
    return report["reasons"] if report else {}


def done(report: dict[str, Any]) -> int:
    """How many devices are applied, those that were read back among them."""
    return int(report["devices"]["applied"] + report["devices"]["verified"])


async def totals(stack: Stack) -> dict[str, int]:
    """What the simulator has counted."""
    found: dict[str, int] = (await stack.ask("/sim/health"))["totals"]
    return found


async def until_read(stack: Stack, interface: str, calls: int) -> None:
    """Waits until the service has made so many more calls of an interface of the API."""
    first = (await totals(stack)).get(f"http.{interface}", 0)
    end = time.monotonic() + 40
    while (await totals(stack)).get(f"http.{interface}", 0) < first + calls:
        assert time.monotonic() < end, f"{interface} was not read {calls} times"


async def test_an_event_runs_and_ends_clean_in_rough_weather(stack: Stack) -> None:
    """Answers are lost, doubled, late and overtaken; the API refuses, limits, expires tokens and moves its list."""
    stack.settings |= {
        "GOODWE__RESULT_TIMEOUT_S": "8",
        "GOODWE__REALTIME__MAX_CALLS_PER_S": "8",
        "FLEET__CONSENT_REFRESH_S": "5",
        "DISPATCH__SETTLE_GRACE_S": "120",
    }
    back_off_for(stack, 4)
    realtime = {"rate_limit_per_s": 6, "retry_after_s": 2, "slow_s": 1, "token_ttl_s": 10, "list_changes_next": 1}
    faults = {"latency_s": [0.2, 3], "late_s": 11, "realtime": realtime | {"list_changes_rate": 0.05}}
    weather = ["--weather", "rough", "--faults", json.dumps(faults)]
    await stack.start(inverters=250, simulator=["--series", "ETU", *weather])
    worker = await ready(stack, 250)
    end = time.time() + 24
    await stack.send(stack.signal("rough", end_at=end, targets=EVERYONE, controls=CHARGE))
    await stack.until_devices("rough", "applied", 120, 22)
    # In mid event, and in mid reading: the token ends between two pages; a limit that names no time to wait.
    await stack.tell(
        "/sim/faults", {"realtime": {"token_expires_next": 2, "rate_limit_next": 2, "retry_after_s": None}}
    )
    await until_read(stack, "authorized-sns", 4)
    await stack.tell(
        "/sim/faults", {"realtime": {"rate_limit_next": 2, "rate_limit_style": "code", "token_error": "code"}}
    )
    await until_read(stack, "authorized-sns", 4)
    report = await stack.until_closed("rough", 180)
    assert report["devices"]["targeted"] == 250 == sum(report["devices"].values()) - 250
    assert done(report) + report["devices"]["unconfirmed"] + report["devices"]["rejected"] >= 240, report
    assert report["release"]["confirmed"] == report["release"]["due"], report
    counted = await totals(stack)
    for name in ("http.errors", "http.rate_limited", "results.dropped", "results.duplicated", "results.late"):
        assert counted.get(name, 0) > 0, f"{name}: this run has shown nothing of it"
    assert counted["http.token"] > 3, "tokens were to expire"
    assert gauge(stack, worker, 'realtime_circuit{state="closed"}') == 1
    devices = (await stack.ask("/sim/dump"))["devices"]
    assert {d["settings"]["EMS Power Mode"] for d in devices.values()} == {1}
    await audited(stack, events=1)


async def test_r16_an_api_that_is_gone_lets_run_what_runs_and_starts_nothing(stack: Stack) -> None:
    stack.settings |= {"FLEET__CONSENT_REFRESH_S": "2", "FLEET__CONSENT_MAX_AGE_S": "12"}
    await stack.start(inverters=40, simulator=["--series", "ETU"])
    worker = await ready(stack, 40)
    await stack.send(stack.signal("runs", end_at=time.time() + 30, targets=EVERYONE, controls=CHARGE))
    await stack.until_devices("runs", "applied", 40)
    await stack.tell("/sim/faults", {"realtime": {"error_rate": 1}})
    await stack.until(lambda: gauge(stack, worker, 'realtime_circuit{state="open"}') == 1, 30, "the circuit to open")
    await stack.until(lambda: gauge(stack, worker, "consent_age_seconds") > 12.5, 30, "the consents to be stale")
    calls = sum(n for name, n in (await totals(stack)).items() if name.startswith("http."))

    await stack.send(stack.signal("stale", end_at=time.time() + 300, priority=1, targets=EVERYONE, controls=CHARGE))
    await stack.until(lambda: reasons(stack, "stale") == {"skipped.consent_stale": 40}, 10, "all to be skipped")
    report = await stack.until_closed("runs", 60)
    assert done(report) == 40, "what runs goes on to its end"
    assert report["release"] == {"due": 40, "confirmed": 40, "pending": 0, "refused": 0}
    assert reasons(stack, "stale") == {"skipped.consent_stale": 40}
    asked = sum(n for name, n in (await totals(stack)).items() if name.startswith("http.")) - calls
    assert asked <= 4, f"{asked} calls through an open circuit"

    await stack.tell("/sim/faults", {"realtime": {"error_rate": 0}})
    await stack.until(lambda: gauge(stack, worker, 'realtime_circuit{state="closed"}') == 1, 60, "the circuit to close")
    await stack.until_devices("stale", "applied", 40, 30)
    await stack.send(stack.signal("stale", revision=2, action="cancel", reason="seen enough"))
    await stack.until_closed("stale", 60)
    await audited(stack, events=2)


async def test_r18_unfit_devices_are_taken_in_when_the_fact_changes(stack: Stack) -> None:
    """Off-grid and faulted before the start: skipped, then taken in. In mid event: they stay as they are."""
    stack.settings["FLEET__TELEMETRY_REFRESH_S"] = "2"
    await stack.start(inverters=20, simulator=["--series", "ETU"])
    await ready(stack, 20)
    off_grid, faulted, both, later, *_ = sns = [d["sn"] for d in await stack.ask("/sim/fleet")]
    await stack.tell("/sim/device", {"sns": [off_grid, both], "off_grid": True})
    await stack.tell("/sim/device", {"sns": [faulted, both], "faulted": True})
    await until_read(stack, "grid-status", 2)
    await stack.send(stack.signal("fit", end_at=time.time() + 120, targets=EVERYONE, controls=CHARGE))
    await stack.until_devices("fit", "applied", 17)
    report = stack.report("fit")
    assert report is not None
    assert report["devices"]["skipped"] == 3
    assert report["reasons"].get("skipped.off_grid", 0) >= 1 and report["reasons"].get("skipped.faulted", 0) >= 1
    rows = stack.outcomes("fit")
    assert rows[off_grid, "charge"]["reason"] == "off_grid" and rows[faulted, "charge"]["reason"] == "faulted"
    assert not [c for c in await commands(stack) if c.kind == "setpoint" and c.sn in (off_grid, faulted, both)]

    changed = time.time()
    await stack.tell("/sim/device", {"sns": [off_grid, both], "off_grid": False})
    await stack.tell("/sim/device", {"sns": [faulted], "faulted": False})
    await stack.until_devices("fit", "applied", 19)
    taken = {c.sn: c.at for c in await commands(stack) if c.kind == "setpoint" and c.sn in (off_grid, faulted, both)}
    assert set(taken) == {off_grid, faulted}
    assert max(taken.values()) - changed < 2 + 5 + 3, "the refresh interval and 5 s, and 3 s for a loaded machine"
    await stack.until(lambda: reasons(stack, "fit") == {"skipped.faulted": 1}, 10, "the last to be faulted only")

    await stack.tell("/sim/device", {"sns": [later], "off_grid": True})  # fitness gates only the entry
    await until_read(stack, "grid-status", 2)
    await stack.tell("/sim/device", {"sns": [both], "faulted": False})
    await stack.until_devices("fit", "applied", 20)
    await stack.send(stack.signal("fit", revision=2, action="cancel", reason="seen enough"))
    report = await stack.until_closed("fit", 60)
    assert report["release"]["confirmed"] == report["release"]["due"] == len(sns) == done(report)
    await audited(stack, events=1)
