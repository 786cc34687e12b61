"""Schemas, models, examples and released versions agree (R8, style: contract tests)."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from vpp_dispatch.domain.answer import Refusal, Refused
from vpp_dispatch.domain.device import Record
from vpp_dispatch.domain.signal import Signal
from vpp_dispatch.fleet.registry import decode_record
from vpp_dispatch.operators import schemas
from vpp_dispatch.operators.messages import decode_signal
from vpp_dispatch.operators.schemas import PUBLIC

VALID = sorted(schemas.DIRECTORY.glob("*/examples/valid/*.json"))
INVALID = sorted(schemas.DIRECTORY.glob("*/examples/invalid/*.json"))


def name_of(path: Path) -> str:
    return path.relative_to(schemas.DIRECTORY).parts[0]


def label(path: Path) -> str:
    return f"{name_of(path)}-{path.stem}"


VALIDATORS = {
    name: Draft202012Validator(json.loads((schemas.DIRECTORY / name / "v1.json").read_bytes())) for name in PUBLIC
}


def refused_by_model(name: str, text: bytes) -> str | None:
    """The reason that the service's own decoder, or else the model, refuses a message with; None if it takes it."""
    if name == "signal":
        signal = decode_signal(text)
        return signal.reason if isinstance(signal, Refusal) else None
    if name == "device":
        record = decode_record(b"9010KETU000W0001", text)
        return record.reason if isinstance(record, Refusal) else None
    try:
        PUBLIC[name].model_validate(json.loads(text))
    except ValidationError as error:
        unknown = any(e["type"] == "extra_forbidden" for e in error.errors())
        return Refused.UNKNOWN_FIELD if unknown else Refused.INVALID
    return None


def model_takes(name: str, body: Any) -> bool:
    try:
        PUBLIC[name].model_validate(body)
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize("name", PUBLIC)
def test_schema_is_valid_and_has_examples(name: str) -> None:
    Draft202012Validator.check_schema(VALIDATORS[name].schema)
    assert len([path for path in VALID if name_of(path) == name]) >= 1
    assert len([path for path in INVALID if name_of(path) == name]) >= 3


@pytest.mark.parametrize("path", VALID, ids=label)
def test_valid_example(path: Path) -> None:
    name, text = name_of(path), path.read_bytes()
    assert [error.message for error in VALIDATORS[name].iter_errors(json.loads(text))] == []
    assert model_takes(name, json.loads(text))
    assert refused_by_model(name, text) is None


@pytest.mark.parametrize("path", INVALID, ids=label)
def test_invalid_example(path: Path) -> None:
    name, example = name_of(path), json.loads(path.read_bytes())
    text = example["text"].encode() if "text" in example else json.dumps(example["body"]).encode()
    assert refused_by_model(name, text) == example["expect"]
    if "body" in example:
        assert not model_takes(name, example["body"])
        # Where a schema can say it, it must: otherwise an operator's own check finds nothing.
        assert VALIDATORS[name].is_valid(example["body"]) == example.get("beyond_schema", False)


def test_contract_examples_are_among_the_valid() -> None:
    stems = {label(path) for path in VALID}
    assert {
        "signal-export_limit_for_a_feeder",
        "signal-envelope_by_site",
        "signal-discharge_in_total",
        "signal-cancel",
        "signal-release",
        "response-received",
        "report-active",
        "outcomes-applied",
        "device-full",
    } <= stems


# ------------------------------------------------------------------------------- generated and released


def test_schemas_are_what_the_models_say_and_released_ones_never_changed() -> None:
    assert schemas.problems() == []


def test_every_public_version_is_in_the_lock() -> None:
    assert set(schemas.released()) == set(schemas.files())


def test_a_changed_released_version_is_found_and_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert schemas.main(["--write", "--directory", str(tmp_path)]) == 0
    assert schemas.main(["--check", "--directory", str(tmp_path)]) == 0
    assert schemas.main(["--release", "signal/v1.json", "--directory", str(tmp_path)]) == 0
    target = tmp_path / "signal/v1.json"
    made = target.read_bytes()
    target.write_bytes(made.replace(b"65", b"66").replace(b"64", b"65"))
    assert schemas.main(["--check", "--directory", str(tmp_path)]) == 1
    assert "signal/v1.json is released and has changed" in capsys.readouterr().err
    assert schemas.main(["--release", "signal/v1.json", "--directory", str(tmp_path)]) == 1
    assert schemas.main(["--write", "--directory", str(tmp_path)]) == 0
    assert target.read_bytes() == made


