"""Break-glass, one release after the other: what is published when, and which answers confirm it (R19, R26, R27)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vpp_dispatch.cli.debts import Batch, Debt, Debts
from vpp_dispatch.dispatch.held import Header as FileHeader
from vpp_dispatch.dispatch.held import Held, HeldFound, read, write
from vpp_dispatch.domain import correlation
from vpp_dispatch.domain.command import NO_VALUE, ResultCode, Results
from vpp_dispatch.domain.inputs import SlotResults
from vpp_dispatch.domain.signal import QUERY_BIT, Actuator
from vpp_dispatch.goodwe.codec import Codec
from vpp_dispatch.goodwe.parameters import Catalogue
from vpp_dispatch.goodwe.profile import load_profile

A, B, PV = "9010KETU000W0001", "9010KETU000W0002", "5017KDTT00BW0000"
TIMEOUT, RETRY = 300.0, 60.0
PROFILE = load_profile("goodwe")
CATALOGUE = Catalogue(PROFILE)


def held(
    sn: str = A, *, row: int = 3, actuator: int = Actuator.EMS, first: int | None = 1, second: int | None = 0
) -> Held:
    return Held(sn=sn, row=row, actuator=actuator, generation=5, first=first, second=second)


def owed(*entries: Held, family_defaults: bool = False) -> Debts:
    debts = Debts(profile=PROFILE, catalogue=CATALOGUE, result_timeout_s=TIMEOUT, retry_s=RETRY)
    found = HeldFound(shards={7: FileHeader(shard=7, epoch=2, at=0.0)}, held={7: list(entries)})
    debts.add(found, family_defaults=family_defaults)
    return debts


def publish(debts: Debts, now: float) -> Batch:
    """What is due at `now` goes out, and the cluster takes it."""
    batch = debts.due(now, 1000)
    assert batch is not None, "nothing is due"
    debts.sent(batch, now)
    return batch


def answer(
    batch: Batch, code: ResultCode = ResultCode.SUCCESS, pair: tuple[int, int] | None = None, *, accepted: bool = False
) -> Results:
    """The results of all commands of a batch."""
    n, c = len(batch.commands), batch.commands
    first, second = pair or (NO_VALUE, NO_VALUE)
    return Results(
        ids=correlation.pack(
            shard=c.shard, row=c.row, actuator=c.actuator, generation=c.generation, attempt=c.attempt, digests=[1] * n
        ),
        code=np.full(n, code, np.uint8),
        accepted=np.full(n, accepted),
        first=np.full(n, first, np.int32),
        second=np.full(n, second, np.int32),
        at=np.zeros(n),
    )


def slot(
    sn: str = A, *, actuator: int = 0, pair: tuple[int, int] | None = None, code: ResultCode = ResultCode.SUCCESS
) -> SlotResults:
    first, second = pair or (NO_VALUE, NO_VALUE)
    return SlotResults(
        sn=[sn],
        actuator=np.array([actuator], np.uint8),
        single=np.array([False]),
        code=np.array([code], np.uint8),
        accepted=np.array([False]),
        first=np.array([first], np.int32),
        second=np.array([second], np.int32),
        at=np.zeros(1),
    )


def only(debts: Debts) -> Debt:
    [debt] = debts.debts
    return debt


def test_r27_an_answer_is_read_back_and_only_an_equal_reading_confirms() -> None:
    debts = owed(held())
    batch = publish(debts, 0)
    c = batch.commands
    assert (int(c.generation[0]), int(c.attempt[0]), int(c.actuator[0])) == (6, 1, Actuator.EMS)
    assert (int(c.first[0]), int(c.second[0]), float(c.deadline_at[0])) == (1, 0, np.inf)
    assert debts.due(1, 1000) is None, "nothing more before the answer"
    debts.heard(answer(batch), 1)
    assert only(debts).state == "pending"
    query = publish(debts, 1)
    assert query.query and int(query.commands.actuator[0]) == Actuator.EMS | QUERY_BIT
    debts.heard(answer(query, pair=(1, 0)), 2)
    assert only(debts).state == "confirmed" and debts.done


def test_that_goodwe_took_it_is_not_that_it_is_done() -> None:
    debts = owed(held())
    batch = publish(debts, 0)
    debts.heard(answer(batch, accepted=True), 1)
    assert debts.due(2, 1000) is None and debts.reasons() == {"accepted": 1}
    debts.heard(answer(batch), 3)
    assert publish(debts, 3).query


def test_a_different_reading_publishes_again_under_another_attempt() -> None:
    debts = owed(held())
    debts.heard(answer(publish(debts, 0)), 1)
    debts.heard(answer(publish(debts, 1), pair=(11, 1500)), 2)
    assert debts.reasons() == {"differs": 1} and debts.due(2 + RETRY - 1, 1000) is None
    again = publish(debts, 2 + RETRY)
    assert not again.query and (int(again.commands.generation[0]), int(again.commands.attempt[0])) == (6, 2)


@pytest.mark.parametrize("code", [ResultCode.OFFLINE, ResultCode.BUSY, ResultCode.UNKNOWN_CODE])
def test_r19_what_may_pass_is_tried_again_without_end(code: ResultCode) -> None:
    debts, now = owed(held()), 0.0
    for attempt in range(1, 9):
        batch = publish(debts, now)
        assert int(batch.commands.attempt[0]) == attempt
        debts.heard(answer(batch, code), now)
        assert only(debts).state == "pending" and debts.reasons() == {code.name.lower(): 1}
        now += RETRY


@pytest.mark.parametrize("code", [ResultCode.UNAUTHORIZED, ResultCode.VALUE, ResultCode.UNSUPPORTED])
def test_a_refusal_is_for_a_person(code: ResultCode) -> None:
    debts = owed(held())
    debts.heard(answer(publish(debts, 0), code), 1)
    assert only(debts).state == "refused" and debts.done and debts.due(1e9, 1000) is None


@pytest.mark.parametrize("code", [ResultCode.FAILED, ResultCode.PARTIAL])
def test_what_failed_is_tried_twice_more(code: ResultCode) -> None:
    debts = owed(held())
    for attempt in (1, 2, 3):
        assert only(debts).state == "pending"
        debts.heard(answer(publish(debts, attempt * RETRY), code), attempt * RETRY)
    assert only(debts).state == "refused"


def test_r27_without_an_answer_two_agreeing_readings_count_each_after_the_timeout() -> None:
    debts = owed(held())
    publish(debts, 0)
    assert debts.due(TIMEOUT - 1, 1000) is None
    debts.heard(answer(publish(debts, TIMEOUT), pair=(1, 0)), TIMEOUT + 1)
    assert only(debts).state == "pending", "one reading may be from before the release"
    debts.heard(answer(publish(debts, TIMEOUT + 1), pair=(1, 0)), TIMEOUT + 2)
    assert only(debts).state == "confirmed"


def test_without_any_answer_it_is_published_again() -> None:
    debts = owed(held())
    publish(debts, 0)
    assert publish(debts, TIMEOUT).query
    again = publish(debts, 2 * TIMEOUT)
    assert not again.query and int(again.commands.attempt[0]) == 2


def test_r26_without_echoed_ids_only_readings_confirm_and_two_have_to_agree() -> None:
    debts = owed(held())
    publish(debts, 0)
    debts.heard(slot(code=ResultCode.UNAUTHORIZED), 1)
    assert only(debts).state == "pending", "it may be the answer to an older setpoint"
    publish(debts, 1 + RETRY)
    debts.heard(slot(), 70)
    for at in (70, 71):
        assert only(debts).state == "pending"
        assert publish(debts, at).query
        debts.heard(slot(actuator=Actuator.EMS | QUERY_BIT, pair=(1, 0)), at)
    assert only(debts).state == "confirmed"


def test_answers_to_others_commands_change_nothing() -> None:
    debts = owed(held())
    batch = publish(debts, 0)
    for changed in ("generation", "row", "shard"):
        other = answer(batch)
        columns = {name: getattr(batch.commands, name).copy() for name in ("shard", "row", "generation")}
        columns[changed] += 1
        ids = correlation.pack(**columns, actuator=batch.commands.actuator, attempt=batch.commands.attempt, digests=[1])
        debts.heard(
            Results(ids=ids, **{n: getattr(other, n) for n in ("code", "accepted", "first", "second", "at")}), 1
        )
    debts.heard(slot(B), 1)
    debts.heard(slot(B, actuator=Actuator.EMS | QUERY_BIT, pair=(1, 0)), 1)
    assert debts.due(2, 1000) is None and debts.reasons() == {"no_answer": 1}


def test_the_answer_to_an_older_query_of_ours_is_no_reading() -> None:
    debts = owed(held())
    debts.heard(answer(publish(debts, 0)), 1)
    first = publish(debts, 1)
    second = publish(debts, 1 + TIMEOUT)
    assert second.query and int(second.commands.generation[0]) > int(first.commands.generation[0])
    debts.heard(answer(first, pair=(1, 0)), 400)
    assert only(debts).state == "pending"
    debts.heard(answer(second, pair=(1, 0)), 401)
    assert only(debts).state == "confirmed"


def test_a_batch_that_the_cluster_did_not_take_goes_again_in_a_moment() -> None:
    debts = owed(held())
    batch = publish(debts, 0)
    debts.failed(batch, 1, "away")
    assert debts.reasons() == {"unreachable": 1} and debts.in_flight(1) == 0
    assert int(publish(debts, 2).commands.attempt[0]) == 2


def test_r40_releases_go_first_and_the_window_holds() -> None:
    debts = owed(*(held(f"9010KETU000W{n:04d}", row=n) for n in range(10)))
    first = debts.due(0, 4)
    assert first is not None and len(first.debts) == 4
    debts.sent(first, 0)
    debts.heard(answer(first), 1)
    assert debts.in_flight(1) == 0
    second = debts.due(1, 1000)
    assert second is not None and not second.query and len(second.debts) == 6
    debts.sent(second, 1)
    assert debts.in_flight(1) == 6 and debts.in_flight(1 + TIMEOUT) == 0
    third = debts.due(1, 1000)
    assert third is not None and third.query and len(third.debts) == 4


def test_r37_without_a_known_default_only_the_familys_on_demand() -> None:
    entries = [held(), held(B, row=4, first=None, second=None)]
    careful = owed(*entries)
    assert [d.held.sn for d in careful.debts] == [A] and [e.sn for _, e in careful.unknown] == [B]
    bold = owed(*entries, family_defaults=True)
    assert [d.pair for d in bold.debts] == [(1, 0), CATALOGUE.family_default(Actuator.EMS)] and not bold.unknown


@pytest.mark.parametrize(
    ("entry", "rated_w", "shown"),
    [
        (held(actuator=Actuator.EXPORT, first=1, second=5000), 0, (1, 5000)),
        (held(PV, actuator=Actuator.EXPORT, first=1, second=8500), 17_000, (1, 50)),
        (held(actuator=Actuator.ACTIVE, first=1000, second=0), 0, (1000, 0)),
        (held(actuator=Actuator.REACTIVE, first=100, second=0), 0, (100, 0)),
    ],
)
def test_each_actuator_is_confirmed_by_what_a_query_of_it_reads(
    entry: Held, rated_w: int, shown: tuple[int, int]
) -> None:
    debts = owed(entry)
    assert only(debts).shown == shown and (not rated_w or only(debts).rated_w == rated_w)
    debts.heard(answer(publish(debts, 0)), 1)
    debts.heard(answer(publish(debts, 1), pair=shown), 2)
    assert only(debts).state == "confirmed"


def test_what_cannot_be_said_is_refused_before_anything_goes_out() -> None:
    debts = owed(held(first=7), held(B, row=4))
    debts.refuse_unsayable(Codec(PROFILE, CATALOGUE))
    assert debts.counts() == {"confirmed": 0, "pending": 1, "refused": 1}
    assert debts.reasons()["unsayable"] == 1 and "islanding" in debts.debts[0].reason
    batch = debts.due(0, 1000)
    assert batch is not None and [d.held.sn for d in batch.debts] == [B]


def test_a_query_that_is_refused_leaves_the_release_unproven() -> None:
    debts = owed(held())
    debts.heard(answer(publish(debts, 0)), 1)
    debts.heard(answer(publish(debts, 1), ResultCode.OFFLINE), 2)
    assert only(debts).state == "pending" and publish(debts, 2 + RETRY).query
    debts = owed(held())
    debts.heard(answer(publish(debts, 0)), 1)
    debts.heard(answer(publish(debts, 1), ResultCode.UNSUPPORTED), 2)
    assert only(debts).state == "refused" and "cannot be read back" in only(debts).reason


def test_what_is_left_is_the_next_try_with_ids_of_its_own(tmp_path: Path) -> None:
    entries = [held(), held(B, row=4), held(B, row=4, actuator=Actuator.EXPORT, first=None, second=None)]
    found = HeldFound(shards={7: FileHeader(shard=7, epoch=2, at=0.0)}, held={7: entries})
    debts = owed(*entries)
    batch = publish(debts, 0)
    debts.heard(answer(batch), 1)
    query = publish(debts, 1)
    results = answer(query, pair=(1, 0))
    results.first[1] = 11
    debts.heard(results, 2)
    original, rest = tmp_path / "held-7.jsonl", tmp_path / "rest.jsonl"
    write(original, [(found.shards[7], entries)])
    write(rest, debts.rest(found, 100.0))
    for paths in ([rest], [original, rest]):
        left = read(paths)
        assert [(e.sn, e.actuator, e.generation) for e in left.held[7]] == [
            (B, Actuator.EMS, 6),
            (B, Actuator.EXPORT, 5),
        ]
    again = owed(*read([rest]).held[7])
    assert int(publish(again, 0).commands.generation[0]) == 7


@pytest.mark.parametrize("n", [1, 2500])
def test_batches_are_of_at_most_a_thousand(n: int) -> None:
    debts = owed(*(held(f"9010KETU000W{i:04d}", row=i) for i in range(n)))
    sizes: list[int] = []
    while (batch := debts.due(0, 10_000)) is not None:
        debts.sent(batch, 0)
        sizes.append(len(batch.debts))
    assert sum(sizes) == n and max(sizes) <= 1000
