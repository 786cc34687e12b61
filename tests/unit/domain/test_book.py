"""The book of a shard, by rule."""

from __future__ import annotations

import numpy as np

from vpp_dispatch.dispatch import pages
from vpp_dispatch.domain.account import State
from vpp_dispatch.domain.book import Book
from vpp_dispatch.domain.command import ResultCode, Results
from vpp_dispatch.domain.device import Record
from vpp_dispatch.domain.inputs import Cancel, Consent, RegistryChange
from vpp_dispatch.domain.roster import Policy
from vpp_dispatch.domain.signal import Actuator, Kind, Targets

from .world import AUTO, NO_LIMIT, SHARD, Catalogue, Sent, World, digests_of


def states(world: World, name: str) -> dict[State, int]:
    counts = world.counts(name)
    return {state: n for state, n in zip(State, counts.states, strict=True) if n}


def test_an_event_sets_and_releases_every_device() -> None:
    w = World()
    w.fleet(5)
    w.event("a", Kind.CHARGE, 3000, start=1, end=10)
    w.run(5)
    assert {d[Actuator.EMS] for d in w.devices.values()} == {(11, 3000)}
    assert states(w, "a") == {State.APPLIED: 5}
    w.run(10)
    assert w.at_default()
    counts = w.counts("a")
    assert (counts.release_due, counts.release_confirmed, counts.settled) == (5, 5, True)


def test_r37_the_default_is_read_before_the_first_write_and_saved_before_it() -> None:
    w = World()
    w.fleet(1)
    w.event("a", start=0, end=30)
    w.reconcile()
    first = w.publish()
    assert [s.query for s in first] == [True]
    w.reconcile()
    assert w.publish() == [], "the setpoint waits until the arming is saved"
    w.save()
    assert [s.pair for s in w.publish()] == [(11, 3000)]


def test_r12_the_tightest_limit_holds_and_never_loosens_the_default() -> None:
    w = World()
    w.fleet(2, default={2: (1, 5000)})
    w.event("loose", Kind.EXPORT_LIMIT, 9000, end=40)
    w.run(3)
    assert {s.pair for s in w.sets()} == {(1, 5000)}
    w.event("tight", Kind.EXPORT_LIMIT, 1500, end=20, priority=200)
    w.run(3)
    assert w.sets()[-1].pair == (1, 1500)
    assert states(w, "loose") == {State.APPLIED: 2}, "a looser limit under a tighter one takes the setpoint's state"


def test_r10_r13_the_strongest_target_wins_and_the_weaker_resumes() -> None:
    w = World()
    w.fleet(1)
    w.event("weak", Kind.CHARGE, 2000, end=60, priority=200)
    w.run(3)
    w.event("strong", Kind.DISCHARGE, 4000, end=10, priority=10)
    w.run(3)
    assert w.sets()[-1].pair == (12, 4000)
    w.cancel("strong")
    w.run(3)
    assert w.sets()[-1].pair == (11, 2000)
    assert w.counts("strong").release_due == 0, "the release is owed by whoever held last"
    assert AUTO not in [s.pair for s in w.sets()], "no bounce through the default"


def test_r10_a_tie_goes_to_the_later_created_then_to_the_larger_id() -> None:
    w = World()
    w.fleet(1)
    w.event("a", Kind.CHARGE, 1000, created=1.0)
    w.event("b", Kind.CHARGE, 2000, created=2.0)
    w.event("c", Kind.CHARGE, 3000, created=2.0)
    w.run(2)
    assert w.sets()[-1].pair == (11, 3000)


def test_r13_back_to_back_events_do_not_bounce_through_the_default() -> None:
    w = World()
    w.fleet(3)
    w.event("first", Kind.CHARGE, 1000, end=5)
    w.event("second", Kind.CHARGE, 2000, start=5, end=20)
    w.run(12)
    assert [s.pair for s in w.sets()] == [(11, 1000)] * 3 + [(11, 2000)] * 3


