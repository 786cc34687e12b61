"""A minimal Faust app on the fixes: what the service's shell does, without the domain. The fault tests run it.

Topics, all of `PARTITIONS` partitions, prefix = app id: `-plain` (one record an event, acked by Faust, a row each),
`-acked` (bulk, acked by Faust), `-book` (bulk, own commit: folded into one row per partition and epoch, as a shard's
pages are).

Everything it does is appended to `OUT`, one JSON object a line; assertions read that, the topics and the commits.

Environment: BOOTSTRAP, APP (app id and topic prefix), OUT, WORKER; DELAY_S of work per plain record; TRAP
`point:n:SIGNAL`; STOCK=1 leaves the fixes out and reads the plain topic only (to see what stock Faust loses; not part
of the suite).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faust
from faust.types import TP

from vpp_dispatch.dispatch import faust_fixes as fixes
from vpp_dispatch.errors import ExternalFault

PARTITIONS = 8
CHECKPOINT_S = 0.5

APP, WORKER, STOCK = os.environ["APP"], os.environ["WORKER"], os.environ.get("STOCK") == "1"
DELAY_S = float(os.environ.get("DELAY_S", "0"))
PLAIN, ACKED, BOOK = f"{APP}-plain", f"{APP}-acked", f"{APP}-book"

FOLDER = Path(os.environ["OUT"]).parent
out = Path(os.environ["OUT"]).open("a", buffering=1)  # noqa: SIM115 (as long as the process)


@dataclass
class Trap:
    """Where to stop or die: at the `left`-th pass of `point` from now, by `signal`."""

    point: str
    left: int
    signal: str


_point, _left, _signal = os.environ.get("TRAP", ":0:").split(":")
trap = Trap(_point, int(_left), _signal)


def note(event: str, **fields: Any) -> None:
    """Append what happened to OUT."""
    out.write(json.dumps({"event": event, "worker": WORKER, "at": time.time(), **fields}) + "\n")


def trap_at(name: str) -> None:
    """Stop, or die, if TRAP says so."""
    if trap.point == name:
        trap.left -= 1
        if trap.left == 0:
            note("trap", point=name)
            os.kill(os.getpid(), signal.Signals[trap.signal])


@dataclass
class Book:
    """State of one partition: records folded, sum of their values, next offset (None: none read yet)."""

    count: int = 0
    total: int = 0
    upto: int = 0
    next: int | None = None
    dirty: bool = False
    old_key: bytes | None = None


class App(faust.App):
    """Gives everything up at SIGTERM: Faust sends no revoke signal then."""

    async def on_stop(self) -> None:
        note("on_stop", committed=await give_up())
        await super().on_stop()


app = App(
    APP,
    broker=f"kafka://{os.environ['BOOTSTRAP']}",
    store="memory://",
    datadir=str(FOLDER / f"data-{WORKER}"),
    topic_partitions=PARTITIONS,
    topic_replication_factor=1,
    topic_disable_leader=True,
    table_standby_replicas=0,
    web_enabled=False,
    broker_session_timeout=6,
    broker_heartbeat_interval=1,
    broker_rebalance_timeout=6,
    broker_request_timeout=20,
    broker_commit_interval=1,
    consumer_auto_offset_reset="earliest",
    producer_linger=0,
)
raw: dict[str, Any] = {"internal": True, "partitions": PARTITIONS}
books: dict[int, Book] = {}
generation, epoch = 0, 0
checkpointing = asyncio.Lock()

if STOCK:
    rows = app.Table("rows", key_type=bytes, value_type=bytes, partitions=PARTITIONS)
    plain = app.topic(PLAIN, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw", **raw)
else:
    fixes.install(app, bulk_topics=[ACKED, BOOK])
    rows = app.Table("rows", key_type=bytes, value_type=bytes, partitions=PARTITIONS)
    plain = app.topic(PLAIN, schema=fixes.RawSchema(), **raw)


@app.agent(plain)
async def one_by_one(stream: Any) -> None:
    """A row and a note per record."""
    async for event in stream.events():
        if DELAY_S:
            await asyncio.sleep(DELAY_S)
        key = b"%d|plain" % event.message.partition
        if STOCK:
            rows[key] = event.value
        else:
            await rows.put(key, event.value)
        note("plain", n=int(event.value), partition=event.message.partition)


async def checkpoint() -> bool:
    """Deliver the rows of books with news, then commit the offsets of all; True when the broker took them."""
    async with checkpointing:
        of, deliveries, offsets = generation, [], {}
        for partition, book in books.items():  # no await in here: row and offset belong together
            if book.dirty:
                book.upto = book.next or 0
                key = b"%d|book|%d" % (partition, epoch)
                deliveries.append(rows.put(key, json.dumps([book.count, book.total, book.upto]).encode()))
                if book.old_key not in (None, key):
                    deliveries.append(rows.drop(book.old_key))
                book.dirty, book.old_key = False, key
            tp = TP(BOOK, partition)
            position = book.next if book.next is not None else fixes.committed_position(app, tp)
            if position is not None:
                offsets[tp] = position
        trap_at("queued") if deliveries else None
        for delivery in deliveries:
            await delivery
        trap_at("delivered") if deliveries else None
        try:
            return await fixes.commit_offsets(app, offsets, generation=of)
        except ExternalFault as fault:
            note("refused", reason=fault.reason, detail=str(fault))
            return False


async def give_up() -> bool:
    """The last checkpoint of this assignment."""
    committed = await checkpoint()
    books.clear()
    return committed


async def rebuild() -> None:
    """Take the row of the highest epoch of each partition owned."""
    global generation, epoch
    books.clear()
    owned = {tp.partition for tp in app.consumer.assignment() if tp.topic == BOOK}
    ends = await fixes.highwaters(app, [TP(BOOK, partition) for partition in owned])
    generation = app.consumer_generation_id
    newest: dict[int, tuple[int, bytes, bytes]] = {}
    for key, value in rows.data.items():
        number, kind, *of = key.split(b"|")
        if kind == b"book" and int(number) in owned:
            newest[int(number)] = max(newest.get(int(number), (0, b"", b"")), (int(of[0]), key, value))
    epoch = max([generation, *(found[0] + 1 for found in newest.values())])
    for partition in owned:
        books[partition] = book = Book()
        if partition in newest:
            _, book.old_key, value = newest[partition]
            book.count, book.total, book.upto = json.loads(value)
    note("rebuilt", owned=sorted(owned), ends=sum(ends.values()), generation=generation, rows=len(rows.data))


if not STOCK:
    rows.on_recover(rebuild)

    @app.on_partitions_revoked.connect
    async def revoked(*_: Any, **__: Any) -> None:
        """Checkpoint while the group still knows us."""
        note("revoked", committed=await give_up())

    @app.agent(app.topic(BOOK, schema=fixes.RawSchema(), acks=False, maxsize=64, **raw))
    async def fold(stream: Any) -> None:
        """Fold a run into its partition's book; what the row already holds changes nothing."""
        async for event in stream.noack().events():
            book = books.get(event.message.partition)
            if book is None:
                continue
            for record in event.value:
                if record.offset >= max(book.upto, book.next or 0):
                    book.count += 1
                    book.total += int(record.value)
                    book.dirty = True
            book.next = max(event.message.offset + 1, book.next or 0)
            note("run", partition=event.message.partition, first=event.value[0].offset, last=event.message.offset)

    @app.agent(app.topic(ACKED, schema=fixes.RawSchema(), maxsize=64, **raw))
    async def acked(stream: Any) -> None:
        """Only note the run; Faust commits it."""
        async for event in stream.events():
            note("acked", partition=event.message.partition, offsets=[record.offset for record in event.value])

    @app.task
    async def checkpoints() -> None:
        """One every CHECKPOINT_S while this worker has its partitions."""
        while not app.should_stop:
            await asyncio.sleep(CHECKPOINT_S)
            if books and not app.rebalancing:
                await checkpoint()


@app.task
async def readiness() -> None:
    """Note each time the worker gets ready, and what it then has."""
    was = False
    while not app.should_stop:
        ready = app.tables.recovery.completed.is_set() and not app.rebalancing
        if ready and not was:
            note("ready", plain=sorted(tp.partition for tp in app.consumer.assignment() if tp.topic == PLAIN))
        was = ready
        await asyncio.sleep(0.05)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    faust.Worker(app, loglevel="INFO", redirect_stdouts=False, override_logging=False).execute_from_commandline()
