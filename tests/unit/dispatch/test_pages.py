"""Saved rows: what is saved comes back, the highest epoch counts, and nothing older hides anything."""

from __future__ import annotations

import hashlib

import msgspec
import numpy as np
import pytest

from tests.unit.domain.world import SHARD, Catalogue, World
from vpp_dispatch.dispatch import pages
from vpp_dispatch.domain.account import Counts, State
from vpp_dispatch.domain.book import Book
from vpp_dispatch.domain.command import ResultCode
from vpp_dispatch.domain.signal import Actuator, Kind
from vpp_dispatch.errors import InvariantBroken


def recovered(world: World) -> Book:
    book = Book(shard=SHARD, epoch=world.book.epoch + 1, catalogue=Catalogue(), policy=world.policy)
    pages.load(book, pages.newest(world.rows, [SHARD])[SHARD], world.rows, world.now)
    return book


def busy_world() -> World:
    w = World()
    sns = w.fleet(4, default={2: (1, 5000)}, site="s")
    w.event("a", end=60)
    w.event("b", Kind.EXPORT_LIMIT, 1000, end=3, priority=3)
    w.consent(sns[:3])
    w.run(6)
    w.save()
    return w


def test_a_book_comes_back_as_it_was_saved() -> None:
    w = busy_world()
    book = recovered(w)
    n = len(w.book.roster)
    assert book.roster.sns == w.book.roster.sns and book.roster.records == w.book.roster.records
    assert (book.roster.columns[:n] == w.book.roster.columns[:n]).all()
    assert book.roster.consent_at == w.book.roster.consent_at
    assert set(book.memberships) == set(w.book.memberships)
    for key, membership in book.memberships.items():
        other = w.book.memberships[key]
        assert membership.slot == other.slot and membership.counts() == other.counts()
    for actuator in (Actuator.EMS, Actuator.EXPORT):
        mine, theirs = book.setpoints[actuator].columns[:n], w.book.setpoints[actuator].columns[:n]
        for name in ("generation", "first", "second", "armed", "held", "published", "acknowledged", "before", "owner"):
            assert (mine[name] == theirs[name]).all(), name
    book.step([], w.now)
    assert not [due for _, due in book.due(w.now) if not due.query.all()], "in sync: nothing is sent again"


def test_only_what_changed_is_saved() -> None:
    w = busy_world()
    assert not pages.is_dirty(w.book)
    assert pages.snapshot(w.book, w.kept, w.offset).rows == []
    w.cancel("a")
    kinds = {pages.split(key)[2] for key, _ in pages.snapshot(w.book, w.kept, w.offset).rows}
    assert kinds == {"ems", "event"}


def test_the_rows_that_a_snapshot_refuses_are_saved_again() -> None:
    w = busy_world()
    w.cancel("a")
    first = pages.snapshot(w.book, w.kept, w.offset)
    pages.soil(w.book)
    again = pages.snapshot(w.book, w.kept, w.offset)
    assert {key for key, _ in first.rows} <= {key for key, _ in again.rows}


def test_the_highest_epoch_counts_and_the_older_row_is_dropped_after_the_newer_is_there() -> None:
    w = busy_world()
    old = dict(w.rows)
    w.crash()
    w.cancel("a")
    shot = pages.snapshot(w.book, w.kept, w.offset)
    assert all(pages.split(key)[3] == 2 for key, _ in shot.rows)
    assert {pages.split(key)[3] for key in shot.drops} == {1} and set(shot.drops) <= set(old)
    rows = old | dict(shot.rows)
    assert rows.keys() > old.keys()
    newest = pages.newest(rows, [SHARD])[SHARD]
    assert max(newest["0", "ems"]) == 2 and len(newest["0", "ems"]) == 2


def test_rows_of_other_shards_are_left_alone() -> None:
    w = busy_world()
    assert pages.newest(w.rows, [SHARD + 1]) == {SHARD + 1: {}}


def test_a_forgotten_event_s_row_is_dropped() -> None:
    w = busy_world()
    w.cancel("a")
    w.run(8)
    w.close("a")
    w.save()
    w.now += 3700
    w.run(1)
    assert ("grid/a", 1) not in w.book.memberships
    assert (pages.page_of_event("grid/a", 1), "event") not in pages.newest(w.rows, [SHARD])[SHARD]
    w.crash()
    w.event("a", end=30)
    assert ("grid/a", 1) not in w.book.memberships, "a control that arrives again starts nothing"


