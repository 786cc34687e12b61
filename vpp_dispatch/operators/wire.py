"""What all public messages share: the bases of their models, and the types of their fields.

The models in `signal`, `device` and `answer` are the one source of `schemas/` (see `operators.schemas`). Rules that
JSON Schema can say stand in tables that feed both the validator and the schema.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

MAX_TARGETS = 10_000
"""Named targets of one signal; also entries of one `by_target_w`."""
MAX_DEVICE_W = 1_000_000
MAX_SITE_W = 1_000_000_000
MAX_TOTAL_W = 10_000_000_000
MAX_RAMP_S = 86_400
MAX_COUNT = 2**53 - 1
"""Largest integer that every JSON reader keeps exactly (RFC 7493)."""

TIME_PATTERN = (
    r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])[Tt]([01][0-9]|2[0-3]):[0-5][0-9]:([0-5][0-9]|60)(\.[0-9]+)?"
    r"([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$"
)
_TIME = re.compile(TIME_PATTERN[:-1])


def _whole(value: Any) -> Any:
    """1500.0 is the integer 1500, as JSON Schema has it; a boolean is none."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def plus_zero(value: Any) -> Any:
    """-0.0 and 0.0 are the same number and must give the same digest."""
    return 0.0 if isinstance(value, float) and value == 0 else value


def epoch_seconds(value: Any) -> float:
    """Epoch seconds of an RFC 3339 time with offset, to the microsecond; a leap second is the next second (R7).

    Raises:
        PydanticCustomError: no such time; times without an offset are refused.
    """
    if not isinstance(value, str) or not _TIME.fullmatch(value):
        raise PydanticCustomError("time", "must be an RFC 3339 time with offset, such as 2026-11-22T11:00:00Z")
    text = value.upper().replace("Z", "+00:00")
    body, offset = text[:-6], text[-6:]
    whole, _, fraction = body.partition(".")
    leap = whole.endswith(":60")
    if leap:
        whole = whole[:-2] + "59"
    try:
        seconds = datetime.fromisoformat(whole + offset).timestamp()
    except (ValueError, OverflowError) as error:
        raise PydanticCustomError("time", "is not a date of the calendar") from error
    return seconds + int((fraction + "000000")[:6]) / 1_000_000 + leap


Time = Annotated[
    float,
    BeforeValidator(epoch_seconds),
    WithJsonSchema({"type": "string", "format": "date-time", "pattern": TIME_PATTERN}),
]
Sn = Annotated[str, Field(pattern=r"^[0-9A-Z]{16}$", min_length=16, max_length=16)]
Word = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.]*$", max_length=64)]
EventName = Annotated[str, Field(min_length=1, max_length=64)]
PlaceName = Annotated[str, Field(min_length=1, max_length=128)]
Whole = BeforeValidator(_whole)
Count = Annotated[int, Field(ge=0, le=MAX_COUNT), Whole]
Revision = Annotated[int, Field(ge=1, le=MAX_COUNT), Whole]
DeviceWatts = Annotated[int, Field(ge=0, le=MAX_DEVICE_W), Whole]
SiteWatts = Annotated[int, Field(ge=0, le=MAX_SITE_W), Whole]
TotalWatts = Annotated[int, Field(ge=0, le=MAX_TOTAL_W), Whole]
RampSeconds = Annotated[int, Field(ge=0, le=MAX_RAMP_S), Whole]
Percent = Annotated[float, Field(ge=0, le=100), BeforeValidator(plus_zero)]


class Wire(BaseModel):
    """Base of all public messages: nothing is coerced, nothing unknown is let in."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Input(Wire):
    """Base of what comes from outside: a field is there with a value or not there at all; null is no value."""

    @model_validator(mode="before")
    @classmethod
    def _no_null(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for name, value in data.items():
                if value is None and name in cls.model_fields and name != "ext":
                    raise PydanticCustomError("null", "{name} must not be null; leave it out", {"name": name})
        return data
