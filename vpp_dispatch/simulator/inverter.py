"""Physics and settings of all inverters: numpy columns, no I/O, and time only as an argument.

Signs here are those of the hardware: PV, load and AC output positive, battery + = discharge, grid + = export;
grid = PV + battery - load. Settings are raw values of the wire and latch: there is no watchdog and nothing reverts
by itself (R19).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vpp_dispatch.simulator.fleet import Device
from vpp_dispatch.simulator.profile import (
    ACTIVE_LIMIT,
    ACTUATOR_OF,
    EXPORT_ENABLED,
    EXPORT_LIMIT,
    MODE,
    POWER,
    POWER_FACTOR,
    Profile,
)

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

_EFFICIENCY: Final = 0.95  # of the battery, each way
_DAY_S: Final = 86_400
_OFF_GRID, _STOPPED = 7, 255
# A mode's power may exceed the rating by this much (rounding at the edges); beyond it is out of range.
_POWER_MARGIN: Final = 1.1


@dataclass(frozen=True, slots=True)
class Flows:
    """Power of some devices at one moment, W, shape (devices,), signs as in the module's docstring."""

    pv_w: Floats
    load_w: Floats
    battery_w: Floats
    ac_w: Floats
    grid_w: Floats


class Inverters:
    """All inverters of the simulation.

    Attributes:
        settings: int64, shape (6, n), raw values as on the wire; rows are the columns of `profile`.
        defaults: the same at the start.
        online: bool, shape (n,). An offline inverter works on as it was set; only the cloud cannot reach it.
        soc: state of charge in percent, shape (n,); nan without a battery.
    """

    def __init__(
        self, *, profile: Profile, devices: Sequence[Device], seed: int, now: float, solar_shift_s: float = 0.0
    ) -> None:
        """Args:
        now: epoch seconds at the start.
        solar_shift_s: added to the wall clock (UTC) to get the solar time.
        """
        n = len(devices)
        random = np.random.default_rng([seed, 1])
        self.profile = profile
        self.devices = list(devices)
        self.sns = [device.sn for device in devices]
        self.row_of = {sn: row for row, sn in enumerate(self.sns)}
        self.rated_w: Floats = np.array([device.rated_w for device in devices], dtype=np.float64)
        families = [profile.family_of(sn) for sn in self.sns]
        self.families = [family.name if family else "unknown" for family in families]
        self.supports = np.array(
            [[family is not None and actuator in family.actuators for family in families] for actuator in ACTUATOR_OF],
            dtype=bool,
        ).reshape(6, n)
        self.export_percent = np.array(
            [family is not None and family.export_percent for family in families], dtype=bool
        )
        self.battery = np.array([family is not None and family.battery for family in families], dtype=bool)
        self.solar_shift_s = solar_shift_s
        self.updated_at = now

        self.online = np.ones(n, dtype=bool)
        self.seen_at: Floats = np.full(n, now)
        self.grid_mode = np.ones(n, dtype=np.int64)
        self.error_bits = np.zeros(n, dtype=np.int64)
        self.diagnostic_bits = np.zeros(n, dtype=np.int64)
        self.pv_factor: Floats = random.uniform(0.6, 1.05, n)
        self.load_base_w: Floats = random.uniform(250, 900, n) * np.maximum(self.rated_w / 10_000, 0.5)
        self.load_phase: Floats = random.uniform(0, 2 * math.pi, n)
        self.load_fixed_w: Floats = np.full(n, np.nan)
        self.capacity_wh: Floats = np.where(self.battery, self.rated_w * random.choice([1.0, 1.5, 2.0], n), 0.0)
        self.min_soc: Floats = np.full(n, 10.0)
        self.max_soc: Floats = np.full(n, 100.0)
        self.battery_limit_w: Floats = np.where(self.battery, self.rated_w, 0.0)
        self.stored_wh: Floats = self.capacity_wh * random.uniform(0.35, 0.85, n)
        self.today_kwh: Floats = np.zeros(n)
        self.total_kwh: Floats = np.round(random.uniform(100, 40_000, n), 1)

        self._modes = np.ones(1 + max(profile.modes, default=0), dtype=np.int64)
        for wire, mode in profile.modes.items():
            self._modes[wire] = mode
        self.settings = np.repeat(np.array(profile.neutral, dtype=np.int64)[:, None], n, axis=1)
        # A limit that is off is stored above 0: switching it on must not mean zero export by accident.
        scale = profile.columns[EXPORT_LIMIT].scale
        self.settings[EXPORT_LIMIT] = np.where(self.export_percent, 100, self.rated_w * scale).astype(np.int64)
        for row, device in enumerate(devices):
            if device.default:
                self._start_with(row, device)
        self.defaults = self.settings.copy()

    def _start_with(self, row: int, device: Device) -> None:
        default, columns = device.default, self.profile.columns
        if (limit_w := default.get("export_limit_w")) is not None:
            percent, scale = self.export_percent[row], columns[EXPORT_LIMIT].scale
            self.settings[EXPORT_ENABLED, row] = 1
            self.settings[EXPORT_LIMIT, row] = (
                limit_w * 100 // device.rated_w if percent else math.floor(limit_w * scale + 1e-6)
            )
        if (mode := default.get("ems_mode")) is not None:
            self.settings[MODE, row] = mode
            self.settings[POWER, row] = math.floor(default.get("ems_power_w", 0) * columns[POWER].scale + 1e-6)
        if (share := default.get("active_percent")) is not None:
            self.settings[ACTIVE_LIMIT, row] = round(share * columns[ACTIVE_LIMIT].scale)
        if (factor := default.get("power_factor")) is not None:
            self.settings[POWER_FACTOR, row] = factor

    def __len__(self) -> int:
        return len(self.sns)

    @property
    def soc(self) -> Floats:
        """State of charge, percent, shape (n,); nan where there is no battery."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self.battery, 100.0 * self.stored_wh / self.capacity_wh, np.nan)

    # -- settings

    def check(self, row: int, column: int, value: object) -> str:
        """What the inverter says to a value: `success`, `unsupported`, or `value` (out of range). Writes nothing."""
        if not self.supports[column, row]:
            return "unsupported"
        rule = self.profile.columns[column]
        if type(value) is not int or not rule.minimum <= value <= rule.maximum:
            return "value"
        if column == MODE and value not in self.profile.modes:
            return "value"
        if column == POWER and value > self.rated_w[row] * rule.scale * _POWER_MARGIN:
            return "value"
        if column == EXPORT_LIMIT and self.export_percent[row] and value > 100:
            return "value"
        if column == POWER_FACTOR and 20 < value < 80:
            return "value"
        return "success"

    def write(self, row: int, column: int, value: object) -> str:
        """Latch a raw value if `check` has nothing against it; returns what `check` says."""
        outcome = self.check(row, column, value)
        if outcome == "success" and isinstance(value, int):
            self.settings[column, row] = value
        return outcome

    def restores(self, row: int, writes: Sequence[tuple[int, object]]) -> bool:
        """True if a command gives a device back: EMS mode auto, or every value as it was at the start.

        A limit that was off at the start is given back by switching it off, whatever limit is stored with it.
        """
        if not writes:
            return False
        values = dict(writes)
        mode = values.get(MODE)
        if isinstance(mode, int) and self.profile.modes.get(mode) == 1:
            return True
        if values.get(EXPORT_ENABLED) == 0 == self.defaults[EXPORT_ENABLED, row]:
            values.pop(EXPORT_LIMIT, None)
        return all(self.defaults[column, row] == value for column, value in values.items())

    # -- physics

    def sun(self, now: float) -> float:
        """Irradiance as a share of the peak, 0..1: a clear day from 6 to 18 o'clock solar time."""
        hour = ((now + self.solar_shift_s) % _DAY_S) / 3600
        return max(0.0, math.sin(math.pi * (hour - 6) / 12)) ** 1.2 if 6 < hour < 18 else 0.0

    def flows(self, rows: Rows, now: float) -> Flows:
        """Power of some devices under their settings.

        Args:
            rows: indices, shape (k,).
            now: epoch seconds.
        """
        hour = ((now + self.solar_shift_s) % _DAY_S) / 3600
        wire_mode = self.settings[MODE, rows]
        mode = self._modes[np.clip(wire_mode, 0, len(self._modes) - 1)]
        x = self.settings[POWER, rows] / self.profile.columns[POWER].scale
        rated = self.rated_w[rows]
        pv = rated * self.pv_factor[rows] * self.sun(now)
        # Two peaks, at breakfast and in the evening, and a slow swing of each house's own.
        day = 0.5 + math.exp(-((hour - 7.5) ** 2) / 2) + 1.6 * math.exp(-((hour - 19) ** 2) / 5)
        load = self.load_base_w[rows] * (day + 0.2 * np.sin(now / 300 + self.load_phase[rows]))
        load = np.where(np.isnan(self.load_fixed_w[rows]), load, self.load_fixed_w[rows])

        soc = np.nan_to_num(self.soc[rows])
        most_in = np.where(soc < self.max_soc[rows], self.battery_limit_w[rows], 0.0)
        most_out = np.where(soc > self.min_soc[rows], self.battery_limit_w[rows], 0.0)
        need = load - pv
        wished = np.select(
            [mode == code for code in (1, 2, 3, 4, 5, 6, _OFF_GRID, 9, 10, 11, 12)],
            [
                need,  # auto: self-use
                -np.minimum(x, pv),  # charge from PV, at most X
                np.clip(need, 0.0, x),  # discharge for what PV leaves uncovered, at most X
                -(x + pv),  # import X at AC
                x - pv,  # export X at AC
                np.minimum(need, 0.0),  # conserve: keep what is stored, take surplus
                need,  # off-grid: the house alone
                need - x,  # buy X at the connection point
                need + x,  # sell X there
                -x,  # charge with X
                x,  # discharge with X
            ],
            default=0.0,  # standby, stopped
        )
        battery = np.clip(wished, -most_in, most_out)
        stopped = mode == _STOPPED
        pv = np.where(stopped, 0.0, pv)
        battery = np.where(stopped, 0.0, np.maximum(battery, -rated - pv))

        # Limits take from the battery first and then really curtail PV.
        active = rated * self.settings[ACTIVE_LIMIT, rows] / (100 * self.profile.columns[ACTIVE_LIMIT].scale)
        pv, battery = _cut(pv, battery, pv + battery - active)
        raw = self.settings[EXPORT_LIMIT, rows]
        limit = np.where(self.export_percent[rows], rated * raw / 100, raw / self.profile.columns[EXPORT_LIMIT].scale)
        off_grid = (mode == _OFF_GRID) | (self.grid_mode[rows] != 1)
        limit = np.where(off_grid, 0.0, np.where(self.settings[EXPORT_ENABLED, rows] == 1, limit, np.inf))
        pv, battery = _cut(pv, battery, pv + battery - load - limit)
        ac = pv + battery
        load = np.where(off_grid, np.minimum(load, np.maximum(ac, 0.0)), load)  # what cannot be fed goes dark
        return Flows(pv, load, battery, ac, ac - load)

    def advance(self, now: float) -> None:
        """Bring stored energy and production up to `now` (epoch s). Going back in time does nothing."""
        rows = np.arange(len(self))
        # A minute at a time, and after a long pause in at most 60 pieces.
        piece = max(60.0, (now - self.updated_at) / 60)
        while self.updated_at < now:
            at = min(now, self.updated_at + piece)
            step = at - self.updated_at
            flows = self.flows(rows, at)
            hours = step / 3600
            drawn = np.where(flows.battery_w > 0, flows.battery_w / _EFFICIENCY, flows.battery_w * _EFFICIENCY) * hours
            floor, ceiling = self.capacity_wh * self.min_soc / 100, self.capacity_wh * self.max_soc / 100
            # Discharge stops at the floor, charge at the ceiling; what stands outside already is not pulled in.
            self.stored_wh = np.where(
                drawn > 0,
                np.maximum(self.stored_wh - drawn, np.minimum(self.stored_wh, floor)),
                np.minimum(self.stored_wh - drawn, np.maximum(self.stored_wh, ceiling)),
            )
            if at // _DAY_S > self.updated_at // _DAY_S:
                self.today_kwh[:] = 0
            produced = flows.pv_w * hours / 1000
            self.today_kwh += produced
            self.total_kwh += produced
            self.updated_at = at
        self.seen_at[self.online] = max(now, self.updated_at)


def _cut(pv_w: Floats, battery_w: Floats, excess_w: Floats) -> tuple[Floats, Floats]:
    excess = np.maximum(excess_w, 0.0)
    from_battery = np.minimum(excess, np.maximum(battery_w, 0.0))
    return np.maximum(pv_w - (excess - from_battery), 0.0), battery_w - from_battery
