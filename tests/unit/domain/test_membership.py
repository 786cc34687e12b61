"""Who is taken into an event and why not, what a revision leaves behind, and what is told, by rule."""

from __future__ import annotations

import numpy as np
import pytest

from vpp_dispatch.dispatch import pages
from vpp_dispatch.domain.account import State
from vpp_dispatch.domain.command import ResultCode, Results
from vpp_dispatch.domain.device import Battery, Operation, Record
from vpp_dispatch.domain.inputs import Consent, RegistryChange, Telemetry
from vpp_dispatch.domain.roster import Policy
from vpp_dispatch.domain.signal import Actuator, Control, Form, Kind, Targets

from .world import AUTO, SHARD, Sent, World


def policy(telemetry: str = "prefer", **more: object) -> Policy:
    return Policy(result_timeout_s=3, retry_backoff_s=1, release_retry_s=2, telemetry=telemetry, **more)  # type: ignore[arg-type]


def observe(world: World, sn: str, *, soc: float | None = None, online: bool = True, **facts: object) -> None:
    operation = Operation(sn=sn, at=world.now, online=online, **facts)  # type: ignore[arg-type]
    batteries = () if soc is None else (Battery(sn=sn, at=world.now, soc_percent=soc),)
    world.book.step([(-1, Telemetry(operations=(operation,), batteries=batteries))], world.now)


def states(world: World, name: str = "a") -> dict[State, int]:
    return {state: n for state, n in zip(State, world.counts(name).states, strict=True) if n}


@pytest.mark.parametrize(
    ("kind", "facts", "reason"),
    [
        (Kind.CHARGE, {"online": False}, "offline"),
        (Kind.CHARGE, {"faulted": True}, "faulted"),
        (Kind.CHARGE, {"off_grid": True}, "off_grid"),
        (Kind.DISCHARGE, {"soc": 24.0}, "soc"),
        (Kind.CHARGE, {"soc": 100.0}, "soc"),
    ],
)
def test_r18_each_reason_keeps_a_device_out_until_the_fact_changes(
    kind: Kind, facts: dict[str, object], reason: str
) -> None:
    w = World(policy=policy())
    (sn,) = w.fleet(1, default={1: AUTO})
    observe(w, sn, **facts)  # type: ignore[arg-type]
    w.event("a", kind, end=60)
    w.run(2)
    assert w.sent == [] and w.counts("a").reasons == {f"skipped.{reason}": 1}
    w.now += 1
    observe(w, sn, soc=60.0)
    w.run(1)
    assert states(w) == {State.APPLIED: 1}


@pytest.mark.parametrize(
    ("telemetry", "seen", "reasons"),
    [
        ("require", False, {"skipped.telemetry_stale": 1}),
        ("require", True, {"skipped.offline": 1}),
        ("prefer", False, {}),
        ("prefer", True, {"skipped.offline": 1}),
        ("ignore", False, {}),
        ("ignore", True, {}),
    ],
)
def test_r18_the_policy_says_what_telemetry_decides(telemetry: str, seen: bool, reasons: dict[str, int]) -> None:
    w = World(policy=policy(telemetry))
    (sn,) = w.fleet(1, default={1: AUTO})
    if seen:
        observe(w, sn, online=False)
    w.event("a", end=60)
    w.run(2)
    assert w.counts("a").reasons == reasons


def test_r18_old_telemetry_proves_nothing_unless_it_is_required() -> None:
    for telemetry, reasons in (("prefer", {}), ("require", {"skipped.telemetry_stale": 1})):
        w = World(policy=policy(telemetry, telemetry_max_age_s=10.0))
        (sn,) = w.fleet(1, default={1: AUTO})
        observe(w, sn, online=telemetry == "require")
        w.now += 11
        w.event("a", end=60)
        w.run(2)
        assert w.counts("a").reasons == reasons, telemetry


def test_r18_fitness_gates_only_the_entry() -> None:
    w = World(policy=policy())
    (sn,) = w.fleet(1)
    w.event("a", Kind.DISCHARGE, end=60)
    w.run(2)
    w.now += 1
    observe(w, sn, soc=5.0, online=False)
    w.run(5)
    assert states(w) == {State.APPLIED: 1}


