"""What the main job says in its whole width, on real Kafka and real HTTP: every control, ramps, releases, read-backs,
switches. Each run is judged by the inverters' own state while it lasts, and audited at its end.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from tests.audit import Limits, Topics, Verdict, Wire, collect, examine
from tests.audit.overrides import HAD_TO_KNOW_S
from tests.auditing import audited
from tests.waiting import eventually
from vpp_dispatch.cli.switch import SwitchName, record
from vpp_dispatch.demo.stack import Stack

CHARGE, STANDBY, AUTO = 11, 8, 1
EVERYONE = {"all": True}
WEST, EAST = "gridco-west", "gridco-east"

Device = dict[str, Any]
Commands = list[dict[str, Any]]


def device(n: int, *groups: str, kind: str = "010KETU", site: str = "", share: float = 1.0, **default: int) -> Device:
    """A line of a fleet file. `kind`: rating and series as in an SN; `default`: as in the registry, and so set."""
    return {
        "sn": f"9{kind}000W{n:04d}",
        "site": site or f"site-{n:04d}",
        "area": "north",
        "groups": list(groups),
        "site_share": share,
        "default": default,
    }


def auto(n: int, *groups: str) -> Device:
    """A hybrid of 10 kW whose EMS default is known from the registry, so that nothing is read first."""
    return device(n, *groups, ems_mode=AUTO, ems_power_w=0)


async def start(stack: Stack, devices: Iterable[Device], *options: str) -> None:
    """The simulator with exactly these devices, and one worker that is ready and knows them."""
    file = stack.folder / "fleet.jsonl"
    lines = [json.dumps(entry) for entry in devices]
    file.write_text("\n".join(lines))
    await stack.start(simulator=["--fleet-file", str(file), *options])
    worker = stack.start_worker()
    await stack.until_ready(worker)
    await stack.until(lambda: gauge(stack, "devices_authorized") == len(lines), 20, "the whole fleet to be known")


def gauge(stack: Stack, name: str) -> int:
    """A number that the only worker tells on its metrics page, by its name with the labels."""
    [worker] = stack.workers.values()
    return stack.gauge(worker, name)


def sns(devices: Iterable[Device], group: str) -> list[str]:
    return [entry["sn"] for entry in devices if group in entry["groups"]]


async def settings_of(stack: Stack) -> dict[str, dict[str, int]]:
    """The settings of each inverter, as the inverter has them."""
    dump = await stack.ask("/sim/dump")
    return {sn: told["settings"] for sn, told in dump["devices"].items()}


async def until_shown(stack: Stack, wanted: Mapping[str, Mapping[str, int]], what: str) -> None:
    """Waits until these inverters have these settings."""

    async def shown() -> bool:
        found = await settings_of(stack)
        return all(found[sn].items() >= values.items() for sn, values in wanted.items())

    try:
        await eventually(shown, 25, what)
    except AssertionError as fault:
        found = await settings_of(stack)
        odd = {sn: found[sn] for sn, values in wanted.items() if not found[sn].items() >= values.items()}
        raise AssertionError(f"{fault}; {len(odd)} of {len(wanted)} differ: {list(odd.items())[:3]}") from None


async def sets(stack: Stack) -> dict[str, Commands]:
    """What each inverter was told, setpoints and releases, in the order of arrival."""
    dump = await stack.ask("/sim/dump")
    return {sn: [c for c in told["commands"] if c["kind"] != "query"] for sn, told in dump["devices"].items()}


async def all_at_default(stack: Stack) -> None:
    """Every inverter is as it was before anybody told it anything, by its own state."""
    dump = await stack.ask("/sim/dump")
    odd = {sn: d["settings"] for sn, d in dump["devices"].items() if d["settings"] != d["default_settings"]}
    assert not odd, f"{len(odd)} are not at their default: {list(odd.items())[:3]}"


async def cancel(stack: Stack, event_id: str, **fields: Any) -> None:
    await stack.send(stack.signal(event_id, revision=2, action="cancel", **fields))


def told(report: dict[str, Any]) -> dict[str, int]:
    """A report's devices by state; those that were read back count as applied."""
    found = Counter({"applied" if s == "verified" else s: 0 for s in report["devices"]})
    for state, n in report["devices"].items():
        found["applied" if state == "verified" else state] += n
    return {state: n for state, n in found.items() if n}


