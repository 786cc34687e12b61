"""What the simulator makes of a profile that differs in everything."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.simulator.world import NOON
from vpp_dispatch.simulator.fleet import Device, generate_fleet
from vpp_dispatch.simulator.inverter import Inverters
from vpp_dispatch.simulator.profile import (
    ACTIVE_LIMIT,
    EXPORT_ENABLED,
    EXPORT_LIMIT,
    INTERFACES,
    MODE,
    POWER,
    load_profile,
)

VARIANT, GOODWE = load_profile("variant"), load_profile("goodwe")
HYBRID, ROOF = "9010KETU001W0001", "95000DSN001W0002"


def inverters(sn: str, **default: int) -> Inverters:
    rated_w = VARIANT.rating_of(sn)
    assert rated_w is not None
    device = Device(sn=sn, site="s", groups=(), area="west", rated_w=rated_w, default=default)
    return Inverters(profile=VARIANT, devices=[device], seed=1, now=NOON)


@pytest.mark.parametrize(
    ("sn", "default", "settings"),
    [
        (HYBRID, {}, {EXPORT_ENABLED: 0, EXPORT_LIMIT: 100_000, MODE: 0}),
        (HYBRID, {"export_limit_w": 6000}, {EXPORT_ENABLED: 1, EXPORT_LIMIT: 60_000}),
        (HYBRID, {"ems_mode": 10, "ems_power_w": 4878}, {MODE: 10, POWER: 487}),
        (HYBRID, {"active_percent": 70}, {ACTIVE_LIMIT: 70}),
        (ROOF, {}, {EXPORT_ENABLED: 0, EXPORT_LIMIT: 100}),
        (ROOF, {"export_limit_w": 3000}, {EXPORT_ENABLED: 1, EXPORT_LIMIT: 60}),  # percents have no scale
    ],
)
def test_a_device_starts_with_raw_values_of_the_profile(
    sn: str, default: dict[str, int], settings: dict[int, int]
) -> None:
    made = inverters(sn, **default)
    assert {column: int(made.settings[column, 0]) for column in settings} == settings


def test_a_percent_above_a_hundred_is_out_of_range_whatever_the_scale() -> None:
    made = inverters(ROOF)
    assert made.write(0, EXPORT_LIMIT, 100) == "success"
    assert made.write(0, EXPORT_LIMIT, 101) == "value"


def test_scaled_limits_limit_what_they_say() -> None:
    made = inverters(HYBRID)
    made.load_fixed_w[:] = 1000
    made.pv_factor[:] = 0.8
    made.write(0, MODE, 10)
    made.write(0, EXPORT_LIMIT, 15_000)
    made.write(0, EXPORT_ENABLED, 1)
    assert made.flows(np.arange(1), NOON).grid_w[0] == 1500
    made.write(0, EXPORT_ENABLED, 0)
    made.write(0, ACTIVE_LIMIT, 30)
    assert made.flows(np.arange(1), NOON).ac_w[0] == pytest.approx(3000)


def test_rows_of_the_real_time_api_are_theirs() -> None:
    ours = {
        "sn": HYBRID,
        "time": NOON + 0.75,
        "soc": 53.2,
        "soh": 98,
        "power": 2500,
        "voltage": 380.5,
        "temperature": None,
    }
    assert VARIANT.realtime.row("bms", ours) == {
        "deviceSn": HYBRID,
        "at": int(NOON),
        "chargeLevel": 0.532,
        "health": 98,
        "packKw": 2.5,
        "volts": 380.5,
        "celsius": None,
    }
    assert GOODWE.realtime.row("bms", {"sn": HYBRID, "time": NOON + 0.75, "soc": None, "power": 2500}) == {
        "sn": HYBRID,
        "time": int(NOON * 1000) + 750,
        "soc": 536,
        "power": -2500,
    }
    assert VARIANT.realtime.row("bms", {"soc": None}) == {"chargeLevel": -1}


@pytest.mark.parametrize(
    ("field", "ours", "goodwe", "variant"),
    [
        ("grid_mode", 0, 0, 50),
        ("grid_mode", 1, 1, 1),
        ("grid_mode", 2, 2, 50),
        ("work_mode", 2, 2, 20),
        ("work_mode", 3, 3, 30),
    ],
)
def test_modes_of_the_grid_are_theirs(field: str, ours: int, goodwe: int, variant: int) -> None:
    assert (GOODWE.realtime.mode(field, ours), VARIANT.realtime.mode(field, ours)) == (goodwe, variant)


@pytest.mark.parametrize(
    ("header", "token"), [("session=abc", "abc"), ("session=", ""), ("Bearer abc", ""), ("", ""), ("session", "")]
)
def test_the_token_is_found_in_their_header(header: str, token: str) -> None:
    assert VARIANT.realtime.token_of(header) == token


def test_paths_and_envelopes_are_theirs() -> None:
    assert VARIANT.realtime.paths["authorized-sns"] == "/api/v3/consents/query"
    assert GOODWE.realtime.paths == {name: f"/v1/realtime/{name}" for name in INTERFACES}
    assert VARIANT.realtime.answer("1", "ok", VARIANT.realtime.page(3, [])) == {
        "status": "1",
        "text": "ok",
        "payload": {"count": 3, "items": []},
    }


def test_a_fleet_can_be_generated_for_it() -> None:
    families = {VARIANT.family_of(device.sn) for device in generate_fleet(profile=VARIANT, inverters=200, seed=1)}
    assert {family.name for family in families if family} == {"storage", "storage_without_reactive", "roof", "field"}