def test_a_model_that_left_its_released_version_is_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert schemas.main(["--write", "--directory", str(tmp_path)]) == 0
    assert schemas.main(["--release", "device/v1.json", "--directory", str(tmp_path)]) == 0
    before = (tmp_path / "device/v1.json").read_bytes()
    monkeypatch.setattr(schemas, "PUBLIC", {**PUBLIC, "device": PUBLIC["response"]})
    assert schemas.main(["--write", "--directory", str(tmp_path)]) == 1
    assert "make a new version" in capsys.readouterr().err
    assert (tmp_path / "device/v1.json").read_bytes() == before


def test_drift_is_a_sentence_and_a_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert schemas.main(["--check", "--directory", str(tmp_path)]) == 1
    assert "--write" in capsys.readouterr().err
    assert schemas.main(["--check", "--directory", str(tmp_path / "nowhere")]) == 1
    assert "checkout" in capsys.readouterr().err


# ------------------------------------------------------------------------------- model and schema agree

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 300),
    st.sampled_from(
        [1500, 1_000_000, 1_000_001, 10**10, 10**10 + 1, 2**53, 1500.0, 1500.5, -0.0, 0.8, 62.5, 100, 1e300]
    ),
    st.sampled_from(["", "x", "x" * 64, "x" * 65, "9010KETU000W0001", "9010KETU000W0001\n", "2026-11-22T11:00:00Z"]),
    st.sampled_from(["2026-11-22T11:00:00", "over", "charge", "standby", "power_factor", "cancel", "release"]),
    st.sampled_from([[], {}, ["x"], {"x": 1}, {"all": True}, [{"kind": "standby"}]]),
)
NAMES = [
    "each_w",
    "total_w",
    "reason",
    "ext",
    "targets",
    "controls",
    "end_at",
    "open_ended",
    "ramp_down_s",
    "foo",
    "kind",
]
BODIES = {
    name: [json.loads(path.read_bytes()) for path in VALID if name_of(path) == name] for name in ("signal", "device")
}


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key or index) in a JSON value."""
    found: list[tuple[Any, Any]] = []
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        found += [(value, key), *places(inner)]
    return found


@st.composite
def mutated(draw: st.DrawFn, name: str) -> Any:
    """A valid message with one to three leaves, branches or names changed, put in or taken out."""
    body = copy.deepcopy(draw(st.sampled_from(BODIES[name])))
    for _ in range(draw(st.integers(1, 3))):
        where = places(body)
        if not where:
            break
        container, key = draw(st.sampled_from(where))
        what = draw(st.sampled_from(["replace", "remove", "add"]))
        if what == "replace":
            container[key] = copy.deepcopy(draw(LEAVES))
        elif what == "remove":
            del container[key]
        elif isinstance(container, dict):
            container[draw(st.sampled_from(NAMES))] = copy.deepcopy(draw(LEAVES))
        else:
            container.append(copy.deepcopy(draw(LEAVES)))
    return body


@pytest.mark.exhaustive
@settings(max_examples=300, deadline=None)
@given(mutated("signal"))
def test_a_signal_that_decodes_is_valid_under_the_schema_and_what_the_schema_refuses_is_refused(body: Any) -> None:
    decoded = decode_signal(json.dumps(body).encode())
    schema_takes = VALIDATORS["signal"].is_valid(body)
    if isinstance(decoded, Signal):
        assert schema_takes
    elif schema_takes:
        assert any(word in decoded.detail for word in ("not after its start", "calendar", "10,000")), decoded


@pytest.mark.exhaustive
@settings(max_examples=300, deadline=None)
@given(mutated("device"))
def test_registry_decoder_model_and_schema_agree(body: Any) -> None:
    decoded = decode_record(b"9010KETU000W0001", json.dumps(body).encode())
    takes = isinstance(decoded, Record)
    if isinstance(body, dict) and body.get("sn") == "9010KETU000W0001":
        assert takes == model_takes("device", body)
    assert model_takes("device", body) == VALIDATORS["device"].is_valid(body)
