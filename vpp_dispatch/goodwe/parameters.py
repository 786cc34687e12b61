"""What GoodWe's devices can do: the profile, compiled into plain data for the domain (`domain.roster.Catalogue`)."""

from __future__ import annotations

from vpp_dispatch.domain.device import rating_of
from vpp_dispatch.domain.signal import Actuator, Kind
from vpp_dispatch.goodwe.profile import ActuatorRules, Profile

UNKNOWN_FAMILY = -1
"""The index of a series that no family has: such a device takes nothing (R17)."""

ACTUATOR_NAMES: dict[Actuator, str] = {
    Actuator.EMS: "ems",
    Actuator.EXPORT: "export",
    Actuator.ACTIVE: "active",
    Actuator.REACTIVE: "reactive",
}


class Catalogue:
    """The parameter catalogue. Everything is looked up by the SN's series and rating; nothing is asked of a device.

    Attributes:
        auto_mode: the EMS Power Mode code of self-use.
        percent_families: indices of the families whose export limit is in percent of the rating.
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
        self._export_step_w = max(1.0, 1 / profile.actuators.export.scale)
        defaults = profile.family_defaults
        self._family_default = {
            Actuator.EMS: (defaults.ems[0], value_of(defaults.ems[1], profile.actuators.ems)),
            Actuator.EXPORT: (defaults.export[0], value_of(defaults.export[1], profile.actuators.export)),
            Actuator.ACTIVE: (round(defaults.active[0] / profile.actuators.active.scale * 10), 0),
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

    def export_step_w(self, sn: str, rated_w: int) -> float:
        """The smallest change of the export limit in W: 1.0, or a percent of the rating.

        0.0 where the limit cannot be expressed: no export limit at all, an unknown rating, or one of which a percent is
        no whole number of watts, so that a value read back could never be compared.
        """
        if not self.supports(sn, Actuator.EXPORT):
            return 0.0
        if self.family_of(sn) not in self.percent_families:
            return self._export_step_w
        return rated_w / 100 if rated_w > 0 and rated_w % 100 == 0 else 0.0

    def family_default(self, actuator: Actuator) -> tuple[int, int]:
        """The pair (see `domain.command`) that an actuator returns to where nothing else tells (R37)."""
        return self._family_default[actuator]


def raw_of(value: int, rules: ActuatorRules) -> int:
    """Raw value of a number of watts. Rounded down: never more power, never a looser limit than was asked."""
    return value if rules.scale == 1 else int(value * rules.scale + 1e-9)


def value_of(raw: int, rules: ActuatorRules) -> int:
    """Watts of a raw value, rounded to whole ones."""
    return raw if rules.scale == 1 else round(raw / rules.scale)
