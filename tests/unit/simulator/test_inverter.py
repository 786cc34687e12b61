"""Physics: what each mode and limit does to power and stored energy."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.simulator.world import HYBRID, MIDNIGHT, NOON, OLD, PV_PERCENT, device, inverters
from vpp_dispatch.simulator.inverter import Flows, Inverters
from vpp_dispatch.simulator.profile import (
    ACTIVE_LIMIT,
    EXPORT_ENABLED,
    EXPORT_LIMIT,
    MODE,
    POWER,
    POWER_FACTOR,
)


def flows(made: Inverters, now: float = NOON) -> Flows:
    return made.flows(np.arange(len(made)), now)


def hybrid(mode: int, power_w: int) -> Inverters:
    made = inverters(device(HYBRID))  # 10 kW, 8 kW of PV at noon, 1 kW of load
    assert made.write(0, MODE, mode) == "success"
    assert made.write(0, POWER, power_w) == "success"
    return made


@pytest.mark.parametrize(
    ("mode", "power_w", "battery_w", "grid_w"),
    [
        (1, 0, -7000, 0),  # self-use stores the surplus
        (2, 3000, -3000, 4000),
        (4, 500, -8500, -1500),  # import 500 W at AC, whatever the house takes
        (5, 9000, 1000, 8000),
        (6, 0, -7000, 0),
        (7, 0, -7000, 0),
        (8, 0, 0, 7000),
        (9, 2000, -9000, -2000),  # 2 kW from the grid at the connection point
        (10, 8000, 1000, 8000),
        (11, 4000, -4000, 3000),
        (12, 2000, 2000, 9000),
        (255, 0, 0, -1000),
    ],
)
def test_modes(mode: int, power_w: int, battery_w: float, grid_w: float) -> None:
    at = flows(hybrid(mode, power_w))
    assert at.battery_w[0] == pytest.approx(battery_w)
    assert at.grid_w[0] == pytest.approx(grid_w)
    assert at.grid_w[0] == pytest.approx(at.pv_w[0] + at.battery_w[0] - at.load_w[0])


def test_night_self_use_discharges_for_the_house() -> None:
    at = flows(inverters(device(HYBRID)), MIDNIGHT)
    assert (at.pv_w[0], at.battery_w[0], at.grid_w[0]) == (0, 1000, 0)


def test_export_limit_takes_from_the_battery_first_then_curtails_pv() -> None:
    made = hybrid(12, 2000)
    made.write(0, EXPORT_LIMIT, 7500)
    made.write(0, EXPORT_ENABLED, 1)
    at = flows(made)
    assert (at.pv_w[0], at.battery_w[0], at.grid_w[0]) == pytest.approx((8000, 500, 7500))
    made.write(0, EXPORT_LIMIT, 1500)
    at = flows(made)
    assert (at.pv_w[0], at.battery_w[0], at.grid_w[0]) == pytest.approx((2500, 0, 1500))


def test_export_limit_in_percent_of_the_rating() -> None:
    made = inverters(device(PV_PERCENT))  # 12 kW, 9.6 kW of PV
    made.write(0, EXPORT_ENABLED, 1)
    made.write(0, EXPORT_LIMIT, 25)
    assert flows(made).grid_w[0] == pytest.approx(3000)
    assert made.write(0, EXPORT_LIMIT, 101) == "value"


def test_active_power_limit_is_per_mille_of_the_rating_at_ac() -> None:
    made = hybrid(12, 5000)
    made.write(0, ACTIVE_LIMIT, 600)
    assert flows(made).ac_w[0] == pytest.approx(6000)


def test_a_mode_latches_and_energy_follows_until_the_battery_is_full() -> None:
    made = hybrid(11, 5000)
    before = made.stored_wh[0]
    made.advance(NOON + 600)
    assert made.stored_wh[0] - before == pytest.approx(5000 * 0.95 / 6)
    made.advance(NOON + 7 * 3600)
    assert made.soc[0] == pytest.approx(100)
    assert made.settings[MODE, 0] == 11
    assert flows(made, NOON + 7 * 3600).battery_w[0] == 0


def test_discharge_ends_at_the_lowest_state_of_charge() -> None:
    made = hybrid(12, 10_000)
    made.advance(NOON + 4 * 3600)
    assert made.soc[0] == pytest.approx(10)
    assert flows(made, NOON + 4 * 3600).battery_w[0] == 0


def test_production_counts_and_starts_again_at_midnight() -> None:
    made = inverters(device(PV_PERCENT))
    total = made.total_kwh[0]
    made.advance(NOON + 60)
    assert made.today_kwh[0] == pytest.approx(9.6 / 60, rel=1e-3)
    made.advance(MIDNIGHT + 86_400 + 60)
    assert made.today_kwh[0] == 0
    assert made.total_kwh[0] > total


@pytest.mark.parametrize(
    ("sn", "column", "value", "outcome"),
    [
        (HYBRID, MODE, 13, "value"),
        (HYBRID, MODE, "11", "value"),
        (HYBRID, MODE, True, "value"),
        (HYBRID, POWER, 20_000, "value"),
        (HYBRID, POWER, -1, "value"),
        (HYBRID, ACTIVE_LIMIT, 1001, "value"),
        (HYBRID, POWER_FACTOR, 50, "value"),
        (HYBRID, POWER_FACTOR, 95, "success"),
        (PV_PERCENT, MODE, 11, "unsupported"),
        (OLD, EXPORT_LIMIT, 100, "unsupported"),
    ],
)
def test_what_is_refused_changes_nothing(sn: str, column: int, value: object, outcome: str) -> None:
    made = inverters(device(sn))
    before = made.settings.copy()
    assert made.write(0, column, value) == outcome
    if outcome == "success" and isinstance(value, int):
        before[column, 0] = value
    assert (made.settings == before).all()


def test_a_device_starts_with_what_the_registry_says_of_it() -> None:
    made = inverters(
        device(HYBRID, default={"export_limit_w": 6000}), device(PV_PERCENT, default={"export_limit_w": 7200})
    )
    assert made.settings[EXPORT_ENABLED].tolist() == [1, 1]
    assert made.settings[EXPORT_LIMIT].tolist() == [6000, 60]
    assert made.restores(0, [(EXPORT_ENABLED, 1), (EXPORT_LIMIT, 6000)])
    assert not made.restores(0, [(EXPORT_ENABLED, 0), (EXPORT_LIMIT, 6000)])
    assert made.restores(0, [(MODE, 1), (POWER, 0)])
    assert not made.restores(0, [(MODE, 11), (POWER, 0)])
