"""The rows of the coordinator's table: keys and bytes, and an event from its rows.

Rows of an event, all in partition 0, key `0|source/event_id|KIND|epoch`:

    life            where it stands, and the answers to the revisions that count
    counts          newest counts per shard
    signal-REV      the accepted signal; written once, dropped at the close
    answer-REV      the answer to a revision that was refused or replaced

and one row `0|switches|state|epoch`: how the switches stand (R36).

The epoch is in the key, so that a late row of a frozen worker never replaces a newer one. Recovery takes the highest;
older rows are dropped once a newer one is delivered.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from vpp_dispatch.domain.account import LATENCY_BUCKETS_S, SUMMED, Counts, Latency
from vpp_dispatch.domain.event import Answer, Event, Run, Told
from vpp_dispatch.domain.inputs import Switches
from vpp_dispatch.domain.signal import Signal

LIFE, COUNTS, SIGNAL, ANSWER = "life", "counts", "signal-", "answer-"
"""Kinds of rows; the last two end with the revision."""

SWITCHES, STATE = "switches", "state"
"""Name and kind of the switches' row; an event's name has a slash."""


class _Life(msgspec.Struct, kw_only=True):
    source: str
    event_id: str
    answers: list[Answer]
    run: Run | None
    cancellation: int
    reserved: int
    report_due: bool
    keep_until: float


class _AnswerRow(msgspec.Struct, kw_only=True):
    source: str
    event_id: str
    answer: Answer
    keep_until: float


class _ShardCounts(msgspec.Struct, array_like=True):
    """Counts of one shard; latency buckets without the empty ones at the end."""

    shard: int
    epoch: int
    sequence: int
    states: tuple[int, ...]
    reasons: dict[str, int]
    numbers: tuple[int, ...]  # as SUMMED names them
    publish: tuple[list[int], float]
    result: tuple[list[int], float]
    settled: bool
    closed: bool


class _CountsRow(msgspec.Struct, kw_only=True):
    revision: int
    shards: list[_ShardCounts]


_pack = msgspec.msgpack.Encoder().encode
_life = msgspec.msgpack.Decoder(_Life).decode
_answer = msgspec.msgpack.Decoder(_AnswerRow).decode
_counts = msgspec.msgpack.Decoder(_CountsRow).decode
_signal = msgspec.msgpack.Decoder(Signal).decode
_switches = msgspec.msgpack.Decoder(Switches).decode


def key_of(name: str, kind: str, epoch: int) -> bytes:
    """The key of a row of an event, or of the switches."""
    return f"0|{name}|{kind}|{epoch}".encode()


def split(key: bytes) -> tuple[str, str, int]:
    """(event, kind, epoch) of a row's key; an event's name may hold anything, so the key is read from its end."""
    name, kind, epoch = key.decode().split("|", 1)[1].rsplit("|", 2)
    return name, kind, int(epoch)


def life_row(event: Event) -> bytes:
    """Where an event stands, as of now."""
    return _pack(
        _Life(
            source=event.source,
            event_id=event.event_id,
            answers=[event.answers[revision] for revision in sorted(event.live)],
            run=event.run,
            cancellation=event.cancellation,
            reserved=event.reserved,
            report_due=event.report_due,
            keep_until=event.keep_until,
        )
    )


def counts_row(event: Event, run: Run) -> bytes:
    """The newest counts of each shard."""
    return _pack(_CountsRow(revision=run.revision, shards=[_flat(shard, told) for shard, told in event.told.items()]))


def answer_row(event: Event, revision: int) -> bytes:
    """The answer to one revision."""
    row = _AnswerRow(
        source=event.source, event_id=event.event_id, answer=event.answers[revision], keep_until=event.keep_until
    )
    return _pack(row)


def signal_row(signal: Signal) -> bytes:
    """An accepted signal."""
    return _pack(signal)


def switches_row(switches: Switches) -> bytes:
    """How the switches stand."""
    return _pack(switches)


def load_switches(row: bytes) -> Switches:
    """The switches of their row."""
    return _switches(row)


def load_event(rows: Mapping[str, bytes]) -> tuple[Event | None, Signal | None]:
    """The event of its rows by kind, None where they say nothing of one; and its signal, if it has to be sent yet.

    Raises:
        msgspec.MsgspecError, ValueError: a row that this version cannot read.
    """
    event: Event | None = None
    for kind, value in rows.items():
        if kind.startswith(ANSWER):
            row = _answer(value)
            event = event or Event(source=row.source, event_id=row.event_id)
            event.answers[row.answer.revision] = row.answer
            event.keep_until = max(event.keep_until, row.keep_until)
            for reply in row.answer.replies:
                reply.told = True  # if not, its signal is read again
    if LIFE in rows:
        saved = _life(rows[LIFE])
        event = event or Event(source=saved.source, event_id=saved.event_id)
        event.answers.update({answer.revision: answer for answer in saved.answers})
        event.run, event.cancellation = saved.run, saved.cancellation
        event.sequence = event.reserved = saved.reserved
        event.report_due = saved.report_due
        event.keep_until = max(event.keep_until, saved.keep_until)
        for answer in sorted(saved.answers, key=lambda answer: answer.revision):
            event.untold.extend((answer, reply) for reply in answer.replies if not reply.told)
    if event is None or event.run is None:
        return event, None
    run = event.run
    if COUNTS in rows:
        counted = _counts(rows[COUNTS])
        if counted.revision == run.revision:
            event.told = {shard.shard: _told(shard) for shard in counted.shards}
    if run.state != "closed":
        event.dirty = True  # under this epoch, so that no late row of an older one can take its place
        event.report_due = event.report_due or bool(event.told)  # the last report may be lost
        signal = rows.get(f"{SIGNAL}{run.revision}")
        if signal is not None and not run.sent:
            return event, _signal(signal)
    return event, None


def _flat(shard: int, told: Told) -> _ShardCounts:
    counts = told.counts
    return _ShardCounts(
        shard,
        told.epoch,
        told.sequence,
        counts.states,
        counts.reasons,
        tuple(getattr(counts, name) for name in SUMMED),
        _trimmed(counts.publish_latency),
        _trimmed(counts.result_latency),
        counts.settled,
        counts.closed,
    )


def _told(flat: _ShardCounts) -> Told:
    counts = Counts(
        states=flat.states,
        reasons=flat.reasons,
        publish_latency=_whole(*flat.publish),
        result_latency=_whole(*flat.result),
        settled=flat.settled,
        closed=flat.closed,
        **dict(zip(SUMMED, flat.numbers, strict=False)),  # rows of older versions have fewer
    )
    return Told(epoch=flat.epoch, sequence=flat.sequence, counts=counts)


def _trimmed(latency: Latency) -> tuple[list[int], float]:
    counts = list(latency.counts)
    while counts and not counts[-1]:
        counts.pop()
    return counts, latency.max_s


def _whole(counts: list[int], max_s: float) -> Latency:
    missing = len(LATENCY_BUCKETS_S) + 1 - len(counts)
    return Latency(counts=(*counts, *(0,) * missing), max_s=max_s)