def of_kind(stack: Stack, event_id: str, kind: str) -> dict[str, dict[str, Any]]:
    return {sn: row for (sn, k), row in stack.outcomes(event_id).items() if k == kind}


def done(rows: Mapping[str, dict[str, Any]]) -> list[str]:
    return sorted(sn for sn, row in rows.items() if row["state"] in ("applied", "verified"))


# ------------------------------------------------------------------------------------------------------- controls


async def test_r12_the_tightest_of_three_limits_and_the_default_holds_as_events_go(stack: Stack) -> None:
    """An export limit and a generation limit in each of three events; a looser one never loosens a default."""
    bound = [device(n, "bound", export_limit_w=1000) for n in range(6)]
    roomy = [device(n, "roomy", export_limit_w=6000) for n in range(10, 16)]
    free = [device(n, "free") for n in range(20, 26)]
    slow = [device(n, "slow", active_percent=40) for n in range(30, 36)]
    percent = [device(n, "percent", kind="012KDTU", export_limit_w=6000) for n in range(40, 46)]
    fleet = [*bound, *roomy, *free, *slow, *percent]
    await start(stack, fleet)

    def shows(**of_group: tuple[int, int]) -> dict[str, dict[str, int]]:
        return {
            sn: {"Export Limit Enable": 1, "Export Power Limit": limit, "Active Power Limit": permille}
            for group, (limit, permille) in of_group.items()
            for sn in sns(fleet, group)
        }

    asked: dict[str, tuple[int, dict[str, Any]]] = {
        "loose": (9000, {"each_percent": 90}),
        "middle": (3000, {"each_w": 6000}),
        "tight": (2000, {"each_percent": 55}),
    }
    for event_id, (watts, generation) in asked.items():
        controls = [{"kind": "export_limit", "each_w": watts}, {"kind": "generation_limit", **generation}]
        # The tightest is not the strongest: for limits the priority says nothing.
        priority = 200 if event_id == "tight" else 10
        end = time.time() + 120
        await stack.send(stack.signal(event_id, end_at=end, targets=EVERYONE, controls=controls, priority=priority))
    # 6,000 W are 60 % of 10 kW, and 50 % of 12 kW; 2,000 W of 12 kW are 16 % and something.
    three = shows(bound=(1000, 550), roomy=(2000, 550), free=(2000, 550), slow=(2000, 400), percent=(16, 500))
    await until_shown(stack, three, "the tightest of three")
    for event_id in asked:
        await stack.until_devices(event_id, "applied", len(fleet))
    await cancel(stack, "tight")
    two = shows(bound=(1000, 600), roomy=(3000, 600), free=(3000, 600), slow=(3000, 400), percent=(25, 500))
    await until_shown(stack, two, "the tighter of two")
    await cancel(stack, "middle")
    one = shows(bound=(1000, 900), roomy=(6000, 900), free=(9000, 900), slow=(9000, 400), percent=(50, 900))
    await until_shown(stack, one, "the loosest, where no default is tighter")
    await stack.until_devices("loose", "applied", len(fleet))
    await stack.until(lambda: _watts(stack, "loose", free) == {9000}, 15, "the rows to say what was told last")
    await cancel(stack, "loose")
    for event_id in asked:
        report = await stack.until_closed(event_id)
        assert told(report) == {"targeted": 30, "applied": 30}
        assert stack.codes(event_id) == [(1, 1), (1, 2), (2, 1), (2, 6)]
    assert _watts(stack, "tight", [*roomy, *free]) == {2000}
    assert _watts(stack, "loose", free) == {9000}
    assert _watts(stack, "loose", bound) == {1000}, "the setpoint is what the device was told"
    assert _watts(stack, "loose", [*roomy, *percent]) == {6000}
    generation = of_kind(stack, "loose", "generation_limit")
    assert {generation[sn]["setpoint_percent"] for sn in sns(fleet, "slow")} == {40}
    assert (stack.report("loose") or {})["release"]["confirmed"] == 60, "two actuators of each, owed by the last"
    await all_at_default(stack)
    await audited(stack, events=3)


def _watts(stack: Stack, event_id: str, devices: Iterable[Device]) -> set[int]:
    rows = of_kind(stack, event_id, "export_limit")
    return {rows[entry["sn"]]["setpoint_w"] for entry in devices}


