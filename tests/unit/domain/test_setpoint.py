"""Commands and results of one book, by rule: what is retried, what counts, what is owed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from vpp_dispatch.domain import correlation
from vpp_dispatch.domain.account import State
from vpp_dispatch.domain.command import NO_VALUE, Commands, ResultCode, Results
from vpp_dispatch.domain.roster import Policy
from vpp_dispatch.domain.signal import Actuator, Kind

from .world import AUTO, NO_LIMIT, SHARD, Sent, World

OK = ResultCode.SUCCESS


def states(world: World, name: str = "a") -> dict[State, int]:
    return {state: n for state, n in zip(State, world.counts(name).states, strict=True) if n}


def once(code: ResultCode, *, pair: tuple[int, int] = (11, 3000)) -> tuple[list[Sent], object]:
    """A fate: the first command with this pair gets the code, everything else succeeds."""
    seen: list[Sent] = []

    def fate(sent: Sent) -> ResultCode | None:
        if not sent.query and sent.pair == pair and not seen:
            seen.append(sent)
            return code
        return OK

    return seen, fate


def withhold(world: World, pair: tuple[int, int], count: int = 1) -> list[Sent]:
    """Executes, and keeps back the results of, the first `count` commands with this pair."""
    held: list[Sent] = []

    def fate(sent: Sent) -> ResultCode | None:
        if not sent.query and sent.pair == pair and len(held) < count:
            held.append(sent)
            return None
        return OK

    world.fate = fate
    return held


def answer(world: World, sent: Sequence[Sent], code: ResultCode = OK, *, accepted: bool = False) -> None:
    world.answer([(one, code, (NO_VALUE, NO_VALUE)) for one in sent], accepted=accepted)


def test_r25_an_unknown_code_is_retried_once() -> None:
    w = World()
    w.fleet(1)
    w.fate = lambda s: OK if s.query or s.pair == AUTO else ResultCode.UNKNOWN_CODE
    w.event("a", end=40)
    w.run(30)
    assert [s.attempt for s in w.sets()] == [1, 2]
    assert w.counts("a").reasons == {"rejected.unknown_code": 1}


def test_r25_busy_backs_off_twice_as_long_each_time() -> None:
    w = World(policy=Policy(result_timeout_s=3, retry_backoff_s=4, release_retry_s=2))
    w.fleet(1)
    w.fate = lambda s: OK if s.query or s.pair == AUTO else ResultCode.BUSY
    w.event("a", end=80)
    w.run(60)
    at = [s.at for s in w.sets()]
    for i, gap in enumerate(b - a for a, b in pairwise(at)):
        assert 4 * 2**i * 0.75 - 0.3 <= gap <= 4 * 2**i * 1.25 + 0.3, (i, gap)


def test_r25_a_device_that_was_busy_to_the_end_is_rejected_and_not_unanswered() -> None:
    w = World()
    w.fleet(1)
    w.fate = lambda s: OK if s.query or s.pair == AUTO else ResultCode.BUSY
    w.event("a", end=5)
    w.run(15)
    assert w.counts("a").reasons == {"rejected.busy": 1}
    assert w.counts("a").settled


def test_r25_a_device_that_was_busy_until_it_was_superseded_is_rejected() -> None:
    w = World()
    w.fleet(1)
    w.fate = lambda s: ResultCode.BUSY if s.pair == (11, 3000) else OK
    w.event("a", end=30, priority=200)
    w.run(1)
    w.event("strong", Kind.DISCHARGE, 1000, end=30, priority=1)
    w.run(10)
    assert w.counts("a").reasons == {"rejected.busy": 1}


def test_r25_another_event_that_wants_what_was_refused_asks_for_itself() -> None:
    w = World()
    w.fleet(1)
    _, w.fate = once(ResultCode.FAILED)  # type: ignore[assignment]
    w.event("a", end=20, priority=200)
    w.run(3)
    w.event("b", end=20, priority=1)
    w.run(3)
    assert states(w, "b") == {State.APPLIED: 1}


def test_r26_a_partial_result_is_a_rejection_and_the_device_is_released() -> None:
    w = World()
    w.fleet(1)
    _, w.fate = once(ResultCode.PARTIAL)  # type: ignore[assignment]
    w.event("a", end=5)
    w.run(12)
    counts = w.counts("a")
    assert counts.reasons == {"rejected.partial": 1}
    assert (counts.release_due, counts.release_confirmed) == (1, 1), "part of it may stand on the device"


def test_r26_a_result_that_comes_twice_in_one_message_counts_once() -> None:
    w = World()
    w.fleet(1)
    held = withhold(w, (11, 3000))
    w.event("a", end=60)
    w.run(1)
    answer(w, [held[0], held[0]])
    counts = w.counts("a")
    assert sum(counts.result_latency.counts) == 1 and counts.duplicate_results == 1


def test_r26_a_refusal_that_comes_twice_in_one_message_counts_once() -> None:
    w = World()
    w.fleet(1)
    held = withhold(w, (11, 3000))
    w.event("a", end=60)
    w.run(1)
    answer(w, [held[0], held[0]], ResultCode.VALUE)
    counts = w.counts("a")
    assert sum(counts.result_latency.counts) == 1 and counts.duplicate_results == 1
    assert counts.reasons == {"rejected.value": 1}


def test_r26_what_nobody_asked_for_is_an_orphan() -> None:
    w = World()
    sns = w.fleet(1)
    ids = correlation.pack(
        shard=np.array([SHARD, SHARD + 1, SHARD, SHARD], np.uint8),
        row=np.array([500, 0, 0, 0], np.uint32),
        actuator=np.array([1, 1, 5, 1], np.uint8),
        generation=np.array([1, 1, 1, 0], np.uint32),
        attempt=np.ones(4, np.uint8),
        digests=[1, 2, 3, 4],
    )
    nothing = np.full(4, NO_VALUE, np.int32)
    results = Results(
        ids=ids,
        code=np.zeros(4, np.uint8),
        accepted=np.zeros(4, bool),
        first=nothing,
        second=nothing,
        at=np.full(4, w.now),
    )
    effects = w.book.step([(w.offset, results)], w.now)
    assert effects.orphans == [w.offset] and effects.orphan_results == 4
    w.run(3)
    assert w.sets(sns[0]) == [], "and nothing is sent because of it"


def test_r24_a_late_refusal_corrects_the_outcome() -> None:
    w = World()
    w.fleet(1)
    held = withhold(w, (11, 3000))
    w.event("a", end=2)
    w.run(8)
    assert states(w) == {State.UNCONFIRMED: 1}
    answer(w, held, ResultCode.UNSUPPORTED)
    assert w.counts("a").reasons == {"rejected.unsupported": 1}
    assert w.counts("a").late_results == 1


def test_r24_accepted_then_applied_are_both_taken_when_they_are_late() -> None:
    w = World()
    w.fleet(1)
    held = withhold(w, (11, 3000))
    w.event("a", end=2)
    w.run(3)
    answer(w, held, accepted=True)
    assert states(w) == {State.ACCEPTED: 1}
    answer(w, held)
    assert states(w) == {State.APPLIED: 1}
    answer(w, held)
    counts = w.counts("a")
    assert (counts.late_results, counts.duplicate_results) == (1, 1)


def test_r23_an_answer_with_other_content_is_not_the_event_s() -> None:
    w = World()
    w.fleet(1)
    held = withhold(w, (11, 3000))
    w.event("a", end=2)
    w.run(3)
    other = bytearray(held[0].id)
    other[15] ^= 1
    held[0].id = bytes(other)
    answer(w, held)
    assert states(w).get(State.APPLIED, 0) == 0


def test_r25_superseded_and_unanswered_is_unconfirmed_while_the_event_runs() -> None:
    w = World()
    w.fleet(1)
    withhold(w, (11, 3000))
    w.event("a", end=60, priority=200)
    w.run(1)
    w.event("strong", Kind.DISCHARGE, 1000, end=60, priority=1)
    w.run(5)
    assert states(w) == {State.UNCONFIRMED: 1}


def test_r22_a_tie_of_broker_times_is_decided_by_the_order_of_arrival() -> None:
    w = World()
    w.fleet(1)
    held = withhold(w, (11, 3000))
    w.event("a", end=60, priority=200)
    w.run(1)
    w.event("b", Kind.DISCHARGE, 1000, end=60, priority=1)
    before = len(w.sets())
    w.publish()
    answer(w, held)  # in the same millisecond, after the newer one's
    w.run(1)
    assert [s.pair for s in w.sets()[before:]] == [(12, 1000), (12, 1000)]


def test_r22_repeated_answers_of_older_setpoints_never_make_a_loop() -> None:
    w = World()
    w.fleet(1)
    w.event("a", end=3)
    w.run(6)
    w.event("b", Kind.DISCHARGE, 1000, end=100)
    w.run(2)
    assert [s.pair for s in w.sets()] == [(11, 3000), AUTO, (12, 1000)]
    for _ in range(20):  # every result once more, each after its successor's
        for one in w.sets()[:-1]:
            answer(w, [one])
        w.run(0.5)
    assert len(w.sets()) == 3


def test_r22_the_same_late_answer_twice_asserts_the_newest_value_once() -> None:
    w = World()
    w.fleet(1)
    held = withhold(w, (11, 3000))
    w.event("a", end=60, priority=200)
    w.run(1)
    w.event("b", Kind.DISCHARGE, 1000, end=60, priority=1)
    w.run(1)
    for _ in range(3):
        answer(w, held)
        w.run(1)
    assert [s.pair for s in w.sets()] == [(11, 3000), (12, 1000), (12, 1000)]


def test_r27_a_query_that_overtook_the_release_never_confirms_it() -> None:
    w = World()
    w.fleet(1)
    lost: list[Sent] = []

    def fate(sent: Sent) -> ResultCode | None:
        if sent.at >= 1005 and len(lost) < 3:
            lost.append(sent)
            return None
        return OK

    w.fate = fate
    w.event("a", end=5)
    w.run(13)
    queries = [s for s in lost if s.query]
    releases = [s for s in lost if not s.query]
    assert len(queries) == 1 and releases
    answer(w, [releases[-1]])  # its result is here now, but the query was sent before it
    w.answer([(queries[0], OK, AUTO)])
    assert w.counts("a").release_confirmed == 0
    w.run(2)
    assert w.counts("a").release_confirmed == 1


def test_r19_a_reachable_device_that_will_not_be_read_is_owed_and_counted_as_refused() -> None:
    w = World()
    w.fleet(1)
    w.fate = lambda s: ResultCode.UNAUTHORIZED if s.query and s.at >= 1005 else OK
    w.event("a", end=5)
    w.run(60)
    counts = w.counts("a")
    assert (counts.release_due, counts.release_refused) == (1, 1) and counts.settled
    assert w.book.owes_release()
    assert len([s for s in w.sent if s.query and s.at >= 1005]) <= 4, "at the pace of what was refused"
    w.fate = lambda s: OK
    w.run(25)
    assert w.counts("a").release_confirmed == 1 and not w.book.owes_release()


def test_r19_a_release_goes_on_however_often_it_was_tried() -> None:
    w = World()
    w.fleet(1)
    w.fate = lambda s: OK if s.at < 1005 else None
    w.event("a", end=5)
    w.run(6)
    c = w.book.setpoints[Actuator.EMS].columns
    c["tries"][0], c["attempt"][0] = 249, 254
    before = len(w.sets())
    w.run(30)
    assert len(w.sets()) - before >= 4
    assert len({s.id for s in w.sets()}) == len(w.sets()), "an attempt has 8 bits; then the generation rises"


def hand_out(world: World) -> list[tuple[Commands, np.ndarray, list[Sent]]]:
    """What a publisher does before the broker's acknowledgement: commands are pulled, ids made."""
    batches = []
    for actuator, due in world.book.due(world.now):
        for query in (False, True):
            rows = due.row[due.query == query]
            if not len(rows):
                continue
            commands = world.book.commands(actuator, rows, query)
            digests = np.arange(1, len(rows) + 1, dtype=np.uint64)
            ids = correlation.ids_of(commands, digests.tolist())
            sent = [
                Sent(
                    at=world.now,
                    sn=sn,
                    actuator=actuator,
                    query=query,
                    pair=(int(commands.first[i]), int(commands.second[i])),
                    generation=int(commands.generation[i]),
                    attempt=int(commands.attempt[i]),
                    id=ids[i].tobytes(),
                )
                for i, sn in enumerate(commands.sn)
            ]
            batches.append((commands, digests, sent))
    return batches


