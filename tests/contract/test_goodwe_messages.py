"""GoodWe's six messages: models of them, and that what the codec's templates write is what the models describe."""

from __future__ import annotations

import json
from typing import Annotated, Any

import jsonschema
import pytest
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from tests.unit.goodwe.batches import HYBRID, NOW, PERCENT, commands
from vpp_dispatch.domain.signal import QUERY_BIT, Actuator
from vpp_dispatch.goodwe.codec import Codec, Role
from vpp_dispatch.goodwe.parameters import Catalogue
from vpp_dispatch.goodwe.profile import load_profile

CorrelationId = Annotated[
    str, StringConstraints(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$")
]
Sn = Annotated[str, StringConstraints(pattern=r"^[0-9A-Z]{16}$")]
ParameterName = Annotated[str, StringConstraints(min_length=1)]


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Parameter(Message):
    name: ParameterName
    value: int


class Request(Message):
    requestId: CorrelationId  # noqa: N815 - as it stands on the wire
    sn: Sn
    timestamp: Annotated[int, Field(gt=1_600_000_000_000)]


class SingleRequest(Request):
    parameter: Parameter


class MultiRequest(Request):
    parameters: Annotated[list[Parameter], Field(min_length=2, max_length=10)]


class QueryRequest(Request):
    parameters: Annotated[list[ParameterName], Field(min_length=1)]


class ResultParameter(Message):
    name: ParameterName
    value: int | None = None
    code: str | None = None


class Result(Message):
    requestId: CorrelationId  # noqa: N815 - as it stands on the wire
    sn: Sn
    code: str
    message: str
    stage: str | None = None
    parameters: list[ResultParameter] | None = None
    timestamp: int


MODELS: dict[Role, type[Request]] = {Role.SINGLE: SingleRequest, Role.MULTI: MultiRequest, Role.QUERY: QueryRequest}
PROFILE = load_profile("goodwe")
CODEC = Codec(PROFILE, Catalogue(PROFILE))


def _validator(model: type[BaseModel]) -> Any:
    return jsonschema.Draft202012Validator(model.model_json_schema())


@pytest.mark.parametrize("kind", [kind | query for kind in Actuator for query in (0, QUERY_BIT)])
@pytest.mark.parametrize("sn", [HYBRID, PERCENT])
def test_every_template_writes_its_message(kind: int, sn: str) -> None:
    prepared = CODEC.prepare(commands([(kind, sn, 1, 100)]))
    (role,), (key,), (value,) = CODEC.encode(prepared, now=NOW)
    message = json.loads(value)
    model = MODELS[Role(role)]
    _validator(model).validate(message)
    parsed = model.model_validate_json(value)
    assert key.decode() == parsed.sn == sn
    for other in set(MODELS.values()) - {model}:
        assert not _validator(other).is_valid(message), f"the schema of {other.__name__} takes anything"


def test_keys_stand_in_the_order_of_the_contract() -> None:
    prepared = CODEC.prepare(commands([(Actuator.EMS, HYBRID, 12, 4878)]))
    value = CODEC.encode(prepared, now=NOW)[2][0]
    assert list(json.loads(value)) == ["requestId", "sn", "parameters", "timestamp"]
    assert b" " not in value.replace(b"EMS Power ", b"")


def test_the_result_of_the_contract_is_a_result() -> None:
    example = (
        '{"requestId":"110004b3-1000-8000-8100-5ec228c3fc69","sn":"9010KETU000W0001","code":"0","message":"success",'
        '"stage":"applied","parameters":[{"name":"EMS Power Mode","value":12,"code":"0"},'
        '{"name":"EMS Power Set","value":4878,"code":"0"}],"timestamp":1795370600000}'
    )
    _validator(Result).validate(json.loads(example))
    result = CODEC.decode_result(Role.MULTI, HYBRID.encode(), example.encode(), NOW)
    assert getattr(result, "id", b"").hex() == "110004b3100080008100" + "5ec228c3fc69"