def test_superseded_from_start_to_end_is_skipped() -> None:
    w = World()
    w.fleet(2)
    w.event("strong", Kind.DISCHARGE, 4000, end=30, priority=10)
    w.event("weak", Kind.CHARGE, 2000, end=10, priority=200)
    w.run(15)
    counts = w.counts("weak")
    assert counts.reasons == {"skipped.superseded": 2}
    assert (counts.held_at_end, counts.won_at_end) == (2, 0)


def test_r16_without_consent_or_registry_nothing_is_sent() -> None:
    w = World()
    sns = w.fleet(3, consent=False)
    w.consent(sns[:1])
    w.put(RegistryChange(partition=0, changes=((50, sns[0], None),)))
    w.event("a", targets=Targets(devices=(*sns, "0000000000000000")))
    w.run(5)
    assert w.sent == []
    assert w.counts("a").reasons == {
        "skipped.not_registered": 1,
        "skipped.consent_missing": 2,
        "skipped.unknown_target": 1,
    }


def test_r16_consent_withdrawn_in_mid_event_is_released_and_left_alone() -> None:
    w = World()
    sns = w.fleet(2)
    w.event("a", end=60)
    w.run(3)
    w.consent(sns[1:])
    w.run(5)
    assert w.devices[sns[0]][Actuator.EMS] == AUTO
    assert w.counts("a").reasons == {"rejected.consent_withdrawn": 1}
    before = len(w.sets(sns[0]))
    w.consent(sns)
    w.run(20)
    assert len(w.sets(sns[0])) == before, "it is left alone for the rest of the event"


def test_r16_a_removed_device_is_released_first() -> None:
    w = World()
    sns = w.fleet(1)
    w.event("a", end=60)
    w.run(3)
    w.put(RegistryChange(partition=0, changes=((99, sns[0], None),)))
    w.run(3)
    assert w.at_default()
    assert w.counts("a").reasons == {"rejected.removed": 1}


def test_r16_stale_consent_starts_nothing_new_and_ends_nothing() -> None:
    w = World(policy=Policy(result_timeout_s=3, retry_backoff_s=1, release_retry_s=2, consent_max_age_s=10))
    w.fleet(1)
    w.event("runs", end=100)
    w.run(12)
    w.event("new", Kind.EXPORT_LIMIT, 1000, end=50)
    w.run(3)
    assert states(w, "runs") == {State.APPLIED: 1}
    assert w.counts("new").reasons == {"skipped.consent_stale": 1}


def test_r17_what_a_device_cannot_do_is_skipped() -> None:
    w = World()
    w.fleet(1, series="DTU")
    w.fleet(1)
    w.event("pv", Kind.CHARGE, 1000)
    w.event("more", Kind.DISCHARGE, 20_000, priority=1)
    w.run(3)
    assert w.counts("pv").reasons == {"skipped.capability": 1}
    assert w.counts("more").reasons == {"skipped.capability": 2}


def test_r18_an_offline_device_is_taken_in_when_it_returns() -> None:
    w = World()
    sns = w.fleet(1)
    w.online(sns[0], False)
    w.event("a", end=60)
    w.run(5)
    assert w.sets() == [] and w.counts("a").reasons == {"skipped.offline": 1}
    w.online(sns[0], True)
    w.run(3)
    assert states(w, "a") == {State.APPLIED: 1}


def test_r25_a_lost_result_is_unconfirmed_then_tried_again() -> None:
    w = World()
    w.fleet(1)
    w.fate = lambda s: ResultCode.SUCCESS if s.query or s.attempt > 1 else None
    w.event("a", end=60)
    w.run(3.5)
    assert states(w, "a") == {State.UNCONFIRMED: 1}
    w.run(4)
    assert states(w, "a") == {State.APPLIED: 1}
    assert [s.attempt for s in w.sets()] == [1, 2]
    assert w.counts("a").retried == 1


