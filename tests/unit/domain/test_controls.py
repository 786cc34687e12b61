"""What each kind and form of control asks of a device, and how limits and targets are composed (R11-R13, R17)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vpp_dispatch.domain.account import Reason, State
from vpp_dispatch.domain.command import NO_VALUE, ResultCode
from vpp_dispatch.domain.roster import cos_phi_of, power_factor
from vpp_dispatch.domain.signal import Actuator, Control, Form, Kind, Targets

from .world import AUTO, FULL, NO_LIMIT, UNITY, Sent, World

EMS, EXPORT, ACTIVE, REACTIVE = Actuator.EMS, Actuator.EXPORT, Actuator.ACTIVE, Actuator.REACTIVE


def percent(value: float) -> Control:
    return Control(kind=Kind.GENERATION_LIMIT, form=Form.EACH_PERCENT, each_percent=value)


def generation_w(watts: int) -> Control:
    return Control(kind=Kind.GENERATION_LIMIT, form=Form.EACH_W, each_w=watts)


def export(watts: int) -> Control:
    return Control(kind=Kind.EXPORT_LIMIT, form=Form.EACH_W, each_w=watts)


def charge(watts: int) -> Control:
    return Control(kind=Kind.CHARGE, form=Form.EACH_W, each_w=watts)


def cos_phi(value: float, excitation: str) -> Control:
    return Control(kind=Kind.POWER_FACTOR, form=Form.COS_PHI, cos_phi=value, excitation=excitation)


@pytest.mark.parametrize(
    ("control", "rated_w", "raw"),
    [
        (percent(60), 0, 600),
        (percent(12.34), 0, 123),
        (percent(12.35), 0, 124),  # half up, whatever its binary form
        (percent(0), 0, 0),
        (generation_w(3000), 10_000, 300),
        (generation_w(3004), 10_000, 300),
        (generation_w(3005), 10_000, 301),
        (generation_w(20_000), 10_000, 1000),
        (generation_w(1000), 29_900, 33),
        (cos_phi(1.0, "over"), 0, 100),
        (cos_phi(1.0, "under"), 0, 100),
        (cos_phi(0.95, "over"), 0, 95),
        (cos_phi(0.95, "under"), 0, 5),
        (cos_phi(0.8, "under"), 0, 20),
        (cos_phi(0.99, "under"), 0, 1),
    ],
)
def test_percent_watts_and_power_factor_become_what_a_device_takes(control: Control, rated_w: int, raw: int) -> None:
    w = World()
    (sn,) = w.fleet(1, rated_w=rated_w)
    w.event("a", controls=(control,))
    w.run(3)
    assert w.devices[sn][control.actuator] == (raw, 0)


def test_a_raw_power_factor_and_its_cos_phi_belong_together() -> None:
    for raw in (*range(1, 21), *range(80, 101)):
        assert power_factor(cos_phi_of(raw), "under" if raw <= 20 else "over") == raw


def test_r12_of_two_generation_limits_and_the_default_the_tightest_counts() -> None:
    w = World()
    plain, agreed = w.fleet(1)[0], w.fleet(1, default={ACTIVE: (400, 0)})[0]
    w.event("loose", controls=(percent(70),), priority=1, end=20)
    w.event("tight", controls=(percent(50),), priority=200, end=10)
    w.run(5)
    assert (w.devices[plain][ACTIVE], w.devices[agreed][ACTIVE]) == ((500, 0), (400, 0))
    w.run(10)
    assert (w.devices[plain][ACTIVE], w.devices[agreed][ACTIVE]) == ((700, 0), (400, 0)), "never above the agreement"
    w.run(10)
    assert (w.devices[plain][ACTIVE], w.devices[agreed][ACTIVE]) == (FULL, (400, 0))


def test_r12_tightest_of_three_export_limits_with_the_default_among_them() -> None:
    w = World()
    (sn,) = w.fleet(1, default={EXPORT: (1, 2500)})
    w.event("a", Kind.EXPORT_LIMIT, 4000, priority=1, end=30)
    w.event("b", Kind.EXPORT_LIMIT, 2000, priority=200, end=20)
    w.event("c", Kind.EXPORT_LIMIT, 3000, priority=100, end=30)
    w.run(5)
    assert w.devices[sn][EXPORT] == (1, 2000)
    w.run(20)
    assert w.devices[sn][EXPORT] == (1, 2500), "two looser events never loosen the default"
    w.run(15)
    assert w.devices[sn][EXPORT] == (1, 2500) and w.counts("c").release_confirmed == 1


def test_r11_several_controls_of_one_event_act_on_their_actuators() -> None:
    w = World()
    (sn,) = w.fleet(1)
    w.event("a", controls=(charge(3000), export(0), percent(80), cos_phi(0.9, "over")), end=10)
    w.run(5)
    assert w.devices[sn] == {EMS: (11, 3000), EXPORT: (1, 0), ACTIVE: (800, 0), REACTIVE: (90, 0)}
    counts = w.counts("a")
    assert counts.states[State.APPLIED] == 1 and counts.targeted == 1, "a device counts once"
    assert (counts.requested_w, counts.allocated_w, counts.acknowledged_w) == (3000, 3000, 3000)
    assert counts.published == 4
    w.run(15)
    assert w.devices[sn] == {EMS: AUTO, EXPORT: NO_LIMIT, ACTIVE: FULL, REACTIVE: UNITY}
    assert (w.counts("a").release_due, w.counts("a").release_confirmed) == (4, 4)


def test_r11_two_events_for_overlapping_groups_on_different_actuators() -> None:
    w = World()
    west, both, east = (
        w.fleet(1, groups=("west",))[0],
        w.fleet(1, groups=("west", "east"))[0],
        w.fleet(1, groups=("east",))[0],
    )
    w.event("a", Kind.CHARGE, 2000, targets=Targets(groups=("west",)), end=10)
    w.event("b", controls=(percent(30),), targets=Targets(groups=("east",)), end=20)
    w.run(5)
    assert [w.devices[sn][EMS] for sn in (west, both, east)] == [(11, 2000), (11, 2000), AUTO]
    assert [w.devices[sn][ACTIVE] for sn in (west, both, east)] == [FULL, (300, 0), (300, 0)]
    w.run(10)
    assert w.devices[both] == {EMS: AUTO, EXPORT: NO_LIMIT, ACTIVE: (300, 0), REACTIVE: UNITY}


def test_a_table_gives_each_device_its_own_entry_or_its_part_of_its_site_s() -> None:
    w = World()
    own = w.fleet(1, site="s1", site_share=0.5)[0]
    half = w.fleet(1, site="s1", site_share=0.333)[0]
    whole = w.fleet(1, site="s2")[0]
    other = w.fleet(1, site="s3")[0]
    table = Control(
        kind=Kind.EXPORT_LIMIT, form=Form.BY_TARGET_W, sites_w={"s1": 3001, "s2": 700}, devices_w={own: 1234}
    )
    w.event("a", controls=(table,), end=10)
    w.run(5)
    assert [w.devices[sn][EXPORT] for sn in (own, half, whole)] == [(1, 1234), (1, 999), (1, 700)]
    assert w.devices[other][EXPORT] == NO_LIMIT
    counts = w.counts("a")
    assert counts.reasons == {"skipped.not_in_table": 1}
    assert (counts.requested_w, counts.allocated_w, counts.acknowledged_w) == (2933, 2933, 2933)


def test_a_stranger_s_own_entry_counts_as_requested() -> None:
    w = World()
    (sn,) = w.fleet(1)
    stranger = "9010KETU000W7777"
    table = Control(kind=Kind.EXPORT_LIMIT, form=Form.BY_TARGET_W, devices_w={sn: 100, stranger: 50})
    w.event("a", controls=(table,), targets=Targets(devices=(sn, stranger)))
    w.run(3)
    assert (w.counts("a").requested_w, w.counts("a").acknowledged_w) == (150, 100)


def test_r17_a_table_that_asks_a_battery_for_more_than_its_rating_skips_that_device() -> None:
    w = World()
    big, small = w.fleet(1, rated_w=10_000)[0], w.fleet(1, rated_w=3000)[0]
    table = Control(kind=Kind.DISCHARGE, form=Form.BY_TARGET_W, devices_w={big: 5000, small: 5000})
    w.event("a", controls=(table,))
    w.run(3)
    assert w.devices[big][EMS] == (12, 5000) and w.devices[small][EMS] == AUTO
    assert w.counts("a").reasons == {"skipped.capability": 1}


def test_r17_a_device_that_does_not_take_the_actuator_is_skipped_for_that_control_alone() -> None:
    w = World()
    (sn,) = w.fleet(1, series="DTU")
    w.event("a", controls=(export(500), percent(50)), end=10)
    w.run(3)
    assert w.devices[sn][EXPORT] == (1, 500) and w.devices[sn][ACTIVE] == FULL
    parts = w.book.memberships["grid/a", 1].parts
    assert [int(part.members["reason"][0]) for part in parts] == [0, Reason.CAPABILITY]
    assert w.counts("a").states[State.APPLIED] == 1, "it took part, so that is what it counts as"


def test_a_generation_limit_in_watts_needs_a_rating(monkeypatch: pytest.MonkeyPatch) -> None:
    w = World()
    monkeypatch.setattr(type(w.book.catalogue), "rated_w", lambda self, sn, told_w: told_w)
    w.fleet(1)
    w.event("a", controls=(generation_w(500),))
    w.run(3)
    assert w.counts("a").reasons == {"skipped.capability": 1} and w.sets() == []
    assert w.book.memberships["grid/a", 1].parts[0].members["asked"].tolist() == [NO_VALUE]


def test_r37_a_default_is_read_for_each_actuator_that_is_asked() -> None:
    w = World()
    (sn,) = w.fleet(1)
    w.devices[sn][REACTIVE] = (97, 0)
    w.event("a", controls=(cos_phi(0.9, "under"),), end=10)
    w.run(5)
    assert {s.actuator for s in w.sent if s.query} == {REACTIVE} and w.devices[sn][REACTIVE] == (10, 0)
    w.run(12)
    assert w.devices[sn][REACTIVE] == (97, 0), "it returns to what stood there"


def test_r06_a_test_judges_each_control_and_sends_nothing() -> None:
    w = World()
    w.fleet(2)
    w.event("a", controls=(percent(10), cos_phi(0.9, "over")), test=True)
    w.run(3)
    assert w.sets() == [] and w.counts("a").settled


def test_r24_a_setpoint_that_changes_while_the_event_runs_has_a_new_row() -> None:
    w = World()
    w.fleet(1)
    w.event("loose", Kind.EXPORT_LIMIT, 9000, end=60)
    w.event("tight", Kind.EXPORT_LIMIT, 2000, end=5)
    w.run(4)
    membership = w.book.memberships["grid/loose", 1]
    (first,) = membership.tellings()
    assert first.part is not None and first.part.members["second"][first.index].tolist() == [2000]
    membership.tell(first, 1)
    assert membership.tellings() == []
    w.run(6)
    (second,) = membership.tellings()
    assert second.part is not None and second.part.members["second"][second.index].tolist() == [9000]
    membership.tell(second, 2)
    assert membership.tellings() == []


class TestR21DeadBand:
    """A change that is too small for a write to flash; what an event is told stays the truth."""

    def world(self) -> tuple[World, str]:
        w = World(policy=replace(World().policy, dead_band_w=100))
        return w, w.fleet(1)[0]

    def test_r21_small_steps_are_not_sent_and_add_up(self) -> None:
        w, sn = self.world()
        w.event("a", controls=(charge(1000),), end=100)
        w.run(5)
        for n, watts in enumerate((1060, 1100, 900, 1101, 1100)):
            w.event(f"step{n}", controls=(charge(watts),), priority=99 - n, end=100)
            w.run(5)
        assert [c.pair[1] for c in w.sets(sn)] == [1000, 1101], "1101 is more than 100 from what the device was told"

    def test_r21_who_takes_over_is_applied_with_what_the_device_was_told(self) -> None:
        w, sn = self.world()
        w.event("a", controls=(charge(1000),), end=10)
        w.event("b", controls=(charge(1050),), priority=1, start=5, end=20)
        w.run(12)
        counts = w.counts("b")
        assert counts.states[State.APPLIED] == 1
        assert (counts.requested_w, counts.allocated_w, counts.acknowledged_w) == (1050, 1050, 1000)
        w.run(12)
        assert [c.pair for c in w.sets(sn)] == [(11, 1000), AUTO], "the default is restored exactly"

    def test_r21_a_limit_is_kept_only_where_it_is_tighter(self) -> None:
        w, sn = self.world()
        for name, (controls, end) in {
            "a": ((export(4000), percent(60)), 30),
            "b": ((export(3950), percent(59.5)), 20),
            "c": ((export(3900), percent(59)), 10),
        }.items():
            w.event(name, controls=controls, end=end)
        w.run(5)
        assert (w.devices[sn][EXPORT], w.devices[sn][ACTIVE]) == ((1, 3900), (590, 0))
        w.run(20)  # b has ended, and c before it: 100 W looser by now
        assert (w.devices[sn][EXPORT], w.devices[sn][ACTIVE]) == ((1, 3900), (590, 0))
        w.event("d", controls=(export(3899), percent(58.9)), end=100)
        w.run(3)
        assert (w.devices[sn][EXPORT], w.devices[sn][ACTIVE]) == ((1, 3899), (589, 0)), "no limit is exceeded"

    def test_r21_without_a_rating_no_change_of_a_generation_limit_is_small(self) -> None:
        w, sn = self.world()
        row = w.book.roster.row_of[sn]
        w.book.roster.ability["rated_w"][row] = 0  # neither the registry nor the serial number tells it
        w.event("a", controls=(percent(60),), end=100)
        w.run(5)
        w.event("b", controls=(percent(30),), priority=1, end=100)
        w.run(5)
        assert w.devices[sn][ACTIVE] == (300, 0)

    def test_r21_another_mode_or_power_factor_is_no_small_step(self) -> None:
        w, sn = self.world()
        w.event("a", controls=(charge(50), cos_phi(0.95, "over")), end=100)
        w.run(5)
        other = Control(kind=Kind.DISCHARGE, form=Form.EACH_W, each_w=50)
        w.event("b", controls=(other, cos_phi(0.96, "over")), priority=1, end=100)
        w.run(5)
        assert (w.devices[sn][EMS], w.devices[sn][REACTIVE]) == ((12, 50), (96, 0))

    def test_r21_what_no_device_has_acknowledged_is_sent_as_it_is_wanted(self) -> None:
        w, sn = self.world()
        w.fate = lambda sent: ResultCode.SUCCESS if sent.query else ResultCode.OFFLINE
        w.event("a", controls=(charge(1000),), end=100)
        w.run(5)
        assert w.devices[sn][EMS] == AUTO
        w.fate = lambda sent: ResultCode.SUCCESS
        w.online(sn, True)
        w.event("b", controls=(charge(1050),), priority=1, end=100)
        w.run(5)
        assert w.devices[sn][EMS] == (11, 1050)

    def test_r27_what_drifted_is_sent_once_more_and_not_as_something_new(self) -> None:
        w = World(policy=replace(World().policy, dead_band_w=100, verify_share=1.0))
        (sn,) = w.fleet(1)
        w.event("a", controls=(charge(1000),), end=100)
        w.run(5)
        w.event("b", controls=(charge(1050),), priority=1, end=100)
        w.run(5)
        told = len(w.sets(sn))
        own = (8, 0)

        def insists(sent: Sent) -> ResultCode:
            if sent.query:
                w.devices[sent.sn][EMS] = own
            return ResultCode.SUCCESS

        w.fate = insists
        w.release("again", Targets(devices=(sn,)), source="other")  # what is wanted is asserted, and read back
        w.run(20)
        assert w.devices[sn][EMS] == own
        assert len(w.sets(sn)) - told == 2, "asserted, sent again once, then left alone"
