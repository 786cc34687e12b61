"""The saved rows of a book: what is dirty goes out as pages, and a takeover reads them back.

Key `shard|page|kind|epoch`: the epoch is in the key, so that a late row of a worker that was frozen can never replace
a newer one, not even by compaction. Recovery takes the highest epoch; the owner deletes the older rows after its own
is delivered. A value starts with the inbox offset that it is folded up to.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import msgspec
import numpy as np

from vpp_dispatch.domain.book import Book
from vpp_dispatch.domain.device import Record
from vpp_dispatch.domain.inputs import Selector, Switches
from vpp_dispatch.domain.membership import MEMBER, STRANGER, Membership, Part
from vpp_dispatch.domain.roster import PAGE, ROSTER, Rows
from vpp_dispatch.domain.setpoint import SETPOINT
from vpp_dispatch.domain.signal import Actuator
from vpp_dispatch.errors import InvariantBroken

LAYOUT = 2
"""Of the columns of saved rows. It rises with any change of them; older ones are read by field name, from the dtypes
that stay in LAYOUTS."""

_SETPOINT_1 = np.dtype([(n, SETPOINT[n]) for n in SETPOINT.names or () if n not in ("open", "verified", "checked")])
_MEMBER_2 = ("asked", "draw", "leaves_at", "told_generation")
_MEMBER_1 = np.dtype([(n, MEMBER[n]) for n in MEMBER.names or () if n not in _MEMBER_2])

LAYOUTS: dict[int, dict[str, np.dtype]] = {
    1: {"devices": ROSTER, "setpoints": _SETPOINT_1, "members": _MEMBER_1, "strangers": STRANGER},
    2: {"devices": ROSTER, "setpoints": SETPOINT, "members": MEMBER, "strangers": STRANGER},
}

_HEADER = struct.Struct("<qH")  # inbox offset, layout
_pack = msgspec.msgpack.Encoder().encode

PageName = tuple[str, str]
"""(page, kind)."""


class _Devices(msgspec.Struct, array_like=True):
    sns: list[str]
    records: list[Record | None]
    columns: bytes


class _Event(msgspec.Struct, array_like=True):
    selector: Selector
    slot: int
    end_at: float
    flags: tuple[bool, bool, bool, bool, bool]  # started, ended, cancelled, replaced, superseded
    closed_at: float
    counters: tuple[int, int, int, int, int, int]  # published, retried, duplicates, late, held and won at the end
    latency: tuple[list[int], list[int], float, float]
    parts: list[bytes]
    strangers: list[str]
    told_strangers: bytes
    ramp_down_s: int = 0
    measured: tuple[int, int, int] = (0, 0, 0)  # W, devices with a sample and without


class _Head(msgspec.Struct, array_like=True):
    consent_at: float
    closed: dict[str, tuple[int, float]]
    switches: Switches = Switches()


_devices = msgspec.msgpack.Decoder(_Devices)
_event = msgspec.msgpack.Decoder(_Event)
_head = msgspec.msgpack.Decoder(_Head)


@dataclass(slots=True, kw_only=True)
class Snapshot:
    """What one checkpoint of a shard writes: rows, the offset they stand for, and what becomes durable with them."""

    shard: int
    offset: int | None
    rows: list[tuple[bytes, bytes]] = field(default_factory=list)
    drops: list[bytes] = field(default_factory=list)
    arming: dict[Actuator, Rows] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(len(value) for _, value in self.rows)


def page_of_event(event: str, revision: int) -> str:
    """The page name of an event's row: a hash, since event ids may hold anything."""
    return hashlib.blake2b(f"{event}\0{revision}".encode(), digest_size=8).hexdigest()


def split(key: bytes) -> tuple[int, str, str, int]:
    """(shard, page, kind, epoch) of a key; raises InvariantBroken for a key that `snapshot` never made."""
    try:
        shard, page, kind, epoch = key.decode().split("|")
        return int(shard), page, kind, int(epoch)
    except ValueError as fault:
        raise InvariantBroken(f"a saved row has the key {key!r}") from fault


