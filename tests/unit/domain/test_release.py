"""Release signals (R15) and verification of setpoints (R27)."""

from __future__ import annotations

from dataclasses import replace

from vpp_dispatch.domain.account import Reason, State
from vpp_dispatch.domain.command import ResultCode
from vpp_dispatch.domain.roster import Policy
from vpp_dispatch.domain.signal import Actuator, Control, Form, Kind, Targets

from .world import AUTO, NO_LIMIT, Sent, World

EMS, EXPORT, ACTIVE = Actuator.EMS, Actuator.EXPORT, Actuator.ACTIVE
VERIFY = Policy(result_timeout_s=3.0, retry_backoff_s=1.0, release_retry_s=2.0, verify_share=1.0)


def test_r15_a_release_gives_up_the_source_s_active_holds_on_its_targets() -> None:
    w = World()
    sns = w.fleet(4)
    w.event("a", end=1000)
    w.run(5)
    w.release("r", Targets(devices=tuple(sns[:2])))
    w.run(5)
    assert [w.devices[sn][EMS] for sn in sns] == [AUTO, AUTO, (11, 3000), (11, 3000)]
    assert w.counts("a").reasons == {"rejected.released": 2}
    released = w.counts("r")
    assert released.targeted == 2 and released.states[State.VERIFIED] == 2 and released.settled
    assert (released.requested_w, released.published) == (0, 0)
    w.run(20)
    assert w.devices[sns[0]][EMS] == AUTO, "the event that runs does not take it in again"


def test_r15_a_release_leaves_other_sources_holds_alone_and_asserts_them() -> None:
    w = World()
    sns = w.fleet(2)
    w.event("mine", Kind.CHARGE, 3000, priority=1, end=1000)
    w.event("theirs", Kind.DISCHARGE, 1000, priority=100, end=1000, source="other")
    w.event("limit", Kind.EXPORT_LIMIT, 700, end=1000, source="other")
    w.run(5)
    before = len(w.sent)
    w.release("r")
    w.run(5)
    for sn in sns:
        assert (w.devices[sn][EMS], w.devices[sn][EXPORT]) == ((12, 1000), (1, 700))
    asserted = {(s.sn, s.actuator, s.pair) for s in w.sent[before:] if not s.query}
    assert asserted >= {(sn, EXPORT, (1, 700)) for sn in sns}, "asserted though it is believed to be set"
    assert not any(pair == AUTO for _, actuator, pair in asserted if actuator is EMS)
    assert w.counts("r").states[State.APPLIED] + w.counts("r").states[State.VERIFIED] == 2 and w.counts("r").settled
    theirs = w.book.memberships["other/theirs", 1].counts()
    assert theirs.states[State.APPLIED] == 2


def test_r15_scheduled_events_of_the_source_stay() -> None:
    w = World()
    (sn,) = w.fleet(1)
    w.event("later", start=10, end=1000)
    w.run(5)
    w.release("r")
    w.run(10)
    assert w.devices[sn][EMS] == (11, 3000)


def test_r15_a_release_asserts_the_default_even_where_it_is_believed_to_be_set() -> None:
    w = World()
    (sn,) = w.fleet(1, default={EMS: AUTO})
    w.devices[sn][EMS] = (11, 4000)  # somebody else's doing, of which nothing is known here
    w.release("r")
    w.run(5)
    assert w.devices[sn][EMS] == AUTO
    counts = w.counts("r")
    assert counts.states[State.VERIFIED] == 1 and (counts.release_due, counts.release_confirmed) == (1, 1)


def test_r15_of_a_device_that_nothing_is_known_of_nothing_is_asserted() -> None:
    w = World()
    w.fleet(1)
    w.release("r", Targets(devices=(*w.devices, "9010KETU000W7777")))
    w.run(5)
    assert w.sent == [] and w.counts("r").reasons == {"skipped.default_unknown": 1, "skipped.unknown_target": 1}
    assert w.counts("r").settled


def test_r16_a_release_sends_nothing_new_to_who_does_not_consent_and_always_gives_back_what_is_owed() -> None:
    w = World()
    never = w.fleet(1, consent=False, default={EMS: AUTO})[0]
    set_ = w.fleet(1, consent=False, default={EMS: AUTO})[0]
    w.consent([set_])
    w.fate = lambda sent: ResultCode.SUCCESS if sent.pair != AUTO or sent.query else ResultCode.FAILED
    w.event("a", end=1000)
    w.run(3)
    w.consent([])
    w.run(3)
    assert w.devices[set_][EMS] == (11, 3000), "the release was refused, so it is owed"
    w.fate = lambda sent: ResultCode.SUCCESS
    w.release("r")
    w.run(3)
    assert w.devices[set_][EMS] == AUTO and w.sets(never) == []
    assert w.counts("r").reasons == {"skipped.consent_missing": 1}


