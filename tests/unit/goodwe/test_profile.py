"""The profile: strict, and every complaint says what, where and what to do."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vpp_dispatch.domain.signal import Actuator, Kind
from vpp_dispatch.errors import ConfigurationError
from vpp_dispatch.goodwe.parameters import UNKNOWN_FAMILY, Catalogue
from vpp_dispatch.goodwe.profile import INTERFACE_FIELDS, PROFILES, load_profile, parse_profile
from vpp_dispatch.goodwe.realtime import INTERFACES

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


# What a stranger gets wrong, and the whole sentence that comes of it.
MISTAKES: list[tuple[str, Callable[[dict[str, Any]], None], str]] = [
    (
        "a misspelt key",
        _set("topics", "singel_request", to="x"),
        "topics.singel_request: this key is not known; is single_request meant?",
    ),
    (
        "a key that is left out",
        lambda data: data["fields"].pop("stage"),
        "fields.stage: this key is missing; the profile guide says what belongs here",
    ),
    (
        "a table that is left out",
        lambda data: data.pop("correlation"),
        "correlation: this key is missing; the profile guide says what belongs here",
    ),
    (
        "a number in quotes",
        _set("realtime", "page_size", to="100"),
        "realtime.page_size: Input should be a valid integer, and not '100'",
    ),
    (
        "a word that is none of the possible ones",
        _set("correlation", "text", to="base64"),
        "correlation.text: 'base64' is not possible; it has to be 'uuid' or 'hex'",
    ),
    (
        "a meaning that there is not",
        _set("codes", "1003", to="bussy"),
        "codes.1003: 'bussy' is not possible; it has to be 'success', 'offline', 'unauthorized', 'busy', 'value', "
        "'unsupported' or 'failed'",
    ),
    (
        "one table instead of a list of tables",
        lambda data: data.update(families=data["families"][0]),
        "families: this has to be a list of tables: each begins with [[families]]",
    ),
    (
        "one instead of a list",
        _set("families", 1, "series", to="ETC"),
        "families.1.series (family hybrid_100k): 'ETC' is no list: put it into [ ]",
    ),
    (
        "a value instead of a table",
        _set("realtime", "interfaces", "alarms", to="alarms"),
        "realtime.interfaces.alarms: 'alarms' is no table: it begins with [realtime.interfaces.alarms], or is written "
        "as { name = value }",
    ),
    (
        "an unknown unit, in one of many families",
        _set("families", 3, "export_unit", to="kW"),
        "families.3.export_unit (family pv_one_phase): 'kW' is not possible; it has to be 'w' or 'percent'",
    ),
    (
        "a topic with a blank",
        _set("topics", "query_result", to="goodwe query result"),
        "topics.query_result: 'goodwe query result' is not a topic's name: letters, digits, dots, underscores and "
        "hyphens",
    ),
    (
        "one topic in two roles",
        _set("topics", "single_request", to="goodwe.query.request"),
        "topics: the six topics have to differ, but goodwe.query.request stands there more than once",
    ),
    (
        "a field name in two roles",
        _set("fields", "stage", to="code"),
        'fields: two fields of one object have the same name: code and stage are both "code"; give each its own',
    ),
    (
        "percent and per mille mixed up",
        lambda data: data.update(
            actuators=data["actuators"] | {"active": data["actuators"]["active"] | {"max": [100]}},
            family_defaults=data["family_defaults"] | {"active": [100]},
        ),
        "actuators.active: 100 % is raw 1000 at scale 10, outside 0..100: correct `scale`, or `min` and `max`",
    ),
    (
        "a scale that no number of digits reaches",
        _set("actuators", "ems", "scale", to=1 / 3),
        "actuators.ems.scale: 0.3333333333333333 has more than four digits that count; round it, as 0.3333 for a third",
    ),
    (
        "a scale of nothing",
        _set("actuators", "export", "scale", to=0),
        "actuators.export.scale: Input should be greater than or equal to 0.0001, and not 0",
    ),
    (
        "a scale of what has none",
        _set("actuators", "reactive", "scale", to=100),
        "actuators.reactive.scale: a power factor has no scale: take the key out",
    ),
    (
        "a parameter of two actuators",
        _set("actuators", "active", "parameters", to=["EMS Power Set"]),
        "actuators: two actuators share a parameter: EMS Power Set. Each belongs to one, so that set and release go "
        "one way, and a result tells whose it is (R20, R26)",
    ),
    (
        "a mode outside the bounds",
        _set("ems_modes", "charge", to=300),
        "ems_modes.charge: an EMS mode is outside `min` 0 and `max` 255 of the ems actuator",
    ),
    (
        "forced islanding",
        _set("ems_modes", "standby", to=7),
        "ems_modes.standby: 7 is forced islanding, which is never dispatched; name another code",
    ),
    (
        "their name on the left",
        _set("realtime", "interfaces", "operation", "fields", to={"pvPower": "pv_power"}),
        "realtime.interfaces.operation.fields.pvPower: no field of this interface; ours are sn, time, online, "
        "pv_power, grid_power, load_power, battery_power, ac_power, ems_mode, ems_power, export_limit_enabled, "
        "export_limit, active_power_limit, power_factor, and theirs stands right of the =",
    ),
    (
        "a factor for a field that is spelt otherwise",
        _set("realtime", "factors", to={"gridpower": -1}),
        "realtime.factors.gridpower: no interface has a field of that name; is gridPower meant?",
    ),
    (
        "a path without the interface's name",
        _set("realtime", "path", to="/v1/realtime"),
        "realtime.path: '/v1/realtime' is not a path that begins with / and has {name} where the interface's name goes",
    ),
]


@pytest.mark.parametrize(("change", "sentence"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_a_mistake_is_told_by_what_where_and_what_to_do(
    data: dict[str, Any], change: Callable[[dict[str, Any]], None], sentence: str
) -> None:
    change(data)
    with pytest.raises(ConfigurationError) as error:
        parse_profile(data, "ours.toml")
    first, *told, last = str(error.value).splitlines()
    assert first == "The GoodWe profile ours.toml cannot be used:"
    assert told == [f"  {sentence}"]
    assert last == (
        "Correct the file; its form is described by docs/profile-guide.md and schemas/goodwe-profile.v1.json, and the "
        "built-in `goodwe` is an example."
    )


def test_all_mistakes_are_told_at_once(data: dict[str, Any]) -> None:
    data["results"]["code_type"] = "integer"
    data["codes"] |= {"GY1": "busy", "007": "failed"}
    data["family_defaults"]["reactive"] = [101]
    data["ems_modes"]["charge"] = 300
    with pytest.raises(ConfigurationError) as error:
        parse_profile(data, "ours.toml")
    assert [line.split(":")[0].strip() for line in str(error.value).splitlines()[1:-1]] == [
        "codes.GY1",
        "codes.007",
        "family_defaults.reactive",
        "ems_modes.charge",
    ]


def test_the_fields_of_the_interfaces_are_those_that_are_read() -> None:
    assert {name: set(fields) for name, fields in INTERFACE_FIELDS.items()} == {
        name: set(interface.row.model_fields) - ({"time"} if name == "authorized" else set())
        for name, interface in INTERFACES.items()
    }


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _leaves(below, (*path, key))
    else:
        yield path, value


# What cannot differ: the profile's form, how many parameters go which way, a raw power factor; and what may be alike.
ALIKE = {
    "version",
    *("actuators.ems.command", "actuators.export.command", "actuators.active.command", "actuators.reactive.command"),
    *("actuators.ems.min", "actuators.export.min", "actuators.active.min", "actuators.reactive.max"),
    *("actuators.reactive.scale", "family_defaults.export", "family_defaults.reactive"),
}


def test_the_variant_differs_in_everything_that_a_profile_may_vary() -> None:
    ours = dict(_leaves(load_profile("goodwe").model_dump(mode="json")))
    variant = dict(_leaves(load_profile("variant").model_dump(mode="json")))
    same = {".".join(path) for path, value in ours.items() if variant.get(path) == value}
    assert same == ALIKE


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
        assert self.catalogue.step_w(Actuator.EXPORT, sn, rated) == step

    def test_family_defaults_are_pairs_of_the_domain(self) -> None:
        assert {a: self.catalogue.family_default(a) for a in Actuator} == {
            Actuator.EMS: (1, 0),
            Actuator.EXPORT: (0, 0),
            Actuator.ACTIVE: (1000, 0),
            Actuator.REACTIVE: (100, 0),
        }