def test_r18_a_device_that_answers_is_not_offline_any_more() -> None:
    w = World(policy=policy())
    w.fleet(1, default={1: AUTO})
    w.fate = lambda s: ResultCode.OFFLINE if s.at < 1003 else ResultCode.SUCCESS
    w.event("a", end=20)
    w.run(15)
    assert states(w) == {State.APPLIED: 1}, "tried again without telemetry"
    w.event("b", end=60, priority=1)
    w.run(2)
    assert states(w, "b") == {State.APPLIED: 1}


def test_r16_an_older_list_of_consents_changes_nothing() -> None:
    w = World()
    sns = w.fleet(2)
    w.event("a", end=60)
    w.run(2)
    w.put(Consent(at=w.now - 100, authorized=()))
    w.run(2)
    assert states(w) == {State.APPLIED: 2} and len(sns) == 2


def test_r16_the_end_of_a_consent_ends_the_hold() -> None:
    w = World()
    (sn,) = w.fleet(1)
    w.put(Consent(at=w.now, authorized=((sn, w.now + 4),)))
    w.event("a", end=60)
    w.run(3)
    assert states(w) == {State.APPLIED: 1}
    w.run(3)
    assert w.counts("a").reasons == {"rejected.consent_withdrawn": 1} and w.at_default()


def test_r15_a_cancelled_revision_that_had_not_started_frees_what_the_one_before_it_held() -> None:
    w = World()
    w.fleet(2)
    w.event("a", end=100)
    w.run(2)
    w.event("a", start=50, end=100, revision=2)
    w.run(2)
    assert not w.at_default(), "the first revision holds until the second has decided"
    w.cancel("a", revision=2)
    w.run(3)
    assert w.at_default()


def test_r34_the_release_of_a_replaced_revision_is_owed_by_its_successor() -> None:
    w = World()
    sns = w.fleet(2)
    w.event("a", end=100)
    w.run(2)
    w.event("a", start=3, end=100, revision=2, targets=Targets(devices=(sns[0],)))
    w.run(2)
    w.cancel("a", revision=2)
    w.fate = lambda s: None if s.query else ResultCode.SUCCESS
    w.run(2)
    counts = w.counts("a", 2)
    assert (counts.release_due, counts.release_confirmed, counts.settled) == (1, 0, False)
    w.fate = lambda s: ResultCode.SUCCESS
    w.run(5)
    counts = w.counts("a", 2)
    assert (counts.release_due, counts.release_confirmed, counts.settled) == (1, 1, True) and w.at_default()


def test_r02_a_replaced_revision_that_a_late_row_brings_back_holds_nothing() -> None:
    w = World()
    sns = w.fleet(2)
    w.event("a", end=100, priority=1)
    w.run(2)
    frozen = {key: value for key, value in w.rows.items() if b"|event|" in key}
    w.event("a", end=100, revision=2, targets=Targets(devices=(sns[0],)))
    w.run(4)
    assert w.devices[sns[1]][Actuator.EMS] == AUTO
    w.crash()
    w.run(1)
    w.rows.update(frozen)  # of the worker that was frozen, under its lower epoch
    w.crash()
    sets = len(w.sets())
    w.run(4)
    assert len(w.sets()) == sets and w.devices[sns[1]][Actuator.EMS] == AUTO


def test_r39_a_row_that_a_frozen_worker_writes_late_hides_no_setpoint_of_its_successor() -> None:
    w = World()
    w.fleet(1)
    w.event("a", end=2)
    w.run(2)
    w.fate = lambda s: None if s.query else ResultCode.SUCCESS
    w.run(1)
    armed = dict(w.rows)
    w.fate = lambda s: ResultCode.SUCCESS
    w.run(4)
    disarmed = {key: value for key, value in w.rows.items() if b"|ems|" in key}
    assert not w.book.owes_release()
    w.rows = armed  # the worker was frozen before this was written; another takes over ...
    w.crash()
    w.event("b", Kind.DISCHARGE, 1000, end=3)
    w.rows.update(disarmed)  # ... the frozen one's row arrives ...
    w.publish()
    w.now += 10
    w.crash()  # ... and that one dies too, before it has saved anything
    w.run(10)
    assert w.at_default()


