"""What the demo asks for: controls and events, and by which of GoodWe's parameters and readings each shows.

A further kind of control needs its entry in `SIGHTS`; a further event one call in `plan.Plan.play`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from vpp_dispatch.errors import ConfigurationError

EMS_MODES: Final = {"charge": 11, "discharge": 12}
"""GoodWe's EMS Power Mode codes of the demo's controls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """How a kind of control shows on an inverter.

    Attributes:
        actuator: the one it acts on.
        wish: for people, before the value.
        power: which power of an inverter it steers; `charge` and `discharge` count only inverters in its EMS mode.
        limit: it is an upper bound for each inverter, not a target.
        standing: what a command's parameters set for it, in the control's unit; None if they are no setpoint of it.
            Takes the values by name, and the rating in W if the family's export limit is in percent, else None.
    """

    actuator: str
    wish: str
    power: Literal["charge", "discharge", "export", "output"]
    limit: bool
    standing: Callable[[Mapping[str, Any], int | None], float | None]


def _ems(mode: int) -> Callable[[Mapping[str, Any], int | None], float | None]:
    def watts(values: Mapping[str, Any], percent_of_w: int | None) -> float | None:
        return float(values["EMS Power Set"]) if values.get("EMS Power Mode") == mode else None

    return watts


def _export(values: Mapping[str, Any], percent_of_w: int | None) -> float | None:
    if values.get("Export Limit Enable") != 1:
        return None
    limit = float(values["Export Power Limit"])
    return limit if percent_of_w is None else limit * percent_of_w / 100


def _power_factor(values: Mapping[str, Any], percent_of_w: int | None) -> float | None:
    raw = values.get("Power Factor")
    return None if raw is None else (raw if raw >= 80 else 100 - raw) / 100


def _generation(values: Mapping[str, Any], percent_of_w: int | None) -> float | None:
    per_mille = values.get("Active Power Limit")
    return None if per_mille is None else per_mille / 10


SIGHTS: Final[Mapping[str, Sight]] = {
    "charge": Sight(
        actuator="ems", wish="charge", power="charge", limit=False, standing=_ems(EMS_MODES["charge"])
    ),
    "discharge": Sight(
        actuator="ems", wish="discharge", power="discharge", limit=False, standing=_ems(EMS_MODES["discharge"])
    ),
    "export_limit": Sight(actuator="export", wish="export at most", power="export", limit=True, standing=_export),
    "generation_limit": Sight(
        actuator="active", wish="generate at most", power="output", limit=True, standing=_generation
    ),
    "power_factor": Sight(
        actuator="reactive", wish="power factor", power="output", limit=False, standing=_power_factor
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """One thing that is asked of each inverter: W, percent of its rating, or a power factor (over-excited)."""

    kind: str
    each_w: int | None = None
    each_percent: int | None = None
    cos_phi: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in SIGHTS:
            raise ConfigurationError(f"The demo cannot follow {self.kind}; it follows {', '.join(SIGHTS)}.")
        if [self.each_w, self.each_percent, self.cos_phi].count(None) != 2:
            raise ConfigurationError(f"{self.kind} needs one of each_w, each_percent and cos_phi.")

    @property
    def sight(self) -> Sight:
        """How it shows."""
        return SIGHTS[self.kind]

    @property
    def each(self) -> float:
        """Its value: W, percent, or the power factor."""
        value = next(v for v in (self.each_w, self.each_percent, self.cos_phi) if v is not None)
        return float(value)

    @property
    def field(self) -> str:
        """Where an outcome row has what the inverter was told."""
        return "setpoint_w" if self.each_w is not None else "cos_phi" if self.cos_phi else "setpoint_percent"

    @property
    def unlike(self) -> float:
        """Two values that differ by so much are not the same."""
        return 1.0 if self.each_w is not None else 0.005 if self.cos_phi else 0.1

    def value(self) -> str:
        """`2000 W`, `30 % of the rating`, `0.95`."""
        unit = "" if self.cos_phi else " W" if self.each_w is not None else " % of the rating"
        return f"{self.each:g}{unit}"

    def asked(self) -> str:
        """`charge 2000 W each`."""
        return f"{self.sight.wish} {self.value()}" + ("" if self.cos_phi else " each")

    def asked_w(self, rated_w: float) -> float:
        """What it asks of an inverter of this rating, W; 0 if it has no watts."""
        return 0.0 if self.cos_phi else self.each if self.each_w is not None else rated_w * self.each / 100

    def body(self) -> dict[str, Any]:
        """As the contract writes it."""
        if self.cos_phi:
            return {"kind": self.kind, "cos_phi": self.cos_phi, "excitation": "over"}
        name = "each_w" if self.each_w is not None else "each_percent"
        return {"kind": self.kind, name: getattr(self, name)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """An event as it was asked for.

    Attributes:
        asked: a sentence for people.
        controls: no two events of a run share a kind: that is how the sums know whose a command is.
        whom: the targets, in words.
        targets: the SNs it names, counted by the demo itself.
        asked_w: of all targets together, by the first control, W.
        from_at, over_at: epoch s of its window; it is over by its end or by its cancellation.
        ramp_s: its starts and its releases are staggered over so many seconds each.
    """

    event_id: str
    asked: str
    controls: tuple[Control, ...]
    whom: str = ""
    targets: frozenset[str]
    asked_w: float
    from_at: float
    over_at: float
    ramp_s: int = 0
    cancelled: bool = False

    @property
    def sight(self) -> Sight:
        """How its first control shows: the one that is drawn."""
        return self.controls[0].sight