def test_a_foreign_key_is_a_fault() -> None:
    for key in (b"nonsense", b"1|2|3", b"x|0|ems|1", b"\xff"):
        with pytest.raises(InvariantBroken):
            pages.split(key)


def test_an_arming_is_durable_only_once_its_row_is_delivered() -> None:
    w = World()
    w.fleet(2, default={1: (1, 0)})
    w.event("a", end=60)
    shot = pages.snapshot(w.book, w.kept, w.offset)
    assert w.publish() == []
    pages.saved(w.book, shot)
    assert len(w.publish()) == 2
    assert np.all(w.book.setpoints[Actuator.EMS].durable[:2])


def test_counts_are_plain_values_that_compare() -> None:
    assert busy_world().counts("a") == busy_world().counts("a") != Counts()


@pytest.mark.parametrize("delivered", range(4))
def test_a_checkpoint_torn_anywhere_leaves_what_was_applied_applied_and_its_release_owed(delivered: int) -> None:
    world = World()
    world.fleet(5)
    world.event("a", end=10)
    world.run(8)
    assert world.counts("a").states[State.APPLIED] == 5
    world.now += 3
    world.fate = lambda sent: None
    world.book.step([], world.now)
    assert len(world.publish()) == 5, "the window is over: releases"
    rows = pages.snapshot(world.book, world.kept, world.offset).rows
    assert len(rows) > 1
    world.rows.update(rows[:delivered])
    world.crash()
    world.fate = lambda sent: ResultCode.SUCCESS
    world.run(20)
    counts = world.counts("a")
    assert counts.states[State.APPLIED] == 5
    assert counts.release_due == counts.release_confirmed == 5
    assert world.at_default()


def test_the_layout_of_saved_rows_has_a_number_that_rises_with_each_change() -> None:
    digests = {}
    for layout, dtypes in pages.LAYOUTS.items():
        described = {what: str(dtype.descr) for what, dtype in sorted(dtypes.items())}
        digests[layout] = hashlib.sha256(repr(described).encode()).hexdigest()[:16]
    assert digests == {1: "3702f15305134a8b", 2: "db154aaed43c83d5"} and max(digests) == pages.LAYOUT, (
        "The columns of saved rows have changed: raise LAYOUT, keep the older dtypes in LAYOUTS, and add a digest."
    )


def test_rows_of_an_older_layout_are_read_by_field_name(monkeypatch: pytest.MonkeyPatch) -> None:
    w = World()
    w.fleet(2)
    w.event("a", end=60)
    w.run(3)
    older = dict(pages.LAYOUTS[pages.LAYOUT])
    newer = np.dtype([("added", "<i4"), *older["setpoints"].descr])
    monkeypatch.setattr(pages, "LAYOUT", 99)
    monkeypatch.setitem(pages.LAYOUTS, 99, older | {"setpoints": newer})
    row = next(value for key, value in w.rows.items() if b"|ems|" in key)
    read = pages._read(row[pages._HEADER.size :], "setpoints", pages._layout(row))
    assert read.dtype == newer and read["armed"].tolist() == [True, True] and read["added"].tolist() == [0, 0]


def test_a_row_of_an_unknown_layout_is_refused_with_a_sentence() -> None:
    with pytest.raises(InvariantBroken, match="run the version that wrote it"):
        pages._layout(pages._HEADER.pack(0, 98))


def test_an_event_that_an_older_version_saved_lacks_what_was_measured() -> None:
    w = busy_world()
    for key, value in w.rows.items():
        if b"|event|" in key:
            header, fields = value[: pages._HEADER.size], msgspec.msgpack.decode(value[pages._HEADER.size :])
            w.rows[key] = header + msgspec.msgpack.encode(fields[:-1])
    book = recovered(w)
    assert set(book.memberships) == set(w.book.memberships)
    assert {(m.measured_w, m.measured, m.unmeasured) for m in book.memberships.values()} == {(0, 0, 0)}