def snapshot(book: Book, kept: dict[PageName, set[bytes]], offset: int | None) -> Snapshot:
    """The dirty pages of a book, now; synchronous, so that pages and offset belong together.

    `kept` knows the keys that stand in the table for each page and is brought up to date.
    """
    shot = Snapshot(shard=book.shard, offset=offset)

    def put(page: str, kind: str, body: bytes) -> None:
        key = f"{book.shard}|{page}|{kind}|{book.epoch}".encode()
        shot.rows.append((key, _HEADER.pack(offset or 0, LAYOUT) + body))
        old = kept.setdefault((page, kind), set())
        shot.drops.extend(old - {key})
        kept[page, kind] = {key}

    n = len(book.roster)
    for page in sorted(book.roster.dirty):
        part = slice(page * PAGE, min((page + 1) * PAGE, n))
        columns = book.roster.columns[part].tobytes()
        put(str(page), "devices", _pack(_Devices(book.roster.sns[part], book.roster.records[part], columns)))
    book.roster.dirty.clear()
    # Events before setpoints: if only some of these rows arrive, an event that has ended must not be found holding, and
    # take the release that stands on the device by then for its own setpoint. Release signals after them: one must not
    # be found to have asserted what was never armed.
    _put_events(book, put, release=False)
    for actuator, setpoints in book.setpoints.items():
        for page in sorted(setpoints.dirty):
            part = slice(page * PAGE, min((page + 1) * PAGE, n))
            put(str(page), actuator.name.lower(), setpoints.columns[part].tobytes())
        setpoints.dirty.clear()
        setpoints.urgent = False
        arming = np.flatnonzero(setpoints.columns["armed"] & ~setpoints.durable)
        if len(arming):
            shot.arming[actuator] = arming
    _put_events(book, put, release=True)
    for event, revision in book.dropped:
        shot.drops.extend(kept.pop((page_of_event(event, revision), "event"), ()))
    book.dropped.clear()
    if book.head_dirty:
        put("0", "head", _pack(_Head(book.roster.consent_at, book.closed, book.switches)))
        book.head_dirty = False
    book.published_news = False
    return shot


def _put_events(book: Book, put: Callable[[str, str, bytes], None], *, release: bool) -> None:
    for (event, revision), membership in book.memberships.items():
        if membership.dirty and membership.release is release:
            put(page_of_event(event, revision), "event", _pack(_event_of(membership)))
            membership.dirty = False


def saved(book: Book, shot: Snapshot) -> None:
    """The rows of a snapshot are delivered: what they arm may be published now."""
    for actuator, rows in shot.arming.items():
        setpoints = book.setpoints[actuator]
        setpoints.durable[rows] = setpoints.columns["armed"][rows]
        setpoints.unsaved[rows] = False
        book.look_again()


