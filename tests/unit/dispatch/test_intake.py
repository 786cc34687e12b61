"""Records of the operators' topics: what goes on, what is buried, and who is answered (R8, R9)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from vpp_dispatch.dispatch import inbox
from vpp_dispatch.dispatch.inbox import SignalReceived, SignalRefused
from vpp_dispatch.dispatch.intake import Intake, Outputs
from vpp_dispatch.domain.device import shard_of
from vpp_dispatch.domain.inputs import RegistryChange
from vpp_dispatch.observability.metrics import Metrics
from vpp_dispatch.operators.envelope import Message
from vpp_dispatch.settings import Settings, SignalsSettings

WEST, ANY = "signals.west.v1", "dispatch.signals.v1"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SIGNAL: dict[str, Any] = {
    "event_id": "e1",
    "source": "west",
    "revision": 2,
    "action": "cancel",
    "created_at": "2026-11-22T10:40:00Z",
    "expires_at": "2026-11-22T11:30:00Z",
}
SNS = [f"9010KETU000W{n:04d}" for n in range(40)]


def text(content: Any) -> bytes:
    return json.dumps(content).encode()


@dataclass
class World:
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        settings = Settings(signals=SignalsSettings(topics={WEST: "west", ANY: "*"}))
        self.intake = Intake(settings=settings, metrics=self.metrics, log=structlog.get_logger(), clock=lambda: 60.0)

    def signal(
        self, body: bytes | None, *, topic: str = WEST, key: bytes | None = b"e1", headers: Any = None
    ) -> Outputs:
        return self.intake.signal(topic, 3, 41, 50.0, key, body, headers)

    def buried(self, origin: str, reason: str) -> float | None:
        return self.metrics.value("vpp_dispatch_dead_letters_total", origin=origin, reason=reason)


def headers(letter: Message) -> dict[str, str]:
    return {name: value.decode() for name, value in letter.headers}


def received(outputs: Outputs) -> SignalReceived:
    assert not outputs.dead_letters
    (value,) = outputs.to_coordinator
    message = inbox.decode(value)
    assert isinstance(message, SignalReceived)
    return message


def refused(outputs: Outputs) -> SignalRefused:
    (value,) = outputs.to_coordinator
    message = inbox.decode(value)
    assert isinstance(message, SignalRefused)
    return message


@pytest.mark.parametrize("key", [None, b"", b"\xff\xfe", b"something else"])
@pytest.mark.parametrize("extra", [None, [], {}, [("x", None)], [("content-type", b"\xff")]])
def test_a_signal_needs_neither_key_nor_headers(key: bytes | None, extra: Any) -> None:
    body = text(SIGNAL)
    message = received(World().signal(body, key=key, headers=extra))
    assert (message.source, message.body, message.traceparent) == ("west", body, None)
    assert message.origin == inbox.Origin(topic=WEST, partition=3, offset=41, timestamp=50.0)


def test_a_traceparent_goes_along() -> None:
    message = received(World().signal(text(SIGNAL), headers=[("traceparent", TRACE.encode())]))
    assert message.traceparent == TRACE


def test_a_record_without_a_time_works() -> None:
    outputs = World().intake.signal(WEST, 0, 0, None, None, text(SIGNAL), None)
    assert received(outputs).origin.timestamp == 0.0


def test_r09_a_topic_bound_to_any_source_takes_all() -> None:
    assert received(World().signal(text(SIGNAL | {"source": "east"}), topic=ANY)).source == "east"


@pytest.mark.parametrize("more", [{}, {"bogus": 1}], ids=["valid", "invalid"])
def test_r09_a_source_on_a_topic_that_is_not_its_own_is_buried_and_not_answered(more: dict[str, Any]) -> None:
    w = World()
    body = text(SIGNAL | {"source": "east"} | more)
    outputs = w.signal(body)
    assert outputs.to_coordinator == ()
    (letter,) = outputs.dead_letters
    assert letter.value == body
    assert headers(letter)["dl_reason"] == "foreign_source"
    assert w.buried("signals", "foreign_source") == 1


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (None, "undecodable"),
        (b"", "undecodable"),
        (b"\xff\x00", "undecodable"),
        (b"[1]", "undecodable"),
        (b"[" * 100_000, "undecodable"),
        (text({"event_id": "e1", "revision": 1}), "invalid"),
        (text(SIGNAL | {"revision": 0}), "invalid"),
        (b"x" * (5 << 20), "too_large"),
    ],
)
def test_r08_what_nobody_can_be_answered_for_is_buried_only(body: bytes | None, reason: str) -> None:
    w = World()
    outputs = w.signal(body, key=b"k", headers=[("mine", b"1"), ("none", None)])
    assert outputs.to_coordinator == ()
    (letter,) = outputs.dead_letters
    assert (letter.key, letter.value) == (b"k", body)
    told = headers(letter)
    assert told["dl_reason"] == reason
    assert (told["dl_topic"], told["dl_partition"], told["dl_offset"]) == (WEST, "3", "41")
    assert (told["dl_at"], told["mine"]) == ("1970-01-01T00:01:00Z", "1")
    assert told["dl_detail"]
    assert w.buried("signals", reason) == 1


@pytest.mark.parametrize(
    ("more", "head", "reason"),
    [
        ({"bogus": 1}, None, "unknown_field"),
        ({"expires_at": "tomorrow"}, None, "invalid"),
        ({}, [("ce_type", b"vpp.dispatch.signal.v2")], "unknown_version"),
        ({}, [("ce_specversion", b"0.3")], "unknown_version"),
        ({"ext": "x" * (1 << 20)}, None, "too_large"),
    ],
)
def test_r08_a_known_sender_is_answered_too(more: dict[str, Any], head: Any, reason: str) -> None:
    w = World()
    outputs = w.signal(text(SIGNAL | more), headers=head)
    assert headers(outputs.dead_letters[0])["dl_reason"] == reason
    message = refused(outputs)
    assert (message.source, message.event_id, message.revision) == ("west", "e1", 2)
    assert message.reason == reason
    assert message.detail


def test_r08_the_trace_of_what_is_refused_goes_along() -> None:
    outputs = World().signal(text(SIGNAL | {"bogus": 1}), headers={"traceparent": TRACE.encode()})
    assert refused(outputs).traceparent == TRACE


def test_a_dead_letter_says_so_in_one_line() -> None:
    with capture_logs() as lines:
        World().signal(b"nonsense")
    assert [(line["event"], line["log_level"], line["offset"]) for line in lines] == [
        ("signals.dead_letter", "warning", 41)
    ]


# ---------------------------------------------------------------------------------------------- registry


@dataclass(frozen=True)
class Record:
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp: int = 50_000
    headers: tuple[tuple[str, bytes], ...] = ()


def changes(messages: Any) -> dict[int, RegistryChange]:
    found = {}
    for shard, value in messages.items():
        message = inbox.decode(value)
        assert isinstance(message, RegistryChange)
        found[shard] = message
    return found


def test_a_fetch_of_the_registry_makes_one_message_for_each_shard_in_order() -> None:
    w = World()
    records = [Record(i, sn.encode(), text({"sn": sn, "site": "a"})) for i, sn in enumerate(SNS)]
    records.append(Record(99, SNS[0].encode(), None))
    messages, letters = w.intake.registry(5, records)
    assert letters == []
    found = changes(messages)
    assert set(found) == {shard_of(sn) for sn in SNS}
    assert sum(len(change.changes) for change in found.values()) == 41
    for shard, change in found.items():
        assert change.partition == 5
        assert {shard_of(sn) for _, sn, _ in change.changes} == {shard}
        offsets = [offset for offset, _, _ in change.changes]
        assert offsets == sorted(offsets)
    assert found[shard_of(SNS[0])].changes[-1] == (99, SNS[0], None)
    assert w.metrics.value("vpp_dispatch_registry_records_total") == 41


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (None, text({"sn": SNS[0]}), "invalid"),
        (b"not an sn", text({"sn": SNS[0]}), "invalid"),
        (b"\xff", None, "invalid"),
        (SNS[0].encode(), b"{", "undecodable"),
        (SNS[0].encode(), text({"sn": SNS[1]}), "invalid"),
        (SNS[0].encode(), text({"sn": SNS[0], "bogus": 1}), "unknown_field"),
    ],
)
def test_r08_a_bad_registry_record_is_buried_and_the_others_go_on(
    key: bytes | None, value: bytes | None, reason: str
) -> None:
    w = World()
    good = Record(8, SNS[2].encode(), text({"sn": SNS[2]}))
    messages, (letter,) = w.intake.registry(1, [Record(7, key, value), good])
    assert list(messages) == [shard_of(SNS[2])]
    assert (letter.key, letter.value) == (key, value)
    told = headers(letter)
    assert (told["dl_topic"], told["dl_partition"], told["dl_offset"]) == ("fleet.devices.v1", "1", "7")
    assert told["dl_reason"] == reason
    assert w.buried("registry", reason) == 1
