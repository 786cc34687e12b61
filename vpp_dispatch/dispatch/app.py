"""The Faust shell: topics, tables and agents of one worker, and who owns what when.

Thin on purpose: bytes in, decode, call the domain, effects out, commit. Records of the two inboxes are neither tracked
nor committed by Faust (`acks=False`); a checkpoint commits what is saved. See docs/decisions/0001-faust-internals.md.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import faust
from faust.types import TP

from vpp_dispatch.dispatch import faust_fixes, inbox
from vpp_dispatch.dispatch.breakglass import BreakGlass
from vpp_dispatch.dispatch.coordinator import Coordinator
from vpp_dispatch.dispatch.inbox import ProgressReport
from vpp_dispatch.dispatch.intake import Intake
from vpp_dispatch.dispatch.lease import Lease
from vpp_dispatch.dispatch.publisher import Link, Publisher
from vpp_dispatch.dispatch.shards import Shards
from vpp_dispatch.domain.command import Results
from vpp_dispatch.domain.device import SHARDS
from vpp_dispatch.domain.inputs import Consent, Progress, SlotResults, Telemetry
from vpp_dispatch.domain.roster import Catalogue, Policy
from vpp_dispatch.errors import ExternalFault
from vpp_dispatch.observability.health import Health
from vpp_dispatch.observability.metrics import Metrics
from vpp_dispatch.observability.tracing import Tracing
from vpp_dispatch.operators.envelope import Message, Origin, dead_letter
from vpp_dispatch.settings import Settings

TICK_S = 0.25
BATCH_IN_HAND_S = 5.0
"""How long a revoke waits for the batch in hand."""


READY_WITHOUT_SHARDS_S = 60.0
"""How long a rebalance may take before the worker counts as not ready."""


class _App(faust.App):
    """SIGTERM does not send `on_partitions_revoked` (faust 0.15.3): what has to happen then hangs on `on_stop` too."""

    before_stop: Callable[[], Awaitable[None]] | None = None

    async def on_stop(self) -> None:
        if self.before_stop is not None:
            await self.before_stop()
        await super().on_stop()


class Outlet:
    """Our Kafka, through the app's one producer. Everything is awaited until the broker has it."""

    def __init__(self, *, app: faust.App, lease: Lease, settings: Settings, fault: Callable[[str], None]) -> None:
        self._app = app
        self._lease = lease
        self._topics = settings.topics
        self._fault = fault
        self.skew_s = 0.0

    async def _send(self, topic: str, partition: int | None, message: Message) -> Awaitable[Any]:
        producer = self._app.producer
        delivery: Awaitable[Any] = await producer.send(
            topic, message.key, message.value, partition, None, message.headers
        )
        return delivery

    async def publish(self, topic: str, messages: Sequence[Message], *, partition: int | None = None) -> None:
        """Publishes messages in their order and waits for all.

        Raises:
            ExternalFault: this worker has no fresh lease (R39), or the broker did not take a message.
        """
        if not self._lease.fresh():
            raise ExternalFault("no fresh lease, so nothing is published", reason="no_lease")
        await self.write(topic, messages, partition=partition)

    async def write(self, topic: str, messages: Sequence[Message], *, partition: int | None = None) -> None:
        """As `publish`, for what needs no lease: dead letters and inboxes, where a repeat changes nothing.

        Raises:
            ExternalFault: the broker did not take a message.
        """
        try:
            for delivery in [await self._send(topic, partition, message) for message in messages]:
                await delivery
        except Exception as fault:
            raise ExternalFault(f"{topic}: not acknowledged: {fault!r}", reason="our_kafka") from fault

    async def to_shards(self, messages: Mapping[int, bytes], *, point: str = "shard-message") -> None:
        """Sends one message to each of some shards' inboxes and waits for all; the first goes alone.

        `point` names the fault point between the first and the others.

        Raises:
            ExternalFault: at least one was not acknowledged; all have to be sent again.
        """
        items = [(shard, Message(key=None, value=value, headers=[])) for shard, value in messages.items()]
        for shard, message in items[:1]:
            await self.write(self._topics.shard_inbox, [message], partition=shard)
            self._fault(point)
        try:
            for delivery in [
                await self._send(self._topics.shard_inbox, shard, message) for shard, message in items[1:]
            ]:
                await delivery
        except Exception as fault:
            raise ExternalFault(f"shard inbox: not acknowledged: {fault!r}", reason="our_kafka") from fault

    async def to_coordinator(self, *values: bytes) -> None:
        """Sends messages to the event inbox and waits for all; measures this clock against the broker's (R7).

        Raises:
            ExternalFault: it was not acknowledged.
        """
        asked_at = time.time()
        try:
            messages = [Message(key=None, value=value, headers=[]) for value in values]
            for delivery in [await self._send(self._topics.event_inbox, 0, message) for message in messages]:
                metadata = await delivery
        except Exception as fault:
            raise ExternalFault(f"event inbox: not acknowledged: {fault!r}", reason="our_kafka") from fault
        now = time.time()
        appended_at = metadata.timestamp / 1000 if metadata.timestamp else asked_at
        # What lies between asking and hearing may be either clock's.
        self.skew_s = max(asked_at - appended_at - 0.001, appended_at - now, 0.0)

    async def progress(self, progress: Sequence[Progress]) -> None:
        """Tells the coordinator what this worker's shards have to tell, under the lease (R39)."""
        if not self._lease.fresh():
            raise ExternalFault("no fresh lease, so nothing is told", reason="no_lease")
        await self.to_coordinator(inbox.encode(ProgressReport(progress=tuple(progress))))


