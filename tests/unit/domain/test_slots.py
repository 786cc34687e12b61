"""Results without an echoed id: joined by device and topic, one unanswered setpoint at a time (R26)."""

from __future__ import annotations

import numpy as np
import pytest

from vpp_dispatch.domain.account import State
from vpp_dispatch.domain.book import Book
from vpp_dispatch.domain.command import NO_VALUE, ResultCode
from vpp_dispatch.domain.inputs import SlotResults
from vpp_dispatch.domain.signal import QUERY_BIT, Actuator, Control, Form, Kind

from .world import AUTO, NO_LIMIT, SHARD, Catalogue, Sent, World, digests_of

EMS, EXPORT, ACTIVE = Actuator.EMS, Actuator.EXPORT, Actuator.ACTIVE


class NoEcho(Catalogue):
    echoes = False


class Slots(World):
    """A world whose GoodWe names only the device and the topic."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.book = Book(shard=SHARD, epoch=1, catalogue=NoEcho(), policy=self.policy, digests=digests_of)

    def answer(self, heard: list[tuple[Sent, ResultCode, tuple[int, int]]], *, accepted: bool = False) -> None:
        n = len(heard)
        sent = [one for one, _, _ in heard]
        self.put(
            SlotResults(
                sn=[one.sn for one in sent],
                actuator=np.array([one.actuator | QUERY_BIT if one.query else 0 for one in sent], np.uint8),
                single=np.array([not one.query and one.actuator in (3, 4) for one in sent]),
                code=np.array([code for _, code, _ in heard], np.uint8),
                accepted=np.full(n, accepted),
                first=np.array([read[0] for _, _, read in heard], np.int32),
                second=np.array([read[1] for _, _, read in heard], np.int32),
                at=np.full(n, self.now),
            )
        )


def both() -> tuple[Control, Control]:
    return (
        Control(kind=Kind.CHARGE, form=Form.EACH_W, each_w=3000),
        Control(kind=Kind.EXPORT_LIMIT, form=Form.EACH_W, each_w=500),
    )


def test_r26_a_setpoint_waits_until_the_one_before_it_on_its_topic_is_answered() -> None:
    w = Slots()
    (sn,) = w.fleet(1)
    w.event("a", controls=both(), end=100)
    w.fate = lambda sent: ResultCode.SUCCESS if sent.query else None
    w.run(2)
    assert [s.actuator for s in w.sets(sn)] == [EMS], "export waits: nobody could tell whose answer came"
    w.answer([(w.sets(sn)[0], ResultCode.SUCCESS, (NO_VALUE, NO_VALUE))])
    w.fate = lambda sent: ResultCode.SUCCESS
    w.run(2)
    assert [s.actuator for s in w.sets(sn)] == [EMS, EXPORT]


def test_r26_the_other_topic_does_not_wait() -> None:
    w = Slots()
    (sn,) = w.fleet(1)
    percent = Control(kind=Kind.GENERATION_LIMIT, form=Form.EACH_PERCENT, each_percent=50.0)
    w.event("a", controls=(both()[0], percent), end=100)
    w.fate = lambda sent: ResultCode.SUCCESS if sent.query else None
    w.run(1)
    assert [s.actuator for s in w.sets(sn)] == [EMS, ACTIVE]


def test_r26_every_setpoint_is_verified_by_a_query() -> None:
    w = Slots()
    w.fleet(3)
    w.event("a", end=100)
    w.run(5)
    assert w.counts("a").states[State.VERIFIED] == 3


def test_r26_a_release_does_not_wait_and_is_confirmed_only_by_two_queries_after_the_timeout() -> None:
    w = Slots()
    (sn,) = w.fleet(1)
    w.fate = lambda sent: ResultCode.SUCCESS if sent.query else None
    w.event("a", end=2)
    w.run(1)
    set_ = w.sets(sn)[0]
    w.run(1.5)
    release = w.sets(sn)[1]
    assert release.pair == AUTO and release.at - set_.at < 3, "though the setpoint is unanswered"
    w.answer([(release, ResultCode.SUCCESS, (NO_VALUE, NO_VALUE))])
    w.run(1)
    assert w.counts("a").release_confirmed == 0, "this may have been the setpoint's answer"
    w.run(6)
    queries = [s for s in w.sent if s.query and s.at > release.at]
    assert len(queries) >= 2 and all(q.at >= release.at + 3.0 for q in queries)
    assert w.counts("a").release_confirmed == 1 and w.at_default()
    assert [s.pair for s in w.sets(sn)].count(AUTO) == 1, "read back instead of sent again"


def test_r26_a_lost_release_is_found_by_the_query_and_sent_again() -> None:
    w = Slots()
    (sn,) = w.fleet(1)
    w.event("a", end=3)
    w.run(2)
    lost = [1]

    class Lost(dict[Actuator, tuple[int, int]]):
        def __setitem__(self, key: Actuator, value: tuple[int, int]) -> None:
            if value == AUTO and lost:
                lost.pop()
            else:
                super().__setitem__(key, value)

    w.devices[sn] = Lost(w.devices[sn])
    w.run(20)
    assert not lost and w.devices[sn][EMS] == AUTO and w.counts("a").release_confirmed == 1


def test_r26_an_answer_of_an_older_setpoint_is_taken_back_by_the_read_back() -> None:
    w = Slots()
    (sn,) = w.fleet(1)
    w.fate = lambda sent: ResultCode.SUCCESS if sent.query else None
    w.event("a", Kind.CHARGE, 1000, end=100)
    w.run(3.5)  # unanswered and timed out, and not sent again yet
    w.event("b", Kind.CHARGE, 2000, priority=1, end=100)
    w.run(0.5)
    newest = w.sets(sn)[-1]
    assert newest.pair == (11, 2000)
    w.devices[sn][EMS] = (11, 1000)  # the newer one was lost on its way; the older one's answer comes now
    w.answer([(newest, ResultCode.SUCCESS, (NO_VALUE, NO_VALUE))])
    w.fate = lambda sent: ResultCode.SUCCESS
    w.run(5)
    assert w.devices[sn][EMS] == (11, 2000) and w.counts("b").states[State.VERIFIED] == 1


@pytest.mark.parametrize("stranger", [True, False])
def test_r26_what_answers_nothing_is_an_orphan(stranger: bool) -> None:
    w = Slots()
    (sn,) = w.fleet(1)
    result = SlotResults(
        sn=["9010KETU000W7777" if stranger else sn],
        actuator=np.zeros(1, np.uint8),
        single=np.zeros(1, bool),
        code=np.zeros(1, np.uint8),
        accepted=np.zeros(1, bool),
        first=np.full(1, NO_VALUE, np.int32),
        second=np.full(1, NO_VALUE, np.int32),
        at=np.full(1, w.now),
    )
    effects = w.book.step([(77, result)], w.now)
    assert (effects.orphans, effects.orphan_results) == ([77], 1)


def test_r26_accepted_keeps_the_slot_and_applied_frees_it() -> None:
    w = Slots()
    (sn,) = w.fleet(1)
    w.event("a", controls=both(), end=100)
    w.fate = lambda sent: ResultCode.SUCCESS if sent.query else None
    w.run(1)
    (first,) = w.sets(sn)
    w.answer([(first, ResultCode.SUCCESS, (NO_VALUE, NO_VALUE))], accepted=True)
    w.run(0.5)
    assert len(w.sets(sn)) == 1
    w.answer([(first, ResultCode.SUCCESS, (NO_VALUE, NO_VALUE))])
    w.run(0.5)
    assert [s.actuator for s in w.sets(sn)] == [EMS, EXPORT]


def test_r40_an_answer_to_a_release_frees_its_slot_though_it_confirms_nothing() -> None:
    w = Slots()
    (sn,) = w.fleet(1)
    w.event("a", end=2)
    w.run(2)
    w.fate = lambda sent: ResultCode.SUCCESS if sent.query else None
    w.run(0.5)
    assert w.book.in_flight(w.now)[0] == 1
    w.answer([(w.sets(sn)[-1], ResultCode.SUCCESS, (NO_VALUE, NO_VALUE))])
    assert w.book.in_flight(w.now)[0] == 0 and w.counts("a").release_confirmed == 0


def test_r26_an_answer_belongs_to_what_was_asked_last_on_its_topic() -> None:
    w = Slots()
    (sn,) = w.fleet(1)
    w.event("a", controls=both(), end=100)
    w.fate = lambda sent: ResultCode.SUCCESS if sent.query else None
    w.run(3.5)  # the first setpoint timed out, and the second is out
    first, second = w.sets(sn)[:2]
    assert (first.actuator, second.actuator) == (EMS, EXPORT)
    w.fate = lambda sent: None
    w.answer([(second, ResultCode.SUCCESS, (NO_VALUE, NO_VALUE))])
    ems, export = (w.book.setpoints[a].columns[0] for a in (EMS, EXPORT))
    assert export["acknowledged"] == export["generation"] and ems["acknowledged"] != ems["generation"]


def test_r26_a_newer_release_s_answer_does_not_pass_for_an_older_setpoint_s() -> None:
    w = Slots()
    (sn,) = w.fleet(1)
    export = Control(kind=Kind.EXPORT_LIMIT, form=Form.EACH_W, each_w=500)
    w.event("short", controls=(export,), end=2)
    w.run(1)
    w.fate = lambda sent: ResultCode.SUCCESS if sent.query else None
    w.event("long", end=100)
    w.run(1.5)
    charge, release = w.sets(sn)[-2:]
    assert (charge.actuator, release.actuator, release.pair) == (EMS, EXPORT, NO_LIMIT)
    w.answer([(release, ResultCode.SUCCESS, (NO_VALUE, NO_VALUE))])
    ems = w.book.setpoints[EMS].columns[0]
    assert ems["acknowledged"] != ems["generation"]


def test_r26_a_shard_without_devices_takes_an_answer_for_an_orphan() -> None:
    w = Slots()
    result = SlotResults(
        sn=["9010KETU000W7777"],
        actuator=np.zeros(1, np.uint8),
        single=np.zeros(1, bool),
        code=np.zeros(1, np.uint8),
        accepted=np.zeros(1, bool),
        first=np.full(1, NO_VALUE, np.int32),
        second=np.full(1, NO_VALUE, np.int32),
        at=np.full(1, w.now),
    )
    assert w.book.step([(3, result)], w.now).orphans == [3]