def test_r37_a_hold_whose_default_was_never_saved_enters_anew() -> None:
    w = World()
    (sn,) = w.fleet(1)
    w.devices[sn][Actuator.EMS] = (6, 0)
    w.event("a", end=8)
    w.run(2)
    w.devices[sn][Actuator.EMS] = (6, 0)
    for key in [key for key in w.rows if b"|ems|" in key]:  # only the event's row is there, of a worker that was frozen
        del w.rows[key]
    w.crash()
    sent = w.run(2)
    assert [s.query for s in sent] == [True, False] and states(w) == {State.APPLIED: 1}
    w.run(8)
    assert w.devices[sn][Actuator.EMS] == (6, 0)


def test_r34_rows_of_two_epochs_mean_the_same_event_by_its_slot() -> None:
    slots = []
    for first in ("x", "a"):
        w = World()
        w.fleet(1)
        w.event(first, end=50)
        w.event("a", end=50)
        slots.append(w.book.memberships["grid/a", 1].slot)
    assert slots[0] == slots[1] > 0


def test_a_saved_row_that_knows_more_devices_than_the_roster_can_be_loaded() -> None:
    w = World()
    w.fleet(64)
    w.event("a", end=50)
    w.run(1)
    before = {key: value for key, value in w.rows.items() if b"|devices|" in key}
    w.put(RegistryChange(partition=0, changes=((99, "9010KETU000W7777", Record(sn="9010KETU000W7777")),)))
    w.event("b", Kind.EXPORT_LIMIT, 100, end=50)
    w.run(2)
    w.rows.update(before)
    names = pages.newest(w.rows, [SHARD])[SHARD]
    assert len(names) > 3
    w.crash()
    assert len(w.book.roster) == 64
    w.run(1)


def test_what_the_saved_rows_hold_is_not_counted_again() -> None:
    w = World()
    w.fleet(1)
    late: list[Sent] = []

    def fate(sent: Sent) -> ResultCode | None:
        if sent.pair == (11, 3000):
            late.append(sent)
            return None
        return ResultCode.SUCCESS

    w.fate = fate
    w.event("a", end=2)
    w.run(8)
    w.save()
    stale = {key: value for key, value in w.rows.items() if b"|ems|" in key}
    at = w.offset
    w.answer([(late[0], ResultCode.SUCCESS, (0, 0))])
    result = _last_results(w, late[0])
    w.save()
    counts = w.counts("a")
    assert counts.late_results == 1 and states(w) == {State.APPLIED: 1}
    w.rows.update(stale)  # the event's row was delivered, the setpoints' was not
    w.crash()
    w.book.step([(at, result)], w.now)
    again = w.counts("a")
    assert (again.late_results, again.duplicate_results) == (1, 0) and states(w) == {State.APPLIED: 1}


def test_a_late_result_reaches_the_event_where_only_the_setpoints_row_was_delivered() -> None:
    w = World()
    w.fleet(1)
    late: list[Sent] = []

    def fate(sent: Sent) -> ResultCode | None:
        if sent.pair == (11, 3000):
            late.append(sent)
            return None
        return ResultCode.SUCCESS

    w.fate = fate
    w.event("a", end=2)
    w.run(8)
    w.save()
    stale = {key: value for key, value in w.rows.items() if b"|event|" in key}
    at = w.offset
    w.answer([(late[0], ResultCode.SUCCESS, (0, 0))])
    w.book.setpoints[Actuator.EMS].dirty.add(0)
    w.save()
    w.rows.update(stale)
    w.crash()
    assert states(w) == {State.UNCONFIRMED: 1}
    w.book.step([(at, _last_results(w, late[0]))], w.now)
    assert states(w) == {State.APPLIED: 1} and w.counts("a").late_results == 1


def _last_results(world: World, sent: Sent) -> Results:
    return Results(
        ids=np.frombuffer(sent.id, np.uint8).reshape(1, 16),
        code=np.zeros(1, np.uint8),
        accepted=np.zeros(1, bool),
        first=np.zeros(1, np.int32),
        second=np.zeros(1, np.int32),
        at=np.full(1, world.now),
    )