def test_r24_an_answer_that_is_here_before_the_broker_s_acknowledgement_counts() -> None:
    w = World()
    w.fleet(3, default={1: AUTO})
    w.event("a", end=60)
    w.save()
    ((commands, digests, sent),) = hand_out(w)
    answer(w, sent[:2])
    w.book.published(commands, digests, w.now)
    w.reconcile()
    assert states(w) == {State.APPLIED: 2, State.PUBLISHED: 1}


def test_r37_a_default_that_is_read_before_the_broker_s_acknowledgement_counts() -> None:
    w = World()
    w.fleet(2)
    w.event("a", end=60)
    ((commands, digests, sent),) = hand_out(w)
    w.answer([(one, OK, (6, 0)) for one in sent])
    w.book.published(commands, digests, w.now)
    w.reconcile()
    w.save()
    assert {s.pair for s in w.publish() if not s.query} == {(11, 3000)}


def test_r21_a_batch_that_failed_goes_out_again_under_the_same_ids_and_is_released_even_if_the_second_is_refused() -> (
    None
):
    w = World()
    sns = w.fleet(2, default={1: AUTO})
    w.event("a", end=8)
    w.save()
    ((_, _, first),) = hand_out(w)
    w.devices[sns[0]][Actuator.EMS] = (11, 3000)  # the broker had it, its acknowledgement was lost
    w.book.due_at = 0.0
    w.fate = lambda s: OK if s.query or s.pair == AUTO else ResultCode.VALUE
    again = w.publish()
    assert [(s.sn, s.generation, s.attempt) for s in again] == [(s.sn, s.generation, s.attempt) for s in first]
    w.run(15)
    assert w.at_default() and not w.book.owes_release()