async def test_r11_events_for_overlapping_groups_share_devices_by_actuator_and_a_table_splits_sites(
    stack: Stack,
) -> None:
    """A charge in the west, power factor and generation limit in the east, both in the middle; beside them a table."""
    grid = [auto(n, *(["west"] if n < 15 else []), *(["east"] if n >= 10 else [])) for n in range(25)]
    pair = [device(n, "table", site="pair", share=0.5, ems_mode=AUTO, ems_power_w=0) for n in (30, 31)]
    three = [device(n, "table", site="three", share=0.333333, ems_mode=AUTO, ems_power_w=0) for n in (40, 41, 42)]
    alone = [device(n, "table", site="alone", ems_mode=AUTO, ems_power_w=0) for n in (50, 51)]
    await start(stack, [*grid, *pair, *three, *alone])
    west, east = set(sns(grid, "west")), set(sns(grid, "east"))
    own, away = pair[0]["sn"], three[0]["sn"]
    await stack.tell("/sim/online", {"sn": away, "online": False})
    await _told_offline(stack)

    end = time.time() + 20
    charge = [{"kind": "charge", "each_w": 1000}]
    quality = [
        {"kind": "power_factor", "cos_phi": 0.95, "excitation": "under"},
        {"kind": "generation_limit", "each_percent": 70},
    ]
    table = {"sites": {"pair": 3001, "three": 5000}, "devices": {own: 700}}
    await stack.send(stack.signal("west", end_at=end, targets={"groups": ["west"]}, controls=charge))
    await stack.send(stack.signal("east", end_at=end, targets={"groups": ["east"]}, controls=quality))
    by_target = [{"kind": "charge", "by_target_w": table}]
    await stack.send(stack.signal("table", end_at=end, targets={"groups": ["table"]}, controls=by_target))
    charging = {"EMS Power Mode": CHARGE, "EMS Power Set": 1000}
    gentle = {"Power Factor": 5, "Active Power Limit": 700}
    idle = {"EMS Power Mode": AUTO, "Power Factor": 100, "Active Power Limit": 1000}
    wanted = {
        sn: idle | (charging if sn in west else {}) | (gentle if sn in east else {})
        for sn in (entry["sn"] for entry in grid)
    }
    # Half of 3,001, and a third of 5,000, rounded down; the own entry wins over the site's.
    wanted[own] = charging | {"EMS Power Set": 700}
    wanted[pair[1]["sn"]] = charging | {"EMS Power Set": 1500}
    wanted |= {entry["sn"]: charging | {"EMS Power Set": 1666} for entry in three[1:]}
    wanted |= {entry["sn"]: {"EMS Power Mode": AUTO} for entry in (*alone, three[0])}
    await until_shown(stack, wanted, "each actuator at what its own event asks for")

    report = await stack.until_closed("west")
    assert told(report) == {"targeted": 15, "applied": 15} and report["release"]["confirmed"] == 15
    assert _power(report) == {"requested": 15_000, "allocated": 15_000, "acknowledged": 15_000, "shortfall": 0}
    assert report["power_w"]["measured"] == 15_000, "by telemetry, of all of them"
    assert done(of_kind(stack, "west", "charge")) == sorted(west) == sorted(sn for sn, _ in stack.outcomes("west"))

    report = await stack.until_closed("east")
    assert told(report) == {"targeted": 15, "applied": 15} and report["release"]["confirmed"] == 30
    assert set(_power(report).values()) == {None}, "neither percent nor cos phi has watts"
    factors, limits = of_kind(stack, "east", "power_factor"), of_kind(stack, "east", "generation_limit")
    assert done(factors) == done(limits) == sorted(east) and len(stack.outcomes("east")) == 30
    assert {row["cos_phi"] for row in factors.values()} == {0.95}
    assert {row["setpoint_percent"] for row in limits.values()} == {70}

    report = await stack.until_closed("table")
    assert told(report) == {"targeted": 7, "applied": 4, "skipped": 3}
    assert report["reasons"] == {"skipped.not_in_table": 2, "skipped.offline": 1}
    shared = 700 + 1500 + 2 * 1666
    assert _power(report) == {
        "requested": shared + 1666, "allocated": shared, "acknowledged": shared, "shortfall": 1666,
    }  # fmt: skip
    rows = of_kind(stack, "table", "charge")
    assert {sn for sn, row in rows.items() if row["reason"] == "not_in_table"} == set(sns(alone, "table"))
    assert sum(rows[sn]["setpoint_w"] for sn in done(rows)) == shared
    final = {event_id: stack.codes(event_id)[-1][1] for event_id in ("west", "east", "table")}
    assert final == {"west": 3, "east": 3, "table": 8}
    await all_at_default(stack)
    await audited(stack, events=3)


