"""The rows of events: an event comes back from them, also from those that an older version wrote."""

from __future__ import annotations

import msgspec
import pytest

from vpp_dispatch.dispatch import event_rows
from vpp_dispatch.dispatch.event_rows import COUNTS, LIFE
from vpp_dispatch.domain.account import LATENCY_BUCKETS_S, Counts, Latency, State
from vpp_dispatch.domain.event import Answer, Event, Run, Told
from vpp_dispatch.domain.inputs import Switches

LATENCY = Latency(counts=(0, 3, *(0,) * (len(LATENCY_BUCKETS_S) - 1)), max_s=0.4)


def an_event() -> tuple[Event, Run]:
    run = Run(revision=2, accepted_at=1.0, start_at=2.0, end_at=9.0, expected=(5,), sent=True)
    counts = Counts(
        states=tuple(range(len(State))),
        reasons={"skipped.offline": 1},
        requested_w=4000,
        measured_w=3900,
        measured=2,
        unmeasured=1,
        result_latency=LATENCY,
    )
    told = {5: Told(epoch=7, sequence=3, counts=counts)}
    answers = {2: Answer(revision=2, digest="d", accepted=True)}
    event = Event(source="west", event_id="e|1", answers=answers, run=run, told=told, reserved=32, keep_until=99.0)
    return event, run


def test_an_event_comes_back_from_its_rows() -> None:
    event, run = an_event()
    back, signal = event_rows.load_event({LIFE: event_rows.life_row(event), COUNTS: event_rows.counts_row(event, run)})
    assert back is not None and signal is None
    assert (back.key, back.run, back.told, back.keep_until) == (event.key, run, event.told, event.keep_until)
    assert back.answers == event.answers
    assert back.sequence == back.reserved == 32, "no sequence is used twice"


def test_counts_that_an_older_version_wrote_lack_the_newer_numbers() -> None:
    event, run = an_event()
    row = msgspec.msgpack.decode(event_rows.counts_row(event, run))
    row["shards"][0][5] = row["shards"][0][5][:-3]
    back, _ = event_rows.load_event({LIFE: event_rows.life_row(event), COUNTS: msgspec.msgpack.encode(row)})
    assert back is not None
    counts = back.told[5].counts
    assert (counts.requested_w, counts.measured_w, counts.measured, counts.unmeasured) == (4000, 0, 0, 0)
    assert counts.result_latency == LATENCY


@pytest.mark.parametrize(("name", "kind"), [("west/e|1", "life"), (event_rows.SWITCHES, event_rows.STATE)])
def test_a_key_is_read_from_its_end(name: str, kind: str) -> None:
    assert event_rows.split(event_rows.key_of(name, kind, 12)) == (name, kind, 12)


def test_r36_the_switches_come_back() -> None:
    switches = Switches(number=41, releases_only=True)
    assert event_rows.load_switches(event_rows.switches_row(switches)) == switches