def test_r15_releases_are_staggered_over_the_signal_s_ramp_and_survive_a_crash() -> None:
    w = World()
    w.fleet(30)
    w.event("a", end=1000)
    w.run(5)
    w.release("r", ramp_down_s=20)
    begun = w.now
    w.run(8)
    home = sum(d[EMS] == AUTO for d in w.devices.values())
    assert 3 < home < 25
    w.crash()
    w.run(25)
    assert w.at_default() and w.counts("r").states[State.VERIFIED] == 30
    assert w.now - begun > 30


def test_a_release_has_one_row_for_a_device_over_all_its_actuators() -> None:
    w = World()
    w.fleet(2)
    percent = Control(kind=Kind.GENERATION_LIMIT, form=Form.EACH_PERCENT, each_percent=50.0)
    charge = Control(kind=Kind.CHARGE, form=Form.EACH_W, each_w=1000)
    w.event("a", controls=(charge, percent), end=1000)
    w.run(5)
    w.fate = lambda sent: None if sent.actuator is ACTIVE and not sent.query else ResultCode.SUCCESS
    w.release("r")
    w.run(2)
    membership = w.book.memberships["grid/r", 1]
    w.close("r")
    (telling,) = membership.tellings()
    assert len(telling.index) == 2 and telling.state.tolist() == [State.PUBLISHED] * 2, "the worst of its actuators"


def test_a_release_that_its_owner_overrules_is_told() -> None:
    w = World()
    (sn,) = w.fleet(1, default={EMS: AUTO})
    w.event("a", end=1000)
    w.run(4)

    def owner(sent: Sent) -> ResultCode:
        if sent.query:
            w.devices[sn][EMS] = (3, 0)
        return ResultCode.SUCCESS

    w.fate = owner
    w.release("r")
    w.run(6)
    assert w.counts("r").reasons == {"rejected.opted_out": 1}


# ---------------------------------------------------------------------------------------------- verification


def test_r27_an_applied_setpoint_is_read_back_and_verified() -> None:
    w = World(policy=VERIFY)
    w.fleet(3)
    w.event("a", end=30)
    w.run(5)
    assert w.counts("a").states[State.VERIFIED] == 3
    queries = [s for s in w.sent if s.query]
    assert len(queries) == 6, "the default before, the setpoint after"
    w.run(20)
    assert len([s for s in w.sent if s.query]) == 6, "once for a generation"
    w.run(10)
    assert w.at_default()


def test_r27_a_sample_is_read_back() -> None:
    w = World(policy=replace(VERIFY, verify_share=0.2))
    w.fleet(200)
    w.event("a", end=30)
    w.run(5)
    assert 15 <= w.counts("a").states[State.VERIFIED] <= 70
    assert w.counts("a").states[State.VERIFIED] + w.counts("a").states[State.APPLIED] == 200


def test_r27_none_is_read_back_by_default() -> None:
    w = World()
    w.fleet(5)
    w.event("a", end=30)
    w.run(5)
    assert w.counts("a").states[State.APPLIED] == 5 and len([s for s in w.sent if s.query]) == 5


def test_r27_a_drift_is_sent_again_once() -> None:
    w = World(policy=VERIFY)
    (sn,) = w.fleet(1)
    drifts = [(4, 0)]

    def once(sent: Sent) -> ResultCode:
        if sent.query and drifts and w.sets(sn):
            w.devices[sn][EMS] = drifts.pop()
        return ResultCode.SUCCESS

    w.fate = once
    w.event("a", end=30)
    w.run(6)
    assert drifts == [] and len(w.sets(sn)) == 2
    assert w.devices[sn][EMS] == (11, 3000) and w.counts("a").states[State.VERIFIED] == 1