def test_r37_family_counts_only_where_the_query_was_refused() -> None:
    policy = Policy(result_timeout_s=3, retry_backoff_s=1, release_retry_s=2, defaults=("registry", "query", "family"))
    for code, kind_of_end in (
        (ResultCode.UNSUPPORTED, State.APPLIED),
        (ResultCode.BUSY, State.SKIPPED),
        (None, State.SKIPPED),
    ):
        w = World(policy=policy)
        w.fleet(1)
        w.fate = lambda s, code=code: code if s.query and s.at < 1006 else OK  # type: ignore[misc]
        w.event("a", end=5)
        w.run(4.5)
        assert states(w) == {kind_of_end: 1}, code


def test_r37_an_unknown_default_is_a_reason_and_is_asked_again() -> None:
    w = World()
    w.fleet(1)
    w.fate = lambda s: ResultCode.FAILED if s.query and s.at < 1004 else OK
    w.event("a", end=30)
    w.run(3)
    assert w.counts("a").reasons == {"skipped.default_unknown": 1}
    w.run(4)
    assert states(w) == {State.APPLIED: 1}


def test_r37_without_the_query_policy_nothing_is_asked() -> None:
    w = World(policy=Policy(defaults=("registry",)))
    w.fleet(1)
    w.event("a", end=30)
    w.run(3)
    assert w.sent == [] and w.counts("a").reasons == {"skipped.default_unknown": 1}


