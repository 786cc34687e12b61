"""CloudEvents headers and dead letters: whatever stands in a header, reading never raises."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpp_dispatch.domain.answer import Refusal, Refused
from vpp_dispatch.operators.envelope import (
    Envelope,
    Origin,
    dead_letter,
    read_envelope,
    rfc3339,
    write_envelope,
)

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
ORIGIN = Origin(topic="dispatch.signals.v1", partition=3, offset=42, timestamp=1795345200.0)


def test_what_is_written_is_read() -> None:
    headers = write_envelope(name="report", id="s/e/1", at=1795345200.0, subject="s/e", traceparent=TRACE)
    assert read_envelope(headers, name="report") == Envelope(
        specversion="1.0",
        id="s/e/1",
        source="vpp-dispatch",
        type="vpp.dispatch.report.v1",
        time="2026-11-22T11:00:00Z",
        subject="s/e",
        content_type="application/json",
        traceparent=TRACE,
    )


@pytest.mark.parametrize("headers", [None, [], {}, [("ce_type", None)], {"other": b"\xff"}])
def test_a_message_without_headers_is_valid(headers: Any) -> None:
    assert read_envelope(headers, name="signal") == Envelope()


@pytest.mark.parametrize(
    "headers",
    [
        {"ce_type": b"vpp.dispatch.signal.v2"},
        {"ce_type": b"vpp.dispatch.report.v1"},
        {"ce_type": b""},
        {"ce_type": b"\xff"},
        {"CE_Type": b"vpp.dispatch.signal.v2"},
        {"ce_specversion": b"0.3"},
    ],
)
def test_r08_a_type_that_disagrees_with_the_topic_is_refused(headers: dict[str, bytes]) -> None:
    refusal = read_envelope(headers, name="signal")
    assert isinstance(refusal, Refusal)
    assert refusal.reason == Refused.UNKNOWN_VERSION
    assert "'" in refusal.detail and "without" in refusal.detail


@pytest.mark.parametrize(
    "trace",
    [b"", b"x", TRACE.upper().encode(), b"ff" + TRACE[2:].encode(), b"00-" + b"0" * 32 + b"-" + b"1" * 16 + b"-01"],
)
def test_an_invalid_traceparent_is_dropped(trace: bytes) -> None:
    envelope = read_envelope({"traceparent": trace, "ce_type": b"vpp.dispatch.signal.v1"}, name="signal")
    assert isinstance(envelope, Envelope) and envelope.traceparent is None


HEADERS = st.lists(
    st.tuples(
        st.sampled_from(["ce_type", "ce_id", "traceparent", "content-type", "dl_topic", ""]) | st.text(max_size=5),
        st.none() | st.binary(max_size=20),
    ),
    max_size=5,
)


@given(HEADERS)
def test_any_headers_are_read_and_kept_in_the_dead_letter(headers: list[tuple[str, bytes | None]]) -> None:
    assert isinstance(read_envelope(headers, name="signal"), Envelope | Refusal)
    message = dead_letter(b"\xff", None, headers, origin=ORIGIN, reason="undecodable", detail="d", at=1795345200.0)
    kept = [(key, value or b"") for key, value in headers if not key.startswith("dl_")]
    assert message.headers[: len(kept)] == kept
    assert dict(message.headers[len(kept) :]) == {
        "dl_topic": b"dispatch.signals.v1",
        "dl_partition": b"3",
        "dl_offset": b"42",
        "dl_reason": b"undecodable",
        "dl_detail": b"d",
        "dl_at": b"2026-11-22T11:00:00Z",
    }


def test_a_dead_letter_keeps_key_and_value_and_takes_any_detail() -> None:
    message = dead_letter(b"\x00\xff", b"\xfe", None, origin=ORIGIN, reason="invalid", detail="half \ud800", at=0.0)
    assert (message.key, message.value) == (b"\xfe", b"\x00\xff")
    assert dict(message.headers)["dl_detail"] == b"half ?"


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (1795363200.0, "2026-11-22T16:00:00Z"),
        (1795363200.25, "2026-11-22T16:00:00.250Z"),
        (1795363200.001, "2026-11-22T16:00:00.001Z"),
        (1795363199.9999, "2026-11-22T16:00:00Z"),
        (0, "1970-01-01T00:00:00Z"),
    ],
)
def test_r07_times_on_the_wire(at: float, text: str) -> None:
    assert rfc3339(at) == text
