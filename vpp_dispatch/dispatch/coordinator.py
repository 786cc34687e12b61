"""The coordinator: signals and progress in, controls to the shards, responses and reports to the operators.

What happens to an event is decided in `domain.event`. Here it becomes durable and goes out, in this order: rows, then
responses, then messages to the shards; a report only after the row that reserves its sequence, a final response only
after the final report. Everything may be done again after a crash: responses by their bytes in the row, shard messages
by their content, reports under a new sequence.

The rows are in `event_rows`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import msgspec

from vpp_dispatch.dispatch import event_rows, inbox
from vpp_dispatch.dispatch.event_rows import ANSWER, COUNTS, LIFE, SIGNAL, STATE, SWITCHES
from vpp_dispatch.dispatch.inbox import EventInput, ProgressReport, SignalReceived, SignalRefused, SwitchTurned
from vpp_dispatch.domain.answer import Refusal, Response
from vpp_dispatch.domain.device import SHARDS
from vpp_dispatch.domain.event import (
    FINAL,
    REPORT_EVERY_S,
    Answer,
    Event,
    Reply,
    Verdict,
    objections,
    selectors,
)
from vpp_dispatch.domain.inputs import Cancel, Close, Switches
from vpp_dispatch.domain.report import report
from vpp_dispatch.domain.signal import Action, Signal
from vpp_dispatch.errors import ExternalFault
from vpp_dispatch.observability.metrics import Metrics
from vpp_dispatch.observability.tracing import Tracing
from vpp_dispatch.operators.envelope import Message
from vpp_dispatch.operators.messages import decode_signal, encode_report, encode_response
from vpp_dispatch.settings import ANY_SOURCE, Settings

SEQUENCES = 32
"""Report sequences that one write of a row reserves."""

SIDE_BY_SIDE = 100
"""Events that are worked on at the same time."""

EXPIRE_EVERY_S = 60.0

DROPS_PER_TICK = 500


class Outlet(Protocol):
    """Our Kafka as the shell gives it; both raise ExternalFault unless everything was acknowledged."""

    async def to_shards(self, messages: Mapping[int, bytes]) -> None: ...
    async def publish(self, topic: str, messages: Sequence[Message]) -> None: ...


class Rows(Protocol):
    """The events table, partition 0; each write returns its delivery."""

    def put(self, key: bytes, value: bytes) -> Awaitable[Any]: ...
    def drop(self, key: bytes) -> Awaitable[Any]: ...


_pack = msgspec.msgpack.Encoder().encode
_message = msgspec.msgpack.Decoder(Message).decode


class Coordinator:
    """All events, while this worker owns the event inbox. `handle` and `tick` never run at the same time."""

    def __init__(
        self,
        *,
        settings: Settings,
        outlet: Outlet,
        rows: Rows,
        metrics: Metrics,
        log: Any,
        tracing: Tracing | None = None,
    ) -> None:
        self._tracing = tracing or Tracing()
        self._settings = settings
        self._outlet = outlet
        self._rows = rows
        self._metrics = metrics
        self._log = log
        self._sources = {*settings.signals.topics.values(), *settings.grants} - {ANY_SOURCE}
        self.forget()

    def forget(self) -> None:
        """The ownership is lost: nothing of this state may be used again."""
        self._epoch = 0
        self._events: dict[str, Event] = {}
        self._open: dict[str, Event] = {}  # those that are busy
        self._signals: dict[str, Signal] = {}  # of the runs whose selectors are not out
        self._keys: dict[str, dict[str, bytes]] = {}  # event -> kind -> key of the newest row
        self._drops: dict[bytes, None] = {}  # keys of rows that have to go, in order
        self._done: set[tuple[str, int, int]] = set()  # signals of a `handle` that did not end
        self._expire_at = 0.0
        self._gauge_at = 0.0
        self._signal_at = 0.0  # when the newest signal arrived
        self._switches = Switches()
        self._switches_sent = True  # all shards know them
        self._metrics.switches.set(0.0, switch="drain")
        self._gauge()

    # ------------------------------------------------------------------ takeover

    def recover(self, rows: Mapping[bytes, bytes], epoch: int, now: float) -> None:
        """Takes over: the state becomes what the rows say, each kind's highest epoch.

        Args:
            rows: the table, keys and values.
            epoch: Kafka's generation; the epoch becomes higher than that of any row.
            now: epoch seconds.
        """
        self.forget()
        found: dict[str, dict[str, dict[int, bytes]]] = {}
        for key in rows:
            name, kind, row_epoch = event_rows.split(key)
            found.setdefault(name, {}).setdefault(kind, {})[row_epoch] = key
            epoch = max(epoch, row_epoch + 1)
        self._epoch = epoch
        for name, kinds in found.items():
            newest = {kind: by_epoch[max(by_epoch)] for kind, by_epoch in kinds.items()}
            best = {kind: rows[key] for kind, key in newest.items()}
            self._keys[name] = newest
            if name == SWITCHES:
                self._switches, self._switches_sent = event_rows.load_switches(best[STATE]), False
                self._drops.update(dict.fromkeys(key for by_epoch in kinds.values() for key in by_epoch.values()))
                del self._drops[newest[STATE]]
                continue
            try:
                event, unsent = event_rows.load_event(best)
            except (msgspec.MsgspecError, ValueError) as fault:
                # Kept as it is: a version that can read it may come back.
                self._log.error("event.unreadable", name=name, detail=f"its rows cannot be read: {fault!r}")
                continue
            self._drops.update(dict.fromkeys(key for by_epoch in kinds.values() for key in by_epoch.values()))
            for key in newest.values():
                del self._drops[key]
            if event is None:
                self._drop_all(name)
            else:
                self._events[name] = event
                if unsent is not None:
                    self._signals[name] = unsent
                self._signal_at = max(self._signal_at, event.run.accepted_at if event.run else 0.0)
                if event.busy:
                    self._open[name] = event
        self._expire_at = now + EXPIRE_EVERY_S
        self._log.info("events.recovered", events=len(self._events), open=len(self._open), epoch=epoch)

    # ------------------------------------------------------------------ the inbox

    async def handle(self, messages: Sequence[tuple[float, EventInput]], now: float) -> None:
        """Handles one fetch of the event inbox; when it returns, all its effects are delivered.

        May be called again with the same messages and changes nothing twice.

        Args:
            messages: when the broker appended each, in epoch seconds, and the message.
            now: epoch seconds.

        Raises:
            ExternalFault: something was not acknowledged; call it again with the same messages.
        """
        touched: dict[str, Event] = {}
        waiting: dict[str, list[Callable[[], Awaitable[None]]]] = {}  # by event, each in its order
        for at, message in messages:
            if isinstance(message, ProgressReport):
                for progress in message.progress:
                    event = self._events.get(progress.event)
                    if event is not None:
                        event.take(progress)
                        touched[progress.event] = event
                continue
            origin = (message.origin.topic, message.origin.partition, message.origin.offset)
            if origin in self._done:
                continue
            if isinstance(message, SwitchTurned):  # it counts for what comes after it, and not before
                await self._side_by_side(waiting)
                await self._turned(message, at)
                self._done.add(origin)
                continue
            self._signal_at = max(self._signal_at, at)
            name, work = self._work(message, at, now)
            waiting.setdefault(name, []).append(partial(self._once, origin, work))
        await self._side_by_side(waiting)
        for name, event in touched.items():
            if event.busy:
                self._open[name] = event
            waiting[name] = [partial(self._save, event)]
        await self._side_by_side(waiting)
        self._done.clear()

    def _work(
        self, message: SignalReceived | SignalRefused, at: float, now: float
    ) -> tuple[str, Callable[[], Awaitable[None]]]:
        """The name of the event that a message is for, and what has to be done for it."""
        if isinstance(message, SignalRefused):
            return f"{message.source}/{message.event_id}", partial(self._refused, message, at, now)
        signal = decode_signal(message.body)
        if isinstance(signal, Refusal):  # intake could read it: it is of another version
            name = signal.identity.event_id if signal.identity else ""
            return f"{message.source}/{name}", partial(self._unread, message, signal, at, now)
        return signal.key, partial(self._received, message, signal, at, now)

    async def _once(self, origin: tuple[str, int, int], work: Callable[[], Awaitable[None]]) -> None:
        await work()
        self._done.add(origin)

    @staticmethod
    async def _side_by_side(waiting: dict[str, list[Callable[[], Awaitable[None]]]]) -> None:
        """Does the work of many events at the same time, of each in its order: nearly all of it is waiting for Kafka.

        Raises:
            ExternalFault: something was not acknowledged; everything that does not follow from it was done.
        """

        async def in_order(steps: Sequence[Callable[[], Awaitable[None]]]) -> None:
            for step in steps:
                await step()

        events = list(waiting.values())
        waiting.clear()
        for start in range(0, len(events), SIDE_BY_SIDE):
            ends = await asyncio.gather(*map(in_order, events[start : start + SIDE_BY_SIDE]), return_exceptions=True)
            for fault in ends:
                if isinstance(fault, BaseException):
                    raise fault

    async def _turned(self, message: SwitchTurned, at: float) -> None:
        """Turns a switch, or aborts an event (R36)."""
        told = {"switch": message.switch, "on": message.on, "by": message.by, "reason": message.reason}
        if message.switch == "abort":
            event = self._events.get(message.event or "")
            if event is None or not event.abort(at):
                self._log.warning("switch.nothing_to_abort", target=message.event, **told)
                return
            self._log.warning("switch.aborted", target=message.event, **told)
            self._open[event.key] = event
            await self._deliver(event)
            return
        number = message.number
        if number <= self._switches.number:
            return
        on = {"releases_only": self._switches.releases_only, "drain": self._switches.drain, message.switch: message.on}
        self._switches, self._switches_sent = Switches(number=number, **on), False
        self._log.warning("switch.turned", number=number, **told)
        await self._put(SWITCHES, STATE, event_rows.switches_row(self._switches))
        await self._tell_switches()

    async def _tell_switches(self) -> None:
        """To all shards; again after a takeover, since nobody can know whether they have heard."""
        if not self._switches_sent:
            await self._outlet.to_shards(dict.fromkeys(range(SHARDS), inbox.encode(self._switches)))
            self._switches_sent = True
        self._metrics.switches.set(float(self._switches.drain), switch="drain")

    def _objections(self, signal: Signal, event: Event) -> tuple[str, ...]:
        """Why a signal that is valid is refused: by grant or form, or because no new event may begin."""
        known = event.run is not None and signal.action is Action.CANCEL
        # Whoever could start it may end it, also after the grant is gone.
        found = [
            word
            for word in objections(signal, self._settings.grant_of(signal.source))
            if not (known and word == "not_granted")
        ]
        begins = event.run is None or event.run.state == "closed"
        if self._switches.drain and signal.action is Action.DISPATCH and begins:
            found.append("draining")
        return tuple(found)

    async def _received(self, message: SignalReceived, signal: Signal, at: float, now: float) -> None:
        event = await self._event(signal.source, signal.event_id, now)
        if event is None:
            return
        revision = (event.key, signal.revision)
        with self._tracing.decision(revision, message.traceparent, **{"vpp.action": signal.action.value}):
            verdict = event.receive(
                signal,
                at=at,
                now=now,
                longest_s=self._settings.dispatch.longest_event_s,
                objections=self._objections(signal, event),
                traceparent=message.traceparent,
                origin=_origin(message),
            )
            if verdict is Verdict.ACCEPTED and signal.action is not Action.CANCEL:
                self._signals[event.key] = signal
            await self._decided(event, signal.revision, signal.action.value, verdict)

    async def _unread(self, message: SignalReceived, refusal: Refusal, at: float, now: float) -> None:
        identity = refusal.identity
        if identity is None or identity.source != message.source:
            self._metrics.signals.add(source=self._label(message.source), action="unknown", verdict=refusal.reason)
            self._log.error("signal.unreadable", source=message.source, reason=refusal.reason, detail=refusal.detail)
            return
        refused = SignalRefused(
            origin=message.origin,
            source=identity.source,
            event_id=identity.event_id,
            revision=identity.revision,
            reason=refusal.reason,
            detail=refusal.detail,
            traceparent=message.traceparent,
        )
        await self._refused(refused, at, now)

    async def _refused(self, message: Any, at: float, now: float) -> None:
        event = await self._event(message.source, message.event_id, now)
        if event is None:
            return
        verdict = event.refuse_unread(
            message.revision,
            reason=message.reason,
            at=at,
            traceparent=message.traceparent,
            origin=_origin(message),
        )
        await self._decided(event, message.revision, "unknown", verdict, detail=message.detail)

    async def _event(self, source: str, event_id: str, now: float) -> Event | None:
        """The event of a signal; a final report that it owes goes out before a new revision can begin."""
        name = f"{source}/{event_id}"
        event = self._events.get(name) or Event(source=source, event_id=event_id)
        if event.source != source:
            # `a/b` + `c` and `a` + `b/c` spell one name; the second must not touch the first one's event (R9).
            self._metrics.signals.add(source=self._label(source), action="unknown", verdict="ambiguous_name")
            self._log.error("signal.ambiguous", source=source, event_id=event_id, taken_by=event.source)
            return None
        if event.run is not None and event.run.state == "closed" and event.report_due:
            await self._report(event, now)
        return event

    async def _decided(
        self, event: Event, revision: int, action: str, verdict: Verdict, detail: str | None = None
    ) -> None:
        answer = event.answers.get(revision)
        replies = [] if answer is None else [reply for _, reply in event.untold if reply in answer.replies]
        reasons = [word for reply in replies for word in reply.reasons]
        word = reasons[0] if verdict is Verdict.REFUSED and reasons else verdict.value
        self._metrics.signals.add(source=self._label(event.source), action=action, verdict=word)
        self._log.info(
            f"signal.{'stale' if verdict is Verdict.STALE else verdict.value}",
            source=event.source,
            event_id=event.event_id,
            revision=revision,
            action=action,
            reasons=reasons,
            **({} if detail is None else {"detail": detail}),
        )
        self._events[event.key] = event
        self._open[event.key] = event
        await self._deliver(event)

    def _label(self, source: str) -> str:
        """The source as a metric's label: one that is configured, so that there is an end to them."""
        return source if source in self._sources else ANY_SOURCE

    # ------------------------------------------------------------------ time

    async def tick(self, now: float) -> None:
        """Lets time pass: starts, closes, reports, sends what a row says is not sent, drops rows that are over.

        Raises:
            ExternalFault: something was not acknowledged; the next tick does it again.
        """
        await self._tell_switches()
        await self._side_by_side({name: [partial(self._advance, event, now)] for name, event in self._open.items()})
        self._open = {name: event for name, event in self._open.items() if event.busy}
        self._expire(now)
        await self._drop_some()
        if now >= self._gauge_at:
            self._gauge_at = now + 1.0
            self._gauge()

    def _gauge(self) -> None:
        states = dict.fromkeys(("scheduled", "active", "ending"), 0.0)
        for event in self._open.values():
            if event.run is not None and event.run.state != "closed":
                states[event.run.state] += 1
        self._metrics.events.set_all(states)
        if self._signal_at:
            self._metrics.last_signal_timestamp_seconds.set(self._signal_at)

    async def _advance(self, event: Event, now: float) -> None:
        event.dirty = event.dirty or event.lazy
        await self._deliver(event)
        happened = event.advance(now, grace_s=self._settings.dispatch.settle_grace_s)
        if happened:
            await self._deliver(event)
        if event.report_due and now >= event.reported_at + REPORT_EVERY_S:
            await self._report(event, now)
        for what in happened:
            self._tell_log(event, what)

    def _tell_log(self, event: Event, what: str) -> None:
        run = event.run
        assert run is not None
        told = {"source": event.source, "event_id": event.event_id, "revision": run.revision}
        if what == "closed":
            code = next((r.code for r in event.answers[run.revision].replies if r.code in FINAL), 6)
            missing = [s for s in run.expected if s not in event.told or not event.told[s].counts.closed]
            self._log.info("event.closed", code=code, sequence=event.sequence, missing=missing, **told)
        else:
            self._log.info(f"event.{what}", **told)

    def _expire(self, now: float) -> None:
        if now < self._expire_at:
            return
        self._expire_at = now + EXPIRE_EVERY_S
        for name, event in list(self._events.items()):
            if event.keep_until < now and not event.busy:
                del self._events[name]
                self._drop_all(name)

    def _drop_all(self, name: str) -> None:
        self._drops.update(dict.fromkeys(self._keys.pop(name, {}).values()))

    async def _drop_some(self) -> None:
        for key in list(self._drops)[:DROPS_PER_TICK]:
            await self._acknowledged(self._rows.drop(key))
            del self._drops[key]

    # ------------------------------------------------------------------ out

    async def _deliver(self, event: Event) -> None:
        """Brings out what the event owes, in order: rows, responses, messages to the shards."""
        await self._save(event)
        await self._respond(event)
        await self._control(event)

    async def _respond(self, event: Event) -> None:
        topic = self._settings.responses_topic(event.source)
        for entry in list(event.untold):
            answer, reply = entry
            if reply.code in FINAL and event.report_due:
                continue  # the final report goes first
            await self._outlet.publish(topic, [_message(self._wire(event, answer, reply))])
            self._metrics.responses.add(code=str(reply.code))
            reply.told = True
            event.untold = [other for other in event.untold if other is not entry]
            event.lazy = event.lazy or answer.revision in event.live

    @staticmethod
    def _wire(event: Event, answer: Answer, reply: Reply) -> bytes:
        """The bytes of a response, made once: they stand in the row before they go out (R1)."""
        if not reply.wire:
            response = Response(
                event_id=event.event_id,
                source=event.source,
                revision=answer.revision,
                code=reply.code,
                at=reply.at,
                reasons=reply.reasons,
            )
            reply.wire = _pack(encode_response(response, traceparent=answer.traceparent))
        return reply.wire

    async def _control(self, event: Event) -> None:
        run = event.run
        if run is None or run.state == "closed":
            return
        if not run.sent:
            signal = self._signals.get(event.key)
            if signal is None:
                self._log.error("event.signal_missing", event_id=event.event_id, source=event.source)
            else:
                by_shard = selectors(signal, run)
                # Shards without named devices share one selector, and so its bytes.
                encoded = {id(selector): selector for selector in by_shard.values()}
                values = {key: inbox.encode(selector) for key, selector in encoded.items()}
                await self._to_shards(event, "start", {shard: values[id(s)] for shard, s in by_shard.items()})
                del self._signals[event.key]
            run.sent = event.lazy = True
        if run.cancelled_at is not None and not run.cancel_sent:
            cancel = Cancel(
                event=event.key,
                revision=run.revision,
                at=run.cancelled_at,
                ramp_down_s=0 if run.aborted else run.ramp_down_s,
                aborted=run.aborted,
            )
            await self._to_shards(event, "cancel", dict.fromkeys(run.expected, inbox.encode(cancel)))
            run.cancel_sent = event.lazy = True
        if run.closing_at is not None and not run.close_sent:
            close = Close(event=event.key, revision=run.revision, at=run.closing_at)
            await self._to_shards(event, "close", dict.fromkeys(run.expected, inbox.encode(close)))
            run.close_sent = event.lazy = True

    async def _to_shards(self, event: Event, what: str, messages: Mapping[int, bytes]) -> None:
        assert event.run is not None
        told: dict[str, Any] = {"vpp.message": what, "vpp.shards": len(messages)}
        with self._tracing.span("controls.send", [(event.key, event.run.revision)], **told):
            await self._outlet.to_shards(messages)

    async def _report(self, event: Event, now: float) -> None:
        """Publishes a report under a sequence that no other report has, then the final response if it waited for it."""
        run = event.run
        assert run is not None
        event.dirty = event.dirty or event.sequence >= event.reserved
        await self._save(event)
        event.sequence += 1
        final = run.state == "closed"
        message = encode_report(
            report(
                event_id=event.event_id,
                source=event.source,
                revision=run.revision if run.cancelled_at is None or run.aborted else event.cancellation,
                sequence=event.sequence,
                state=run.state,
                at=now,
                counts=event.counts,
                expected=run.expected,
                watts=run.watts,
            ),
            traceparent=event.answers[run.revision].traceparent,
        )
        with self._tracing.span("event.report", [(event.key, run.revision)], **{"vpp.final": final}):
            await self._outlet.publish(self._settings.reports_topic(event.source), [message])
        self._metrics.reports.add(final="true" if final else "false")
        event.report_due = False
        event.reported_at = now
        event.lazy = event.lazy or final
        await self._respond(event)

    # ------------------------------------------------------------------ rows

    async def _save(self, event: Event) -> None:
        """Writes the rows that have changed: first what the row of the event's life relies on."""
        for answer, reply in event.untold:
            self._wire(event, answer, reply)
        run = event.run
        signal = self._signals.get(event.key)
        if run is not None and signal is not None and f"{SIGNAL}{run.revision}" not in self._keys.get(event.key, {}):
            await self._put(event.key, f"{SIGNAL}{run.revision}", event_rows.signal_row(signal))
        for revision in sorted(event.dirty_answers):
            await self._put(event.key, f"{ANSWER}{revision}", event_rows.answer_row(event, revision))
            event.dirty_answers.discard(revision)
        if event.dirty_counts and run is not None:
            await self._put(event.key, COUNTS, event_rows.counts_row(event, run))
            event.dirty_counts = False
        if event.dirty:
            if run is not None and event.sequence >= event.reserved:
                event.reserved = event.sequence + SEQUENCES
            await self._put(event.key, LIFE, event_rows.life_row(event))
            event.dirty = event.lazy = False
            self._drop_signals(event)

    def _drop_signals(self, event: Event) -> None:
        """The signals of revisions that no selector is made of any more."""
        run = event.run
        needed = "" if run is None or run.state == "closed" else f"{SIGNAL}{run.revision}"
        kinds = self._keys.get(event.key, {})
        for kind in [kind for kind in kinds if kind.startswith(SIGNAL) and kind != needed]:
            self._drops[kinds.pop(kind)] = None

    async def _put(self, name: str, kind: str, value: bytes) -> None:
        key = event_rows.key_of(name, kind, self._epoch)
        self._drops.pop(key, None)  # the event came back after it had expired
        await self._acknowledged(self._rows.put(key, value))
        older = self._keys.setdefault(name, {}).get(kind, key)
        if older != key:
            self._drops[older] = None
        self._keys[name][kind] = key

    @staticmethod
    async def _acknowledged(delivery: Awaitable[Any]) -> None:
        try:
            await delivery
        except ExternalFault:
            raise
        except Exception as fault:
            raise ExternalFault(f"an event's row was not acknowledged: {fault!r}", reason="our_kafka") from fault


def _origin(message: SignalReceived | SignalRefused) -> str:
    origin = message.origin
    return f"{origin.topic}/{origin.partition}/{origin.offset}"
