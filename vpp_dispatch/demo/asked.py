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
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """One thing that is asked of each inverter: W, or percent of its rating."""

    kind: str
    each_w: int | None = None
    each_percent: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in SIGHTS:
            raise ConfigurationError(f"The demo cannot follow {self.kind}; it follows {', '.join(SIGHTS)}.")
        if (self.each_w is None) == (self.each_percent is None):
            raise ConfigurationError(f"{self.kind} needs each_w or each_percent, and not both.")

    @property
    def sight(self) -> Sight:
        """How it shows."""
        return SIGHTS[self.kind]

    @property
    def each(self) -> int:
        """Its value, W or percent."""
        value = self.each_w if self.each_w is not None else self.each_percent
        assert value is not None
        return value

    def asked(self) -> str:
        """`charge 2000 W each`."""
        return f"{self.sight.wish} {self.each} {'W' if self.each_w is not None else '% of the rating'} each"

    def asked_w(self, rated_w: float) -> float:
        """What it asks of an inverter of this rating, W."""
        return float(self.each_w) if self.each_w is not None else rated_w * self.each / 100

    def body(self) -> dict[str, Any]:
        """As the contract writes it."""
        return {"kind": self.kind} | (
            {"each_w": self.each_w} if self.each_w is not None else {"each_percent": self.each_percent}
        )


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
