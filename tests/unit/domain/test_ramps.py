"""Starts and releases that are staggered (R14), with everything that can happen meanwhile (R13, R15, R28)."""

from __future__ import annotations

from collections import Counter

from vpp_dispatch.domain.account import State
from vpp_dispatch.domain.command import ResultCode
from vpp_dispatch.domain.signal import Actuator, Kind, Targets

from .world import AUTO, Sent, World

EMS = Actuator.EMS


def started(sent: list[Sent], pair: tuple[int, int], since: float) -> dict[str, float]:
    """When each device was first told a pair, in seconds from `since`."""
    return {s.sn: s.at - since for s in reversed(sent) if not s.query and s.pair == pair}


def test_r14_devices_start_and_are_released_one_after_the_other_over_their_ramps() -> None:
    w = World()
    sns = w.fleet(60)
    w.event("a", end=60, ramp_up_s=20, ramp_down_s=30)
    begun = w.now
    w.run(110)
    up = started(w.sent, (11, 3000), begun)
    down = started(w.sent, AUTO, begun + 60)
    assert sorted(up) == sorted(down) == sorted(sns)
    assert 0 <= min(up.values()) < 3 and 15 < max(up.values()) <= 20.5
    assert 0 <= min(down.values()) < 3 and 25 < max(down.values()) <= 30.5
    assert max(Counter(int(at) for at in up.values()).values()) < 12, "never all at once"
    assert w.at_default() and w.counts("a").release_confirmed == 60 and w.counts("a").settled


def test_r14_a_restart_never_redraws() -> None:
    def drawn(crash: bool) -> dict[str, float]:
        w = World()
        w.fleet(20)
        w.event("a", ramp_up_s=30)
        begun = w.now
        w.run(12)
        if crash:
            w.crash()
        w.run(30)
        return started(w.sent, (11, 3000), begun)

    assert drawn(crash=False) == drawn(crash=True)


def test_r14_another_event_draws_other_places() -> None:
    w = World()
    w.fleet(20)
    begun = w.now
    w.event("a", end=30, ramp_up_s=25)
    w.event("b", Kind.EXPORT_LIMIT, 500, end=30, ramp_up_s=25)
    w.run(28)
    first, second = started(w.sent, (11, 3000), begun), started(w.sent, (1, 500), begun)
    assert sum(first[sn] != second[sn] for sn in first) > 10


def test_r14_while_it_waits_for_its_turn_a_device_is_pending_and_untouched() -> None:
    w = World()
    w.fleet(40)
    w.event("a", end=100, ramp_up_s=50)
    w.run(10)
    states = w.counts("a").states
    assert states[State.PENDING] > 20 and states[State.APPLIED] > 2
    assert states[State.PENDING] + states[State.APPLIED] == 40


def test_r15_a_cancellation_releases_over_the_event_s_ramp_or_over_its_own() -> None:
    for own, longest in ((None, 20), (5, 5), (0, 0)):
        w = World()
        w.fleet(40)
        w.event("a", end=1000, ramp_down_s=20)
        w.run(5)
        w.cancel("a", ramp_down_s=own)
        cancelled = w.now
        w.run(40)
        at = started(w.sent, AUTO, cancelled)
        assert len(at) == 40 and longest - 3 <= max(at.values()) <= longest + 0.5
        assert w.at_default()


def test_r15_who_has_not_started_when_it_is_cancelled_never_starts() -> None:
    w = World()
    w.fleet(40)
    w.event("a", end=1000, ramp_up_s=60)
    w.run(10)
    w.cancel("a")
    w.run(80)
    told = {s.sn for s in w.sets() if s.pair == (11, 3000)}
    assert 0 < len(told) < 20 and w.at_default()
    assert w.counts("a").states[State.UNUSED] == 40 - len(told)


def test_r28_while_it_waits_for_its_release_a_device_is_told_nothing_of_the_event() -> None:
    w = World()
    w.fleet(30)
    w.event("a", end=10, ramp_down_s=40)
    w.run(10)
    sent = w.run(50)
    assert all(s.pair == AUTO for s in sent if not s.query)


def test_what_was_never_answered_is_not_held_over_the_ramp() -> None:
    w = World()
    w.fleet(10)
    w.fate = lambda sent: None if not sent.query and sent.pair != AUTO else ResultCode.SUCCESS
    w.event("a", end=4, ramp_down_s=60)
    w.run(4.5)
    held = w.book.held(EMS, w.now)
    assert held.held == 10, "published is told, answered or not"
    assert held.past_window == 0, "they wait for their turn, nobody has to act"


