"""What stands around a message on the operators' topics: CloudEvents 1.0 headers (binary mode), origin, dead letters.

A message without headers is valid: the body is complete by itself. Header values from outside may be None or no UTF-8;
reading never raises.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from vpp_dispatch.domain.answer import Refusal, Refused

SOURCE = "vpp-dispatch"
"""`ce_source` of everything that the service publishes."""

SPECVERSION = "1.0"

RawHeaders = Mapping[str, bytes | None] | Iterable[tuple[str, bytes | None]] | None
"""Headers as a Kafka client hands them over."""

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a message stood. `timestamp`: when the broker appended it, epoch seconds; None where it does not tell."""

    topic: str
    partition: int
    offset: int
    timestamp: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A message ready to be published; only a dead letter can lack its key or value, as its original did."""

    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """The CloudEvents attributes of a message as text; None = absent or unreadable."""

    specversion: str | None = None
    id: str | None = None
    source: str | None = None
    type: str | None = None
    time: str | None = None
    subject: str | None = None
    content_type: str | None = None
    traceparent: str | None = None


def type_of(name: str, version: int = 1) -> str:
    """The CloudEvents type of a public message, such as `vpp.dispatch.signal.v1`."""
    return f"vpp.dispatch.{name}.v{version}"


def rfc3339(at: float) -> str:
    """Epoch seconds as RFC 3339 in UTC, to the millisecond; whole seconds have no fraction (`2026-11-22T16:00:00Z`)."""
    seconds, milliseconds = divmod(round(at * 1000), 1000)
    return f"{_second(seconds)}.{milliseconds:03d}Z" if milliseconds else f"{_second(seconds)}Z"


@lru_cache(maxsize=4096)
def _second(seconds: int) -> str:
    # Ten thousand rows of one dispatch fall into few seconds.
    return (EPOCH + timedelta(seconds=seconds)).isoformat()[:-6]


def _pairs(headers: RawHeaders) -> Iterable[tuple[str, bytes | None]]:
    if headers is None:
        return ()
    return headers.items() if isinstance(headers, Mapping) else headers


def read_envelope(headers: RawHeaders, *, name: str, version: int = 1) -> Envelope | Refusal:
    """Reads the CloudEvents headers of a message on a topic of `name` (such as `signal`) and `version`.

    Returns a Refusal `unknown_version` where `ce_type` or `ce_specversion` is there and disagrees; an invalid
    `traceparent` is dropped, as W3C Trace Context asks. Never raises.
    """
    found: dict[str, str | None] = {}
    for key, value in _pairs(headers):
        if value is not None:
            try:
                found[key.lower()] = value.decode()
            except UnicodeDecodeError:
                found[key.lower()] = None
    for key, want in (("ce_specversion", SPECVERSION), ("ce_type", type_of(name, version))):
        if key in found and found[key] != want:
            told = "bytes that are no UTF-8" if found[key] is None else repr(found[key])[:120]
            return Refusal(
                reason=Refused.UNKNOWN_VERSION,
                detail=f"Header {key} says {told}, but this topic carries {want!r}; "
                f"send it to the topic of its version, or without {key}.",
            )
    trace = found.get("traceparent")
    return Envelope(
        specversion=found.get("ce_specversion"),
        id=found.get("ce_id"),
        source=found.get("ce_source"),
        type=found.get("ce_type"),
        time=found.get("ce_time"),
        subject=found.get("ce_subject"),
        content_type=found.get("content-type"),
        traceparent=trace if trace and _TRACEPARENT.fullmatch(trace) else None,
    )


def write_envelope(
    *, name: str, id: str, at: float, subject: str, traceparent: str | None = None, version: int = 1
) -> list[tuple[str, bytes]]:
    """The headers of a message that the service publishes; `at` in epoch seconds."""
    headers = [
        ("ce_specversion", SPECVERSION.encode()),
        ("ce_id", id.encode()),
        ("ce_source", SOURCE.encode()),
        ("ce_type", type_of(name, version).encode()),
        ("ce_time", rfc3339(at).encode()),
        ("ce_subject", subject.encode()),
        ("content-type", b"application/json"),
    ]
    if traceparent is not None:
        headers.append(("traceparent", traceparent.encode()))
    return headers


def dead_letter(
    original_value: bytes | None,
    original_key: bytes | None,
    original_headers: RawHeaders,
    *,
    origin: Origin,
    reason: str,
    detail: str,
    at: float,
) -> Message:
    """The dead letter of a message: original key, value and headers, and the `dl_` headers that say why (R8).

    Original headers that are null become empty; `dl_` headers of an earlier dead letter give way to these.
    `at` in epoch seconds. Never raises.
    """
    headers = [(key, value or b"") for key, value in _pairs(original_headers) if not key.startswith("dl_")]
    for key, text in (
        ("dl_topic", origin.topic),
        ("dl_partition", str(origin.partition)),
        ("dl_offset", str(origin.offset)),
        ("dl_reason", reason),
        ("dl_detail", detail),
        ("dl_at", rfc3339(at)),
    ):
        headers.append((key, text.encode(errors="replace")))
    return Message(key=original_key, value=original_value, headers=headers)
