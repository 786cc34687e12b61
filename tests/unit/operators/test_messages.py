"""Signals are decoded without ever raising (R1, R8); answers have deterministic bytes that the schema takes."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from vpp_dispatch.domain.account import Reason, State
from vpp_dispatch.domain.answer import (
    STATUS,
    CommandAccount,
    Identity,
    OutcomeRow,
    PowerAccount,
    Quantiles,
    Refusal,
    Refused,
    ReleaseAccount,
    Report,
    Response,
    ShardAccount,
)
from vpp_dispatch.domain.signal import Action, Form, Kind, Signal
from vpp_dispatch.errors import InvariantBroken
from vpp_dispatch.operators.envelope import Message
from vpp_dispatch.operators.messages import (
    MAX_BYTES,
    decode_signal,
    encode_outcomes,
    encode_report,
    encode_response,
)
from vpp_dispatch.operators.schemas import PUBLIC, schema_of

LIMIT: dict[str, Any] = {
    "event_id": "exp-1122-07",
    "source": "gridco-west",
    "revision": 1,
    "action": "dispatch",
    "created_at": "2026-11-22T10:40:00Z",
    "expires_at": "2026-11-22T11:30:00Z",
    "start_at": "2026-11-22T11:00:00Z",
    "end_at": "2026-11-22T11:30:00Z",
    "priority": 10,
    "targets": {"groups": ["feeder-12"]},
    "controls": [{"kind": "export_limit", "each_w": 1500}],
}
IDENTITY = Identity(source="gridco-west", event_id="exp-1122-07", revision=1)
AT = 1795370601.0


def text(body: Any) -> bytes:
    return json.dumps(body).encode()


def decoded(body: Any) -> Signal:
    signal = decode_signal(text(body))
    assert isinstance(signal, Signal), signal
    return signal


def refused(body: Any) -> Refusal:
    refusal = decode_signal(body if isinstance(body, bytes) else text(body))
    assert isinstance(refusal, Refusal)
    return refusal


# ------------------------------------------------------------------------------------------ decoding


def test_decodes_into_domain_terms() -> None:
    signal = decoded(LIMIT)
    assert (signal.key, signal.action, signal.priority) == ("gridco-west/exp-1122-07", Action.DISPATCH, 10)
    assert signal.end_at is not None and signal.start_at is not None
    assert (signal.start_at, signal.end_at - signal.start_at) == (1795345200.0, 1800.0)
    (control,) = signal.controls
    assert (control.kind, control.form, control.each_w) == (Kind.EXPORT_LIMIT, Form.EACH_W, 1500)
    assert signal.targets is not None and signal.targets.groups == ("feeder-12",)


@pytest.mark.parametrize(
    ("control", "form"),
    [
        ({"kind": "standby"}, Form.NONE),
        ({"kind": "charge", "each_w": 0}, Form.EACH_W),
        ({"kind": "discharge", "total_w": 10_000_000_000}, Form.TOTAL_W),
        ({"kind": "import_target", "by_target_w": {"sites": {"s": 1}}}, Form.BY_TARGET_W),
        ({"kind": "export_target", "by_target_w": {"devices": {"9010KETU000W0001": 1}}}, Form.BY_TARGET_W),
        ({"kind": "export_limit", "total_w": 1}, Form.TOTAL_W),
        ({"kind": "generation_limit", "each_percent": 0}, Form.EACH_PERCENT),
        ({"kind": "generation_limit", "each_w": 1_000_000}, Form.EACH_W),
        ({"kind": "power_factor", "cos_phi": 0.8, "excitation": "over"}, Form.COS_PHI),
    ],
)
def test_every_form_that_the_contract_allows_decodes(control: dict[str, Any], form: Form) -> None:
    assert [c.form for c in decoded({**LIMIT, "controls": [control]}).controls] == [form]


def test_controls_and_targets_have_one_order() -> None:
    controls = [{"kind": "export_limit", "each_w": 1}, {"kind": "charge", "each_w": 2}]
    signal = decoded({**LIMIT, "controls": controls, "targets": {"sites": ["b", "a", "b"]}})
    assert [control.kind for control in signal.controls] == [Kind.CHARGE, Kind.EXPORT_LIMIT]
    assert signal.targets is not None and signal.targets.sites == ("a", "b")


@pytest.mark.parametrize(
    ("spelled", "epoch"),
    [
        ("2026-11-22T11:00:00Z", 1795345200.0),
        ("2026-11-22t11:00:00z", 1795345200.0),
        ("2026-11-22T11:00:00+00:00", 1795345200.0),
        ("2026-11-22T11:00:00-00:00", 1795345200.0),
        ("2026-11-22T21:30:00+10:30", 1795345200.0),
        ("2026-11-22T11:00:00.25Z", 1795345200.25),
        ("2026-11-22T11:00:00.1234567891Z", 1795345200.123456),
        ("2016-12-31T23:59:60Z", 1483228800.0),
    ],
)
def test_r07_times_become_epoch_seconds(spelled: str, epoch: float) -> None:
    assert decoded({**LIMIT, "created_at": spelled}).created_at == epoch


@pytest.mark.parametrize(
    "spelled",
    [
        "2026-11-22T11:00:00",
        "2026-11-22",
        "2026-11-22 11:00:00Z",
        "2026-11-22T24:00:00Z",
        "2026-02-29T11:00:00Z",
        "0000-01-01T00:00:00Z",
        "2026-11-22T11:00:00+24:00",
        "2026-11-22T11:00:00Z\n",
        "٢٠٢٦-11-22T11:00:00Z",
        1795345200,
        None,
    ],
)
def test_r07_other_times_are_refused(spelled: Any) -> None:
    refusal = refused({**LIMIT, "created_at": spelled})
    assert (refusal.reason, refusal.identity) == (Refused.INVALID, IDENTITY)


def test_no_start_means_now_and_open_ended_needs_no_end() -> None:
    body = {name: value for name, value in LIMIT.items() if name not in ("start_at", "end_at")}
    signal = decoded({**body, "open_ended": True})
    assert (signal.start_at, signal.end_at, signal.open_ended) == (None, None, True)


def test_r15_a_cancellation_that_names_no_ramp_differs_from_one_that_names_zero() -> None:
    cancel = {name: LIMIT[name] for name in ("event_id", "source", "created_at", "expires_at")}
    cancel |= {"revision": 2, "action": "cancel"}
    silent, zero = decoded(cancel), decoded({**cancel, "ramp_down_s": 0})
    assert (silent.names_ramp_down, zero.names_ramp_down) == (False, True)
    assert silent.digest != zero.digest


def test_limits_of_size() -> None:
    def devices(n: int) -> dict[str, Any]:
        return {**LIMIT, "targets": {"devices": [f"9010KETU000W{i:04d}" for i in range(n)]}}

    signal = decoded(devices(10_000))
    assert signal.targets is not None and len(signal.targets.devices) == 10_000
    assert refused({**LIMIT, "targets": {"sites": ["a"] * 5_000, "groups": ["b"] * 5_001}}).reason == Refused.INVALID
    full = text(LIMIT)
    assert isinstance(decode_signal(full + b" " * (MAX_BYTES - len(full))), Signal)
    too_large = refused(full + b" " * (MAX_BYTES - len(full) + 1))
    assert (too_large.reason, too_large.identity) == (Refused.TOO_LARGE, IDENTITY)
    assert refused(full + b" " * 5 * MAX_BYTES) == refused(b" " * 5 * MAX_BYTES + full)


# ------------------------------------------------------------------------------------------ refusals


def test_r08_a_refusal_says_what_where_and_what_to_do() -> None:
    refusal = refused({**LIMIT, "controls": [{"kind": "export_limit", "each_w": 1_000_001}]})
    assert refusal.reason == Refused.INVALID
    assert "controls.0.each_w" in refusal.detail and "1000000" in refusal.detail and "new revision" in refusal.detail


@pytest.mark.parametrize(
    "change",
    [
        {"event_id": ""},
        {"event_id": "x" * 65},
        {"event_id": "\ud800"},
        {"event_id": 7},
        {"source": None},
        {"revision": 0},
        {"revision": True},
        {"revision": 1.5},
        {"revision": 2**53},
        {"revision": "1"},
    ],
)
def test_r08_without_a_whole_identity_there_is_none(change: dict[str, Any]) -> None:
    assert refused({**LIMIT, **change}).identity is None


@pytest.mark.parametrize(
    "body", [None, b"", b"\xff", b"\xef\xbb\xbf{}", b"[" * 200_000, b'{"a":' * 200_000, b"9" * 5000, b"NaN", b"{}x"]
)
def test_r08_bytes_that_are_no_signal(body: bytes | None) -> None:
    refusal = decode_signal(body)
    assert isinstance(refusal, Refusal)
    assert (refusal.reason, refusal.identity) == (Refused.UNDECODABLE, None)


def test_r08_a_name_that_is_no_text_is_refused_with_a_printable_detail() -> None:
    refusal = refused({**LIMIT, "\ud800": 1})
    assert refusal.identity == IDENTITY
    refusal.detail.encode()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_r08_decoding_never_raises_on_any_bytes(body: bytes) -> None:
    assert isinstance(decode_signal(body), Refusal)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)


@pytest.mark.exhaustive
@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from([*LIMIT, "ext", "reason", "test", "ramp_up_s", "open_ended"]), JSON, max_size=4))
def test_r08_decoding_never_raises_on_any_json(change: dict[str, Any]) -> None:
    result = decode_signal(text({**LIMIT, **change}))
    assert isinstance(result, Signal | Refusal)
    if isinstance(result, Refusal):
        result.detail.encode()


# ------------------------------------------------------------------------------------------ digest (R1)


def spellings(draw: st.DrawFn) -> dict[str, Any]:
    body = json.loads(json.dumps(LIMIT))
    body["controls"] = [{"kind": "export_limit", "each_w": 1500}, {"kind": "charge", "by_target_w": {}}]
    entries = draw(st.permutations([("a", 1), ("b", 2)]))
    body["controls"][1]["by_target_w"] = {"sites": dict(entries)}
    body["controls"] = draw(st.permutations(body["controls"]))
    body["targets"] = {"sites": draw(st.permutations(["a", "b"]))}
    if draw(st.booleans()):
        body["start_at"] = draw(st.sampled_from(["2026-11-22T11:00:00+00:00", "2026-11-22T12:00:00.000+01:00"]))
    for name, value in {"ramp_up_s": 0, "ramp_down_s": 0, "test": False, "open_ended": False, "ext": {"x": 1}}.items():
        if draw(st.booleans()):
            body[name] = value
    if draw(st.booleans()):
        body["targets"] |= {"all": False, "devices": []}
    if draw(st.booleans()):
        body["priority"] = 10.0
    return dict(draw(st.permutations(list(body.items()))))


@settings(max_examples=100, deadline=None)
@given(st.composite(spellings)(), st.sampled_from([None, 2]))
def test_r01_the_digest_is_of_the_content(body: dict[str, Any], indent: int | None) -> None:
    plain = {**LIMIT, "targets": {"sites": ["a", "b"]}}
    plain["controls"] = [
        {"kind": "charge", "by_target_w": {"sites": {"a": 1, "b": 2}}},
        {"kind": "export_limit", "each_w": 1500},
    ]
    assert decode_signal(json.dumps(body, indent=indent).encode()) == decoded(plain)


@pytest.mark.parametrize(
    "change",
    [
        {"event_id": "x"},
        {"source": "x"},
        {"revision": 2},
        {"created_at": "2026-11-22T10:40:00.001Z"},
        {"expires_at": "2026-11-22T11:30:01Z"},
        {"start_at": "2026-11-22T11:00:01Z"},
        {"end_at": "2026-11-22T11:30:01Z"},
        {"priority": 11},
        {"targets": {"groups": ["feeder-13"]}},
        {"targets": {"areas": ["feeder-12"]}},
        {"controls": [{"kind": "export_limit", "each_w": 1501}]},
        {"controls": [{"kind": "export_limit", "total_w": 1500}]},
        {"ramp_up_s": 1},
        {"ramp_down_s": 1},
        {"test": True},
    ],
)
def test_r01_other_content_has_another_digest(change: dict[str, Any]) -> None:
    assert decoded({**LIMIT, **change}).digest != decoded(LIMIT).digest


# ------------------------------------------------------------------------------------------ encoding


def validated(name: str, message: Message) -> dict[str, Any]:
    """The decoded body, after the model and the schema took it."""
    assert message.value is not None
    body = json.loads(message.value)
    PUBLIC[name].model_validate(body)
    assert [e.message for e in Draft202012Validator(schema_of(name, PUBLIC[name])).iter_errors(body)] == []
    assert isinstance(body, dict)
    return body


def header(message: Message, name: str) -> str:
    (value,) = [value.decode() for key, value in message.headers if key == name]
    return value


def test_response_is_the_contract_example_to_the_byte() -> None:
    response = Response(event_id="dis-1122-03", source="gridco-west", revision=1, code=1, at=1795363200.0)
    message = encode_response(response)
    assert message.value == (
        b'{"event_id":"dis-1122-03","source":"gridco-west","revision":1,"code":1,"status":"received",'
        b'"at":"2026-11-22T16:00:00Z","reasons":[]}'
    )
    assert message.key == b"dis-1122-03"
    assert header(message, "ce_id") == "gridco-west/dis-1122-03/1/1"
    assert header(message, "ce_type") == "vpp.dispatch.response.v1"
    assert encode_response(response) == message


@pytest.mark.parametrize("code", STATUS)
def test_every_response_code_is_valid(code: int) -> None:
    response = Response(event_id="é", source="s", revision=3, code=code, at=AT + 0.123, reasons=("unknown_field",))
    body = validated("response", encode_response(response))
    assert (body["status"], body["at"]) == (STATUS[code], "2026-11-22T18:03:21.123Z")


def test_an_unknown_response_code_is_our_own_fault() -> None:
    with pytest.raises(InvariantBroken):
        encode_response(Response(event_id="e", source="s", revision=1, code=4, at=AT))


REPORT = Report(
    event_id="dis-1122-03",
    source="gridco-west",
    revision=1,
    sequence=14,
    state="active",
    final=False,
    at=1795370940.0,
    devices={
        State.SKIPPED: 30,
        State.UNUSED: 560,
        State.PUBLISHED: 2,
        State.ACCEPTED: 3,
        State.APPLIED: 395,
        State.VERIFIED: 5,
        State.REJECTED: 4,
        State.UNCONFIRMED: 1,
    },
    reasons={"skipped.offline": 22, "skipped.consent_missing": 6, "skipped.capability": 2, "rejected.busy": 4},
    release=ReleaseAccount(),
    power_w=PowerAccount(requested=2000000, allocated=2000000, acknowledged=1951215, shortfall=0),
    commands=CommandAccount(published=412, retried=2, duplicate_results=1),
    publish_latency_s=Quantiles(p50=0.2, p95=0.6, max=1.1),
    result_latency_s=Quantiles(p50=71.0, p95=190.4, max=260.0),
    shards=ShardAccount(expected=64, reported=64),
)


def test_report_is_the_contract_example() -> None:
    message = encode_report(REPORT, traceparent="00-" + "1" * 32 + "-" + "2" * 16 + "-01")
    body = validated("report", message)
    expected: dict[str, Any] = {
        "event_id": "dis-1122-03", "source": "gridco-west", "revision": 1, "sequence": 14, "state": "active",
        "final": False, "at": "2026-11-22T18:09:00Z",
        "devices": {"targeted": 1000, "skipped": 30, "unused": 560, "pending": 0, "published": 2, "accepted": 3,
                    "applied": 395, "verified": 5, "rejected": 4, "unconfirmed": 1},
        "reasons": {"skipped.offline": 22, "skipped.consent_missing": 6, "skipped.capability": 2, "rejected.busy": 4},
        "release": {"due": 0, "confirmed": 0, "pending": 0, "refused": 0},
        "power_w": {"requested": 2000000, "allocated": 2000000, "acknowledged": 1951215, "measured": None,
                    "shortfall": 0},
        "commands": {"published": 412, "retried": 2, "duplicate_results": 1, "late_results": 0},
        "latency_s": {"publish": {"p50": 0.2, "p95": 0.6, "max": 1.1},
                      "result": {"p50": 71.0, "p95": 190.4, "max": 260.0}},
        "shards": {"expected": 64, "reported": 64, "missing": []},
    }  # fmt: skip
    assert body == expected
    assert list(body) == list(expected) and list(body["devices"]) == list(expected["devices"])
    assert message.key == b"gridco-west/dis-1122-03"
    assert header(message, "ce_id") == "gridco-west/dis-1122-03/14"
    assert header(message, "traceparent").startswith("00-1111")


def test_report_bytes_do_not_depend_on_the_order_of_what_was_folded() -> None:
    def backwards(mapping: Any) -> dict[Any, int]:
        return dict(reversed(mapping.items()))

    other = Report(
        **{name: getattr(REPORT, name) for name in Report.__slots__ if name not in ("devices", "reasons")},
        devices=backwards(REPORT.devices),
        reasons=backwards(REPORT.reasons),
    )
    assert encode_report(other) == encode_report(REPORT)


def row(**changes: Any) -> OutcomeRow:
    values: dict[str, Any] = {
        "sn": "9010KETU000W0001",
        "event_id": "dis-1122-03",
        "source": "gridco-west",
        "revision": 1,
        "kind": Kind.DISCHARGE,
        "setpoint_w": 4878,
        "state": State.APPLIED,
        "response_code": 2,
        "correlation_id": "110004b3-1000-8000-8100-5ec228c3fc69",
        "attempt": 1,
        "published_at": 1795370531.0,
        "result_at": 1795370600.0,
    }
    return OutcomeRow(**{**values, **changes})


def test_outcomes_are_the_contract_example_to_the_byte() -> None:
    message = encode_outcomes([row()], shard=17, sequence=981, at=AT)
    assert message.value == (
        b'{"shard":17,"sequence":981,"at":"2026-11-22T18:03:21Z","outcomes":[{"sn":"9010KETU000W0001",'
        b'"event_id":"dis-1122-03","source":"gridco-west","revision":1,"kind":"discharge","setpoint_w":4878,'
        b'"state":"applied","reason":null,"response_code":2,"correlation_id":"110004b3-1000-8000-8100-5ec228c3fc69",'
        b'"attempt":1,"published_at":"2026-11-22T18:02:11Z","result_at":"2026-11-22T18:03:20Z","corrects":null}]}'
    )
    assert (message.key, header(message, "ce_id")) == (b"17", "17/981")


@pytest.mark.parametrize(
    ("changes", "name", "value"),
    [
        ({"kind": Kind.POWER_FACTOR, "setpoint_w": None, "cos_phi": 0.95}, "cos_phi", 0.95),
        ({"kind": Kind.POWER_FACTOR, "setpoint_w": None}, "cos_phi", None),
        ({"kind": Kind.GENERATION_LIMIT, "setpoint_w": None, "setpoint_percent": 60.5}, "setpoint_percent", 60.5),
        ({"kind": Kind.GENERATION_LIMIT, "setpoint_w": None}, "setpoint_percent", None),
        ({"kind": Kind.GENERATION_LIMIT, "setpoint_w": 5000}, "setpoint_w", 5000),
        ({"kind": Kind.STANDBY, "setpoint_w": None}, "setpoint_w", None),
        ({"kind": "release", "setpoint_w": None}, "setpoint_w", None),
    ],
)
def test_the_setpoint_stands_in_the_unit_of_its_kind(changes: dict[str, Any], name: str, value: float | None) -> None:
    (told,) = validated("outcomes", encode_outcomes([row(**changes)], shard=0, sequence=0, at=AT))["outcomes"]
    assert told[name] == value
    assert len({"setpoint_w", "setpoint_percent", "cos_phi"} & set(told)) == 1


ROWS = st.builds(
    row,
    kind=st.sampled_from([*Kind, "release"]),
    setpoint_w=st.none() | st.integers(0, 10**6),
    setpoint_percent=st.none() | st.floats(0, 100),
    cos_phi=st.none() | st.floats(0.8, 1),
    state=st.sampled_from(State),
    reason=st.sampled_from(Reason),
    response_code=st.sampled_from([1, 2, 3, 6, 7, 8, 10]),
    correlation_id=st.none() | st.uuids().map(str),
    attempt=st.none() | st.integers(1, 255),
    published_at=st.none() | st.floats(0, 4e9),
    result_at=st.none() | st.floats(0, 4e9),
    corrects=st.none() | st.integers(0, 2**40),
    event_id=st.text(st.characters(codec="utf-8"), min_size=1, max_size=64),
)


@pytest.mark.exhaustive
@settings(max_examples=100, deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=5))
def test_the_fast_encoder_keeps_to_the_model_and_the_schema(rows: list[OutcomeRow]) -> None:
    body = validated("outcomes", encode_outcomes(rows, shard=63, sequence=2**40, at=AT))
    for told, given_row in zip(body["outcomes"], rows, strict=True):
        assert told["event_id"] == given_row.event_id
        assert told["state"].upper() == given_row.state.name
        assert told["reason"] == given_row.reason.word


def test_a_message_has_1_to_500_rows() -> None:
    assert len(validated("outcomes", encode_outcomes([row()] * 500, shard=1, sequence=1, at=AT))["outcomes"]) == 500
    for rows in ([], [row()] * 501):
        with pytest.raises(InvariantBroken):
            encode_outcomes(rows, shard=1, sequence=1, at=AT)


def test_500_rows_are_encoded_in_milliseconds() -> None:
    rows = [row(published_at=1795370531.0 + i / 7) for i in range(500)]
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        encode_outcomes(rows, shard=1, sequence=1, at=AT)
        best = min(best, time.process_time() - start)
    assert best < 0.01