def test_r37_the_registry_counts_only_where_the_policy_names_it() -> None:
    w = World(policy=Policy(defaults=("query",), result_timeout_s=3, retry_backoff_s=1, release_retry_s=2))
    sns = w.fleet(1, default={2: (1, 5000)})
    w.event("a", Kind.EXPORT_LIMIT, 9000, end=3)
    w.run(8)
    assert [s.pair for s in w.sets()] == [(1, 9000), NO_LIMIT], "as it was read"
    assert w.devices[sns[0]][Actuator.EXPORT] == NO_LIMIT


@pytest.mark.parametrize("kind", [Kind.CHARGE, Kind.EXPORT_LIMIT])
def test_r20_a_release_goes_the_way_of_its_setpoint(kind: Kind) -> None:
    w = World()
    w.fleet(1)
    w.event("a", kind, end=3)
    w.run(8)
    assert len(w.sets()) == 2 and len({s.actuator for s in w.sets()}) == 1


def test_r21_two_setpoints_keep_their_interval_and_a_release_never_waits_for_it() -> None:
    w = World(policy=replace(World().policy, min_interval_s=8.0))
    (sn,) = w.fleet(1)
    w.event("a", Kind.CHARGE, 1000, end=100)
    w.run(2)
    w.event("b", Kind.CHARGE, 2000, priority=1, end=20)
    w.run(12)
    first, second = w.sets(sn)
    assert (first.pair, second.pair) == ((11, 1000), (11, 2000)) and 8 <= second.at - first.at < 9
    w.cancel("b")
    w.cancel("a")
    w.run(1)
    assert w.sets(sn)[-1].pair == AUTO and w.sets(sn)[-1].at - second.at < 8