def test_r27_an_owner_who_overrules_twice_has_opted_out_and_is_left_alone() -> None:
    w = World(policy=VERIFY)
    stubborn, other = w.fleet(2)

    def owner(sent: Sent) -> ResultCode:
        if sent.query and sent.sn == stubborn and w.sets(stubborn):
            w.devices[stubborn][EMS] = (4, 500)
        return ResultCode.SUCCESS

    w.fate = owner
    w.event("a", end=30)
    w.run(10)
    assert [s.pair for s in w.sets(stubborn)] == [(11, 3000)] * 2, "sent again once, and never more"
    counts = w.counts("a")
    assert counts.reasons == {"rejected.opted_out": 1} and counts.states[State.VERIFIED] == 1
    w.run(40)
    assert w.devices[stubborn][EMS] == (4, 500), "no release either: it is the owner's"
    assert w.devices[other][EMS] == AUTO
    assert w.counts("a").release_due == 1 and w.counts("a").settled
    assert w.book.held(EMS, w.now).debts == 0


def test_r27_a_later_event_returns_to_what_the_owner_chose() -> None:
    w = World(policy=VERIFY)
    (sn,) = w.fleet(1)

    def owner(sent: Sent) -> ResultCode:
        if sent.query and w.sets(sn):
            w.devices[sn][EMS] = (4, 500)
        return ResultCode.SUCCESS

    w.fate = owner
    w.event("a", end=20)
    w.run(25)
    w.fate = lambda sent: ResultCode.SUCCESS
    w.event("b", Kind.DISCHARGE, 700, end=10)
    w.run(5)
    assert w.devices[sn][EMS] == (12, 700)
    w.run(10)
    assert w.devices[sn][EMS] == (4, 500)


def test_r27_a_device_that_cannot_be_read_stays_applied() -> None:
    w = World(policy=VERIFY)
    w.fleet(1, default={EMS: AUTO})
    w.fate = lambda sent: ResultCode.UNSUPPORTED if sent.query else ResultCode.SUCCESS
    w.event("a", end=100)
    w.run(20)
    assert w.counts("a").states[State.APPLIED] == 1
    assert len([s for s in w.sent if s.query]) == 1, "asked once"


def test_r27_the_read_back_of_an_older_setpoint_proves_nothing() -> None:
    w = World(policy=VERIFY)
    w.fleet(1)
    w.event("a", Kind.CHARGE, 1000, end=100)
    w.run(2)
    w.event("b", Kind.CHARGE, 2000, priority=1, end=100)
    w.book.step([], w.now)
    assert w.counts("b").states[State.VERIFIED] == 0
    w.run(4)
    assert w.counts("b").states[State.VERIFIED] == 1


def test_r27_a_limit_that_was_sent_again_for_drift_takes_all_its_events_along() -> None:
    w = World(policy=VERIFY)
    (sn,) = w.fleet(1)

    def owner(sent: Sent) -> ResultCode:
        if sent.query and w.sets(sn):
            w.devices[sn][EXPORT] = (1, 9000)
        return ResultCode.SUCCESS

    w.fate = owner
    w.event("a", Kind.EXPORT_LIMIT, 1000, end=30)
    w.event("b", Kind.EXPORT_LIMIT, 2000, end=30)
    w.run(10)
    for name in ("a", "b"):
        assert w.counts(name).reasons == {"rejected.opted_out": 1}
    assert w.devices[sn][EXPORT] == (1, 9000) != NO_LIMIT
    reasons = [int(m.parts[0].members["reason"][0]) for m in w.book.memberships.values()]
    assert reasons == [Reason.OPTED_OUT] * 2


def test_r40_a_read_back_that_nobody_waits_for_any_more_is_in_flight_until_it_is_answered() -> None:
    w = World(policy=VERIFY)
    w.fleet(1, default={1: AUTO})
    w.fate = lambda sent: None if sent.query else ResultCode.SUCCESS  # no query is answered
    w.event("a", end=60)
    w.run(1)
    assert [s.query for s in w.sent] == [False, True] and w.book.in_flight(w.now)[0] == 1
    asked = w.sent[-1]
    w.cancel("a")
    w.reconcile()
    assert w.book.in_flight(w.now)[0] == 1, "the read-back of what is over"
    (release,) = w.publish()
    assert not release.query
    w.answer([(asked, ResultCode.SUCCESS, AUTO)])
    assert w.book.in_flight(w.now)[0] == 0 and w.counts("a").release_confirmed == 0, (
        "it proves nothing about the release"
    )
    w.fate = lambda sent: ResultCode.SUCCESS
    w.run(5)
    assert w.counts("a").release_confirmed == 1 and w.at_default()