async def _told_offline(stack: Stack) -> None:
    """Waits until the service has read telemetry that was asked for after now."""
    calls = 'realtime_calls_total{interface="operation",outcome="ok"}'
    before = gauge(stack, calls)
    await stack.until(lambda: gauge(stack, calls) >= before + 2, 20, "telemetry to be read again")


def _power(report: dict[str, Any]) -> dict[str, int | None]:
    return {name: watts for name, watts in report["power_w"].items() if name != "measured"}


# ------------------------------------------------------------------------------------------------------- time


async def test_r14_ramps_spread_starts_and_releases_and_events_back_to_back_do_not_bounce(stack: Stack) -> None:
    """One event after another with ramps; beside them one without, whose cancellation names a ramp of its own."""
    fleet = [*(auto(n, "row") for n in range(60)), *(auto(n, "cut") for n in range(100, 160))]
    await start(stack, fleet)
    row, cut = {"groups": ["row"]}, {"groups": ["cut"]}
    first = time.time() + 3
    middle, last = first + 10, first + 20
    ramps: dict[str, Any] = {"ramp_up_s": 4, "ramp_down_s": 4}

    def charge(watts: int) -> list[dict[str, Any]]:
        return [{"kind": "charge", "each_w": watts}]

    await stack.send(stack.signal("one", start_at=first, end_at=middle, targets=row, controls=charge(900), **ramps))
    await stack.send(stack.signal("two", start_at=middle, end_at=last, targets=row, controls=charge(700), **ramps))
    await stack.send(stack.signal("cut", end_at=first + 120, targets=cut, controls=charge(500)))
    await stack.until_devices("cut", "applied", 60)
    await cancel(stack, "cut", ramp_down_s=5)
    for event_id, code in (("one", 3), ("two", 3), ("cut", 6)):
        report = await stack.until_closed(event_id)
        odd = [row for row in stack.outcomes(event_id).values() if row["state"] not in ("applied", "verified")]
        assert told(report) == {"targeted": 60, "applied": 60}, f"{event_id}: {odd[:1]} and {len(odd) - 1} more"
        assert stack.codes(event_id)[-1][1] == code
    assert (stack.report("one") or {})["release"]["due"] == 0, "whoever holds last owes the release"
    for event_id in ("two", "cut"):
        assert (stack.report(event_id) or {})["release"]["confirmed"] == 60, event_id

    found = await sets(stack)
    chains = Counter(tuple(_told(c) for c in found[sn]) for sn in sns(fleet, "row"))
    assert chains == {((CHARGE, 900), (CHARGE, 700), (AUTO, 0)): 60}, "no release in between"
    begun, turned, given = zip(*([c["arrival_at"] for c in found[sn]] for sn in sns(fleet, "row")), strict=True)
    cut_at = [c["arrival_at"] for sn in sns(fleet, "cut") for c in found[sn] if _told(c) == (AUTO, 0)]
    for what, moments in (("starts", begun), ("successors", turned), ("releases", given), ("cut", cut_at)):
        assert len(moments) == 60 and max(moments) - min(moments) > 2, f"{what} are not spread"
    assert min(begun) >= first and min(turned) >= middle and min(given) >= last
    await all_at_default(stack)
    verdict = await audited(stack, events=3)
    assert verdict.checked["ramps.starts"] and verdict.checked["ramps.releases"], verdict


def _told(command: dict[str, Any]) -> tuple[int, ...]:
    return tuple(parameter["value"] for parameter in command["parameters"])


# ------------------------------------------------------------------------------------------------------- who says so