def soil(book: Book) -> None:
    """Everything has to be saved again: a snapshot was taken and its rows were not delivered."""
    pages = range(-(-len(book.roster) // PAGE))
    book.roster.dirty.update(pages)
    for setpoints in book.setpoints.values():
        setpoints.dirty.update(pages)
        setpoints.urgent = True
    for membership in book.memberships.values():
        membership.dirty = True
    book.head_dirty = True


def is_dirty(book: Book) -> bool:
    """Whether a checkpoint would write something."""
    return bool(
        book.roster.dirty
        or book.head_dirty
        or book.dropped
        or any(s.dirty for s in book.setpoints.values())
        or any(m.dirty for m in book.memberships.values())
    )


def newest(rows: Mapping[bytes, bytes], shards: Iterable[int]) -> dict[int, dict[PageName, dict[int, bytes]]]:
    """The keys of saved rows by shard, page and epoch; the value is the key. Only of the given shards."""
    wanted = {shard: {} for shard in shards}  # type: dict[int, dict[PageName, dict[int, bytes]]]
    for key, value in rows.items():
        shard, page, kind, epoch = split(key)
        if shard in wanted and value:
            wanted[shard].setdefault((page, kind), {})[epoch] = key
    return wanted


def load(
    book: Book, found: Mapping[PageName, Mapping[int, bytes]], rows: Mapping[bytes, bytes], now: float
) -> dict[PageName, set[bytes]]:
    """Fills an empty book from its saved rows, the highest epoch of each page; returns the keys that stand there."""
    kept = {name: set(by_epoch.values()) for name, by_epoch in found.items()}
    best = {name: rows[by_epoch[max(by_epoch)]] for name, by_epoch in found.items()}
    for (page, kind), value in sorted(best.items(), key=lambda item: (item[0][1], len(item[0][0]), item[0][0])):
        if kind == "devices":
            _load_devices(book, int(page), _devices.decode(value[_HEADER.size :]), _layout(value))
    for setpoints in book.setpoints.values():
        setpoints.grow(len(book.roster.columns))
    for (page, kind), value in best.items():
        offset, body = _HEADER.unpack_from(value)[0], value[_HEADER.size :]
        if kind == "head":
            head = _head.decode(body)
            book.roster.consent_at, book.closed, book.switches = head.consent_at, head.closed, head.switches
        elif kind != "devices" and kind != "event":
            actuator = Actuator[kind.upper()]
            start = int(page) * PAGE
            room = max(
                len(book.setpoints[actuator].columns) - start, 0
            )  # a late row may know devices that are not read yet
            columns = _read(body, "setpoints", _layout(value))[:room]
            book.setpoints[actuator].columns[start : start + len(columns)] = columns
            book.folded_to[actuator, int(page)] = offset
    for (_page, kind), value in best.items():
        if kind == "event":
            membership = _membership(_event.decode(value[_HEADER.size :]), _layout(value))
            membership.folded_to = _HEADER.unpack_from(value)[0]
            for part in membership.parts:  # see above
                part.members = part.members[part.members["row"] < len(book.roster)]
            selector = membership.selector
            if book.closed.get(selector.event, (0, 0.0))[0] >= selector.revision:
                book.dropped.add((selector.event, selector.revision))  # a late row of an event that is over
                continue
            book.memberships[selector.event, selector.revision] = membership
    _replace_older(book)
    book.registry_defaults(range(len(book.roster)))
    for setpoints in book.setpoints.values():
        setpoints.taken_over(now, book.epoch)
    return kept


def _replace_older(book: Book) -> None:
    """An older revision may be back by a row that was written late, or never deleted, from before it was replaced."""
    newest: dict[str, Membership] = {}
    for membership in book.memberships.values():
        selector = membership.selector
        if selector.event not in newest or newest[selector.event].selector.revision < selector.revision:
            newest[selector.event] = membership
    for membership in book.memberships.values():
        heir = newest[membership.selector.event]
        if heir is not membership and not membership.replaced:
            membership.replace(by=heir.selector, now=0.0)
            if heir.cancelled:
                membership.end_at = min(membership.end_at, heir.end_at)


def _layout(value: bytes) -> int:
    """The layout of a saved row; raises InvariantBroken for one that this version does not know."""
    layout = int(_HEADER.unpack_from(value)[1])
    if layout not in LAYOUTS:
        raise InvariantBroken(
            f"a saved row has layout {layout}, and this version knows {sorted(LAYOUTS)}: run the version that wrote it"
        )
    return layout


def _read(body: bytes, what: str, layout: int) -> np.ndarray:
    """Columns of a saved row in today's layout, a copy; a field that the row's layout lacks is zero."""
    old, new = np.frombuffer(body, LAYOUTS[layout][what]), LAYOUTS[LAYOUT][what]
    columns = np.zeros(len(old), new)
    for name in set(new.names or ()) & set(old.dtype.names or ()):
        columns[name] = old[name]
    return columns


def _load_devices(book: Book, page: int, saved_: _Devices, layout: int) -> None:
    roster = book.roster
    columns = _read(saved_.columns, "devices", layout)
    for i, sn in enumerate(saved_.sns):
        row = roster.add(sn)
        if row != page * PAGE + i:
            raise InvariantBroken(f"shard {book.shard}: the saved rows of devices do not follow each other at {row}")
        if saved_.records[i] is not None:
            roster.put(row, saved_.records[i])
    roster.columns[page * PAGE : page * PAGE + len(columns)] = columns
    roster.dirty.clear()


def _event_of(m: Membership) -> _Event:
    return _Event(
        m.selector,
        m.slot,
        m.end_at,
        (m.started, m.ended, m.cancelled, m.replaced, m.superseded),
        m.closed_at,
        (m.published, m.retried, m.duplicates, m.late, m.held_at_end, m.won_at_end),
        (m.publish_latency.tolist(), m.result_latency.tolist(), m.publish_max_s, m.result_max_s),
        [part.members.tobytes() for part in m.parts],
        m.strangers,
        m.told_strangers.tobytes(),
        m.ramp_down_s,
        (m.measured_w, m.measured, m.unmeasured),
    )


def _membership(e: _Event, layout: int) -> Membership:
    m = Membership(slot=e.slot, selector=e.selector)
    m.end_at = e.end_at
    m.started, m.ended, m.cancelled, m.replaced, m.superseded = e.flags
    m.closed_at = e.closed_at
    m.published, m.retried, m.duplicates, m.late, m.held_at_end, m.won_at_end = e.counters
    m.publish_latency, m.result_latency = np.array(e.latency[0], np.int64), np.array(e.latency[1], np.int64)
    m.publish_max_s, m.result_max_s = e.latency[2], e.latency[3]
    m.ramp_down_s = e.ramp_down_s
    m.measured_w, m.measured, m.unmeasured = e.measured
    controls = [(control.actuator, control) for control in e.selector.controls]
    m.parts = [
        Part(actuator=actuator, control=control, members=_read(body, "members", layout))
        for (actuator, control), body in zip(
            [(actuator, None) for actuator in Actuator] if m.release else controls, e.parts, strict=True
        )
    ]
    if layout == 1:  # each control asked the same of all
        for part in m.parts:
            part.members["asked"] = (part.control.each_w if part.control else None) or 0
    m.strangers = e.strangers
    m.told_strangers = _read(e.told_strangers, "strangers", layout)
    m.dirty = False
    return m
