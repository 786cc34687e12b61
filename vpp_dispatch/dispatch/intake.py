"""Intake: records of the operators' topics into messages for the two inboxes, and the rest into dead letters (R8, R9).

Stateless: bytes in, bytes out. Nothing from outside makes it raise; the shell delivers what it returns and then goes
on to the next record.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from vpp_dispatch.dispatch import inbox
from vpp_dispatch.dispatch.inbox import SignalReceived, SignalRefused
from vpp_dispatch.domain.answer import Identity, Refusal
from vpp_dispatch.domain.device import Record, shard_of
from vpp_dispatch.domain.inputs import RegistryChange
from vpp_dispatch.domain.signal import Signal
from vpp_dispatch.fleet.registry import Removed, decode_record
from vpp_dispatch.observability.metrics import Metrics
from vpp_dispatch.operators.envelope import Envelope, Message, Origin, RawHeaders, dead_letter, read_envelope
from vpp_dispatch.operators.messages import decode_signal
from vpp_dispatch.settings import ANY_SOURCE, Settings

FOREIGN_SOURCE = "foreign_source"
"""A signal whose source is not the one its topic is bound to (R9): dead letter, no response."""


class RegistryRecord(Protocol):
    """What is read of a Kafka record of the registry. `timestamp` in milliseconds."""

    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Any: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What becomes of one signal: dead letters first, then messages for the event inbox."""

    dead_letters: tuple[Message, ...] = field(default=())
    to_coordinator: tuple[bytes, ...] = field(default=())


class Intake:
    """Decodes and judges what needs no state."""

    def __init__(
        self, *, settings: Settings, metrics: Metrics, log: Any, clock: Callable[[], float] = time.time
    ) -> None:
        self._bound = settings.signals.topics
        self._registry_topic = settings.topics.registry
        self._metrics = metrics
        self._log = log
        self._clock = clock

    def signal(
        self,
        topic: str,
        partition: int,
        offset: int,
        timestamp: float | None,
        key: bytes | None,
        value: bytes | None,
        headers: RawHeaders,
    ) -> Outputs:
        """One record of a signals topic; `timestamp` in epoch seconds. Key and headers need not be there.

        A signal that can be read goes to the coordinator as it is. Else it becomes a dead letter, and where the sender
        is known and the topic is its own, the coordinator answers 253.
        """
        origin = Origin(topic=topic, partition=partition, offset=offset, timestamp=timestamp)
        where = inbox.Origin(topic=topic, partition=partition, offset=offset, timestamp=timestamp or 0.0)
        bound = self._bound[topic]
        envelope = read_envelope(headers, name="signal")
        decoded = decode_signal(value)
        identity = _identity(decoded)
        refusal = envelope if isinstance(envelope, Refusal) else decoded if isinstance(decoded, Refusal) else None
        if identity is not None and bound not in (ANY_SOURCE, identity.source):
            detail = f"The topic {topic} is bound to {bound!r}, but the signal's source is {identity.source!r}."
            refusal, identity = Refusal(reason=FOREIGN_SOURCE, detail=detail), None
        traceparent = envelope.traceparent if isinstance(envelope, Envelope) else None
        if refusal is None and identity is not None and value is not None:
            received = SignalReceived(origin=where, source=identity.source, body=value, traceparent=traceparent)
            return Outputs(to_coordinator=(inbox.encode(received),))
        assert refusal is not None
        letter = self._bury("signals", origin, key, value, headers, refusal)
        if identity is None:
            return Outputs(dead_letters=(letter,))
        refused = SignalRefused(
            origin=where,
            source=identity.source,
            event_id=identity.event_id,
            revision=identity.revision,
            reason=refusal.reason,
            detail=refusal.detail,
            traceparent=traceparent,
        )
        return Outputs(dead_letters=(letter,), to_coordinator=(inbox.encode(refused),))

    def registry(
        self, partition: int, records: Sequence[RegistryRecord]
    ) -> tuple[Mapping[int, bytes], Sequence[Message]]:
        """One fetch of a partition of the registry: one message per shard that it concerns, and dead letters."""
        changes: dict[int, list[tuple[int, str, Record | None]]] = {}
        letters = []
        for record in records:
            decoded = decode_record(record.key, record.value)
            if isinstance(decoded, Refusal):
                origin = Origin(
                    topic=self._registry_topic,
                    partition=partition,
                    offset=record.offset,
                    timestamp=record.timestamp / 1000,
                )
                letters.append(self._bury("registry", origin, record.key, record.value, record.headers, decoded))
                continue
            found = None if isinstance(decoded, Removed) else decoded
            changes.setdefault(shard_of(decoded.sn), []).append((record.offset, decoded.sn, found))
        self._metrics.registry_records.add(len(records))
        messages = {
            shard: inbox.encode(RegistryChange(partition=partition, changes=tuple(part)))
            for shard, part in changes.items()
        }
        return messages, letters

    def _bury(
        self,
        what: str,
        origin: Origin,
        key: bytes | None,
        value: bytes | None,
        headers: RawHeaders,
        refusal: Refusal,
    ) -> Message:
        self._metrics.dead_letters.add(origin=what, reason=refusal.reason)
        self._log.warning(
            f"{what}.dead_letter",
            topic=origin.topic,
            partition=origin.partition,
            offset=origin.offset,
            reason=refusal.reason,
            detail=refusal.detail,
        )
        return dead_letter(
            value, key, headers, origin=origin, reason=refusal.reason, detail=refusal.detail, at=self._clock()
        )


def _identity(decoded: Signal | Refusal) -> Identity | None:
    if isinstance(decoded, Refusal):
        return decoded.identity
    return Identity(source=decoded.source, event_id=decoded.event_id, revision=decoded.revision)