def test_r13_a_weaker_event_takes_over_at_each_device_s_turn() -> None:
    w = World()
    w.fleet(40)
    w.event("strong", Kind.CHARGE, 3000, priority=1, end=10, ramp_down_s=20)
    w.event("weak", Kind.DISCHARGE, 1000, priority=200, end=100)
    w.run(10)
    begun = w.now
    sent = w.run(30)
    at = started(sent, (12, 1000), begun)
    assert len(at) == 40 and max(at.values()) > 15 and min(at.values()) < 3
    assert not [s for s in sent if not s.query and s.pair == AUTO], "no bounce through the default"


def test_r14_a_superseded_event_holds_until_its_successor_has_really_started() -> None:
    w = World()
    w.fleet(40)
    w.event("first", Kind.CHARGE, 3000, end=10)
    w.event("second", Kind.DISCHARGE, 1000, start=10, end=100, ramp_up_s=30)
    w.run(10)
    begun = w.now
    sent = w.run(40)
    assert not [s for s in sent if not s.query and s.pair == AUTO], "back-to-back events do not bounce"
    at = started(sent, (12, 1000), begun)
    assert len(at) == 40 and max(at.values()) > 20
    w.run(80)
    assert w.at_default() and w.counts("first").release_due == 0


def test_r14_a_stronger_event_takes_over_while_a_device_waits_for_its_release() -> None:
    w = World()
    w.fleet(30)
    w.event("first", Kind.CHARGE, 3000, priority=1, end=5, ramp_down_s=60)
    w.run(8)
    w.event("second", Kind.DISCHARGE, 1000, priority=0, end=20)
    w.run(5)
    assert all(d[EMS] == (12, 1000) for d in w.devices.values())
    w.run(90)
    assert w.at_default() and w.counts("second").release_confirmed == 30


def test_r02_a_new_revision_with_a_ramp_takes_over_device_by_device() -> None:
    w = World()
    w.fleet(40)
    w.event("a", Kind.CHARGE, 3000, end=100)
    w.run(5)
    begun = w.now
    w.event("a", Kind.CHARGE, 1500, end=100, revision=2, ramp_up_s=30)
    sent = w.run(40)
    assert not [s for s in sent if not s.query and s.pair == AUTO]
    at = started(sent, (11, 1500), begun)
    assert len(at) == 40 and max(at.values()) > 20 and min(at.values()) < 4
    assert ("grid/a", 1) not in w.book.memberships


def test_r02_a_cancelled_revision_takes_the_older_one_with_it() -> None:
    w = World()
    w.fleet(20)
    w.event("a", Kind.CHARGE, 3000, end=1000)
    w.run(5)
    w.event("a", Kind.CHARGE, 1500, end=1000, revision=2, ramp_up_s=500)
    w.run(5)
    w.cancel("a", 2)
    w.run(10)
    assert w.at_default()


def test_r16_consent_that_goes_while_a_device_waits_for_its_release_is_not_waited_for() -> None:
    w = World()
    sns = w.fleet(20)
    w.event("a", end=5, ramp_down_s=600)
    w.run(6)
    w.consent(sns[:10])
    w.run(5)
    assert all(w.devices[sn][EMS] == AUTO for sn in sns[10:])
    assert any(w.devices[sn][EMS] != AUTO for sn in sns[:10])


def test_r36_an_abort_waits_for_no_ramp_and_rejects_who_held() -> None:
    w = World()
    w.fleet(20)
    w.event("a", end=1000, ramp_up_s=10, ramp_down_s=600)
    w.run(5)
    holding = w.counts("a").states[State.APPLIED]
    w.cancel("a", ramp_down_s=0, aborted=True)
    w.run(5)
    counts = w.counts("a")
    assert w.at_default() and counts.settled
    assert counts.reasons == {"rejected.released": holding} and counts.states[State.UNUSED] == 20 - holding


def test_r36_an_abort_reaches_who_waits_for_the_successor_of_a_revision() -> None:
    w = World()
    w.fleet(20)
    w.event("a", Kind.CHARGE, 3000, end=1000)
    w.run(5)
    w.event("a", Kind.CHARGE, 1500, end=1000, revision=2, ramp_up_s=500)
    w.run(5)
    w.cancel("a", 2, ramp_down_s=0, aborted=True)
    w.run(5)
    assert w.at_default()


def test_r14_only_the_targeted_wait_and_the_others_of_an_older_revision_are_released() -> None:
    w = World()
    sns = w.fleet(20)
    w.event("a", Kind.CHARGE, 3000, end=1000)
    w.run(5)
    w.event("a", Kind.CHARGE, 1500, end=1000, revision=2, ramp_up_s=500, targets=Targets(devices=tuple(sns[:10])))
    w.run(5)
    assert all(w.devices[sn][EMS] == AUTO for sn in sns[10:])
    assert all(w.devices[sn][EMS] != AUTO for sn in sns[:10])
