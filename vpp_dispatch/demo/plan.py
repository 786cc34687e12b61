"""The demo's plan: four events that overlap while consent, connections and workers fail.

Every step waits, with a deadline, for what it needs to see on the topics, in the simulator or on a worker's metrics.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final, TypeVar

from vpp_dispatch.demo.asked import EMS_MODES, Control, Played
from vpp_dispatch.demo.course import Course
from vpp_dispatch.demo.stack import Child, Stack, rfc3339
from vpp_dispatch.demo.teller import Teller
from vpp_dispatch.errors import ExternalFault

T = TypeVar("T")

SHORTEST_S: Final = 45.0
"""Below this the plan's steps do not fit into the windows of its events."""
SHARDS: Final = 64
EXPORT, CHARGE, DISCHARGE, GENERATION = "exp-1", "chg-1", "dis-1", "gen-1"
FEEDER: Final = "feeder-03"
AREA: Final = "west"
NEIGHBOUR: Final = "east"
CANCEL_S: Final = 2.0
"""The contract's time for a cancellation to take effect."""
_STEP_S: Final = 90.0
_CLOSE_S: Final = 90.0
"""Longest waits, for slow machines; each ends with what it waits for."""
_SNS_IN_A_URL: Final = 300


class Plan:
    """One run on a stack; what it asked for and what happened is in `course`, the simulator's newest dump in `dump`.

    Args:
        stack: not started.
        seconds: from the first signal to the end of the longest event.
    """

    def __init__(self, stack: Stack, teller: Teller, *, inverters: int, seconds: float) -> None:
        self.stack = stack
        self.say = teller.say
        self.teller = teller
        self.inverters = inverters
        self.seconds = seconds
        self.course = Course(inverters=inverters, seconds=seconds)
        self.played = self.course.events
        self.dump: dict[str, Any] = {}
        self._fleet: list[dict[str, Any]] = []
        self.killed: set[str] = set()

    # ------------------------------------------------------------------ the plan

    async def start(self) -> None:
        """The simulator with its fleet, and two workers, ready."""
        options = ["--feeders", "8", "--latency", "0.2", "2", "--offline", "0.03", "--no-consent", "0.02"]
        await self.stack.start(inverters=self.inverters, simulator=options)
        self._fleet = await self.stack.ask("/sim/fleet")
        self.dump = await self.stack.ask("/sim/dump")
        offline, never = self._offline(), [sn for sn, device in self._devices() if not device["authorized"]]
        allowed = len(self._fleet) - len(never)
        self.say(
            "fleet", f"the simulator serves {len(self._fleet)} inverters, GoodWe's six topics and {self.stack.url}"
        )
        self.say("fleet", f"{len(offline)} of them are offline, {len(never)} have no consent of their owner")
        workers = [self.stack.start_worker(), self.stack.start_worker()]
        await self.stack.until_ready(*workers)
        await self._until(
            lambda: all(self._owned(worker) for worker in workers) and sum(map(self._owned, workers)) == SHARDS,
            _STEP_S,
            "the workers to share the shards",
        )
        for worker in workers:
            self.say(
                "service",
                f"{worker.name} is ready (process {worker.pid}), owns {self._owned(worker)} of {SHARDS} shards, "
                f"http://127.0.0.1:{self.stack.port(worker)}/metrics",
            )
        await self._until(
            lambda: sum(self._gauge(worker, "devices_registered") for worker in workers) == len(self._fleet),
            _STEP_S,
            "the registry to be read",
        )
        await self._until(
            lambda: (
                sum(self._gauge(worker, "devices_authorized") for worker in workers) == len(self._fleet) - len(never)
            ),
            _STEP_S,
            "the owners' consent to be read",
        )
        self.say("service", f"registry and consent are read: {allowed} inverters may be dispatched")

    async def play(self) -> None:
        """The plan, step by step."""
        begin = self.course.began_at = time.time()
        await self._ask_for(
            EXPORT,
            Control(kind="export_limit", each_w=1500),
            targets={"groups": [FEEDER]},
            priority=10,
            start_at=begin + 2,
            end_at=begin + 0.6 * self.seconds,
        )
        await self._ask_for(
            CHARGE,
            Control(kind="charge", each_w=2000),
            targets={"all": True},
            priority=100,
            start_at=begin + 3,
            end_at=begin + self.seconds,
        )
        await self._settled(EXPORT)
        await self._settled(CHARGE)
        await self._withdraw_consent(5)
        await asyncio.gather(
            self._come_back(self._offline()[::2]),
            self._discharge_and_cancel(begin + 2 * self.seconds),
            self._limit_generation(),
        )
        await self._lose_connection_over_the_end(6)
        for event_id in self.played:
            await self._until(lambda event_id=event_id: self._closed(event_id), _CLOSE_S, f"{event_id} to close")  # type: ignore[misc]
            self.teller.catch_up(self.stack)
        await self._quiet()

    async def _ask_for(
        self,
        event_id: str,
        *controls: Control,
        targets: dict[str, Any],
        priority: int,
        start_at: float | None = None,
        end_at: float,
        ramp_s: int = 0,
    ) -> None:
        """Sends a dispatch; without a start it begins at once, a ramp is for its starts and its releases alike."""
        named = self._named(targets)
        whom = "all" if "all" in targets else " ".join(next(iter(targets.values())))
        wish = " and ".join(control.asked() for control in controls)
        ramp = f", staggered over {ramp_s} s" if ramp_s else ""
        asked = f"{wish}, {whom} ({len(named)} inverters), priority {priority}{ramp}"
        now = time.time()
        self.played[event_id] = Played(
            event_id=event_id,
            asked=asked,
            controls=controls,
            whom=f"{whom} ({len(named)})",
            targets=named,
            asked_w=sum(controls[0].asked_w(device["rated_w"]) for device in self._fleet if device["sn"] in named),
            from_at=now if start_at is None else start_at,
            over_at=end_at,
            ramp_s=ramp_s,
        )
        body = self.stack.signal(
            event_id,
            end_at=end_at,
            priority=priority,
            targets=targets,
            controls=[control.body() for control in controls],
        )
        if start_at is not None:
            body["start_at"] = rfc3339(start_at)
        if ramp_s:
            body |= {"ramp_up_s": ramp_s, "ramp_down_s": ramp_s}
        when = "now" if start_at is None else _clock(start_at)
        self.say("operator", f"signal {event_id} r1: {asked}, {when} to {_clock(end_at)} UTC")
        await self.stack.send(body, key=event_id.encode())

    async def _withdraw_consent(self, count: int) -> None:
        sns = self._set_by_charge()[:count]
        await self.stack.tell("/sim/consent", {"sns": sns, "authorized": False})
        self.say("fleet", f"{len(sns)} owners of charging inverters withdraw their consent")
        self.course.mark(f"{len(sns)} owners withdraw their consent")
        begin = time.monotonic()
        await self._until_at_default(sns, "the inverters without consent to be released")
        self.say("fleet", f"the {len(sns)} are released and at their default, {time.monotonic() - begin:.1f} s later")

    async def _come_back(self, sns: list[str]) -> None:
        await self.stack.tell("/sim/online", {"sns": sns, "online": True})
        rows = self.stack.outcomes(CHARGE)
        able = [sn for sn in sns if rows.get((sn, "charge"), {}).get("reason") == "offline"]
        self.say("fleet", f"{len(sns)} of the offline inverters come back, {len(able)} of which the charge can use")
        self.course.mark(f"{len(sns)} offline inverters come back")
        begin = time.monotonic()
        modes = set(EMS_MODES.values())  # in the area of the discharge that is what they are taken into
        await self._until_devices(
            able,
            lambda device: device["settings"]["EMS Power Mode"] in modes,
            "the inverters that came back to be taken in",
        )
        self.say("fleet", f"the {len(able)} that came back are taken in, {time.monotonic() - begin:.1f} s later")

    async def _discharge_and_cancel(self, end_at: float) -> None:
        """Would outlast the charge; the cancellation ends it early."""
        control = Control(kind="discharge", each_w=1500)
        await self._ask_for(DISCHARGE, control, targets={"areas": [AREA]}, priority=20, end_at=end_at)
        await self._kill_in_mid_dispatch()
        await self._settled(DISCHARGE)
        await self._cancel_discharge()

    async def _kill_in_mid_dispatch(self) -> None:
        """SIGKILL to the worker that has most commands unanswered while the discharge goes out."""
        workers = list(self.stack.workers.values())
        await self._until(lambda: 2 in self._codes(DISCHARGE), _STEP_S, f"{DISCHARGE} to start")
        await self._until(
            lambda: any(self._gauge(worker, "commands_in_flight") for worker in workers),
            _STEP_S,
            f"commands of {DISCHARGE} to be on their way",
        )
        flying = {worker.name: self._gauge(worker, "commands_in_flight") for worker in workers}
        victim = max(workers, key=lambda worker: flying[worker.name])
        shards = self._owned(victim)
        self.killed.add(victim.name)
        victim.kill()
        begin = time.monotonic()
        self.say("fault", f"{victim.name} is killed (SIGKILL) with {flying[victim.name]} commands unanswered")
        self.course.mark(f"{victim.name} is killed (SIGKILL)")
        heir = next(worker for worker in workers if worker is not victim)
        await self._until(lambda: self._owned(heir) == SHARDS, _STEP_S, f"{heir.name} to take over")
        self.say(
            "service",
            f"{heir.name} owns the {shards} shards now, {time.monotonic() - begin:.1f} s after the kill",
        )
        self.course.mark(f"{heir.name} owns its {shards} shards")

    async def _cancel_discharge(self) -> None:
        rows = self.stack.outcomes(DISCHARGE).items()
        sns = [sn for (sn, _), row in rows if row["state"] in ("applied", "verified")]
        await self._cancel(DISCHARGE, f"the peak is over; {CHARGE} below it still runs")
        begin = time.monotonic()
        mode = EMS_MODES["charge"]
        back = [sn for sn in sns if self.stack.outcomes(CHARGE).get((sn, "charge"), {}).get("state") != "skipped"]
        await self._until_devices(
            back,
            lambda device: device["settings"]["EMS Power Mode"] == mode,
            f"the inverters of {DISCHARGE} to charge again",
        )
        self.say(
            "fleet",
            f"{len(back)} inverters went from discharging back to charging, {time.monotonic() - begin:.1f} s later",
        )

    async def _cancel(self, event_id: str, reason: str) -> None:
        """Cancels an event; its ramp down counts for its releases."""
        played = self.played[event_id]
        body = self.stack.signal(event_id, revision=2, action="cancel", reason=reason)
        self.say("operator", f"signal {event_id} r2: cancel, {reason}")
        self.course.mark(f"{event_id} is cancelled")
        self.played[event_id] = replace(
            played,
            asked=f"{played.asked}, then cancelled",
            over_at=time.time() + CANCEL_S,
            cancelled=True,
        )
        await self.stack.send(body, key=event_id.encode())

    async def _limit_generation(self) -> None:
        """Two controls on other actuators than the charge, which goes on; starts and releases staggered (R11, R14)."""
        now = time.time()
        await self._ask_for(
            GENERATION,
            Control(kind="generation_limit", each_percent=30),
            Control(kind="power_factor", cos_phi=0.95),
            targets={"areas": [NEIGHBOUR]},
            priority=30,
            start_at=now + 1,
            end_at=now + self.seconds,
            ramp_s=4,
        )
        await self._settled(GENERATION)
        await self._cancel(GENERATION, "the cloud has passed")

    async def _lose_connection_over_the_end(self, count: int) -> None:
        """The EMS mode latches: what cannot be reached at the end of its window stays set until it is back (R19)."""
        end_at = self.played[CHARGE].over_at
        if time.time() > end_at - 2:
            self.say("fleet", f"{CHARGE} ended before this step, which is left out: this machine is slow for the plan")
            return
        sns = self._set_by_charge()[-count:]
        await self._until(lambda: time.time() >= end_at - 2, self.seconds + 1, f"{CHARGE} to come to its end")
        await self.stack.tell("/sim/online", {"sns": sns, "online": False})
        self.say("fleet", f"{len(sns)} charging inverters lose their connection, 2 s before {CHARGE} ends")
        self.course.mark(f"{len(sns)} inverters lose their connection")
        await self._until(
            lambda: self._release(CHARGE)["pending"] == count and self._release(CHARGE)["confirmed"] > 0,
            _STEP_S,
            f"all but {count} inverters to be released",
        )
        devices = await self._ask_about(sns)
        held = sum(device["settings"] != device["default_settings"] for device in devices.values())
        self.say("fleet", f"{CHARGE} is over; {held} inverters that cannot be reached still charge, and come back now")
        self.course.mark(f"the {len(sns)} come back, still set")
        await self.stack.tell("/sim/online", {"sns": sns, "online": True})
        await self._until_at_default(sns, "the inverters that came back to be released")
        self.say("fleet", f"the {len(sns)} are at their default")
        self.course.mark(f"the {len(sns)} are released")

    # ------------------------------------------------------------------ looking and waiting

    async def _until(self, condition: Callable[[], T], timeout_s: float, what: str) -> T:
        def living() -> T:
            children = [*self.stack.workers.values(), *([self.stack.simulator] if self.stack.simulator else [])]
            for child in children:
                if not child.running and child.name not in self.killed:
                    raise ExternalFault(f"{child.name} ended by itself; its log is {child.out}:\n{child.tail(15)}")
            return condition()

        return await self.stack.until(living, timeout_s, what)

    async def _settled(self, event_id: str) -> None:
        """Until no targeted inverter is waited for any more."""

        def settled() -> bool:
            report = self.stack.report(event_id)
            if report is None or 2 not in self._codes(event_id):
                return False
            waiting = ("pending", "published", "accepted")
            done = report["devices"]["applied"] + report["devices"]["verified"]
            return bool(done) and not any(report["devices"][state] for state in waiting)

        await self._until(settled, _STEP_S, f"{event_id} to be carried out")
        self.teller.catch_up(self.stack)

    async def _until_devices(self, sns: list[str], condition: Callable[[dict[str, Any]], bool], what: str) -> None:
        end = time.monotonic() + _STEP_S
        while not all(condition(device) for device in (await self._ask_about(sns)).values()):
            if time.monotonic() > end:
                raise ExternalFault(f"Waited {_STEP_S:g} s in vain for {what}.")
            await asyncio.sleep(0.3)

    async def _until_at_default(self, sns: list[str], what: str) -> None:
        await self._until_devices(sns, lambda device: device["settings"] == device["default_settings"], what)

    async def _ask_about(self, sns: Iterable[str]) -> dict[str, Any]:
        """What the simulator's dump says of these inverters."""
        wanted, devices = list(sns), dict[str, Any]()
        for start in range(0, len(wanted), _SNS_IN_A_URL):
            query = "&".join(f"sn={sn}" for sn in wanted[start : start + _SNS_IN_A_URL])
            devices |= (await self.stack.ask(f"/sim/dump?{query}"))["devices"]
        return devices

    async def _quiet(self) -> None:
        """Until the topics say the same as the final reports (they are read one by one), then the simulator's dump."""

        def same(event_id: str) -> bool:
            report = self.stack.report(event_id)
            return report is not None and len(self.stack.outcomes(event_id)) >= report["devices"]["targeted"]

        with contextlib.suppress(ExternalFault):  # if it never comes, that is what the sums will say
            await self._until(lambda: all(map(same, self.played)), 5, "the outcomes to be read")
        self.dump = await self.stack.ask("/sim/dump")

    def _closed(self, event_id: str) -> bool:
        report = self.stack.report(event_id)
        return report is not None and report["final"] and bool({3, 6, 7, 8, 10} & set(self._codes(event_id)))

    def _codes(self, event_id: str) -> list[int]:
        return [code for _, code in self.stack.codes(event_id)]

    def _release(self, event_id: str) -> dict[str, int]:
        report = self.stack.report(event_id)
        return report["release"] if report else {"due": 0, "confirmed": 0, "pending": 0, "refused": 0}

    def _devices(self) -> Iterable[tuple[str, dict[str, Any]]]:
        devices: dict[str, dict[str, Any]] = self.dump["devices"]
        return devices.items()

    @property
    def sns(self) -> list[str]:
        """All inverters, once they are started."""
        return [device["sn"] for device in self._fleet]

    def _offline(self) -> list[str]:
        """The SNs that were offline at the start."""
        return [sn for sn, device in self._devices() if not device["online"]]

    def _set_by_charge(self) -> list[str]:
        """SNs that the charge has set, without those of the area that will be discharged."""
        west = self._named({"areas": [AREA]})
        rows = self.stack.outcomes(CHARGE).items()
        return [sn for (sn, _), row in rows if row["state"] in ("applied", "verified") and sn not in west]

    def _named(self, targets: dict[str, Any]) -> frozenset[str]:
        return frozenset(device["sn"] for device in self._fleet if _is_named(device, targets))

    def _gauge(self, worker: Child, name: str) -> int:
        """The sum of a metric of a worker over its labels; 0 while it has none or does not answer."""
        try:
            lines = self.stack.metrics(worker).splitlines()
        except OSError:
            return 0
        name = f"vpp_dispatch_{name}"
        return int(sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{"))))

    def _owned(self, worker: Child) -> int:
        return self._gauge(worker, "owned_shards")


def _is_named(device: dict[str, Any], targets: dict[str, Any]) -> bool:
    groups, areas = targets.get("groups", ()), targets.get("areas", ())
    return "all" in targets or device["area"] in areas or not set(groups).isdisjoint(device["groups"])


def _clock(at: float) -> str:
    return rfc3339(at)[11:19]