def test_power_of_running_events_is_asked_allocated_acknowledged_and_measured_in_the_controls_direction() -> None:
    w = World(policy=policy())
    sns = w.fleet(3, default={1: AUTO})
    observe(w, sns[0], battery_power_w=-1800.0)  # charging is positive
    observe(w, sns[1], battery_power_w=None)
    observe(w, sns[2], online=False, battery_power_w=-900.0)  # skipped: not part of what is measured
    w.event("a", Kind.DISCHARGE, 2000, start=5, end=30)
    w.run(2)
    assert w.book.power() == {}  # its window is not open
    w.run(4)
    assert w.book.power()[Kind.DISCHARGE].tolist() == [6000, 4000, 4000, 1800]
    w.event("b", Kind.EXPORT_LIMIT, 500, targets=Targets(devices=(sns[0],)), end=20)
    observe(w, sns[0], battery_power_w=-2000.0, grid_power_w=-450.0)
    w.run(2)
    power = w.book.power()
    assert power[Kind.EXPORT_LIMIT].tolist() == [500, 500, 500, 450]
    assert power[Kind.DISCHARGE].tolist() == [6000, 4000, 4000, 2000]
    w.run(40)
    assert w.book.power() == {}


class TestMeasured:
    """What the account says was measured: of each device the newest sample while its setpoint stood (R34)."""

    def world(self) -> tuple[World, list[str]]:
        w = World(policy=policy())
        sns = w.fleet(2, default={1: AUTO})
        w.event("a", Kind.DISCHARGE, 2000, start=5, end=30)
        return w, sns

    def told(self, w: World, name: str = "a") -> tuple[int, int, int]:
        counts = w.counts(name)
        return counts.measured_w, counts.measured, counts.unmeasured

    def test_r34_the_newest_sample_inside_the_window_counts_and_no_other(self) -> None:
        w, sns = self.world()
        for watts in (-100.0, -1700.0, -1800.0):  # before the start; then twice in the window
            for sn in sns:
                observe(w, sn, battery_power_w=watts)
            w.run(8)
        assert self.told(w) == (0, 0, 0), "it is told when the window has closed"
        w.run(8)
        for sn in sns:
            observe(w, sn, battery_power_w=500.0)  # after it
        w.run(10)
        assert self.told(w) == (3600, 2, 0)

    def test_r34_a_sample_that_comes_before_its_setpoints_result_counts(self) -> None:
        w, sns = self.world()
        w.fate = lambda sent: ResultCode.SUCCESS if sent.query or w.now > 1010 else None
        w.run(7)
        for sn in sns:
            observe(w, sn, battery_power_w=-1800.0)
        sent = [s for s in w.sent if not s.query]
        results = _last_results(w, sent[0]), _last_results(w, sent[1])
        w.run(1)
        for result in results:  # GoodWe's answers are from when the sample was taken, and come later
            w.put(result)
        w.run(30)
        assert self.told(w) == (3600, 2, 0)

    def test_r34_a_device_without_a_sample_is_told(self) -> None:
        w, sns = self.world()
        observe(w, sns[1], battery_power_w=-1900.0)  # before the start
        w.run(8)
        observe(w, sns[0], battery_power_w=-1800.0)
        observe(w, sns[1], online=False, battery_power_w=0.0)
        w.run(40)
        assert self.told(w) == (1800, 1, 1)

    def test_r34_a_sample_of_an_older_setpoint_does_not_count(self) -> None:
        w, sns = self.world()
        w.run(8)
        for sn in sns:
            observe(w, sn, battery_power_w=-1800.0)
        w.event("b", Kind.CHARGE, 900, priority=1, end=5)  # and then the first is set anew
        w.run(3)
        for sn in sns:
            observe(w, sn, battery_power_w=900.0)
        w.run(40)
        assert self.told(w) == (0, 0, 2)
        assert self.told(w, "b") == (1800, 2, 0)

    def test_r34_who_was_refused_is_not_waited_for_and_power_factors_are_not_measured(self) -> None:
        w, sns = self.world()
        w.fate = lambda sent: ResultCode.UNSUPPORTED if sent.sn == sns[1] else ResultCode.SUCCESS
        w.event("c", controls=(Control(kind=Kind.POWER_FACTOR, form=Form.COS_PHI, cos_phi=0.9, excitation="over"),))
        w.run(8)
        for sn in sns:
            observe(w, sn, battery_power_w=-1800.0)
        w.run(80)
        assert self.told(w) == (1800, 1, 0)
        assert self.told(w, "c") == (0, 0, 0)

    def test_r34_it_outlives_the_worker(self) -> None:
        w, sns = self.world()
        w.run(8)
        for sn in sns:
            observe(w, sn, battery_power_w=-1800.0)
        w.run(24)
        w.crash()
        w.run(1)
        assert self.told(w) == (3600, 2, 0)