class Worker:
    """One worker of the service: its Faust app and everything that lives and dies with its ownership."""

    def __init__(
        self,
        *,
        settings: Settings,
        catalogue: Catalogue,
        policy: Policy,
        link: Link,
        metrics: Metrics,
        health: Health,
        log: Any,
        fault: Callable[[str], None],
        logging_config: dict[str, Any] | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.settings = settings
        self.metrics = metrics
        self.health = health
        self.log = log
        self._fault = fault
        self._folder = tempfile.TemporaryDirectory(prefix="vpp-dispatch-")
        self.lease = Lease(session_timeout_s=settings.kafka.session_timeout_s)
        self.app = self._build_app(logging_config)
        self.outlet = Outlet(app=self.app, lease=self.lease, settings=settings, fault=fault)
        self.shards = Shards(
            catalogue=catalogue,
            policy=policy,
            table=self.pages,
            outlet=self.outlet,
            lease=self.lease,
            outcomes_topic=settings.topics.outcomes,
            dead_letters_topic=settings.topics.dead_letters,
            inbox_topic=settings.topics.shard_inbox,
            metrics=metrics,
            log=log,
            fault=fault,
            digests=lambda commands: link.prepare(commands).digests,
            break_glass=BreakGlass(folder=settings.data_dir, metrics=metrics, log=log),
            tracing=tracing,
        )
        self.publisher = Publisher(
            shards=self.shards,
            link=link,
            lease=self.lease,
            max_in_flight=settings.goodwe.max_in_flight,
            max_per_s=settings.goodwe.max_per_s,
            result_timeout_s=settings.goodwe.result_timeout_s,
            retry_interval_s=settings.dispatch.retry_backoff_s,
            request_timeout_s=settings.goodwe.request_timeout_s,
            metrics=metrics,
            log=log,
            fault=fault,
            tracing=tracing,
        )
        self.coordinator = Coordinator(
            settings=settings, outlet=self.outlet, rows=self.events, metrics=metrics, log=log, tracing=tracing
        )
        self.intake = Intake(settings=settings, metrics=metrics, log=log)
        self.coordinates = False  # this worker owns the event inbox
        self.running = False  # between recovery and revoke
        self._events_next: int | None = None
        self._coordinating = asyncio.Lock()
        self._generation: int | None = None
        self._given_up_at = time.monotonic()
        self._assigned_at = time.monotonic()
        self._caught_up = False
        topics = settings.topics
        self._inputs = dict.fromkeys(settings.signals.topics, "signals") | {
            topics.registry: "registry",
            topics.event_inbox: "event_inbox",
            topics.shard_inbox: "shard_inbox",
        }

    # ------------------------------------------------------------------ the app

    def _build_app(self, logging_config: dict[str, Any] | None) -> _App:
        s = self.settings
        kafka, topics = s.kafka, s.topics
        credentials: Any = None
        context = kafka.security.ssl_context()
        if kafka.security.uses_sasl and kafka.security.password is not None:
            credentials = faust.SASLCredentials(
                username=kafka.security.username,
                password=kafka.security.password.get_secret_value(),
                mechanism=kafka.security.mechanism,
                ssl_context=context,
            )
        elif context is not None:
            credentials = faust.SSLCredentials(context=context)
        app = _App(
            kafka.group,
            broker=[f"kafka://{server.strip()}" for server in kafka.bootstrap_servers.split(",")],
            broker_credentials=credentials,
            store="memory://",
            datadir=self._folder.name,
            web_enabled=False,
            topic_replication_factor=kafka.replication_factor,
            topic_allow_declare=False,
            topic_disable_leader=True,
            table_standby_replicas=0,
            broker_session_timeout=kafka.session_timeout_s,
            broker_rebalance_timeout=kafka.rebalance_timeout_s,
            broker_heartbeat_interval=kafka.heartbeat_interval_s,
            broker_request_timeout=kafka.request_timeout_s,
            broker_commit_interval=1.0,
            broker_max_poll_interval=300.0,
            broker_max_poll_records=None,
            consumer_auto_offset_reset="earliest",
            producer_linger=0.005,
            producer_max_batch_size=1 << 20,
            producer_max_request_size=8 << 20,
            producer_request_timeout=60.0,
            producer_compression_type="zstd",
            cython_optimizations=True,
            worker_redirect_stdouts=False,
            logging_config=logging_config,
        )
        bulk = {*s.signals.topics, topics.registry, topics.shard_inbox, topics.event_inbox}
        faust_fixes.install(app, bulk_topics=bulk)
        raw: dict[str, Any] = {"schema": faust_fixes.RawSchema(), "internal": True, "allow_empty": True}
        signals = app.topic(*s.signals.topics, **raw)
        registry = app.topic(topics.registry, **raw)
        events = app.topic(topics.event_inbox, partitions=1, acks=False, maxsize=64, **raw)
        shards = app.topic(topics.shard_inbox, partitions=SHARDS, acks=False, maxsize=64, **raw)
        self.events = self._table(app, topics.events_changelog, 1)
        self.pages = self._table(app, topics.pages_changelog, SHARDS)
        self.pages.on_recover(self._recovered)
        app.agent(signals, name="signals")(self._signals)
        app.agent(registry, name="registry")(self._registry)
        app.agent(events, name="events")(self._events)
        app.agent(shards, name="shards")(self._shards)
        app.on_partitions_assigned.connect(self._assigned)
        app.on_partitions_revoked.connect(self._revoked)
        app.before_stop = self._stopping
        return app

    @staticmethod
    def _table(app: faust.App, changelog: str, partitions: int) -> faust_fixes.PartitionedTable:
        topic = app.topic(
            changelog,
            key_type=bytes,
            value_type=bytes,
            key_serializer="raw",
            value_serializer="raw",
            partitions=partitions,
            internal=True,
            allow_empty=True,
            compacting=True,
        )
        name = changelog.removesuffix("-changelog")
        table = app.Table(name, key_type=bytes, value_type=bytes, partitions=partitions, changelog_topic=topic)
        return cast(faust_fixes.PartitionedTable, table)

    # ------------------------------------------------------------------ agents

    async def _signals(self, stream: Any) -> None:
        async for event in stream.noack().events():
            outputs = [
                self.intake.signal(
                    event.message.topic,
                    event.message.partition,
                    record.offset,
                    record.timestamp / 1000,
                    record.key,
                    record.value,
                    record.headers,
                )
                for record in event.value
            ]
            letters = [letter for output in outputs for letter in output.dead_letters]
            values = [value for output in outputs for value in output.to_coordinator]
            await self._until_done("intake.signal", partial(self._pass_on, letters, values))
            event.ack()

    async def _pass_on(self, letters: Sequence[Message], values: Sequence[bytes]) -> None:
        if letters:
            await self.outlet.write(self.settings.topics.dead_letters, letters)
        if values:
            await self.outlet.to_coordinator(*values)

    async def _registry(self, stream: Any) -> None:
        async for event in stream.noack().events():
            run = event.value
            messages, letters = self.intake.registry(event.message.partition, run)
            await self._until_done("intake.registry", partial(self._register, messages, letters))
            event.ack()

    async def _register(self, messages: Mapping[int, bytes], letters: Sequence[Message]) -> None:
        if letters:
            await self.outlet.write(self.settings.topics.dead_letters, letters)
        await self.outlet.to_shards(messages, point="registry-message")

    async def _events(self, stream: Any) -> None:
        async for event in stream.events():
            run = event.value
            if not (self.coordinates and self.running):
                continue
            generation = self._generation
            records = [r for r in run if self._events_next is None or r.offset >= self._events_next]
            try:
                messages = [(record.timestamp / 1000, _decoded(record)) for record in records]
                await self._until_done("coordinator", partial(self._coordinate, messages), generation=generation)
            except Exception:  # noqa: BLE001  told one by one below
                # A fault of ours in one message must neither stop the stream nor take the others with it (R8).
                await self._one_by_one(records, generation)
            if generation == self._generation and self.running:
                self._events_next = run[-1].offset + 1

    async def _one_by_one(self, records: Sequence[Any], generation: int | None) -> None:
        """The records of a run alone; the one that fails becomes a dead letter and an error: mend the code."""
        for record in records:
            try:
                message = (record.timestamp / 1000, _decoded(record))
                await self._until_done("coordinator", partial(self._coordinate, [message]), generation=generation)
            except Exception as fault:
                self.log.error("coordinator.failed", offset=record.offset, detail=repr(fault), exc_info=True)
                await self._until_done("coordinator.bury", partial(self._bury, record, fault))

    async def _bury(self, record: Any, fault: Exception) -> None:
        letter = dead_letter(
            record.value,
            record.key,
            record.headers,
            origin=Origin(
                topic=record.topic, partition=record.partition, offset=record.offset, timestamp=record.timestamp / 1000
            ),
            reason="fault",
            detail=f"the service failed on it; see its log: {fault!r}",
            at=time.time(),
        )
        self.metrics.dead_letters.add(origin="signals", reason="fault")
        await self.outlet.write(self.settings.topics.dead_letters, [letter])

    async def _coordinate(self, messages: Sequence[Any]) -> None:
        async with self._coordinating:
            await self.coordinator.handle(messages, time.time())

    async def _shards(self, stream: Any) -> None:
        async for event in stream.events():
            if self.running:
                self.shards.fold(event.message.partition, event.value, time.time())

    async def _until_done(
        self, what: str, work: Callable[[], Coroutine[Any, Any, None]], *, generation: int | None = None
    ) -> None:
        """Tries work until it is done, since a record that was read is never skipped; ends when its shard is lost."""
        pause = 0.05
        while generation is None or (generation == self._generation and self.running):
            try:
                await work()
                return
            except ExternalFault as fault:
                if fault.reason != "no_lease" or pause > 1:
                    self.log.warning(f"{what}.retry", reason=fault.reason, detail=str(fault), pause_s=pause)
                await asyncio.sleep(pause)
                pause = min(pause * 2, 5.0)

    # ------------------------------------------------------------------ ownership

    async def _assigned(self, app: Any, assigned: set[TP], **_: Any) -> None:
        self.metrics.rebalances.add()
        self._assigned_at = time.monotonic()
        self._caught_up = False

    async def _recovered(self) -> None:
        """The tables are read: builds the state of what is owned. Positions are not known yet."""
        topics = self.settings.topics
        assignment = self.app.consumer.assignment()
        owned = sorted(tp.partition for tp in assignment if tp.topic == topics.shard_inbox)
        tps = [TP(topics.shard_inbox, shard) for shard in owned]
        ends = await faust_fixes.highwaters(self.app, tps)
        begins = await self.app.consumer.earliest_offsets(*tps) if tps else {}
        beginning = {tp.partition: offset for tp, offset in begins.items()}
        now = time.time()
        self._generation = self.app.consumer_generation_id
        self._events_next = None
        self.shards.take_over(
            owned,
            self.pages.data,
            generation=self._generation,
            # An inbox whose records have all expired has nothing to be read up.
            ends={tp.partition: end for tp, end in ends.items() if end > beginning.get(tp.partition, 0)},
            now=now,
        )
        self.coordinates = any(tp.topic == topics.event_inbox for tp in assignment)
        if self.coordinates:
            self.coordinator.recover(dict(self.events.data), self._generation, now)
        self.metrics.coordinates.set(float(self.coordinates))
        self.running = True
        self.publisher.open = True

    async def _revoked(self, app: Any, revoked: set[TP], **_: Any) -> None:
        await self._give_up("revoked")

    async def _stopping(self) -> None:
        await self._give_up("stopping")

    async def _give_up(self, why: str) -> None:
        """Publisher off, batch in hand finished, last checkpoint, then the shards are somebody else's."""
        if not self.running:
            return
        started = time.monotonic()
        await self.publisher.stop_publishing(BATCH_IN_HAND_S)
        try:
            async with asyncio.timeout(self.settings.kafka.rebalance_timeout_s / 2):
                async with self._coordinating:
                    if not self.lease.fresh():
                        await self.shards.renew(self._commit)
                    await self.shards.checkpoint(self._commit, everything=True)
        except (ExternalFault, TimeoutError) as fault:
            self.log.warning("shards.last_checkpoint", detail=f"not written, the next owner reads it again: {fault!r}")
        self.running = False
        self._given_up_at = time.monotonic()
        self.coordinates = False
        self.metrics.coordinates.set(0.0)
        self.coordinator.forget()
        self.shards.give_up()
        self.lease.drop()
        self.log.info("shards.given_up", why=why, seconds=round(time.monotonic() - started, 3))

    async def _commit(self, offsets: Mapping[int, int]) -> bool:
        topics = self.settings.topics
        wanted = {TP(topics.shard_inbox, shard): offset for shard, offset in offsets.items()}
        if self.coordinates and self._events_next is not None:
            wanted[TP(topics.event_inbox, 0)] = self._events_next
        if not wanted:
            return False
        try:
            accepted = await faust_fixes.commit_offsets(self.app, wanted, generation=self._generation)
        except ExternalFault:
            self.metrics.commits.add(outcome="failed")
            raise
        self.metrics.commits.add(outcome="committed" if accepted else "failed")
        return accepted

    # ------------------------------------------------------------------ loops

    def loops(self) -> list[Coroutine[Any, Any, None]]:
        """What runs beside the app, each until it is cancelled."""
        return [
            self._tick_loop(),
            self._coordinator_loop(),
            self._lease_loop(),
            self._checkpoint_loop(),
            self._tell_loop(),
            self.publisher.run(),
        ]

    async def _tick_loop(self) -> None:
        while True:
            self.health.beat()
            if self.running:
                self._take_positions()
                now = time.time()
                self.shards.tick(now)
                self.publisher.skew_s = self.outlet.skew_s
                self.metrics.clock_skew_seconds.set(self.outlet.skew_s)
                if not self._caught_up and self.shards.books and self.shards.all_read_up():
                    self._caught_up = True
                    self.metrics.recovery_seconds.observe(time.monotonic() - self._assigned_at)
            await asyncio.sleep(TICK_S)

    async def _coordinator_loop(self) -> None:
        """Beside the ticks, since it waits for our Kafka; the ticks and the liveness must not."""
        while True:
            await asyncio.sleep(TICK_S)
            if not (self.running and self.coordinates):
                continue
            try:
                async with self._coordinating:
                    if self.running and self.coordinates:
                        await self.coordinator.tick(time.time())
            except ExternalFault as fault:
                if fault.reason != "no_lease":
                    self.log.warning("coordinator.tick", reason=fault.reason, detail=str(fault))
            except Exception as fault:
                self.log.error("coordinator.failed", detail=repr(fault), exc_info=True)
                await asyncio.sleep(1.0)

    def _take_positions(self) -> None:
        topics = self.settings.topics
        for shard in self.shards.books:
            offset = faust_fixes.committed_position(self.app, TP(topics.shard_inbox, shard))
            if offset is not None:
                self.shards.positioned(shard, offset)
        if self.coordinates and self._events_next is None:
            self._events_next = faust_fixes.committed_position(self.app, TP(topics.event_inbox, 0))

    async def _lease_loop(self) -> None:
        """Renews the lease three times in its life; as soon as positions are known after a takeover."""
        while True:
            if self.running:
                try:
                    if not self.lease.fresh():
                        self._take_positions()
                    await self.shards.renew(self._commit)
                except ExternalFault as fault:
                    self.log.warning("lease.not_renewed", reason=fault.reason, detail=str(fault))
            await asyncio.sleep(self.lease.lasts_s / 3 if self.lease.fresh() else 0.1)

    async def _checkpoint_loop(self) -> None:
        last = 0.0
        while True:
            await asyncio.sleep(0.05)
            if not self.running or not self.lease.fresh():
                continue
            if time.monotonic() - last < 1.0 and not self.shards.is_urgent():
                continue
            last = time.monotonic()
            try:
                await self.shards.checkpoint(self._commit)
            except ExternalFault as fault:
                self.log.warning("checkpoint.refused", reason=fault.reason, detail=str(fault))
                await asyncio.sleep(0.5)
            except Exception as fault:
                self.log.error("checkpoint.failed", detail=repr(fault), exc_info=True)
                await asyncio.sleep(0.5)

    async def _tell_loop(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            if not self.running:
                continue
            try:
                await self.shards.tell(time.time())
                self.shards.gauge(time.time())
                self._gauge_lag()
                await self.shards.keep_files()
            except ExternalFault as fault:
                if fault.reason != "no_lease":
                    self.log.warning("shards.tell", reason=fault.reason, detail=str(fault))

    def _gauge_lag(self) -> None:
        waiting = dict.fromkeys(self._inputs.values(), 0)
        for topic, records in faust_fixes.lag(self.app, self._inputs).items():
            waiting[self._inputs[topic]] += records
        for label, records in waiting.items():
            self.metrics.consumer_lag.set(records, topic=label)

    # ------------------------------------------------------------------ what others give and ask

    async def deliver(self, results: Mapping[int, Results | SlotResults]) -> None:
        """Results from GoodWe, by shard, into the inboxes: also those of this worker's own shards."""
        messages = {shard: inbox.encode(part) for shard, part in results.items()}
        await self.outlet.to_shards(messages, point="result-message")

    async def consent(self, readings: Mapping[int, Consent]) -> None:
        """A complete reading of consents, one message per shard."""
        messages = {shard: inbox.encode(reading) for shard, reading in readings.items()}
        await self.outlet.to_shards(messages, point="consent-message")

    async def observe(self, telemetry: Mapping[int, Telemetry]) -> None:
        """Telemetry of owned shards."""
        for shard, part in telemetry.items():
            self.shards.observe(shard, part, time.time())

    def readiness(self) -> tuple[bool, list[str]]:
        """In the group and recovered; a rebalance shorter than a minute does not change it."""
        rebalances = self._generation is not None and time.monotonic() - self._given_up_at < READY_WITHOUT_SHARDS_S
        if self.running or rebalances:
            return True, []
        return False, ["This worker is not in the group yet, or reads the tables of its shards."]


def _decoded(record: Any) -> Any:
    """The message of a record of the event inbox; raises InvariantBroken."""
    message = inbox.decode(record.value or b"")
    if isinstance(message, inbox.SwitchTurned):  # its offset is its number
        origin = inbox.Origin(
            topic=record.topic, partition=record.partition, offset=record.offset, timestamp=record.timestamp / 1000
        )
        return replace(message, origin=origin)
    return message