def test_r25_a_refusal_is_not_retried() -> None:
    w = World()
    w.fleet(1)
    w.fate = lambda s: ResultCode.SUCCESS if s.query else ResultCode.VALUE
    w.event("a", end=20)
    w.run(30)
    assert len(w.sets()) == 1, "neither the setpoint again, nor a release of what was never executed"
    assert w.counts("a").reasons == {"rejected.value": 1}


def test_r25_busy_is_tried_again() -> None:
    w = World()
    w.fleet(1)
    w.fate = lambda s: ResultCode.BUSY if not s.query and s.attempt == 1 else ResultCode.SUCCESS
    w.event("a", end=20)
    w.run(8)
    assert states(w, "a") == {State.APPLIED: 1}


def test_r27_a_release_whose_results_are_lost_is_confirmed_by_two_agreeing_queries() -> None:
    w = World()
    w.fleet(1)

    def fate(s: Sent) -> ResultCode | None:
        return None if not s.query and s.pair == AUTO else ResultCode.SUCCESS

    w.fate = fate
    w.event("a", end=5)
    w.run(25)
    assert w.counts("a").release_confirmed == 1
    releases = [s for s in w.sets() if s.pair == AUTO]
    backs = [s for s in w.sent if s.query and s.at > 1005]
    assert len(releases) == 2 and len(backs) == 2
    assert all(b.at - releases[-1].at >= 3.0 for b in backs), "each at least the result timeout after the publish"


def test_r27_a_read_back_waits_for_the_release_s_result() -> None:
    w = World()
    w.fleet(1)
    held: list[Sent] = []

    def fate(s: Sent) -> ResultCode | None:
        if not s.query and s.pair == AUTO and not held:
            held.append(s)
            return None
        return ResultCode.SUCCESS

    w.fate = fate
    w.event("a", end=5)
    w.run(6)
    assert held and not [s for s in w.sent if s.query and s.at > 1005]
    w.answer([(held[0], ResultCode.SUCCESS, (0, 0))])
    w.run(1)
    assert w.counts("a").release_confirmed == 1


def test_r19_a_release_is_owed_until_the_device_is_back() -> None:
    w = World()
    sns = w.fleet(1)
    away = False
    w.fate = lambda s: ResultCode.OFFLINE if away else ResultCode.SUCCESS
    w.event("a", end=5)
    w.run(3)
    away = True
    w.run(60)
    assert w.counts("a").release_confirmed == 0 and w.book.owes_release()
    away = False
    w.online(sns[0], True)
    w.run(1)
    assert w.counts("a").release_confirmed == 1 and w.at_default()


def test_r27_the_owner_s_own_choice_is_respected_after_one_more_try() -> None:
    w = World()
    sns = w.fleet(1)
    w.event("a", end=5)
    w.run(4)

    def fate(s: Sent) -> ResultCode:
        if s.query:
            w.devices[sns[0]][Actuator.EMS] = (6, 0)
        return ResultCode.SUCCESS

    w.fate = fate
    w.run(10)
    counts = w.counts("a")
    assert (counts.release_due, counts.release_refused) == (1, 1)
    assert [s.pair for s in w.sets()].count(AUTO) == 2


def test_r28_no_setpoint_after_the_end_of_its_window() -> None:
    w = World()
    w.fleet(3)
    w.event("a", end=5)
    w.reconcile()
    w.publish()
    w.reconcile()
    w.save()
    w.now += 5.5  # an outage across the end
    w.run(5)
    assert all(s.pair == AUTO for s in w.sets()), "only releases"
    assert w.at_default()


def test_a_crash_after_publish_and_before_the_checkpoint_leaves_nothing_set() -> None:
    w = World()
    w.fleet(4)
    w.event("a", end=5)
    w.reconcile()
    w.publish()
    w.reconcile()
    w.save()
    before = w.publish()
    assert [s.pair for s in before] == [(11, 3000)] * 4
    w.now += 6
    w.crash()
    first = w.publish()
    assert {s.pair for s in first} == {AUTO}, "the first thing it sends is releases"
    w.run(5)
    assert w.at_default() and w.counts("a").release_confirmed == 4


