"""What GoodWe's devices can do: the profile, compiled into plain data for the domain (`domain.roster.Catalogue`)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Self

from vpp_dispatch.domain.device import rating_of
from vpp_dispatch.domain.signal import Actuator, Kind
from vpp_dispatch.goodwe.profile import Profile

UNKNOWN_FAMILY = -1
"""The index of a series that no family has: such a device takes nothing (R17)."""

ACTUATOR_NAMES: dict[Actuator, str] = {
    Actuator.EMS: "ems",
    Actuator.EXPORT: "export",
    Actuator.ACTIVE: "active",
    Actuator.REACTIVE: "reactive",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How an actuator's scaled value is counted on the wire: raw = value * count / unit, in exact whole numbers.

    `value` is in the unit of the pair (`domain.command`): W, or tenths of a percent of the rating for `active`. The two
    directions belong together. Where raw values are coarser than ours, `raw_of(value_of(raw)) == raw`, and
    `value_of(raw_of(value))` is the largest value at or below that a device can be told; where they are finer,
    `value_of(raw_of(value)) == value`. So what was set reads back equal, after one rounding down, whatever the scale.
    """

    count: int
    unit: int

    @classmethod
    def of(cls, actuator: Actuator, scale: float) -> Self:
        """The scale of a profile's actuator: raw = W * scale, or percent * scale; a power factor has none."""
        exact = Fraction(repr(float(scale)))  # the number as it is written, not the binary one beside it
        if actuator is Actuator.REACTIVE:
            exact = Fraction(1)
        elif actuator is Actuator.ACTIVE:
            exact /= 10
        return cls(count=exact.numerator, unit=exact.denominator)

    @property
    def step(self) -> float:
        """What one raw value is worth, in the pair's unit."""
        return self.unit / self.count

    def raw_of(self, value: int) -> int:
        """The raw value, rounded down: never more power, never a looser limit than was asked."""
        return value * self.count // self.unit

    def value_of(self, raw: int) -> int:
        """The value that a raw one stands for, in whole units.

        Of coarse raw values the smallest that is told by this one; of fine ones the largest that is not above it.
        """
        if self.count <= self.unit:
            return -(-raw * self.unit // self.count)
        return -(-(raw + 1) * self.unit // self.count) - 1


class Catalogue:
    """The parameter catalogue. Everything is looked up by the SN's series and rating; nothing is asked of a device.

    Attributes:
        auto_mode: the EMS Power Mode code of self-use.
        percent_families: indices of the families whose export limit is in percent of the rating.
        echoes: whether results carry the command's id; without it they are joined by SN and topic (R26).
        scales: by actuator, how its scaled value is counted on the wire.
    """

    def __init__(self, profile: Profile) -> None:
        families = profile.families
        self._family_of_series = {name: i for i, family in enumerate(families) for name in family.series}
        self._supports = [frozenset(a for a, name in ACTUATOR_NAMES.items() if name in f.actuators) for f in families]
        self._battery = [family.battery for family in families]
        self.percent_families = frozenset(i for i, family in enumerate(families) if family.export_unit == "percent")
        self._ratings = dict(profile.ratings)
        modes = profile.ems_modes
        self._mode_of = {
            Kind.CHARGE: modes.charge,
            Kind.DISCHARGE: modes.discharge,
            Kind.STANDBY: modes.standby,
            Kind.IMPORT_TARGET: modes.import_target,
            Kind.EXPORT_TARGET: modes.export_target,
        }
        self.auto_mode = modes.auto
        rules = {actuator: getattr(profile.actuators, name) for actuator, name in ACTUATOR_NAMES.items()}
        self.echoes = profile.correlation.echoed
        self._single = frozenset(actuator for actuator, its in rules.items() if its.command == "single")
        self.scales = {actuator: Scale.of(actuator, its.scale) for actuator, its in rules.items()}
        defaults = profile.family_defaults
        self._family_default = {
            Actuator.EMS: (defaults.ems[0], self.scales[Actuator.EMS].value_of(defaults.ems[1])),
            Actuator.EXPORT: (defaults.export[0], self.scales[Actuator.EXPORT].value_of(defaults.export[1])),
            Actuator.ACTIVE: (self.scales[Actuator.ACTIVE].value_of(defaults.active[0]), 0),
            Actuator.REACTIVE: (defaults.reactive[0], 0),
        }

    def mode_of(self, kind: Kind) -> int:
        """The EMS Power Mode code of a kind that acts on `ems`; KeyError for any other."""
        return self._mode_of[kind]

    def family_of(self, sn: str) -> int:
        """The index of the device's family in the profile; UNKNOWN_FAMILY if no family has its series."""
        return self._family_of_series.get(sn[5:8], UNKNOWN_FAMILY)

    def supports(self, sn: str, actuator: Actuator) -> bool:
        """Whether the device's family takes the actuator; False for an unknown series."""
        family = self.family_of(sn)
        return family >= 0 and actuator in self._supports[family]

    def has_battery(self, sn: str) -> bool:
        """Whether the device has a battery; False for an unknown series."""
        family = self.family_of(sn)
        return family >= 0 and self._battery[family]

    def rated_w(self, sn: str, told_w: int) -> int:
        """Rated power in W: what the registry told, else what the SN says; 0 = not known."""
        return told_w if told_w > 0 else rating_of(sn, self._ratings)

    def is_single(self, actuator: Actuator) -> bool:
        """Whether the actuator's setpoints go by the single-parameter topics, else by the multi-parameter ones."""
        return actuator in self._single

    def step_w(self, actuator: Actuator, sn: str, rated_w: int) -> float:
        """What one raw value of the actuator is worth on this device, in the unit of its pair.

        W for `ems` and `export`, tenths of a percent of the rating for `active`, 1.0 for `reactive`. Above 1 a value
        has to be rounded down to what the device can be told; below 1 every whole value can be told. A query of
        `export` reads raw values, of the others values (see `goodwe.codec`). 0.0 where nothing can be told: the family
        does not take the actuator, or it takes its export limit in percent of a rating that is unknown or of which a
        percent is no whole number of watts, so that a value read back could never be compared.
        """
        if not self.supports(sn, actuator):
            return 0.0
        if actuator is not Actuator.EXPORT or self.family_of(sn) not in self.percent_families:
            return self.scales[actuator].step
        return rated_w / 100 if rated_w > 0 and rated_w % 100 == 0 else 0.0

    def family_default(self, actuator: Actuator) -> tuple[int, int]:
        """The pair (see `domain.command`) that an actuator returns to where nothing else tells (R37)."""
        return self._family_default[actuator]