async def test_r15_a_release_drops_what_its_own_source_holds_and_nothing_else(stack: Stack) -> None:
    """Two operators: the west releases half of its devices; the east's charge and limit stand there from then on."""
    topics = {stack.signals_topic: WEST, f"{stack.prefix}dispatch.signals.east.v1": EAST}
    stack.settings["SIGNALS__TOPICS"] = json.dumps(topics)
    fleet = [*(auto(n, "west", "east") for n in range(20)), *(auto(n, "west") for n in range(20, 25))]
    kept = [*(auto(n, "west", "east", "kept") for n in range(30, 40))]
    await start(stack, [*fleet, *kept])
    both, lone = sns(fleet, "east"), sorted({*sns(fleet, "west")} - {*sns(fleet, "east")})
    end = time.time() + 26

    async def send(source: str, event_id: str, **fields: Any) -> None:
        topic = next(topic for topic, of in topics.items() if of == source)
        await stack.send(stack.signal(event_id, source=source, **fields), topic=topic)

    strong: dict[str, Any] = {"targets": {"groups": ["west"]}, "controls": [{"kind": "charge", "each_w": 1000}]}
    weak: dict[str, Any] = {
        "targets": {"groups": ["east"]},
        "controls": [{"kind": "charge", "each_w": 800}, {"kind": "export_limit", "each_w": 4000}],
    }
    await send(WEST, "west", end_at=end, priority=10, **strong)
    await send(EAST, "east", end_at=end, priority=20, **weak)
    await send(WEST, "later", start_at=end + 1, end_at=end + 5, priority=10, **strong)
    limited = {"Export Limit Enable": 1, "Export Power Limit": 4000}
    high, low = {"EMS Power Mode": CHARGE, "EMS Power Set": 1000}, {"EMS Power Mode": CHARGE, "EMS Power Set": 800}
    auto_mode = {"EMS Power Mode": AUTO, "EMS Power Set": 0}
    strongly = dict.fromkeys([*both, *sns(kept, "kept")], high | limited) | dict.fromkeys(lone, high)
    await until_shown(stack, strongly, "the stronger charge")
    newest = max(command["arrival_at"] for commands in (await sets(stack)).values() for command in commands)
    await eventually(lambda: time.time() > newest + HAD_TO_KNOW_S, 5, "holds that the audit knows to be held")
    await send(WEST, "give-back", action="release", targets={"devices": [*both, *lone]}, reason="wrong feeder")
    after = dict.fromkeys(both, low | limited) | dict.fromkeys(lone, auto_mode)
    await until_shown(stack, after | dict.fromkeys(sns(kept, "kept"), high | limited), "the other source's holds")

    report = await stack.until_closed("give-back")
    assert stack.codes("give-back") == [(1, 1), (1, 2), (1, 3)]
    assert told(report) == {"targeted": 25, "applied": 25}
    rows = of_kind(stack, "give-back", "release")
    assert done(rows) == sorted([*both, *lone]) and len(stack.outcomes("give-back")) == 25
    report = await stack.until_closed("west")
    assert told(report) == {"targeted": 35, "applied": 10, "rejected": 25}
    assert report["reasons"] == {"rejected.released": 25} and stack.codes("west")[-1] == (1, 8)
    report = await stack.until_closed("east")
    assert told(report) == {"targeted": 30, "applied": 30} and stack.codes("east")[-1] == (1, 3)
    report = await stack.until_closed("later")
    assert told(report) == {"targeted": 35, "applied": 35}, "what is scheduled stays"
    await all_at_default(stack)
    await _audited_of(stack, topics, events=4)


async def _audited_of(stack: Stack, topics: Iterable[str], *, events: int) -> Verdict:
    """As `audited`, where sources have signals topics of their own."""
    settings = stack.loaded()
    names = replace(Topics.of_profile(stack.profile, prefix=stack.prefix), signals=tuple(topics))
    dump = await stack.ask("/sim/dump")
    evidence = await collect(stack.bootstrap_servers, topics=names, dumps=[dump])
    limits = Limits(
        consent_refresh_s=settings.fleet.consent_refresh_s,
        result_timeout_s=settings.goodwe.result_timeout_s,
        max_in_flight=settings.goodwe.max_in_flight,
        expect_events=events,
    )
    verdict = examine(evidence, limits, Wire.read(stack.profile))
    assert not verdict.violations, f"the audit found\n{verdict}"
    assert verdict.checked.get("release_signals.holds"), verdict
    return verdict