def test_r23_a_replay_makes_the_same_id() -> None:
    w = World()
    w.fleet(2)
    w.event("a", end=50)
    w.reconcile()
    w.publish()
    w.reconcile()
    w.save()
    before = w.publish()
    w.crash()
    assert w.publish() == [], "nothing is set again before it is saved under the new epoch"
    w.save()
    again = w.publish()
    assert [s.id for s in again] == [s.id for s in before]


def test_r22_an_older_result_after_the_newer_one_asserts_the_newest_again() -> None:
    w = World()
    w.fleet(1)
    lost: list[Sent] = []

    def fate(s: Sent) -> ResultCode | None:
        if not s.query and s.pair == (11, 3000) and not lost:
            lost.append(s)
            return None
        return ResultCode.SUCCESS

    w.fate = fate
    w.event("a", end=60, priority=200)
    w.run(1)
    w.event("b", Kind.DISCHARGE, 1000, end=60, priority=1)
    w.run(1)
    sets = len(w.sets())
    w.answer([(lost[0], ResultCode.SUCCESS, (0, 0))])
    w.run(1)
    assert [s.pair for s in w.sets()[sets:]] == [(12, 1000)]
    assert w.counts("a").states[State.APPLIED] == 1, "what is known of the first one is corrected"


def test_r26_a_result_from_the_future_is_answered_with_a_higher_generation() -> None:
    w = World()
    w.fleet(1)
    w.event("a", end=60)
    w.run(2)
    last = w.sets()[-1]
    ahead = Sent(**{**{f: getattr(last, f) for f in last.__slots__}})
    import numpy as np

    from vpp_dispatch.domain import correlation

    ahead.id = correlation.pack(
        shard=np.array([5], np.uint8),
        row=np.array([0], np.uint32),
        actuator=np.array([1], np.uint8),
        generation=np.array([9], np.uint32),
        attempt=np.array([1], np.uint8),
        digests=[1],
    )[0].tobytes()
    w.answer([(ahead, ResultCode.SUCCESS, (0, 0))])
    w.run(1)
    assert w.sets()[-1].generation == 10 and w.sets()[-1].pair == (11, 3000)


def test_r06_a_test_is_judged_and_sends_nothing() -> None:
    w = World()
    sns = w.fleet(3, default={1: AUTO})
    w.consent(sns[:2])
    w.event("t", test=True)
    counts = w.counts("t")
    assert counts.states[State.UNUSED] == 2 and counts.reasons == {"skipped.consent_missing": 1} and counts.settled
    w.run(10)
    assert w.sent == []


def test_r15_a_cancelled_event_that_had_not_started_sends_nothing() -> None:
    w = World()
    w.fleet(2, default={1: AUTO})
    w.event("a", start=10, end=20)
    w.run(2)
    w.cancel("a")
    w.run(30)
    assert w.sets() == []
    assert w.counts("a").settled


def test_r02_a_new_revision_takes_over_without_a_bounce() -> None:
    w = World()
    w.fleet(2)
    w.event("a", Kind.CHARGE, 1000, end=30)
    w.run(3)
    w.event("a", Kind.CHARGE, 2000, end=30, revision=2)
    w.run(3)
    assert [s.pair for s in w.sets()] == [(11, 1000)] * 2 + [(11, 2000)] * 2
    w.event("a", Kind.CHARGE, 1000, end=30, revision=1)
    w.run(3)
    assert len(w.sets()) == 4, "an older revision changes nothing"


def test_r21_in_sync_sends_nothing() -> None:
    w = World()
    w.fleet(3)
    w.event("a", Kind.CHARGE, 1000, end=30, priority=200)
    w.run(3)
    w.event("b", Kind.CHARGE, 1000, end=20, priority=1)
    w.run(3)
    assert len(w.sets()) == 3
    assert states(w, "b") == {State.APPLIED: 3}


