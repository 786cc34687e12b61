"""The meter: power per event from the readings of its inverters, and the gauges of a metrics page."""

from __future__ import annotations

import msgspec
import pytest

from tests.unit.demo.run import BEGAN
from vpp_dispatch.demo.asked import Control, Played
from vpp_dispatch.demo.course import Gauges
from vpp_dispatch.demo.meter import Powers, Reading, gauges
from vpp_dispatch.errors import ConfigurationError

SNS = ["A" * 16, "B" * 16, "C" * 16, "D" * 16]
CHARGE, DISCHARGE = Control(kind="charge", each_w=2000), Control(kind="discharge", each_w=1500)
EXPORT, GENERATION = Control(kind="export_limit", each_w=1500), Control(kind="generation_limit", each_percent=60)


def asked(control: Control, targets: list[str] = SNS) -> Played:
    return Played(
        event_id="e", asked="", controls=(control,), targets=frozenset(targets), asked_w=0, from_at=BEGAN, over_at=BEGAN
    )  # fmt: skip


def reading(sn: str, *, battery: float, grid: float, ac: float = 0.0, mode: int = 1) -> Reading:
    return Reading(sn=sn, battery_power=battery, grid_power=grid, ac_power=ac, ems_mode=mode)


def powers() -> Powers:
    read = Powers(SNS)
    read.take(
        SNS,
        [
            reading(SNS[0], battery=-2000, grid=300, ac=500, mode=11),
            reading(SNS[1], battery=1500, grid=2500, ac=4000, mode=12),
            reading(SNS[2], battery=-700, grid=-400, ac=100, mode=1),  # charges of its own accord
            Reading(sn=SNS[3]),  # offline
        ],
    )
    return read


def test_only_inverters_in_the_events_mode_deliver_it() -> None:
    assert powers().of(asked(CHARGE)) == 2000
    assert powers().of(asked(DISCHARGE)) == 1500


def test_a_limit_is_measured_on_all_its_targets() -> None:
    assert powers().of(asked(EXPORT)) == 2800, "what is imported is no export"
    assert powers().of(asked(GENERATION)) == 4600
    assert powers().of(asked(EXPORT, SNS[:1])) == 300, "and on no others"


def test_offline_keeps_its_last_reading_and_without_consent_counts_for_nothing() -> None:
    read = powers()
    read.take(SNS[:1], [Reading(sn=SNS[0])])
    assert read.of(asked(CHARGE)) == 2000
    read.take(SNS[:1], [])
    assert read.of(asked(CHARGE)) == 0


def test_the_ones_that_are_read_stand_for_all() -> None:
    assert powers().of(asked(EXPORT, [*SNS, "E" * 16, "F" * 16, "G" * 16, "H" * 16])) == 5600


def test_nobody_read_is_nothing_measured() -> None:
    assert powers().of(asked(CHARGE, ["X" * 16])) == 0


def test_a_row_is_read_as_the_api_writes_it() -> None:
    row = b'{"sn":"A","time":1,"online":true,"batteryPower":-5,"gridPower":7,"acPower":9,"emsMode":11}'
    assert msgspec.json.decode(row, type=Reading) == reading("A", battery=-5, grid=7, ac=9, mode=11)


def test_gauges_are_summed_over_their_labels() -> None:
    page = """# HELP vpp_dispatch_held_devices x
vpp_dispatch_held_devices{actuator="ems"} 12.0
vpp_dispatch_held_devices{actuator="export"} 3.0
vpp_dispatch_held_past_window_devices 99.0
vpp_dispatch_debts{actuator="ems"} 2.0
vpp_dispatch_debts_refused{actuator="ems"} 50.0
vpp_dispatch_owned_shards 64.0
vpp_dispatch_commands_in_flight 7.0
"""
    assert gauges(page) == Gauges(shards=64, held=15, owed=2, in_flight=7, due=0)


@pytest.mark.parametrize("value", [{}, {"each_w": 1, "each_percent": 1}])
def test_a_control_has_one_value(value: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match="one of each_w, each_percent and cos_phi"):
        Control(kind="generation_limit", **value)


def test_a_control_that_cannot_be_followed_is_told() -> None:
    with pytest.raises(ConfigurationError, match="charge, discharge, export_limit, generation_limit, power_factor"):
        Control(kind="standby", each_w=1)
