"""The profile: strict, and every complaint says what, where and what to do."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vpp_dispatch.domain.signal import Actuator, Kind
from vpp_dispatch.errors import ConfigurationError
from vpp_dispatch.goodwe.parameters import UNKNOWN_FAMILY, Catalogue
from vpp_dispatch.goodwe.profile import PROFILES, load_profile, parse_profile

TEXT = (PROFILES / "goodwe.toml").read_text(encoding="utf-8")


@pytest.fixture
def data() -> dict[str, Any]:
    return tomllib.loads(TEXT)


def test_the_built_in_profile_loads_and_cannot_be_changed() -> None:
    profile = load_profile("goodwe")
    assert profile.topics.multi_request == "goodwe.control.multi.request"
    with pytest.raises(ValueError, match="frozen"):
        profile.name = "other"


def test_a_profile_of_the_operator_is_read_by_its_path(tmp_path: Path) -> None:
    file = tmp_path / "ours.toml"
    file.write_text(TEXT.replace('name = "goodwe"\n', 'name = "ours"\n', 1), encoding="utf-8")
    assert load_profile(str(file)).name == "ours"


@pytest.mark.parametrize("name", ["nope", "/no/such/file.toml"])
def test_an_absent_profile_is_named_with_the_built_in_ones(name: str) -> None:
    with pytest.raises(ConfigurationError, match="goodwe") as error:
        load_profile(name)
    assert name in str(error.value)


def test_a_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    file = tmp_path / "broken.toml"
    file.write_text("[topics\n")
    with pytest.raises(ConfigurationError, match=r"broken\.toml"):
        load_profile(str(file))


def _set(*path: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        place: Any = data
        for part in path[:-1]:
            place = place[part]
        place[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (_set("topics", "singel_request", to="x"), "topics.singel_request: this key is not known"),
        (_set("topics", "single_request", to="goodwe.query.request"), "topics: the six topics have to differ"),
        (_set("topics", "single_request", to="a b"), "topics.single_request"),
        (_set("fields", "sn", to='s"n'), "fields.sn"),
        (_set("fields", "stage", to="code"), "fields: two fields of one object"),
        (_set("correlation", "text", to="base64"), "correlation.text"),
        (_set("results", "per_command", to=3), "results.per_command"),
        (_set("results", "max_parameters", to=1), "max_parameters"),
        (_set("codes", to={"1": "offline"}), "no code means `success`"),
        (_set("codes", "E1", to="melted"), "codes.E1"),
        (_set("actuators", "ems", "command", to="single"), "ems has to be a multi command"),
        (_set("actuators", "ems", "max", to=[255]), "one entry for each parameter"),
        (_set("actuators", "active", "parameters", to=["EMS Power Set"]), "share a parameter"),
        (_set("actuators", "export", "min", to=[0, 2_000_000]), "above its `max`"),
        (_set("ems_modes", "charge", to=12), "two EMS modes"),
        (_set("ems_modes", "charge", to=300), "EMS mode is outside"),
        (_set("families", 0, "series", to=["ETU", "DTU"]), "series in two families: DTU"),
        (_set("families", 3, "actuators", to=["ems"]), "has no battery"),
        (_set("families", 0, "export_unit", to="kW"), "families.0.export_unit"),
        (_set("family_defaults", "reactive", to=[101]), "family default of reactive"),
        (_set("realtime", "page_size", to=0), "realtime.page_size"),
        (_set("realtime", "path", to="/v1/realtime"), "realtime.path"),
        (_set("realtime", "page_size", to="100"), "realtime.page_size"),
    ],
)
def test_what_cannot_work_is_refused_with_its_place(
    data: dict[str, Any], change: Callable[[dict[str, Any]], None], complaint: str
) -> None:
    changed = copy.deepcopy(data)
    change(changed)
    with pytest.raises(ConfigurationError) as error:
        parse_profile(changed, "ours.toml")
    assert complaint in str(error.value)
    assert "ours.toml" in str(error.value)
    assert "Correct the file" in str(error.value)


def test_integer_codes_have_to_be_integers(data: dict[str, Any]) -> None:
    data["results"]["code_type"] = "integer"
    parse_profile(data, "ours.toml")
    data["codes"]["GY1"] = "busy"
    with pytest.raises(ConfigurationError, match="code_type"):
        parse_profile(data, "ours.toml")


class TestCatalogue:
    catalogue = Catalogue(load_profile("goodwe"))

    def test_modes_are_those_of_register_47511(self) -> None:
        modes = {kind: self.catalogue.mode_of(kind) for kind in list(Kind)[:5]}
        assert modes == {
            Kind.CHARGE: 11,
            Kind.DISCHARGE: 12,
            Kind.STANDBY: 8,
            Kind.IMPORT_TARGET: 9,
            Kind.EXPORT_TARGET: 10,
        }
        assert self.catalogue.auto_mode == 1
        with pytest.raises(KeyError):
            self.catalogue.mode_of(Kind.EXPORT_LIMIT)

    @pytest.mark.parametrize(
        ("sn", "ems", "export", "battery"),
        [
            ("9010KETU000W0000", True, True, True),
            ("929K9ETT00CW0000", True, True, True),
            ("95000BTU203W0000", True, True, True),
            ("9100KETC000W0000", True, True, True),
            ("95000ESU203W0000", False, False, True),
            ("5017KDTT00BW0000", False, True, False),
            ("55000DSN00BW0000", False, True, False),
            ("95000QQQ203W0000", False, False, False),
        ],
    )
    def test_r17_the_series_decides(self, sn: str, ems: bool, export: bool, battery: bool) -> None:
        assert self.catalogue.supports(sn, Actuator.EMS) is ems
        assert self.catalogue.supports(sn, Actuator.EXPORT) is export
        assert self.catalogue.has_battery(sn) is battery

    def test_an_unknown_series_has_no_family(self) -> None:
        assert self.catalogue.family_of("95000QQQ203W0000") == UNKNOWN_FAMILY

    @pytest.mark.parametrize(
        ("sn", "told", "rated"),
        [
            ("9010KETU000W0000", 0, 10_000),
            ("929K9ETT00CW0000", 0, 29_900),
            ("95048ESU203W0000", 0, 5_000),
            ("9010KETU000W0000", 8_000, 8_000),
            ("9XXXXETU000W0000", 0, 0),
        ],
    )
    def test_what_the_registry_told_wins_over_the_sn(self, sn: str, told: int, rated: int) -> None:
        assert self.catalogue.rated_w(sn, told) == rated

    @pytest.mark.parametrize(
        ("sn", "rated", "step"),
        [
            ("9010KETU000W0000", 10_000, 1.0),
            ("9010KETU000W0000", 0, 1.0),
            ("5017KDTT00BW0000", 17_000, 170.0),
            ("5017KDTT00BW0000", 0, 0.0),
            ("5017KDTT00BW0000", 4_950, 0.0),  # a percent of it is no whole number of watts
            ("95000ESU203W0000", 5_000, 0.0),
        ],
    )
    def test_the_step_of_the_export_limit(self, sn: str, rated: int, step: float) -> None:
        assert self.catalogue.export_step_w(sn, rated) == step

    def test_family_defaults_are_pairs_of_the_domain(self) -> None:
        assert {a: self.catalogue.family_default(a) for a in Actuator} == {
            Actuator.EMS: (1, 0),
            Actuator.EXPORT: (0, 0),
            Actuator.ACTIVE: (1000, 0),
            Actuator.REACTIVE: (100, 0),
        }