def test_r24_outcomes_are_told_once_and_corrected_only_after_the_close() -> None:
    w = World()
    w.fleet(2)
    w.event("a", end=5)
    w.run(12)
    m = w.book.memberships["grid/a", 1]
    for telling in m.tellings():
        m.tell(telling, 1)
    assert m.tellings() == []
    w.close("a")
    final = m.tellings()
    assert [t.code.tolist() for t in final] == [[3, 3]]
    for telling in final:
        m.tell(telling, 2)
    assert m.counts().closed


def test_a_device_registered_later_is_a_stranger_of_a_running_event() -> None:
    w = World()
    w.fleet(1)
    w.event("a", targets=Targets(all=True), end=30)
    w.run(2)
    w.put(RegistryChange(partition=0, changes=((90, "9010KETU000W7777", Record(sn="9010KETU000W7777")),)))
    w.run(2)
    assert w.counts("a").targeted == 1


def test_the_default_is_restored_as_it_was_read() -> None:
    w = World()
    sns = w.fleet(1)
    w.devices[sns[0]][Actuator.EXPORT] = (1, 4200)
    w.event("a", Kind.EXPORT_LIMIT, 1000, end=5)
    w.run(12)
    assert w.devices[sns[0]][Actuator.EXPORT] == (1, 4200) != NO_LIMIT


def test_r34_the_publish_latency_counts_from_when_the_setpoint_was_desired() -> None:
    w = World()
    sns = w.fleet(2, default={1: AUTO})
    w.online(sns[0], False)
    w.event("a", end=60)
    w.run(20)
    w.online(sns[0], True)
    w.run(3)
    latency = w.counts("a").publish_latency
    assert sum(latency.counts) == 2 and latency.max_s <= 1.0, "the one that came late counts from its return"


def test_r37_a_default_that_was_read_long_ago_is_read_again_before_the_next_event() -> None:
    w = World(policy=Policy(result_timeout_s=3.0, retry_backoff_s=1.0, release_retry_s=2.0, default_max_age_s=100.0))
    sns = w.fleet(1)
    w.devices[sns[0]][Actuator.EXPORT] = (1, 5000)
    w.event("first", Kind.EXPORT_LIMIT, 1000, end=5)
    w.run(12)
    w.devices[sns[0]][Actuator.EXPORT] = (1, 3000)  # the owner's new agreement
    w.now += 200
    w.consent(sns)
    w.event("second", Kind.EXPORT_LIMIT, 4000, start=5, end=15)
    w.run(25)
    assert w.devices[sns[0]][Actuator.EXPORT] == (1, 3000)
    assert all(s.pair[1] <= 3000 for s in w.sets() if s.at > 1100), "an event never loosens a connection agreement"


def test_r24_an_accepted_command_is_waited_for_before_the_event_settles() -> None:
    w = World()
    w.fleet(1)
    last: list[Sent] = []

    def fate(s: Sent) -> ResultCode | None:
        if not s.query and s.pair != AUTO:
            last.append(s)
            return None
        return ResultCode.SUCCESS

    w.fate = fate
    w.event("a", end=2)
    w.run(1)
    w.answer([(last[0], ResultCode.SUCCESS, (0, 0))], accepted=True)
    w.run(2)
    assert w.counts("a").release_confirmed == 1 and not w.counts("a").settled
    w.answer([(last[0], ResultCode.SUCCESS, (0, 0))])
    w.run(1)
    assert w.counts("a").settled and states(w, "a") == {State.APPLIED: 1}


def test_r35_a_window_that_the_service_missed_is_pending_not_unused() -> None:
    w = World()
    w.fleet(1)
    w.event("a", start=5, end=10)
    w.save()
    w.now += 30
    w.crash()
    w.run(2)
    assert states(w, "a") == {State.PENDING: 1} and w.sets() == []


