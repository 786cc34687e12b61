"""A grid operator's dispatch signal, decoded: what is asked, of whom, and when.

Times are epoch seconds in UTC (R7); power is whole watts >= 0 and the direction is in the kind.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum


class Action(StrEnum):
    """What a signal does to its event."""

    DISPATCH = "dispatch"
    CANCEL = "cancel"
    RELEASE = "release"


class Actuator(IntEnum):
    """What a control acts on. The number stands in correlation ids; + 8 is the actuator's query."""

    EMS = 1
    EXPORT = 2
    ACTIVE = 3
    REACTIVE = 4


QUERY_BIT = 8


class Kind(StrEnum):
    """What a control asks for."""

    CHARGE = "charge"
    DISCHARGE = "discharge"
    STANDBY = "standby"
    IMPORT_TARGET = "import_target"
    EXPORT_TARGET = "export_target"
    EXPORT_LIMIT = "export_limit"
    GENERATION_LIMIT = "generation_limit"
    POWER_FACTOR = "power_factor"


ACTUATOR_OF: dict[Kind, Actuator] = {
    Kind.CHARGE: Actuator.EMS,
    Kind.DISCHARGE: Actuator.EMS,
    Kind.STANDBY: Actuator.EMS,
    Kind.IMPORT_TARGET: Actuator.EMS,
    Kind.EXPORT_TARGET: Actuator.EMS,
    Kind.EXPORT_LIMIT: Actuator.EXPORT,
    Kind.GENERATION_LIMIT: Actuator.ACTIVE,
    Kind.POWER_FACTOR: Actuator.REACTIVE,
}


class Form(StrEnum):
    """For whom the control's number is."""

    NONE = "none"
    EACH_W = "each_w"
    BY_TARGET_W = "by_target_w"
    TOTAL_W = "total_w"
    EACH_PERCENT = "each_percent"
    COS_PHI = "cos_phi"


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """One thing that is asked for.

    `each_w`: watts per device for the forms that have one, else None. The other forms keep their numbers
    in `table_w` (site or device -> W), `total_w`, `each_percent`, `cos_phi` and `excitation`.
    """

    kind: Kind
    form: Form
    each_w: int | None = None
    sites_w: dict[str, int] = field(default_factory=dict)
    devices_w: dict[str, int] = field(default_factory=dict)
    total_w: int | None = None
    each_percent: float | None = None
    cos_phi: float | None = None
    excitation: str | None = None

    @property
    def actuator(self) -> Actuator:
        return ACTUATOR_OF[self.kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """For whom the signal is: the union of the named, or everyone."""

    all: bool = False
    devices: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    areas: tuple[str, ...] = ()

    @property
    def only_devices(self) -> bool:
        """True if each targeted device is named, so that only their shards need to know."""
        return not (self.all or self.sites or self.groups or self.areas)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """One revision, cancellation or release.

    `digest` is a hash of the decoded content (R1): equal for any two spellings of the same signal.
    `start_at` None means "now"; `end_at` None only with `open_ended`. `names_ramp_down` tells a cancellation that has
    a `ramp_down_s` of its own, 0 included, from one that leaves the event's (R15).
    """

    event_id: str
    source: str
    revision: int
    action: Action
    created_at: float
    expires_at: float
    start_at: float | None = None
    end_at: float | None = None
    open_ended: bool = False
    priority: int = 255
    targets: Targets | None = None
    controls: tuple[Control, ...] = ()
    ramp_up_s: int = 0
    ramp_down_s: int = 0
    names_ramp_down: bool = False
    test: bool = False
    reason: str | None = None
    digest: str = ""

    @property
    def key(self) -> str:
        """The event's name everywhere inside: `source/event_id`."""
        return f"{self.source}/{self.event_id}"
