"""The devices of one shard: who is registered, who consents, what each can do, and what is known of it now.

Rows are issued once, in the order in which a shard first hears of a device, and never reused. All columns have one
entry per row. Registry and consent are durable; telemetry is not (it is read again after a takeover).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vpp_dispatch.domain.account import Reason
from vpp_dispatch.domain.command import I32, NO_VALUE, Flags, ResultCode
from vpp_dispatch.domain.device import Battery, Operation, Record
from vpp_dispatch.domain.inputs import Consent, RegistryChange
from vpp_dispatch.domain.signal import Actuator, Control, Form, Kind, Targets

Rows = NDArray[np.int64]

PAGE = 1024
"""Rows of one page, the unit of saved state."""

NEVER, LISTED, WITHDRAWN = 0, 1, 2
"""Consent of a device: never seen, in the newest list, no longer in it."""


class Catalogue(Protocol):
    """What devices can do, by serial number; compiled from GoodWe's profile."""

    def supports(self, sn: str, actuator: Actuator) -> bool: ...
    def has_battery(self, sn: str) -> bool: ...
    def rated_w(self, sn: str, told_w: int) -> int: ...
    def step_w(self, actuator: Actuator, sn: str, rated_w: int) -> float: ...
    def family_default(self, actuator: Actuator) -> tuple[int, int]: ...
    def mode_of(self, kind: Kind) -> int: ...
    @property
    def echoes(self) -> bool: ...
    def is_single(self, actuator: Actuator) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The settings that decide in the domain. Times in seconds.

    `telemetry`: require, prefer or ignore (R18); `defaults`: which of registry, query, family count (R37);
    `verify_share`: what part of the applied setpoints is read back, 0..1 (R27); `min_interval_s`: between two setpoints
    of an actuator, and `dead_band_w`: changes up to which none is sent, since settings are flash (R21); releases are
    bound by neither.
    """

    result_timeout_s: float = 300.0
    retry_backoff_s: float = 30.0
    release_retry_s: float = 60.0
    consent_max_age_s: float = 3600.0
    telemetry_max_age_s: float = 900.0
    telemetry: str = "prefer"
    defaults: tuple[str, ...] = ("registry", "query")
    default_max_age_s: float = 3600.0
    soc_floor_percent: float = 25.0
    verify_share: float = 0.0
    min_interval_s: float = 0.0
    dead_band_w: int = 0


ROSTER = np.dtype(
    [
        ("registered", "?"),
        ("partition", "<i4"),  # of the newest registry record, and its offset; -1 = none yet
        ("offset", "<i8"),
        ("consent", "u1"),
        ("consent_until", "<f8"),
    ]
)

FACTS = np.dtype(
    [
        ("at", "<f8"),  # of the operation sample; 0 = none
        ("online", "?"),
        ("faulted", "?"),
        ("off_grid", "?"),
        ("soc_at", "<f8"),
        ("soc", "<f4"),
        ("refused_offline_at", "<f8"),  # GoodWe answered "offline" then; 0 = not
        ("battery_w", "<f4"),  # of the operation sample; charging and import positive; NaN = not told
        ("grid_w", "<f4"),
    ]
)

ABILITY = np.dtype(
    [
        ("rated_w", "<i4"),
        ("battery", "?"),
        ("step", "<f8", (5,)),  # by actuator: what one raw value is worth in the pair's unit; 0 = cannot be told
        ("supports", "?", (5,)),
        ("draw", "<u8"),  # a stable hash of the SN, for what is staggered or sampled
    ]
)

PERMILLE = 1000
"""A generation limit that limits nothing."""


class Roster:
    """Devices of one shard as columns; `columns` is saved, `facts` and `ability` are rebuilt."""

    def __init__(self, *, catalogue: Catalogue, policy: Policy) -> None:
        self.catalogue = catalogue
        self.policy = policy
        self.sns: list[str] = []
        self.records: list[Record | None] = []
        self.row_of: dict[str, int] = {}
        self.columns = np.zeros(0, ROSTER)
        self.facts = np.zeros(0, FACTS)
        self.ability = np.zeros(0, ABILITY)
        self.consent_at = 0.0
        self.dirty: set[int] = set()
        self._by_site: dict[str, set[int]] = {}
        self._by_group: dict[str, set[int]] = {}
        self._by_area: dict[str, set[int]] = {}

    def __len__(self) -> int:
        return len(self.sns)

    def add(self, sn: str) -> int:
        """The row of a device, issued now if it had none."""
        row = self.row_of.get(sn)
        if row is None:
            row = self.row_of[sn] = len(self.sns)
            self.sns.append(sn)
            self.records.append(None)
            if row >= len(self.columns):
                more = max(64, len(self.columns))
                blank = np.zeros(more, ROSTER)
                blank["partition"] = blank["offset"] = -1
                self.columns = np.concatenate([self.columns, blank])
                self.facts = np.concatenate([self.facts, np.zeros(more, FACTS)])
                self.ability = np.concatenate([self.ability, np.zeros(more, ABILITY)])
            self._rate(row)
            self.dirty.add(row // PAGE)
        return row

    def _rate(self, row: int) -> None:
        sn, record = self.sns[row], self.records[row]
        rated_w = self.catalogue.rated_w(sn, record.rated_w if record else 0)
        self.ability["rated_w"][row] = rated_w
        self.ability["battery"][row] = self.catalogue.has_battery(sn)
        self.ability["draw"][row] = int.from_bytes(hashlib.blake2b(sn.encode(), digest_size=8).digest())
        for actuator in Actuator:
            self.ability["supports"][row, actuator] = self.catalogue.supports(sn, actuator)
            self.ability["step"][row, actuator] = self.catalogue.step_w(actuator, sn, rated_w)

    def put(self, row: int, record: Record | None) -> None:
        """Sets a row's registry record and its places in the indices; None takes it out of the registry."""
        old = self.records[row]
        for index, names in self._places(old):
            for name in names:
                index[name].discard(row)
        for index, names in self._places(record):
            for name in names:
                index.setdefault(name, set()).add(row)
        self.records[row] = record
        self.columns["registered"][row] = record is not None
        self._rate(row)
        self.dirty.add(row // PAGE)

    def _places(self, record: Record | None) -> tuple[tuple[dict[str, set[int]], tuple[str, ...]], ...]:
        if record is None:
            return ()
        return (
            (self._by_site, (record.site,) if record.site else ()),
            (self._by_group, record.groups),
            (self._by_area, (record.area,) if record.area else ()),
        )

    def register(self, change: RegistryChange) -> list[int]:
        """Folds registry records; returns the rows that changed. An older record changes nothing."""
        changed = []
        for offset, sn, record in change.changes:
            if record is None and sn not in self.row_of:
                continue
            row = self.add(sn)
            c = self.columns[row]
            if c["partition"] == change.partition and offset <= c["offset"]:
                continue
            c["partition"], c["offset"] = change.partition, offset
            if record != self.records[row]:
                self.put(row, record)
            self.dirty.add(row // PAGE)
            changed.append(row)
        return changed

    def consented(self, reading: Consent, now: float) -> None:
        """Folds one complete list of consents (R16): who is not in it has withdrawn.

        A list older than the newest one is not taken: a leader that was frozen may send it late. One that a fast clock
        has stamped ahead counts as read `now`, or it would keep out those that come after it.
        """
        if reading.at < self.consent_at:
            return
        listed = {self.add(sn): until for sn, until in reading.authorized}
        n = len(self)
        c = self.columns[:n]
        now_listed = np.zeros(n, bool)
        until = np.zeros(n)
        if listed:
            rows = np.fromiter(listed, np.int64, len(listed))
            now_listed[rows] = True
            until[rows] = [np.inf if x is None else x for x in listed.values()]
        consent = np.where(now_listed, LISTED, np.where(c["consent"] == LISTED, WITHDRAWN, c["consent"]))
        changed = (consent != c["consent"]) | (now_listed & (until != c["consent_until"]))
        c["consent"] = consent
        c["consent_until"] = until
        self.consent_at = min(reading.at, now)
        self.dirty.update(np.unique(np.flatnonzero(changed) // PAGE).tolist())

    def observe(self, operations: Iterable[Operation], batteries: Iterable[Battery]) -> list[int]:
        """Folds telemetry; returns the rows that came back online."""
        back = []
        for o in operations:
            row = self.row_of.get(o.sn)
            if row is None or o.at < self.facts["at"][row]:
                continue
            f = self.facts[row]
            was_away = f["refused_offline_at"] > 0 or (f["at"] > 0 and not f["online"])
            f["at"], f["online"] = o.at, o.online
            f["faulted"], f["off_grid"] = bool(o.faulted), bool(o.off_grid)
            f["battery_w"] = np.nan if o.battery_power_w is None else o.battery_power_w
            f["grid_w"] = np.nan if o.grid_power_w is None else o.grid_power_w
            if o.online and o.at > f["refused_offline_at"]:
                f["refused_offline_at"] = 0.0
                if was_away:
                    back.append(row)
        for b in batteries:
            row = self.row_of.get(b.sn)
            if row is not None and b.soc_percent is not None and b.at >= self.facts["soc_at"][row]:
                self.facts["soc_at"][row], self.facts["soc"][row] = b.at, b.soc_percent
        return back

    def answered(self, rows: Rows, code: NDArray[np.uint8], at: NDArray[np.float64]) -> None:
        """What GoodWe's answers say of being reachable (R18): the newest answer counts; `at` epoch seconds."""
        away = code == ResultCode.OFFLINE
        told = self.facts["refused_offline_at"]
        np.maximum.at(told, rows[away], at[away])
        back = (code == ResultCode.SUCCESS) & (at > told[rows])
        told[rows[back]] = 0.0

    def members(self, targets: Targets) -> tuple[Rows, list[str]]:
        """The rows that are targeted now, ascending, and the named devices that were never registered."""
        if targets.all:
            return np.flatnonzero(self.columns["registered"][: len(self)]), []
        rows: set[int] = set()
        strangers = []
        for sn in dict.fromkeys(targets.devices):
            row = self.row_of.get(sn)
            if row is None or self.columns["offset"][row] < 0:
                strangers.append(sn)
            else:
                rows.add(row)
        named = ((self._by_site, targets.sites), (self._by_group, targets.groups), (self._by_area, targets.areas))
        for index, names in named:
            for name in names:
                rows |= index.get(name, set())
        return np.array(sorted(rows), np.int64), strangers

    def asked(self, rows: Rows, control: Control) -> I32:
        """What a control asks of each row: W, per mille of the rating (active) or a raw power factor (reactive).

        NO_VALUE where it asks nothing: a device that a table does not name, a limit in W where no rating is known.
        """
        match control.form:
            case Form.BY_TARGET_W:
                return np.array([self._in_table(row, control) for row in rows.tolist()], np.int32)
            case Form.EACH_PERCENT:
                return np.full(len(rows), _half_up(10 * (control.each_percent or 0.0)), np.int32)
            case Form.COS_PHI:
                return np.full(len(rows), power_factor(control.cos_phi or 1.0, control.excitation), np.int32)
        each = np.full(len(rows), control.each_w or 0, np.int32)
        if control.actuator is not Actuator.ACTIVE:
            return each
        rated = self.ability["rated_w"][rows].astype(np.int64)
        share = np.floor(PERMILLE * each.astype(np.int64) / np.maximum(rated, 1) + 0.5)
        return np.where(rated > 0, np.minimum(share, PERMILLE), NO_VALUE).astype(np.int32)

    def _in_table(self, row: int, control: Control) -> int:
        """A device's own entry, else its part of its site's, rounded down."""
        own = control.devices_w.get(self.sns[row])
        if own is not None:
            return own
        record = self.records[row]
        whole = control.sites_w.get(record.site) if record is not None and record.site else None
        return NO_VALUE if whole is None or record is None else int(whole * record.site_share + 1e-9)

    def in_steps(self, actuator: Actuator, rows: Rows, values: I32) -> I32:
        """Values as devices can express them: whole steps, rounded down, never more power nor a looser limit.

        An export limit in percent knows no more than 100 % of the rating.
        """
        if actuator is Actuator.REACTIVE:
            return values
        step = np.maximum(self.ability["step"][rows, actuator], 1.0)
        told = np.ceil(np.floor(values / step + 1e-6) * step - 1e-6)
        if actuator is Actuator.EXPORT:
            rated = self.ability["rated_w"][rows]
            told = np.where((step * 100 == rated) & (rated > 0), np.minimum(told, rated), told)
        return np.asarray(told, np.int32)

    def read_in_steps(self, rows: Rows, raw: I32) -> I32:
        """Export limits in W that were read as raw values, which only the book's rating can give a unit."""
        step = self.ability["step"][rows, Actuator.EXPORT]
        # Of coarse raw values the smallest W that is told by them, of fine ones the largest that is not above.
        watts = np.where(step < 1.0, np.ceil((raw + 1.0) * step - 1e-6) - 1, np.ceil(raw * step - 1e-6))
        return np.where(raw == NO_VALUE, NO_VALUE, np.minimum(watts, np.iinfo(np.int32).max)).astype(np.int32)

    def allowed(self, rows: Rows, now: float) -> tuple[Flags, Flags]:
        """(registered, consenting) of rows: the two keys of R16 that gate a hold while it lasts."""
        c = self.columns[rows]
        return c["registered"], (c["consent"] == LISTED) & (c["consent_until"] > now)

    def gate(self, rows: Rows, control: Control, asked: I32, now: float) -> NDArray[np.uint8]:
        """Why each row may not enter a control's hold now (R16-R18), as a Reason; NONE where it may.

        `asked` as the method of that name has it. The default (R37) is judged by the caller.
        """
        reason = np.zeros(len(rows), np.uint8)
        ability, facts = self.ability[rows], self.facts[rows]

        def refuse(mask: Flags, why: Reason) -> None:
            reason[mask & (reason == 0)] = why

        registered, consenting = self.allowed(rows, now)
        refuse(~registered, Reason.NOT_REGISTERED)
        refuse(~consenting, Reason.CONSENT_MISSING)
        if now - self.consent_at > self.policy.consent_max_age_s:
            refuse(np.ones(len(rows), bool), Reason.CONSENT_STALE)
        refuse(~ability["supports"][:, control.actuator], Reason.CAPABILITY)
        if control.actuator is Actuator.EMS:
            refuse(~ability["battery"], Reason.CAPABILITY)
            if control.kind is not Kind.STANDBY:
                refuse((ability["rated_w"] > 0) & (ability["rated_w"] < asked), Reason.CAPABILITY)
        refuse(ability["step"][:, control.actuator] <= 0, Reason.CAPABILITY)
        refuse(asked == NO_VALUE, Reason.NOT_IN_TABLE if control.form is Form.BY_TARGET_W else Reason.CAPABILITY)
        if self.policy.telemetry != "ignore":
            fresh = (facts["at"] > 0) & (now - facts["at"] <= self.policy.telemetry_max_age_s)
            if self.policy.telemetry == "require":
                refuse(~fresh, Reason.TELEMETRY_STALE)
            told = (facts["refused_offline_at"] > 0) & (
                now - facts["refused_offline_at"] <= self.policy.telemetry_max_age_s
            )
            refuse((fresh & ~facts["online"]) | told, Reason.OFFLINE)
            refuse(fresh & facts["faulted"], Reason.FAULTED)
            refuse(fresh & facts["off_grid"], Reason.OFF_GRID)
            charged = (facts["soc_at"] > 0) & (now - facts["soc_at"] <= self.policy.telemetry_max_age_s)
            if control.kind is Kind.DISCHARGE:
                refuse(charged & (facts["soc"] < self.policy.soc_floor_percent), Reason.SOC)
            if control.kind is Kind.CHARGE:
                refuse(charged & (facts["soc"] >= 100), Reason.SOC)
        return reason


def _half_up(value: float) -> int:
    """The nearest whole number; a half goes up, whatever its binary form."""
    return int(np.floor(round(value, 6) + 0.5))


def power_factor(cos_phi: float, excitation: str | None) -> int:
    """The raw Power Factor: 100 = unity, 80..99 = over (capacitive), 1..20 = under (1 = 0.99, 20 = 0.80)."""
    hundredths = _half_up(100 * cos_phi)
    return 100 - hundredths if excitation == "under" and hundredths < 100 else hundredths


def cos_phi_of(raw: int) -> float:
    """The cos phi of a raw Power Factor."""
    return (raw if raw > 20 else 100 - raw) / 100
