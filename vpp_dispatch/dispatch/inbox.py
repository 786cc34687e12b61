"""The bytes of the two inboxes: msgpack, one tag and one value a message. Internal; the topics tell the version."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from vpp_dispatch.domain.command import Results
from vpp_dispatch.domain.inputs import Cancel, Close, Consent, Progress, RegistryChange, Selector, ShardInput
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


EventInput = SignalReceived | SignalRefused | ProgressReport

_pack = msgspec.msgpack.Encoder().encode
_SHARD_TYPES: dict[str, type[Any]] = {
    "selector": Selector,
    "cancel": Cancel,
    "close": Close,
    "consent": Consent,
    "registry": RegistryChange,
}
_EVENT_TYPES: dict[str, type[Any]] = {"signal": SignalReceived, "refused": SignalRefused, "progress": ProgressReport}
_TAG_OF: dict[type[Any], str] = {v: k for k, v in (_SHARD_TYPES | _EVENT_TYPES).items()}
_DECODERS: dict[str, Callable[[bytes], Any]] = {
    tag: msgspec.msgpack.Decoder(type_).decode for tag, type_ in (_SHARD_TYPES | _EVENT_TYPES).items()
}
_COLUMNS = (("ids", "u1"), ("code", "u1"), ("accepted", "?"), ("first", "<i4"), ("second", "<i4"), ("at", "<f8"))


def encode(message: ShardInput | EventInput) -> bytes:
    """Bytes of one message."""
    if isinstance(message, Results):
        columns = [np.ascontiguousarray(getattr(message, name), dtype).tobytes() for name, dtype in _COLUMNS]
        return b"results\n" + _pack(columns)
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
        message: ShardInput | EventInput = _DECODERS[tag.decode("ascii", "replace")](body)
    except (msgspec.MsgspecError, KeyError, ValueError, TypeError) as fault:
        raise InvariantBroken(f"an inbox record cannot be read: {fault!r}", reason="inbox_record") from fault
    return message