def test_r16_a_reading_that_a_fast_clock_stamped_ahead_keeps_no_later_one_out() -> None:
    w = World()
    sns = w.fleet(1)
    w.event("a", end=60)
    w.run(3)
    w.put(Consent(at=w.now + 3600, authorized=((sns[0], None),)))
    w.now += 1
    w.consent([])
    w.run(3)
    assert w.at_default() and w.counts("a").reasons == {"rejected.consent_withdrawn": 1}


def test_a_device_that_stands_in_forced_islanding_has_no_default_to_return_to() -> None:
    w = World()
    sns = w.fleet(1)
    w.devices[sns[0]][Actuator.EMS] = (7, 0)
    w.event("a", end=10)
    w.run(15)
    assert w.sets() == [] and w.counts("a").reasons == {"skipped.default_unknown": 1}


def test_a_result_proves_a_publish_that_no_checkpoint_recorded() -> None:
    w = World()
    w.fleet(2)
    w.event("a", end=5)
    w.reconcile()
    w.publish()
    w.reconcile()
    w.save()
    sent = w.publish()  # answered and perhaps told at once; then the worker dies before its checkpoint
    w.reconcile()
    assert states(w, "a") == {State.APPLIED: 2}
    w.crash()
    w.answer([(one, ResultCode.SUCCESS, (0, 0)) for one in sent])
    w.reconcile()
    assert states(w, "a") == {State.APPLIED: 2}, "what was told is not taken back"
    w.save()
    assert w.publish() == []
    w.run(10)
    assert states(w, "a") == {State.APPLIED: 2} and w.at_default()


def test_a_result_of_other_content_proves_nothing() -> None:
    w = World()
    w.fleet(1)
    w.event("a", end=60)
    w.reconcile()
    w.publish()
    w.reconcile()
    w.save()
    sent = w.publish()
    w.crash()
    foreign = Sent(**{f: getattr(sent[0], f) for f in sent[0].__slots__})
    foreign.id = sent[0].id[:10] + bytes(6)
    w.answer([(foreign, ResultCode.SUCCESS, (0, 0))])
    w.save()
    assert [s.pair for s in w.publish()] == [(11, 3000)]


def test_r26_what_was_applied_stays_applied_when_only_the_release_was_never_recorded() -> None:
    w = World()
    w.fleet(2)
    w.event("a", end=60)
    w.reconcile()
    w.publish()
    w.reconcile()
    w.save()
    sets = w.publish()  # answered, told; no checkpoint since
    offset = w.offset
    w.cancel("a")
    releases = w.publish()
    assert [s.pair for s in releases] == [AUTO, AUTO]
    names = pages.newest(w.rows, [SHARD])[SHARD]
    w.book = Book(shard=SHARD, epoch=2, catalogue=Catalogue(), policy=w.policy, digests=digests_of)
    w.kept = pages.load(w.book, names, w.rows, w.now)
    # The next owner reads the inbox up before it decides anything: results, the cancellation, results of the releases.
    for messages in (
        [results_of(sets, w.now)],
        [Cancel(event="grid/a", revision=1, at=w.now)],
        [results_of(releases, w.now)],
    ):
        w.book.step([(offset, message) for message in messages], w.now, reconcile=False)
    w.reconcile()
    w.offset = offset + 3
    w.run(10)
    counts = w.counts("a")
    assert states(w, "a") == {State.APPLIED: 2} and (counts.release_due, counts.release_confirmed) == (2, 2)
    assert w.at_default()


def results_of(sent: list[Sent], now: float) -> Results:
    n = len(sent)
    return Results(
        ids=np.frombuffer(b"".join(s.id for s in sent), np.uint8).reshape(n, 16),
        code=np.zeros(n, np.uint8),
        accepted=np.zeros(n, bool),
        first=np.zeros(n, np.int32),
        second=np.zeros(n, np.int32),
        at=np.full(n, now),
    )