async def test_r21_within_the_dead_band_nothing_is_sent_and_who_takes_over_is_applied(stack: Stack) -> None:
    stack.settings["GUARD__DEAD_BAND_W"] = "100"
    fleet = [auto(n, "all") for n in range(12)]
    await start(stack, fleet)
    begun = time.time()

    def asks(watts: int, limit: int) -> list[dict[str, Any]]:
        return [{"kind": "charge", "each_w": watts}, {"kind": "export_limit", "each_w": limit}]

    first = {"EMS Power Mode": CHARGE, "EMS Power Set": 1000, "Export Limit Enable": 1, "Export Power Limit": 4000}
    await stack.send(stack.signal("first", end_at=begun + 16, targets=EVERYONE, controls=asks(1000, 4000), priority=20))
    await until_shown(stack, dict.fromkeys(sns(fleet, "all"), first), "the first event")
    # 40 W more to charge, and a limit that is 50 W tighter: the one is kept, the other is sent.
    near: dict[str, Any] = {"end_at": begun + 20, "targets": EVERYONE, "controls": asks(1040, 3950), "priority": 10}
    await stack.send(stack.signal("near", **near))
    second = first | {"Export Power Limit": 3950}
    await until_shown(stack, dict.fromkeys(sns(fleet, "all"), second), "the tighter limit")
    for event_id in ("first", "near"):
        report = await stack.until_closed(event_id)
        assert told(report) == {"targeted": 12, "applied": 12}, event_id
    assert _power(report) == {
        "requested": 12 * 4990, "allocated": 12 * 4990, "acknowledged": 12 * 4950, "shortfall": 0,
    }  # fmt: skip
    assert report["release"] == {"due": 24, "confirmed": 24, "pending": 0, "refused": 0}
    found = await sets(stack)
    chains = {tuple(_told(c) for c in found[sn] if c["parameters"][0]["name"] == "EMS Power Mode") for sn in found}
    assert chains == {((CHARGE, 1000), (AUTO, 0))}
    await all_at_default(stack)
    await audited(stack, events=2)


async def test_r27_the_owners_choice_is_sent_over_once_and_then_left_alone(stack: Stack) -> None:
    """Every setpoint is read back. One owner changes it once, one insists."""
    stack.settings["DISPATCH__VERIFY"] = "all"
    fleet = [auto(n, "all") for n in range(12)]
    # A query takes 3 s to reach the inverter: its owner is quicker.
    await start(stack, fleet, "--topics-out-of-step", "query:3")
    once, insisting = fleet[0]["sn"], fleet[1]["sn"]
    end = time.time() + 20
    controls = [{"kind": "charge", "each_w": 1000}]
    await stack.send(stack.signal("e", end_at=end, targets=EVERYONE, controls=controls))

    async def chooses(sn: str, *, after: int) -> None:
        """The owner puts the inverter on standby right after it has been set so often."""
        await eventually(lambda: _executed(stack, sn, at_least=after), 15, f"setpoint {after} to reach {sn}")
        for parameter, value in (("EMS Power Mode", STANDBY), ("EMS Power Set", 0)):
            await stack.tell("/sim/owner", {"sn": sn, "parameter": parameter, "value": value})

    await asyncio.gather(chooses(once, after=1), chooses(insisting, after=1))
    await chooses(insisting, after=2)
    await stack.until(
        lambda: told(stack.report("e") or {"devices": {}}).get("rejected") == 1, 15, "the owner's choice to be taken"
    )
    report = await stack.until_devices("e", "verified", 11, 15)
    assert time.time() < end and report["devices"]["verified"] == 11
    shown = await settings_of(stack)
    assert shown[insisting]["EMS Power Mode"] == STANDBY and shown[once]["EMS Power Mode"] == CHARGE
    report = await stack.until_closed("e")
    assert report["reasons"] == {"rejected.opted_out": 1} and stack.codes("e")[-1] == (1, 8)
    assert report["release"] == {"due": 11, "confirmed": 11, "pending": 0, "refused": 0}
    asked = {sn: [_told(c) for c in found] for sn, found in (await sets(stack)).items()}
    assert asked.pop(insisting) == [(CHARGE, 1000), (CHARGE, 1000)], "sent again once, and nothing since"
    assert asked.pop(once) == [(CHARGE, 1000), (CHARGE, 1000), (AUTO, 0)]
    assert set(map(tuple, asked.values())) == {((CHARGE, 1000), (AUTO, 0))}
    shown = await settings_of(stack)
    left = shown.pop(insisting)
    assert (left["EMS Power Mode"], left["EMS Power Set"]) == (STANDBY, 0), "it stays as its owner chose"
    assert {values["EMS Power Mode"] for values in shown.values()} == {AUTO}
    verdict = await audited(stack, events=1)
    assert verdict.checked["opted_out"] == 1 and verdict.checked["verified"] >= 11, verdict


