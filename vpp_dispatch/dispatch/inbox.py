"""The bytes of the two inboxes: msgpack, one tag and one value a message. Internal; the topics tell the version."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np

from vpp_dispatch.domain.command import Results
from vpp_dispatch.domain.inputs import (
    Cancel,
    Close,
    Consent,
    Progress,
    RegistryChange,
    Selector,
    ShardInput,
    SlotResults,
    Switches,
)
from vpp_dispatch.errors import InvariantBroken


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a record came from. `timestamp` is the broker's, epoch seconds."""

    topic: str
    partition: int
    offset: int
    timestamp: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalReceived:
    """A signal that intake could read. `source` is the one its topic is bound to (R9); `body` the original bytes."""

    origin: Origin
    source: str
    body: bytes
    traceparent: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalRefused:
    """A signal that intake could not accept, of a sender that is known (R8): answered 253, already dead-lettered."""

    origin: Origin
    source: str
    event_id: str
    revision: int
    reason: str
    detail: str
    traceparent: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressReport:
    """What one worker's shards have to tell, at most once a second."""

    progress: tuple[Progress, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchTurned:
    """Somebody on our side turns a switch, or aborts one event (R36).

    `switch`: `releases_only`, `drain` or `abort`; `on` is always True for `abort`, which alone has `event`, as
    `source/event_id`. `by` and `reason` are for the log; `at` epoch seconds.
    """

    switch: Literal["releases_only", "drain", "abort"]
    on: bool
    at: float
    by: str
    reason: str
    event: str | None = None
    origin: Origin = Origin(topic="", partition=0, offset=-1, timestamp=0.0)
    """Where it stands in the event inbox, as its reader fills it in."""

    @property
    def number(self) -> int:
        """Its offset in the event inbox: of two records the later one counts."""
        return self.origin.offset


EventInput = SignalReceived | SignalRefused | ProgressReport | SwitchTurned

_pack = msgspec.msgpack.Encoder().encode
_SHARD_TYPES: dict[str, type[Any]] = {
    "selector": Selector,
    "cancel": Cancel,
    "close": Close,
    "switches": Switches,
    "consent": Consent,
    "registry": RegistryChange,
}
_EVENT_TYPES: dict[str, type[Any]] = {
    "signal": SignalReceived,
    "refused": SignalRefused,
    "progress": ProgressReport,
    "switch": SwitchTurned,
}
_TAG_OF: dict[type[Any], str] = {v: k for k, v in (_SHARD_TYPES | _EVENT_TYPES).items()}
_DECODERS: dict[str, Callable[[bytes], Any]] = {
    tag: msgspec.msgpack.Decoder(type_).decode for tag, type_ in (_SHARD_TYPES | _EVENT_TYPES).items()
}
_READ = (("code", "u1"), ("accepted", "?"), ("first", "<i4"), ("second", "<i4"), ("at", "<f8"))
_COLUMNS = (("ids", "u1"), *_READ)
_SLOT_COLUMNS = (("actuator", "u1"), ("single", "?"), *_READ)


def encode(message: ShardInput | EventInput) -> bytes:
    """Bytes of one message."""
    if isinstance(message, Results):
        columns = [np.ascontiguousarray(getattr(message, name), dtype).tobytes() for name, dtype in _COLUMNS]
        return b"results\n" + _pack(columns)
    if isinstance(message, SlotResults):
        columns = [np.ascontiguousarray(getattr(message, name), dtype).tobytes() for name, dtype in _SLOT_COLUMNS]
        return b"slot-results\n" + _pack((message.sn, columns))
    tag = _TAG_OF.get(type(message))
    if tag is None:
        raise InvariantBroken(f"{type(message).__name__} has no place in an inbox")
    return tag.encode() + b"\n" + _pack(message)


def decode(value: bytes) -> ShardInput | EventInput:
    """The message of some bytes; raises InvariantBroken for bytes that `encode` never made."""
    tag, _, body = value.partition(b"\n")
    try:
        if tag == b"results":
            columns = msgspec.msgpack.decode(body)
            arrays = {name: np.frombuffer(raw, dtype) for (name, dtype), raw in zip(_COLUMNS, columns, strict=True)}
            arrays["ids"] = arrays["ids"].reshape(-1, 16)
            return Results(**arrays)
        if tag == b"slot-results":
            sns, columns = msgspec.msgpack.decode(body)
            found = {name: np.frombuffer(raw, dtype) for (name, dtype), raw in zip(_SLOT_COLUMNS, columns, strict=True)}
            return SlotResults(sn=sns, **found)
        message: ShardInput | EventInput = _DECODERS[tag.decode("ascii", "replace")](body)
    except (msgspec.MsgspecError, KeyError, ValueError, TypeError) as fault:
        raise InvariantBroken(f"an inbox record cannot be read: {fault!r}", reason="inbox_record") from fault
    return message
