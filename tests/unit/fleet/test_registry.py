"""Registry records: the default as pairs by actuator, tombstones, and refusals that never raise (R8, R37)."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpp_dispatch.domain.answer import Refusal, Refused
from vpp_dispatch.domain.device import Record
from vpp_dispatch.fleet.registry import Removed, decode_record

SN = "9010KETU000W0001"
KEY = SN.encode()
FULL: dict[str, Any] = {
    "sn": SN,
    "site": "site-0001",
    "groups": ["feeder-12"],
    "area": "west",
    "rated_w": 10000,
    "site_share": 1.0,
    "default": {"export_limit_w": 5000},
}


def decode(body: Any) -> Record | Removed | Refusal:
    return decode_record(KEY, json.dumps(body).encode())


def test_the_contract_example() -> None:
    assert decode(FULL) == Record(
        sn=SN,
        site="site-0001",
        groups=("feeder-12",),
        area="west",
        rated_w=10000,
        site_share=1.0,
        default={2: (1, 5000)},
    )


def test_only_the_sn_is_required() -> None:
    assert decode({"sn": SN}) == Record(sn=SN)


@pytest.mark.parametrize(
    ("default", "pairs"),
    [
        ({}, {}),
        ({"export_limit_w": 0}, {2: (1, 0)}),
        ({"ems_mode": 1, "ems_power_w": 0}, {1: (1, 0)}),
        ({"ems_mode": 12.0, "ems_power_w": 5000.0}, {1: (12, 5000)}),
        ({"active_percent": 100}, {3: (1000, 0)}),
        ({"active_percent": 62.25}, {3: (623, 0)}),
        ({"active_percent": 62.45}, {3: (625, 0)}),
        ({"power_factor": 100}, {4: (100, 0)}),
        (
            {"export_limit_w": 1, "ems_mode": 2, "ems_power_w": 3, "active_percent": 0, "power_factor": 99},
            {1: (2, 3), 2: (1, 1), 3: (0, 0), 4: (99, 0)},
        ),
    ],
)
def test_r37_defaults_are_pairs_by_actuator(default: dict[str, Any], pairs: dict[int, tuple[int, int]]) -> None:
    record = decode({**FULL, "default": default})
    assert isinstance(record, Record)
    assert record.default == pairs
    assert all(type(number) is int for pair in record.default.values() for number in pair)


def test_a_tombstone_removes() -> None:
    assert decode_record(KEY, None) == Removed(SN)


@pytest.mark.parametrize("key", [None, b"", b"9010KETU000W000", b"9010ketu000w0001", KEY + b"\n", b"\xff" * 16])
@pytest.mark.parametrize("value", [None, json.dumps(FULL).encode()])
def test_a_key_that_is_no_sn_is_refused(key: bytes | None, value: bytes | None) -> None:
    refusal = decode_record(key, value)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == Refused.INVALID and "key" in refusal.detail


def test_key_and_sn_must_agree() -> None:
    refusal = decode({**FULL, "sn": "9010KETU000W0002"})
    assert isinstance(refusal, Refusal)
    assert refusal.reason == Refused.INVALID and SN in refusal.detail and "9010KETU000W0002" in refusal.detail


@pytest.mark.parametrize(
    ("body", "reason", "says"),
    [
        ({**FULL, "owner": "x"}, Refused.UNKNOWN_FIELD, "owner"),
        ({**FULL, "default": {"import_limit_w": 1}}, Refused.UNKNOWN_FIELD, "import_limit_w"),
        ({**FULL, "rated_w": 0.5}, Refused.INVALID, "rated_w"),
        ({**FULL, "rated_w": True}, Refused.INVALID, "rated_w"),
        ({**FULL, "site": None}, Refused.INVALID, "site"),
        ({**FULL, "default": {"ems_mode": 1}}, Refused.INVALID, "ems_power_w"),
        ({**FULL, "default": {"ems_mode": 7, "ems_power_w": 0}}, Refused.INVALID, "forced islanding"),
        ({**FULL, "site": "a field named: unknown field", "area": 1}, Refused.INVALID, "area"),
        ([], Refused.INVALID, "object"),
    ],
)
def test_r08_a_refusal_names_the_field(body: Any, reason: Refused, says: str) -> None:
    refusal = decode(body)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == reason and says in refusal.detail and SN in refusal.detail


@pytest.mark.parametrize("value", [b"", b"\xff", b"{", b'{"sn":NaN}', b'{"ext":' + b"[" * 100_000])
def test_r08_bytes_that_are_no_json(value: bytes) -> None:
    refusal = decode_record(KEY, value)
    assert isinstance(refusal, Refusal) and refusal.reason == Refused.UNDECODABLE


@given(st.none() | st.binary(max_size=20) | st.just(KEY), st.none() | st.binary(max_size=60))
def test_r08_decoding_never_raises(key: bytes | None, value: bytes | None) -> None:
    assert isinstance(decode_record(key, value), Removed | Refusal)


def test_a_hundred_thousand_records_take_seconds() -> None:
    value = json.dumps(FULL).encode()
    start = time.process_time()
    for _ in range(5_000):
        decode_record(KEY, value)
    assert time.process_time() - start < 0.15  # = 3 s for 100,000
