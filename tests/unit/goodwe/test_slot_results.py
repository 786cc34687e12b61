"""Results of a profile that echoes no id: which device, which topics, and of a query which actuator (R26)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.goodwe.batches import HYBRID, NOW, Rec
from vpp_dispatch.dispatch import inbox
from vpp_dispatch.domain.command import NO_VALUE, ResultCode
from vpp_dispatch.domain.device import shard_of
from vpp_dispatch.domain.inputs import SlotResults
from vpp_dispatch.domain.signal import QUERY_BIT, Actuator
from vpp_dispatch.goodwe.codec import Codec, Refusal, Role, SlotResult
from vpp_dispatch.goodwe.parameters import Catalogue
from vpp_dispatch.goodwe.profile import load_profile

PROFILE = load_profile("variant")
CODEC = Codec(PROFILE, Catalogue(PROFILE))
EMS_READ = [{"key": "workMode", "val": 0}, {"key": "workPower", "val": 0}]


def result(**fields: Any) -> bytes:
    """A result of HYBRID, applied with success; `...` takes a field out."""
    message = {"deviceSn": HYBRID, "ret": 200, "info": "x", "phase": "DONE", "ts": 1} | fields
    return json.dumps({key: value for key, value in message.items() if value is not ...}).encode()


def decoded(role: Role, value: bytes, key: bytes | None = None) -> SlotResult:
    found = CODEC.decode_slot_result(role, key, value, NOW)
    assert isinstance(found, SlotResult), found
    return found


@pytest.mark.parametrize(("role", "single"), [(Role.SINGLE, True), (Role.MULTI, False)])
def test_a_setpoints_result_tells_its_topics_only(role: Role, single: bool) -> None:
    assert decoded(role, result()) == SlotResult(HYBRID, 0, single, ResultCode.SUCCESS, False, NO_VALUE, NO_VALUE, NOW)


@pytest.mark.parametrize(("phase", "accepted"), [("ACK", True), ("DONE", False), (..., False), ("QUEUED", True)])
def test_r24_accepted_is_not_applied(phase: Any, accepted: bool) -> None:
    assert decoded(Role.MULTI, result(phase=phase)).accepted is accepted


@pytest.mark.parametrize(
    ("code", "meaning"),
    [(200, ResultCode.SUCCESS), ("404", ResultCode.OFFLINE), (-1, ResultCode.FAILED), (0, ResultCode.UNKNOWN_CODE)],
)
def test_codes_are_those_of_the_profile(code: Any, meaning: ResultCode) -> None:
    assert decoded(Role.MULTI, result(ret=code)).code is meaning


@pytest.mark.parametrize(
    ("items", "actuator", "first", "second"),
    [
        ([("workMode", 31), ("workPower", 487)], Actuator.EMS, 31, 4870),
        ([("feedInLimit", 15_000), ("feedInSwitch", 1)], Actuator.EXPORT, 1, 15_000),  # in raw values, each a step
        ([("outputCeiling", 60)], Actuator.ACTIVE, 600, 0),
        ([("phaseFactor", 95), ("somethingElse", 1)], Actuator.REACTIVE, 95, 0),
    ],
)
def test_a_querys_result_tells_its_actuator_by_what_it_lists(
    items: list[tuple[str, int]], actuator: Actuator, first: int, second: int
) -> None:
    found = decoded(Role.QUERY, result(items=[{"key": key, "val": value, "ret": 200} for key, value in items]))
    assert (found.actuator, found.single) == (actuator | QUERY_BIT, False)
    assert (found.code, found.first, found.second) == (ResultCode.SUCCESS, first, second)


def test_a_query_that_was_refused_or_read_in_part_tells_its_actuator_too() -> None:
    refused = decoded(Role.QUERY, result(ret=404, items=[{"key": "workPower", "ret": 404}]))
    assert (refused.actuator, refused.code) == (Actuator.EMS | QUERY_BIT, ResultCode.OFFLINE)
    part = decoded(Role.QUERY, result(items=[{"key": "workMode", "val": 10}]))
    assert (part.code, part.first, part.second) == (ResultCode.PARTIAL, 10, NO_VALUE)


def test_the_key_tells_the_device_where_the_message_does_not() -> None:
    assert decoded(Role.MULTI, result(deviceSn=...), HYBRID.encode()).sn == HYBRID
    other = HYBRID.replace("1", "2")
    assert decoded(Role.MULTI, result(deviceSn=other), HYBRID.encode()).sn == other


def test_whatever_stands_where_an_id_would_is_skipped() -> None:
    assert decoded(Role.MULTI, result(msgId=17)).code is ResultCode.SUCCESS


@pytest.mark.parametrize(
    ("role", "value", "key", "reason"),
    [
        (Role.MULTI, None, HYBRID.encode(), "undecodable"),
        (Role.MULTI, b"?", HYBRID.encode(), "undecodable"),
        (Role.MULTI, result(deviceSn=7), HYBRID.encode(), "undecodable"),
        (Role.MULTI, result(deviceSn=...), None, "no_sn"),
        (Role.MULTI, result(deviceSn=...), b"\xff\xfe", "no_sn"),
        (Role.MULTI, result(deviceSn="9010ketu000w0001"), HYBRID.encode(), "no_sn"),
        (Role.MULTI, result(deviceSn=HYBRID + "\n"), None, "no_sn"),
        (Role.QUERY, result(), None, "no_actuator"),
        (Role.QUERY, result(items=[{"key": "temperature", "val": 1}]), None, "no_actuator"),
        (Role.QUERY, result(items=[*EMS_READ, {"key": "feedInSwitch", "val": 1}]), None, "no_actuator"),
        (Role.SINGLE, result(items=EMS_READ), None, "wrong_topic"),
        (Role.MULTI, result(items=[{"key": "outputCeiling", "val": 1}]), None, "wrong_topic"),
        (Role.MULTI, result(ret=...), None, "no_code"),
    ],
)
def test_r08_bytes_that_are_no_result_are_refused(role: Role, value: bytes, key: bytes | None, reason: str) -> None:
    found = CODEC.decode_slot_result(role, key, value, NOW)
    assert isinstance(found, Refusal), found
    assert (found.reason, bool(found.detail)) == (reason, True)


def test_results_are_regrouped_by_the_shard_of_their_device_in_order() -> None:
    sns = [f"9010KETU000W{n % 7:04d}" for n in range(60)]
    records = [
        Rec(PROFILE.topics.multi_result, result(deviceSn=sn, ret=200 if n % 2 else 404), timestamp=1000 * n)
        for n, sn in enumerate(sns)
    ]
    records.append(Rec(PROFILE.topics.query_result, result(items=EMS_READ)))
    bad = Rec(PROFILE.topics.single_result, result(deviceSn=...), key=b"nobody", partition=2, offset=41)
    by_shard, refused = CODEC.decode_results([*records, bad])
    assert [(r.reason, r.partition, r.offset, r.key) for r in refused] == [("no_sn", 2, 41, b"nobody")]
    assert sum(map(len, by_shard.values())) == 61
    for shard, results in by_shard.items():
        assert isinstance(results, SlotResults)
        mine = [(sn, n) for n, sn in enumerate(sns) if shard_of(sn) == shard]
        sets = results.actuator == 0
        assert [(sn, int(at)) for sn, at, is_set in zip(results.sn, results.at, sets, strict=True) if is_set] == mine
        odd = [ResultCode.SUCCESS if n % 2 else ResultCode.OFFLINE for _, n in mine]
        assert results.code[sets].tolist() == odd
        again = inbox.decode(inbox.encode(results))
        assert isinstance(again, SlotResults)
        assert again.sn == results.sn
        assert (again.actuator == results.actuator).all() and (again.second == results.second).all()
    queries = [results for results in by_shard.values() if isinstance(results, SlotResults) and results.actuator.any()]
    assert [results.actuator[-1] for results in queries] == [Actuator.EMS | QUERY_BIT]


def test_no_records_are_no_results() -> None:
    assert CODEC.decode_results([]) == ({}, [])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(HYBRID),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.exhaustive
@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(Role),
    st.none() | st.binary(max_size=20),
    st.binary(max_size=60)
    | st.dictionaries(
        st.sampled_from(["deviceSn", "ret", "phase", "items"]),
        json_values | st.just([{"key": "workMode", "val": 1e300}]),
    ).map(lambda message: json.dumps(message).encode()),
)
def test_r08_no_bytes_raise(role: Role, key: bytes | None, value: bytes) -> None:
    assert isinstance(CODEC.decode_slot_result(role, key, value, NOW), (SlotResult, Refusal))
