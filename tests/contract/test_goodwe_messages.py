"""GoodWe's six messages under each built-in profile: models of them, and that what the codec's templates write is what
the models describe. The names stand here once more, since a test that took them from the profile could not fail."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

import jsonschema
import pytest
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, create_model

from tests.unit.goodwe.batches import HYBRID, NOW, commands
from vpp_dispatch.domain.command import ResultCode
from vpp_dispatch.domain.signal import QUERY_BIT, Actuator
from vpp_dispatch.goodwe.codec import Codec, DecodedResult, Role, SlotResult
from vpp_dispatch.goodwe.parameters import Catalogue
from vpp_dispatch.goodwe.profile import PROFILES, load_profile

UUID = r"^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"
HEX = r"^[0-9a-f]{12}8[0-9a-f]{3}[89ab][0-9a-f]{15}$"
Sn = Annotated[str, StringConstraints(pattern=r"^[0-9A-Z]{16}$")]
ParameterName = Annotated[str, StringConstraints(min_length=1)]
Millis = Annotated[int, Field(gt=1_600_000_000_000)]


@dataclass(frozen=True, kw_only=True)
class Contract:
    """One profile's messages, by hand. `names`: our word for a field -> theirs. `example`: a result of the contract."""

    profile: str
    id_pattern: str
    names: dict[str, str]
    code: type
    most: int
    percent: str
    """a device whose export limit is in percent"""
    example: str
    echoed: bool

    def model(self, called: str, /, **fields: Any) -> type[BaseModel]:
        """A closed model with their names."""
        theirs: dict[str, Any] = {self.names[ours]: definition for ours, definition in fields.items()}
        return create_model(called, __config__=ConfigDict(extra="forbid", strict=True), **theirs)

    def requests(self) -> dict[Role, type[BaseModel]]:
        """The three request messages."""
        one = self.model("Parameter", name=(ParameterName, ...), value=(int, ...))
        several = Annotated[list[one], Field(min_length=2, max_length=self.most)]  # type: ignore[valid-type]
        names = Annotated[list[ParameterName], Field(min_length=1)]
        id_ = Annotated[str, StringConstraints(pattern=self.id_pattern)]
        common: dict[str, Any] = {"correlation_id": (id_, ...), "sn": (Sn, ...), "timestamp": (Millis, ...)}
        return {
            Role.SINGLE: self.model("SingleRequest", parameter=(one, ...), **common),
            Role.MULTI: self.model("MultiRequest", parameters=(several, ...), **common),
            Role.QUERY: self.model("QueryRequest", parameters=(names, ...), **common),
        }

    def result(self) -> type[BaseModel]:
        """The three result messages, which have one form."""
        one = self.model(
            "ResultParameter", name=(ParameterName, ...), value=(int | None, None), code=(self.code | None, None)
        )
        fields: dict[str, Any] = {
            "sn": (Sn, ...),
            "code": (self.code, ...),
            "message": (str, ...),
            "stage": (str | None, None),
            "parameters": (list[one] | None, None),  # type: ignore[valid-type]
            "timestamp": (int, ...),
        }
        if self.echoed:
            fields["correlation_id"] = (Annotated[str, StringConstraints(pattern=self.id_pattern)], ...)
        return self.model("Result", **fields)


CONTRACTS = {
    contract.profile: contract
    for contract in (
        Contract(
            profile="goodwe",
            id_pattern=UUID,
            names={name: name for name in ("sn", "parameter", "parameters", "name", "value", "timestamp", "code")}
            | {"correlation_id": "requestId", "message": "message", "stage": "stage"},
            code=str,
            most=10,
            percent="5017KDTT00BW0001",
            example='{"requestId":"110004b3-1000-8000-8100-5ec228c3fc69","sn":"9010KETU000W0001","code":"0",'
            '"message":"success","stage":"applied","parameters":[{"name":"EMS Power Mode","value":12,"code":"0"},'
            '{"name":"EMS Power Set","value":4878,"code":"0"}],"timestamp":1795370600000}',
            echoed=True,
        ),
        Contract(
            profile="variant",
            id_pattern=HEX,
            names={
                "correlation_id": "msgId",
                "sn": "deviceSn",
                "parameter": "item",
                "parameters": "items",
                "name": "key",
                "value": "val",
                "timestamp": "ts",
                "code": "ret",
                "message": "info",
                "stage": "phase",
            },
            code=int,
            most=4,
            percent="55000DSN00BW0001",
            example='{"deviceSn":"9010KETU000W0001","ret":200,"info":"success","phase":"DONE","items":[{"key":"workMode",'
            '"val":32,"ret":200},{"key":"workPower","val":487,"ret":200}],"ts":1795370600000}',
            echoed=False,
        ),
    )
}


def test_every_built_in_profile_is_held_here() -> None:
    assert set(CONTRACTS) == {file.stem for file in PROFILES.glob("*.toml")}


@pytest.fixture(params=CONTRACTS)
def contract(request: pytest.FixtureRequest) -> Contract:
    return CONTRACTS[request.param]


@pytest.fixture
def codec(contract: Contract) -> Codec:
    profile = load_profile(contract.profile)
    return Codec(profile, Catalogue(profile))


def _validator(model: type[BaseModel]) -> Any:
    return jsonschema.Draft202012Validator(model.model_json_schema())


@pytest.mark.parametrize("kind", [kind | query for kind in Actuator for query in (0, QUERY_BIT)])
@pytest.mark.parametrize("percent", [False, True])
def test_every_template_writes_its_message(contract: Contract, codec: Codec, kind: int, percent: bool) -> None:
    sn = contract.percent if percent else HYBRID
    prepared = codec.prepare(commands([(kind, sn, 10 if kind == Actuator.ACTIVE else 1, 100)]))
    (role,), (key,), (value,) = codec.encode(prepared, now=NOW)
    message = json.loads(value)
    models = contract.requests()
    model = models[Role(role)]
    _validator(model).validate(message)
    model.model_validate_json(value)
    assert key.decode() == message[contract.names["sn"]] == sn
    assert prepared.ids[0].tobytes().hex() == message[contract.names["correlation_id"]].replace("-", "")
    for other in set(models.values()) - {model}:
        assert not _validator(other).is_valid(message), f"the schema of {other.__name__} takes anything"


def test_fields_stand_in_the_order_of_the_contract(contract: Contract, codec: Codec) -> None:
    prepared = codec.prepare(commands([(Actuator.EMS, HYBRID, 12, 4878)]))
    value = codec.encode(prepared, now=NOW)[2][0]
    assert list(json.loads(value)) == [contract.names[n] for n in ("correlation_id", "sn", "parameters", "timestamp")]
    assert b" " not in value.replace(b"EMS Power ", b"")


def test_the_result_of_the_contract_is_a_result(contract: Contract, codec: Codec) -> None:
    _validator(contract.result()).validate(json.loads(contract.example))
    key, value = HYBRID.encode(), contract.example.encode()
    result = (codec.decode_result if contract.echoed else codec.decode_slot_result)(Role.MULTI, key, value, NOW)
    if contract.echoed:
        assert isinstance(result, DecodedResult)
        assert result.id.hex() == "110004b31000800081005ec228c3fc69"
    else:
        assert isinstance(result, SlotResult)
        assert (result.sn, result.actuator, result.single) == (HYBRID, 0, False)
    assert (result.code, result.accepted) == (ResultCode.SUCCESS, False)
