"""Bytes of commands, and results from bytes."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.goodwe.batches import HYBRID, NOW, PERCENT, Rec, answer, commands
from vpp_dispatch.domain import correlation
from vpp_dispatch.domain.command import NO_VALUE, ResultCode, Results
from vpp_dispatch.domain.signal import QUERY_BIT, Actuator
from vpp_dispatch.goodwe.codec import Codec, DecodedResult, Refusal, Role
from vpp_dispatch.goodwe.parameters import Catalogue
from vpp_dispatch.goodwe.profile import PROFILES, Profile, load_profile, parse_profile

PROFILE = load_profile("goodwe")
CODEC = Codec(PROFILE, Catalogue(PROFILE))
EMS, EXPORT, ACTIVE, REACTIVE = (int(a) for a in Actuator)


def _other(**changes: dict[str, Any]) -> Codec:
    """A codec of the default profile with sections changed."""
    data = tomllib.loads((PROFILES / "goodwe.toml").read_text(encoding="utf-8"))
    for section, values in changes.items():
        data[section] |= values
    profile: Profile = parse_profile(data, "test")
    return Codec(profile, Catalogue(profile))


def _one(row: tuple[int, str, int, int], codec: Codec = CODEC, **more: Any) -> bytes:
    prepared = codec.prepare(commands([row], **more))
    assert not prepared.refused
    return codec.encode(prepared, now=NOW)[2][0]


def _decoded(role: Role, value: bytes | None, codec: Codec = CODEC) -> DecodedResult:
    result = codec.decode_result(role, HYBRID.encode(), value, NOW)
    assert isinstance(result, DecodedResult), result
    return result


class TestCommands:
    def test_the_examples_of_the_contract(self) -> None:
        batch = commands([(EMS, HYBRID, 12, 4878), (ACTIVE, HYBRID, 600, 0), (EMS | QUERY_BIT, HYBRID, 0, 0)])
        prepared = CODEC.prepare(batch)
        roles, keys, values = CODEC.encode(prepared, now=NOW)
        ids = [correlation.text(i.tobytes()) for i in prepared.ids]
        assert roles == [Role.MULTI, Role.SINGLE, Role.QUERY]
        assert keys == [HYBRID.encode()] * 3
        assert [value.decode() for value in values] == [
            f'{{"requestId":"{ids[0]}","sn":"{HYBRID}","parameters":[{{"name":"EMS Power Mode","value":12}},'
            f'{{"name":"EMS Power Set","value":4878}}],"timestamp":1795370531000}}',
            f'{{"requestId":"{ids[1]}","sn":"{HYBRID}","parameter":{{"name":"Active Power Limit","value":600}},'
            '"timestamp":1795370531000}',
            f'{{"requestId":"{ids[2]}","sn":"{HYBRID}","parameters":["EMS Power Mode","EMS Power Set"],'
            '"timestamp":1795370531000}',
        ]

    def test_r23_the_id_names_the_setpoint_and_its_content(self) -> None:
        rows = [(EMS, HYBRID, 12, 4878), (EMS | QUERY_BIT, HYBRID, 0, 0)]
        prepared = CODEC.prepare(commands(rows, generation=7, attempt=3))
        shard, row, actuator, generation, attempt = correlation.unpack(prepared.ids)
        assert (shard.tolist(), row.tolist(), actuator.tolist()) == ([17, 17], [0, 1], [EMS, EMS | QUERY_BIT])
        assert (generation.tolist(), attempt.tolist()) == ([7, 7], [3, 3])
        assert prepared.digests.tolist() == [
            correlation.digest(f"{HYBRID}\0EMS Power Mode=12\0EMS Power Set=4878".encode()),
            correlation.digest(f"{HYBRID}\0EMS Power Mode\0EMS Power Set".encode()),
        ]
        low = np.ascontiguousarray(prepared.ids[:, 8:]).view(">u8").reshape(-1).astype(np.uint64)
        assert (low & np.uint64((1 << 46) - 1)).tolist() == prepared.digests.tolist()

    def test_r23_two_encodings_differ_in_the_timestamp_only(self) -> None:
        prepared = CODEC.prepare(commands([(EXPORT, HYBRID, 1, 5000)]))
        first, second = (json.loads(CODEC.encode(prepared, now=now)[2][0]) for now in (NOW, NOW + 1))
        assert first.pop("timestamp") != second.pop("timestamp")
        assert first == second

    def test_another_value_is_another_id(self) -> None:
        ids = {CODEC.prepare(commands([(EMS, HYBRID, 12, watts)])).ids.tobytes() for watts in range(200)}
        assert len(ids) == 200

    @pytest.mark.parametrize(
        ("row", "rated_w", "raw"),
        [
            ((EXPORT, HYBRID, 1, 4877), 10_000, [1, 4877]),
            ((EXPORT, PERCENT, 1, 170), 17_000, [1, 1]),
            ((EXPORT, PERCENT, 1, 17_000), 17_000, [1, 100]),
            ((EXPORT, PERCENT, 1, 4_930), 17_000, [1, 29]),
            ((EXPORT, PERCENT, 1, 5_099), 17_000, [1, 29]),  # never looser than asked
            ((EXPORT, PERCENT, 0, 0), 17_000, [0, 0]),
            ((EXPORT, PERCENT, 1, 90_000), 17_000, [1, 100]),
            ((EXPORT, PERCENT, 1, 2_990), 29_900, [1, 10]),
            ((ACTIVE, HYBRID, 605, 0), 10_000, [605]),
            ((REACTIVE, HYBRID, 95, 0), 10_000, [95]),
        ],
    )
    def test_raw_values(self, row: tuple[int, str, int, int], rated_w: int, raw: list[int]) -> None:
        message = json.loads(_one(row, rated_w=rated_w))
        parameters = message["parameters"] if "parameters" in message else [message["parameter"]]
        assert [parameter["value"] for parameter in parameters] == raw

    @given(st.integers(1, 1000), st.integers(0, 100))
    def test_a_percent_comes_back_as_the_limit_that_went_out(self, hundreds: int, percent: int) -> None:
        rated_w = hundreds * 100
        step = CODEC.catalogue.step_w(Actuator.EXPORT, PERCENT, rated_w)
        limit_w = int(percent * step)
        request = _one((EXPORT, PERCENT, 1, limit_w), rated_w=rated_w)
        raw = json.loads(request)["parameters"]
        query = _one((EXPORT | QUERY_BIT, PERCENT, 0, 0))
        read = _decoded(Role.QUERY, answer(query, parameters=raw))
        assert (read.first, read.second * step) == (1, limit_w)

    @pytest.mark.parametrize(
        ("row", "rated_w", "why"),
        [
            ((EMS, 'X"},{"sn":"evil', 12, 1), 10_000, "no serial number"),
            ((EMS, HYBRID + "\n", 12, 1), 10_000, "no serial number"),
            ((EMS, "9010ketu000w0001", 12, 1), 10_000, "no serial number"),
            ((EMS, HYBRID, 256, 1), 10_000, "outside 0..255"),
            ((EMS, HYBRID, 12, -1), 10_000, "outside 0..1000000"),
            ((EXPORT, PERCENT, 1, 100), 0, "rating is not known"),
        ],
    )
    def test_one_command_that_cannot_be_said_does_not_stop_the_batch(
        self, row: tuple[int, str, int, int], rated_w: int, why: str
    ) -> None:
        batch = commands([(EMS, HYBRID, 12, 4878), row, (EMS, HYBRID, 11, 100)], rated_w=rated_w)
        prepared = CODEC.prepare(batch)
        assert [index for index, _ in prepared.refused] == [1]
        assert why in prepared.refused[0][1]
        assert prepared.ids.shape == (3, 16)
        _, keys, values = CODEC.encode(prepared, now=NOW)
        assert keys == [HYBRID.encode()] * 2
        assert [json.loads(value)["parameters"][0]["value"] for value in values] == [12, 11]

    def test_a_profile_may_rename_fields_and_write_ids_as_hex(self) -> None:
        codec = _other(
            fields={"correlation_id": "no%d", "sn": "wr", "parameters": "liste", "timestamp": "zeit"}
            | {"name": "n", "value": "w"},
            correlation={"text": "hex"},
            actuators={"ems": PROFILE.actuators.ems.model_dump() | {"parameters": ["Mode 100 %s", "Größe"]}},
        )
        prepared = codec.prepare(commands([(EMS, HYBRID, 12, 5)]))
        value = codec.encode(prepared, now=NOW)[2][0]
        assert json.loads(value) == {
            "no%d": prepared.ids[0].tobytes().hex(),
            "wr": HYBRID,
            "liste": [{"n": "Mode 100 %s", "w": 12}, {"n": "Größe", "w": 5}],
            "zeit": int(NOW * 1000),
        }

    def test_a_scale_rounds_towards_less_power(self) -> None:
        codec = _other(actuators={"ems": PROFILE.actuators.ems.model_dump() | {"scale": 0.01}})
        assert json.loads(_one((EMS, HYBRID, 12, 4878), codec))["parameters"][1]["value"] == 48

    @pytest.mark.parametrize("scale", [0.0001, 0.001, 0.01, 0.04, 0.1, 0.3, 0.3333, 1, 1.5, 2.5, 10, 100, 1000])
    def test_whatever_the_scale_what_was_set_reads_back_as_what_can_be_told(self, scale: float) -> None:
        rules = {"scale": scale, "max": [255, 2**31 - 1]}
        codec = _other(actuators={"ems": PROFILE.actuators.ems.model_dump() | rules})
        step = codec.catalogue.step_w(Actuator.EMS, HYBRID, 10_000)
        query = _one((EMS | QUERY_BIT, HYBRID, 0, 0), codec)
        for asked in (0, 1, 7, 333, 999, 1000, 4878, 10_000, 99_999, 1_000_000):
            raw = json.loads(_one((EMS, HYBRID, 12, asked), codec))["parameters"]
            read = _decoded(Role.QUERY, answer(query, parameters=raw), codec).second
            assert asked - step < read <= asked
            assert json.loads(_one((EMS, HYBRID, 12, read), codec))["parameters"] == raw
            if scale >= 1:
                assert read == asked


class TestResults:
    request = _one((EMS, HYBRID, 12, 4878))
    query = _one((EMS | QUERY_BIT, HYBRID, 0, 0))

    def test_the_example_of_the_contract(self) -> None:
        value = answer(
            self.request,
            stage="applied",
            parameters=[
                {"name": "EMS Power Mode", "value": 12, "code": "0"},
                {"name": "EMS Power Set", "value": 4878, "code": "0"},
            ],
        )
        result = _decoded(Role.MULTI, value)
        id_ = CODEC.prepare(commands([(EMS, HYBRID, 12, 4878)])).ids[0].tobytes()
        assert result == DecodedResult(id_, ResultCode.SUCCESS, False, NO_VALUE, NO_VALUE, NOW)

    @pytest.mark.parametrize(
        ("code", "expected"),
        [
            ("0", ResultCode.SUCCESS),
            (0, ResultCode.SUCCESS),
            ("1001", ResultCode.OFFLINE),
            (1002, ResultCode.UNAUTHORIZED),
            ("1003", ResultCode.BUSY),
            ("1004", ResultCode.VALUE),
            ("1005", ResultCode.UNSUPPORTED),
            ("1099", ResultCode.FAILED),
            ("00", ResultCode.UNKNOWN_CODE),
            ("7", ResultCode.UNKNOWN_CODE),
            (-3, ResultCode.UNKNOWN_CODE),
            (10**30, ResultCode.UNKNOWN_CODE),
        ],
    )
    def test_codes_are_text_or_integers_and_an_unknown_one_is_a_value(self, code: Any, expected: ResultCode) -> None:
        assert _decoded(Role.MULTI, answer(self.request, code=code)).code is expected

    @pytest.mark.parametrize(
        ("stage", "accepted"), [("accepted", True), ("applied", False), (None, False), (..., False), ("queued", True)]
    )
    def test_r24_accepted_is_not_applied(self, stage: Any, accepted: bool) -> None:
        assert _decoded(Role.MULTI, answer(self.request, stage=stage)).accepted is accepted

    @pytest.mark.parametrize(
        ("code", "own", "expected"),
        [
            ("0", ["0", "1004"], ResultCode.PARTIAL),
            ("1099", ["0", "1004"], ResultCode.PARTIAL),
            ("1004", ["1004", "1004"], ResultCode.VALUE),
            ("1001", [None, None], ResultCode.OFFLINE),
            ("0", [0, 0], ResultCode.SUCCESS),
            ("0", ["1001", "1001"], ResultCode.PARTIAL),
            ("1099", ["0", "0"], ResultCode.PARTIAL),
        ],
    )
    def test_r26_a_partial_result_is_no_success(self, code: str, own: list[Any], expected: ResultCode) -> None:
        names = ("EMS Power Mode", "EMS Power Set")
        parameters = [{"name": name, "code": c} for name, c in zip(names, own, strict=True)]
        assert _decoded(Role.MULTI, answer(self.request, code=code, parameters=parameters)).code is expected

    @pytest.mark.parametrize(
        ("parameters", "code", "first", "second"),
        [
            ([("EMS Power Mode", 1), ("EMS Power Set", 0)], ResultCode.SUCCESS, 1, 0),
            ([("EMS Power Set", 7.0), ("EMS Power Mode", 255), ("Else", 4)], ResultCode.SUCCESS, 255, 7),
            ([("EMS Power Mode", 1)], ResultCode.PARTIAL, 1, NO_VALUE),
            ([("EMS Power Mode", 1), ("EMS Power Set", None)], ResultCode.PARTIAL, 1, NO_VALUE),
            ([("EMS Power Mode", "1"), ("EMS Power Set", 5)], ResultCode.PARTIAL, NO_VALUE, 5),
            ([("EMS Power Mode", True), ("EMS Power Set", 0)], ResultCode.PARTIAL, NO_VALUE, 0),
            ([("EMS Power Mode", 1), ("EMS Power Set", 7.5)], ResultCode.PARTIAL, 1, NO_VALUE),
            ([("EMS Power Mode", 1), ("EMS Power Set", 10**40)], ResultCode.PARTIAL, 1, NO_VALUE),
            ([("EMS Power Mode", 1), ("EMS Power Set", -1)], ResultCode.PARTIAL, 1, NO_VALUE),
            ([], ResultCode.PARTIAL, NO_VALUE, NO_VALUE),
        ],
    )
    def test_a_querys_success_carries_a_whole_pair(
        self, parameters: list[tuple[str, Any]], code: ResultCode, first: int, second: int
    ) -> None:
        value = answer(self.query, parameters=[{"name": name, "value": v} for name, v in parameters])
        result = _decoded(Role.QUERY, value)
        assert (result.code, result.first, result.second) == (code, first, second)

    def test_the_pairs_of_the_single_actuators(self) -> None:
        for kind, sn, name, raw, pair in (
            (ACTIVE, HYBRID, "Active Power Limit", 605, (605, 0)),
            (REACTIVE, HYBRID, "Power Factor", 95, (95, 0)),
        ):
            value = answer(_one((kind | QUERY_BIT, sn, 0, 0)), parameters=[{"name": name, "value": raw}])
            result = _decoded(Role.QUERY, value)
            assert (result.first, result.second) == pair

    def test_a_refused_query_reads_nothing(self) -> None:
        result = _decoded(Role.QUERY, answer(self.query, code="1001"))
        assert (result.code, result.first, result.second) == (ResultCode.OFFLINE, NO_VALUE, NO_VALUE)

    @pytest.mark.parametrize(
        ("role", "value", "reason"),
        [
            (Role.MULTI, None, "undecodable"),
            (Role.MULTI, b"", "undecodable"),
            (Role.MULTI, b"\xff\xfe", "undecodable"),
            (Role.MULTI, b'{"requestId":"\xff\xff\xff"}', "undecodable"),
            (Role.MULTI, b"[1]", "undecodable"),
            (Role.MULTI, b'{"x":' + b"[" * 100_000, "undecodable"),
            (Role.MULTI, answer(request, code=True), "undecodable"),
            (Role.MULTI, answer(request, parameters={"name": 1}), "undecodable"),
            (Role.MULTI, b"{}", "no_id"),
            (Role.MULTI, answer(request, requestId="  0004b3-1000-8000-8100-5ec228c3fc6 "), "no_id"),
            (Role.MULTI, answer(request, requestId="x" * 36), "no_id"),
            (Role.MULTI, answer(request, requestId="110004b3-1000-4000-8100-5ec228c3fc69"), "foreign_id"),
            (Role.MULTI, answer(request, requestId="ff0004b3-1000-8000-8100-5ec228c3fc69"), "foreign_id"),
            (Role.SINGLE, answer(request), "wrong_topic"),
            (Role.QUERY, answer(request), "wrong_topic"),
            (Role.MULTI, answer(query), "wrong_topic"),
            (Role.MULTI, answer(request, requestId="110004b3-7000-8000-8100-5ec228c3fc69"), "wrong_topic"),
            (Role.MULTI, answer(request, code=...), "no_code"),
        ],
    )
    def test_r08_bytes_that_are_no_result_are_refused(self, role: Role, value: bytes, reason: str) -> None:
        result = CODEC.decode_result(role, None, value, NOW)
        assert isinstance(result, Refusal)
        assert (result.reason, bool(result.detail)) == (reason, True)

    def test_ids_are_read_in_either_form_and_case(self) -> None:
        text = json.loads(self.request)["requestId"]
        for form in (text, text.upper(), text.replace("-", "")):
            assert _decoded(Role.MULTI, answer(self.request, requestId=form)).id == bytes.fromhex(text.replace("-", ""))

    json_values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    )

    @pytest.mark.exhaustive
    @settings(max_examples=200, deadline=None)
    @given(
        st.sampled_from(Role),
        st.binary(max_size=60)
        | st.dictionaries(
            st.sampled_from(["requestId", "sn", "code", "stage", "parameters", "x"]),
            json_values
            | st.just(json.loads(query)["requestId"])
            | st.just([{"name": "EMS Power Mode", "value": 1e300}]),
        ).map(lambda message: json.dumps(message).encode()),
    )
    def test_r08_no_bytes_raise(self, role: Role, value: bytes) -> None:
        assert isinstance(CODEC.decode_result(role, None, value, NOW), (DecodedResult, Refusal))

    def test_results_are_regrouped_by_shard_in_order(self) -> None:
        records: list[Rec] = []
        wanted: dict[int, list[bytes]] = {3: [], 60: []}
        for offset in range(40):
            shard = 3 if offset % 3 else 60
            prepared = CODEC.prepare(commands([(EMS, HYBRID, 12, offset)], shard=shard))
            value = CODEC.encode(prepared, now=NOW)[2][0]
            wanted[shard].append(prepared.ids[0].tobytes())
            records.append(Rec(PROFILE.topics.multi_result, answer(value), offset=offset, timestamp=1000 * offset))
        bad = Rec(PROFILE.topics.query_result, b"?", partition=2, offset=41, headers=[("h", b"v")])
        by_shard, refused = CODEC.decode_results([*records, bad])
        parts = {shard: part for shard, part in by_shard.items() if isinstance(part, Results)}
        assert {shard: [i.tobytes() for i in part.ids] for shard, part in parts.items()} == wanted
        assert by_shard[60].at.tolist() == [float(n) for n in range(0, 40, 3)]
        assert [(r.topic, r.partition, r.offset, r.value, r.headers) for r in refused] == [
            (PROFILE.topics.query_result, 2, 41, b"?", (("h", b"v"),))
        ]
        assert refused[0].reason == "undecodable"

    def test_no_records_are_no_results(self) -> None:
        assert CODEC.decode_results([]) == ({}, [])
