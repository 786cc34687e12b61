"""Scales: what is set, what a device is told, and what reads back, for every scale that a profile may have."""

from __future__ import annotations

import tomllib
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpp_dispatch.domain.signal import Actuator
from vpp_dispatch.goodwe.parameters import Catalogue, Scale
from vpp_dispatch.goodwe.profile import PROFILES, load_profile, parse_profile

EMS, EXPORT, ACTIVE, REACTIVE = Actuator
HYBRID, WITHOUT, ROOF, FIELD, STRANGE = (
    "9010KETU000W0001",
    "95048ESN00BW0001",
    "95000DSN00BW0001",
    "9012KDTU001W0003",
    "9010KQQQ000W0001",
)

scales = st.builds(lambda digits, places: float(f"{digits}e-{places}"), st.integers(1, 9999), st.integers(0, 4)).filter(
    lambda scale: 0.0001 <= scale <= 1000
)
"""Every scale that the profile takes: four digits that count, from 0.0001 to 1000."""

watts = st.integers(0, 1_000_000)


def told(values: np.ndarray, step: float) -> np.ndarray:
    """What a device can be told of values, as the book rounds them (`Catalogue.step_w`)."""
    if step < 1:
        return values
    return np.ceil(np.floor(values / step + 1e-6) * step - 1e-6).astype(np.int64)


def counted(raws: np.ndarray, step: float) -> np.ndarray:
    """The value of raw ones, as the book multiplies what a query of the export limit read."""
    if step < 1:
        return (np.ceil((raws + 1) * step - 1e-6) - 1).astype(np.int64)
    return np.ceil(raws * step - 1e-6).astype(np.int64)


@given(scales, watts)
def test_what_was_set_reads_back_equal_after_one_rounding_down(scale: float, value: int) -> None:
    rule = Scale.of(EMS, scale)
    composed = int(told(np.array([value]), rule.step)[0])
    assert composed <= value
    raw = rule.raw_of(composed)
    assert raw == rule.raw_of(value), "the rounding changes what the device is told"
    assert Fraction(raw) <= value * Fraction(str(scale)), "more than was asked"
    assert rule.value_of(raw) == composed
    assert int(counted(np.array([raw]), rule.step)[0]) == composed


@given(scales, st.integers(0, 10_000_000))
def test_what_was_read_is_never_returned_as_more(scale: float, raw: int) -> None:
    rule = Scale.of(EXPORT, scale)
    value = rule.value_of(raw)
    assert rule.raw_of(value) <= raw
    if scale <= 1:
        assert rule.raw_of(value) == raw, "a default would not be restored as it was"
    if value <= 1_000_000_000:
        assert int(counted(np.array([raw]), rule.step)[0]) == value
        assert int(told(np.array([value]), rule.step)[0]) == value


@given(scales, st.integers(0, 1000), st.integers(0, 1000))
def test_the_tighter_of_two_limits_stays_the_tighter(scale: float, one: int, other: int) -> None:
    rule = Scale.of(ACTIVE, scale)
    assert rule.raw_of(min(one, other)) == min(rule.raw_of(one), rule.raw_of(other))


@pytest.mark.parametrize(
    ("actuator", "scale", "value", "raw", "back"),
    [
        (EMS, 1, 4878, 4878, 4878),
        (EMS, 0.1, 4878, 487, 4870),
        (EMS, 0.3, 4, 1, 4),  # 3.33 W a step: 4 W are the fewest that are told as one
        (EXPORT, 10, 4878, 48780, 4878),
        (EXPORT, 1.5, 1, 1, 1),
        (ACTIVE, 10, 605, 605, 605),
        (ACTIVE, 1, 605, 60, 600),
        (ACTIVE, 100, 605, 6050, 605),
        (REACTIVE, 1, 95, 95, 95),
    ],
)
def test_examples(actuator: Actuator, scale: float, value: int, raw: int, back: int) -> None:
    rule = Scale.of(actuator, scale)
    assert (rule.raw_of(value), rule.value_of(raw)) == (raw, back)


def test_a_finer_reading_is_rounded_down() -> None:
    assert [Scale.of(EXPORT, 10).value_of(raw) for raw in (0, 9, 10, 15, 19, 20)] == [0, 0, 1, 1, 1, 2]


class TestCatalogue:
    @pytest.mark.parametrize("name", sorted(file.stem for file in PROFILES.glob("*.toml")))
    def test_how_results_are_joined(self, name: str) -> None:
        catalogue = Catalogue(load_profile(name))
        assert catalogue.echoes is (name == "goodwe")
        assert [catalogue.is_single(actuator) for actuator in Actuator] == [False, False, True, True]

    @pytest.mark.parametrize("actuator", [EMS, EXPORT, ACTIVE, REACTIVE])
    def test_the_default_profile_tells_every_whole_value(self, actuator: Actuator) -> None:
        assert Catalogue(load_profile("goodwe")).step_w(actuator, HYBRID, 10_000) == 1.0

    @pytest.mark.parametrize(
        ("actuator", "sn", "rated", "step"),
        [
            (EMS, HYBRID, 10_000, 10.0),
            (EXPORT, HYBRID, 10_000, 0.1),
            (EXPORT, FIELD, 0, 0.1),
            (EXPORT, ROOF, 5_000, 50.0),  # a percent of the rating, whatever the scale is
            (EXPORT, ROOF, 4_950, 0.0),
            (EXPORT, ROOF, 0, 0.0),
            (ACTIVE, HYBRID, 10_000, 10.0),
            (REACTIVE, HYBRID, 10_000, 1.0),
            (REACTIVE, WITHOUT, 4_600, 0.0),
            (EMS, ROOF, 5_000, 0.0),
            (EXPORT, STRANGE, 10_000, 0.0),
        ],
    )
    def test_steps_of_other_scales(self, actuator: Actuator, sn: str, rated: int, step: float) -> None:
        assert Catalogue(load_profile("variant")).step_w(actuator, sn, rated) == step

    def test_family_defaults_are_values(self) -> None:
        data: dict[str, Any] = tomllib.loads((PROFILES / "variant.toml").read_text(encoding="utf-8"))
        data["family_defaults"] = {"ems": [10, 25], "export": [1, 15], "active": [70], "reactive": [95]}
        catalogue = Catalogue(parse_profile(data, "test"))
        assert {a: catalogue.family_default(a) for a in Actuator} == {
            EMS: (10, 250),
            EXPORT: (1, 1),
            ACTIVE: (700, 0),
            REACTIVE: (95, 0),
        }