async def _executed(stack: Stack, sn: str, *, at_least: int) -> bool:
    return len([c for c in (await sets(stack))[sn] if c["executed"]]) >= at_least


# ------------------------------------------------------------------------------------------------------- switches


async def test_r36_switches_and_an_abort_while_500_devices_are_being_set(stack: Stack) -> None:
    stack.settings["GOODWE__MAX_PER_S"] = "60"  # 500 setpoints take 8 s and more
    fleet = [auto(n, "all", *(["few"] if n < 20 else ["more"] if n < 40 else [])) for n in range(500)]
    await start(stack, fleet)
    charge = [{"kind": "charge", "each_w": 1000}]
    few, more = {"groups": ["few"]}, {"groups": ["more"]}

    end = time.time() + 12
    await stack.send(stack.signal("halted", end_at=end, targets={"groups": ["all"]}, controls=charge))
    await stack.until_devices("halted", "applied", 40)
    await turn(stack, "releases_only", on=True)
    turned = time.time()
    report = await stack.until_closed("halted", 60)
    set_ = {sn: found for sn, found in (await sets(stack)).items() if found}
    assert 40 <= len(set_) < 500, "the switch was to be turned in mid publish"
    late = [c for found in set_.values() for c in found if c["kind"] != "release" and c["arrival_at"] > turned + 2]
    assert not late, f"{len(late)} setpoints since the switch"
    assert report["release"]["confirmed"] == report["release"]["due"] == len(set_) == told(report)["applied"]
    assert stack.codes("halted")[-1] == (1, 8)
    await all_at_default(stack)

    await turn(stack, "releases_only", on=False)
    end = time.time() + 15
    await stack.send(stack.signal("runs", end_at=end, targets=few, controls=charge))
    await stack.send(stack.signal("stopped", end_at=end + 60, targets=more, controls=charge))
    for event_id in ("runs", "stopped"):
        await stack.until_devices(event_id, "applied", 20)
    await turn(stack, "drain", on=True)
    await stack.send(stack.signal("new", end_at=end + 60, targets=more, controls=charge))
    await stack.until(lambda: stack.codes("new"), 10, "the new event to be answered")
    assert stack.codes("new") == [(1, 252)]
    assert stack.responses("new")[0]["reasons"] == ["draining"]
    await turn(stack, "abort", on=True, event=f"{stack.source}/stopped")
    report = await stack.until_closed("stopped", 30)
    assert time.time() < end + 60 and report["release"]["confirmed"] == 20
    assert told(report) == {"targeted": 20, "rejected": 20} and report["reasons"] == {"rejected.released": 20}
    final = stack.responses("stopped")[-1]
    assert (final["code"], final["reasons"]) == (10, ["aborted"]), "nobody did it to the end"
    report = await stack.until_closed("runs", 40)
    assert told(report) == {"targeted": 20, "applied": 20} and report["release"]["confirmed"] == 20
    assert stack.codes("runs") == [(1, 1), (1, 2), (1, 3)]
    await all_at_default(stack)
    verdict = await audited(stack, events=3)
    assert verdict.checked["switches"] == 4 and verdict.checked["aborts"] == 1, verdict


async def turn(stack: Stack, name: SwitchName, *, on: bool, event: str | None = None) -> None:
    """Turns a switch as `vpp-dispatch switch` does, and waits until the worker has taken it."""
    await asyncio.to_thread(record, stack.loaded(), name, on=on, by="test", reason="the test wants it", event=event)
    if name != "abort":
        await stack.until(lambda: gauge(stack, f'switches{{switch="{name}"}}') == on, 10, f"{name} to be taken")
