"""The registry record on the wire, version 1. `fleet.registry` decodes it faster and is held to this by tests."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from vpp_dispatch.operators.wire import MAX_TARGETS, DeviceWatts, Input, Percent, PlaceName, Sn, Whole, plus_zero


def _default_schema(schema: dict[str, Any]) -> None:
    schema["dependentRequired"] = {"ems_mode": ["ems_power_w"], "ems_power_w": ["ems_mode"]}


class DefaultV1(Input):
    """What the device's actuators return to when nothing holds them."""

    model_config = ConfigDict(json_schema_extra=_default_schema)

    export_limit_w: DeviceWatts | None = None
    ems_mode: Annotated[int, Field(ge=0, le=255), Whole] | None = Field(
        None, description="GoodWe's EMS Power Mode code"
    )
    ems_power_w: DeviceWatts | None = None
    active_percent: Percent | None = Field(None, description="percent of the rated power")
    power_factor: Annotated[int, Field(ge=0, le=100), Whole] | None = Field(None, description="GoodWe's raw value")

    @model_validator(mode="after")
    def _mode_and_power(self) -> Self:
        if (self.ems_mode is None) != (self.ems_power_w is None):
            raise PydanticCustomError("default", "needs both ems_mode and ems_power_w, or neither")
        return self


class DeviceV1(Input):
    """A device's registry record; the key is its SN, and a tombstone removes the device."""

    model_config = ConfigDict(title="Device")

    sn: Sn
    site: PlaceName | None = None
    groups: Annotated[list[PlaceName], Field(max_length=MAX_TARGETS)] = Field([])
    area: PlaceName | None = None
    rated_w: DeviceWatts = Field(0, description="absent or 0 = read from the SN")
    site_share: Annotated[float, Field(ge=0, le=1), BeforeValidator(plus_zero)] = Field(
        1.0, description="of its site's value"
    )
    default: DefaultV1 | None = None
    ext: Any = Field(None, description="ignored")
