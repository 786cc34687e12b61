"""The schema of profile files, and that the built-in profiles and the schema agree with the model."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import jsonschema
import pytest

from vpp_dispatch.goodwe.profile import PROFILES, load_profile, schema_text

SCHEMA = Path(__file__).resolve().parents[2] / "schemas" / "goodwe-profile.v1.json"


def test_the_schema_is_up_to_date() -> None:
    assert SCHEMA.read_text(encoding="utf-8") == schema_text(), (
        "run: python -m vpp_dispatch.goodwe.profile > schemas/goodwe-profile.v1.json"
    )


@pytest.mark.parametrize("file", sorted(PROFILES.glob("*.toml")), ids=lambda file: file.stem)
def test_built_in_profiles_follow_the_schema_and_leave_nothing_to_defaults(file: Path) -> None:
    data = tomllib.loads(file.read_text(encoding="utf-8"))
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(data)
    model = load_profile(file.stem)
    assert set(model.realtime.model_fields_set) == set(type(model.realtime).model_fields)
    assert model.name == file.stem


def test_the_schema_refuses_what_the_model_refuses() -> None:
    data = tomllib.loads((PROFILES / "goodwe.toml").read_text(encoding="utf-8"))
    data["topics"]["singel_request"] = "x"
    assert not jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8"))).is_valid(data)
