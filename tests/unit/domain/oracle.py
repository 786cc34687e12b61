"""What must hold of a book whatever happens, from what was put in and what came out (see `chaos`).

What is asked of a device is derived here from the signals alone, not taken from the book.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from vpp_dispatch.dispatch import pages
from vpp_dispatch.domain.account import State
from vpp_dispatch.domain.composition import pairs
from vpp_dispatch.domain.device import Record
from vpp_dispatch.domain.inputs import Selector
from vpp_dispatch.domain.membership import HOLDING, LINGERING, RELEASE_DUE, Membership
from vpp_dispatch.domain.roster import PAGE
from vpp_dispatch.domain.setpoint import SETPOINT
from vpp_dispatch.domain.signal import Actuator, Control, Form, Kind, Targets

from .world import MODES

if TYPE_CHECKING:
    from .chaos import Chaos

Pair = tuple[int, int]
LIMITS = (Actuator.EXPORT, Actuator.ACTIVE)


@dataclass(slots=True, kw_only=True)
class Command:
    """One command as GoodWe has it. `bounded`: a setpoint with a window, no release and no query."""

    sn: str
    actuator: Actuator
    query: bool
    pair: Pair
    generation: int
    bounded: bool
    epoch: int
    id: bytes

    @property
    def single(self) -> bool:
        """Whether it goes by the single-parameter topic."""
        return self.actuator in (Actuator.ACTIVE, Actuator.REACTIVE)


@dataclass(slots=True, kw_only=True)
class Device:
    """An inverter: what stands on it, what it ever executed and showed, and what it may be returned to."""

    initial: dict[Actuator, Pair]
    now: dict[Actuator, Pair]
    shown: set[tuple[Actuator, Pair]]
    defaults: set[tuple[Actuator, Pair]] = field(default_factory=set)
    records: list[Record] = field(default_factory=list)
    busy_until: dict[object, float] = field(default_factory=dict)
    executed: set[tuple[Actuator, int, Pair]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.defaults.update(self.initial.items())

    def executes(self, command: Command) -> None:
        self.now[command.actuator] = command.pair
        self.executed.add((command.actuator, command.generation, command.pair))
        self.shown.add((command.actuator, command.pair))

    def chosen(self, actuator: Actuator, pair: Pair) -> None:
        """Its owner turns the knob: from now on this may be what it is returned to (R27)."""
        self.now[actuator] = pair
        self.shown.add((actuator, pair))
        self.defaults.add((actuator, pair))


@dataclass(slots=True, kw_only=True)
class Window:
    """One control of one revision as the operator would have it: from when, until when, and for whom no longer."""

    event: str
    source: str
    start: float
    end: float
    targets: Targets
    control: Control
    dropped: set[str] = field(default_factory=set)


def asks(control: Control, record: Record) -> Pair | None:
    """What a control asks of a device with this record; None where a table does not name it."""
    match control.form:
        case Form.NONE:
            watts = 0
        case Form.EACH_W:
            watts = control.each_w or 0
        case Form.BY_TARGET_W:
            if record.sn in control.devices_w:
                watts = control.devices_w[record.sn]
            elif record.site in control.sites_w:
                watts = math.floor(control.sites_w[record.site] * record.site_share + 1e-9)
            else:
                return None
        case Form.EACH_PERCENT:
            return math.floor(round(10 * (control.each_percent or 0.0), 6) + 0.5), 0
        case _:
            hundredths = round(100 * (control.cos_phi or 1.0))
            return (100 - hundredths if control.excitation == "under" and hundredths < 100 else hundredths), 0
    if control.kind is Kind.EXPORT_LIMIT:
        return 1, watts
    if control.kind is Kind.GENERATION_LIMIT:
        return min(math.floor(1000 * watts / record.rated_w + 0.5), 1000), 0
    return MODES[control.kind], watts


def targeted(targets: Targets, record: Record) -> bool:
    return targets.all or record.sn in targets.devices or record.site in targets.sites


def limit_of(actuator: Actuator, pair: Pair) -> float:
    """The limit that a pair sets, inf for none."""
    if actuator is Actuator.EXPORT:
        return pair[1] if pair[0] == 1 else math.inf
    return pair[0]


class Oracle:
    """Follows one run, and raises AssertionError where a rule is broken."""

    def __init__(self, run: Chaos) -> None:
        self.run = run
        self.windows: list[Window] = []
        self.contents: dict[bytes, tuple[str, Actuator, bool, Pair]] = {}
        self.commands: list[tuple[float, Command]] = []
        self.draws: dict[tuple[str, str], int] = {}
        self.generations: dict[Actuator, np.ndarray] = {}
        self.durable: dict[Actuator, np.ndarray] = {}
        self.found: dict[Actuator, np.ndarray] = {}  # what the last takeover found armed
        self.newest: dict[tuple[str, Actuator], tuple[int, int]] = {}  # (epoch, generation) of the newest command
        self.open: dict[tuple[str, bool], tuple[float, int]] = {}  # setpoint without an answer: (at, epoch)
        self.released: dict[tuple[str, Actuator], tuple[float, Pair, int]] = {}  # (at, pair, epoch)
        self.told_at: dict[tuple[str, Actuator], tuple[float, int]] = {}  # newest publish: (at, epoch)
        self.heard: set[bytes] = set()  # commands with a final answer
        self.queries: dict[bytes, float] = {}
        self.reads: dict[tuple[str, Actuator], list[tuple[float, Pair]]] = {}  # (query sent at, read)
        self.armed: tuple[int, dict[Actuator, np.ndarray]] = (0, {})

    # ---- what was put in

    def told(self, selector: Selector) -> None:
        """A signal was put into the inbox."""
        now = self.run.now
        if selector.release:
            if not selector.ramp_down_s:
                for window in self.windows:
                    if window.source == selector.source and window.start < now:
                        window.dropped |= {
                            sn for sn, r in self.run.records.items() if r and targeted(selector.targets, r)
                        }
            return
        for window in self.windows:
            if window.event == selector.event:
                # What it holds goes on until the new one has decided; what has not begun never will (R2).
                window.end = min(window.end, max(selector.start_at, now) if window.start <= now else now)
        for control in () if selector.test else selector.controls:
            self.windows.append(
                Window(
                    event=selector.event,
                    source=selector.source,
                    start=selector.start_at,
                    end=selector.end_at,
                    targets=selector.targets,
                    control=control,
                )
            )

    def cancelled(self, event: str) -> None:
        for window in self.windows:
            if window.event == event:
                window.end = min(window.end, self.run.now)

    def answered(self, command: Command, read: Pair, *, accepted: bool) -> None:
        """An answer was put into the inbox."""
        if command.query:
            self.reads.setdefault((command.sn, command.actuator), []).append((self.queries[command.id], read))
        elif not accepted:
            self.heard.add(command.id)
            self.open.pop((command.sn, command.single), None)

    # ---- what comes out

    def chosen(self, command: Command) -> None:
        """A command of the living worker is about to be published."""
        run, sn, actuator = self.run, command.sn, command.actuator
        if command.query:
            return
        row = run.book.roster.row_of[sn]
        before = self.newest.get((sn, actuator), (0, 0))
        assert (command.epoch, command.generation) >= before, "a generation went back"
        self.newest[sn, actuator] = command.epoch, command.generation
        if not command.bounded:
            # A takeover's releases do not wait for its own rows, though a frozen worker may write over the old ones.
            found = self.found.get(actuator)
            saved = self._armed(actuator, row) or (found is not None and row < len(found) and bool(found[row]))
            assert saved, f"R37: a release before its arming is saved: {command}"
            assert (actuator, command.pair) in run.devices[sn].defaults, f"R37: never was a default: {command}"
            return
        assert run.records[sn] is not None, "R16: a setpoint without the registry"
        assert sn in run.consents, "R16: a setpoint without consent"
        assert self._explained(sn, actuator, command.pair), f"R28: no window asks for it at {run.now}: {command}"
        assert self._armed(actuator, row), f"R37: a setpoint before its arming is saved: {command}"
        assert not run.switches.releases_only, "R36: a setpoint under releases-only"
        at, epoch = self.told_at.get((sn, actuator), (-math.inf, 0))
        hurries = epoch == command.epoch and run.now - at < run.policy.min_interval_s
        assert not hurries, f"R21: sooner than the smallest interval: {command}"
        if not run.echoes:
            at, epoch = self.open.get((sn, command.single), (-math.inf, 0))
            waits = epoch == command.epoch and run.now - at < run.policy.result_timeout_s
            assert not waits, f"R26: two unanswered setpoints on one topic: {command}"

    def _explained(self, sn: str, actuator: Actuator, pair: Pair) -> bool:
        """Whether a window that is open asks for a pair, or for a looser limit than a default that is the pair."""
        device = self.run.devices[sn]
        for window in self.windows:
            if window.control.actuator is not actuator or sn in window.dropped:
                continue
            if not window.start <= self.run.now < window.end:
                continue
            for record in device.records:
                asked = asks(window.control, record) if targeted(window.targets, record) else None
                if asked is None:
                    continue
                if self._stands_for(actuator, pair, asked):
                    return True
                tighter = actuator in LIMITS and limit_of(actuator, pair) < limit_of(actuator, asked)
                defaults = [default for of, default in device.defaults if of is actuator]
                if tighter and any(self._stands_for(actuator, pair, default) for default in defaults):
                    return True
        return False

    def _stands_for(self, actuator: Actuator, pair: Pair, wanted: Pair) -> bool:
        """Whether a device may have a pair where another is wanted: the same, or within the dead band (R21)."""
        if pair == wanted or actuator is Actuator.REACTIVE:
            return pair == wanted
        if actuator is Actuator.ACTIVE:
            return 0 <= 10 * (wanted[0] - pair[0]) <= self.run.policy.dead_band_w  # per mille of 10 kW
        least = 0 if actuator in LIMITS else -self.run.policy.dead_band_w
        return pair[0] == wanted[0] and least <= wanted[1] - pair[1] <= self.run.policy.dead_band_w

    def _armed(self, actuator: Actuator, row: int) -> bool:
        page = [str(row // PAGE).encode(), actuator.name.lower().encode()]
        best = [k for k in self.run.rows if k.split(b"|")[1:3] == page]
        newest = max(best, key=lambda k: int(k.split(b"|")[3]), default=None)
        if newest is None:
            return False
        columns = np.frombuffer(self.run.rows[newest][pages._HEADER.size :], SETPOINT)
        return bool(columns["armed"][row % PAGE]) and bool(columns["before"][row % PAGE])

    def sent(self, at: float, command: Command, zombie: bool) -> None:
        """GoodWe's broker has a command."""
        content = (command.sn, command.actuator, command.query, command.pair)
        assert self.contents.setdefault(command.id, content) == content, "R23: one correlation id has two contents"
        self.commands.append((at, command))
        if command.query:
            self.queries[command.id] = at
        elif command.bounded:
            self.released.pop((command.sn, command.actuator), None)
        elif not zombie:
            self.released[command.sn, command.actuator] = at, command.pair, command.epoch

    def acknowledged(self, command: Command) -> None:
        """The worker has heard that the broker has it."""
        if not command.query:
            self.told_at[command.sn, command.actuator] = self.run.now, command.epoch
        if command.bounded and not command.query and command.id not in self.heard:
            self.open[command.sn, command.single] = self.run.now, command.epoch

    # ---- what is durable

    def saved(self) -> None:
        self.durable = {a: s.columns["generation"].copy() for a, s in self.run.book.setpoints.items()}

    def loaded(self) -> None:
        """A worker has taken over: no generation is below the saved one."""
        for actuator, saved in self.durable.items():
            loaded = self.run.book.setpoints[actuator].columns["generation"]
            n = min(len(saved), len(loaded))
            assert (loaded[:n] >= saved[:n]).all(), "a saved generation went back"
        self.found = {a: s.columns["armed"].copy() for a, s in self.run.book.setpoints.items()}

    # ---- what must hold on the way

    def check(self, *, accounts: bool = True) -> None:
        """Everything that holds at any time; right after the book was reconciled. `accounts`: the costly part too."""
        book = self.run.book
        assert book.switches == self.run.switches, "R36: the switches are not the newest"
        for (event, _), membership in book.memberships.items() if accounts else ():
            self._accounts(event, membership)
            for part in membership.parts:
                for row, draw in zip(part.members["row"].tolist(), part.members["draw"].tolist(), strict=True):
                    seen = self.draws.setdefault((event, book.roster.sns[row]), draw)
                    assert seen == draw, f"R14: {event} was drawn anew"
        for actuator in Actuator:
            self._composed(actuator)
        self._confirmed()

    def _accounts(self, event: str, membership: Membership) -> None:
        run, counts = self.run, membership.counts()
        told = counts.states[State.SKIPPED] + counts.states[State.REJECTED]
        assert sum(counts.reasons.values()) == told, f"R34: reasons of {event} do not add up: {counts}"
        members = len(membership.parts[0].members) + len(membership.strangers)
        assert counts.targeted == members, f"R34: states of {event} do not add up: {counts}"
        assert counts.release_confirmed + counts.release_refused <= counts.release_due
        for part in membership.parts:
            m = part.members
            # Without an id an answer may be somebody else's, which a query finds out: applied is GoodWe's word only.
            told_true = (State.APPLIED, State.VERIFIED) if run.echoes else (State.VERIFIED,)
            done = np.isin(m["state"], told_true) & (m["generation"] > 0)
            for i in np.flatnonzero(done).tolist():
                sn, pair = run.book.roster.sns[int(m["row"][i])], (int(m["first"][i]), int(m["second"][i]))
                what = f"R24: {event} {sn} {State(int(m['state'][i])).name} {part.actuator.name} {pair}"
                device = run.devices[sn]
                assert (part.actuator, pair) in device.shown, f"{what} was never on the device"
                if run.echoes and not membership.release:
                    key = (part.actuator, int(m["generation"][i]), pair)
                    assert key in device.executed, f"{what}: generation {key[1]} was never executed"

    def _composed(self, actuator: Actuator) -> None:
        """Each setpoint is the tightest of the limits that hold and the default, or the highest priority's (R12)."""
        book = self.run.book
        columns = book.setpoints[actuator].columns
        known, first, second = book.setpoints[actuator].default()
        holds: dict[int, list[tuple[tuple[float, float, str], Pair]]] = {}
        for membership in book.memberships.values():
            s = membership.selector
            for part in () if s.release else membership.parts:
                if part.actuator is not actuator:
                    continue
                assert part.control is not None
                for i in np.flatnonzero(np.isin(part.members["phase"], (HOLDING, LINGERING))).tolist():
                    row = int(part.members["row"][i])
                    device = self.run.devices[book.roster.sns[row]]
                    might = {
                        asks(part.control, r) for r in device.records if targeted(s.targets, r) or s.targets.devices
                    }
                    one, two = pairs(book, part, part.members["asked"][i : i + 1])
                    pair = int(one[0]), int(two[0])
                    assert pair in might, f"{s.event} never asked {pair} of {device}"
                    holds.setdefault(row, []).append(((-s.priority, s.created_at, s.event_id), pair))
        for row in range(len(book.roster)):
            assert bool(columns["held"][row]) == (row in holds), f"{actuator.name} of row {row}: held or not"
            if row not in holds:
                continue
            assert known[row]
            default = int(first[row]), int(second[row])
            assert (actuator, default) in self.run.devices[book.roster.sns[row]].defaults, f"{default} is no default"
            pair = max(holds[row])[1]
            if actuator in LIMITS:
                tightest = min(holds[row], key=lambda hold: limit_of(actuator, hold[1]))[1]
                pair = min(tightest, default, key=lambda p: limit_of(actuator, p))
            mine = int(columns["first"][row]), int(columns["second"][row])
            right = self._stands_for(actuator, mine, pair)
            assert right, f"R12: {actuator.name} of row {row} is {mine}, not {pair}: {holds[row]}, {default}"

    def _confirmed(self) -> None:
        """Without echoed ids a debt is paid only by two agreeing queries after the timeout, or by the owner (R26)."""
        run, book = self.run, self.run.book
        epoch, before = self.armed
        for actuator, setpoints in book.setpoints.items():
            for row in np.flatnonzero(setpoints.columns["held"]).tolist():
                self.released.pop((book.roster.sns[row], actuator), None)  # what is held was verified
        if epoch == book.epoch and not run.echoes:
            for actuator, setpoints in book.setpoints.items():
                c, was = setpoints.columns, before[actuator]
                for row in np.flatnonzero(was["armed"] & ~c["armed"][: len(was)] & ~was["held"]).tolist():
                    sn = book.roster.sns[row]
                    if c["refused"][row] or (sn, actuator) not in self.released:
                        continue
                    at, pair, released_by = self.released[sn, actuator]
                    if released_by != epoch:
                        continue
                    reads = [
                        read
                        for asked_at, read in self.reads.get((sn, actuator), [])
                        if asked_at >= at + run.policy.result_timeout_s and read == pair
                    ]
                    assert len(reads) >= 2, f"R26: {sn} {actuator.name} was confirmed by {len(reads)} queries"
        self.armed = book.epoch, {a: s.columns[["armed", "held"]].copy() for a, s in book.setpoints.items()}

    # ---- what must hold at the end

    def check_end(self, rest_s: float) -> None:
        """Everything is at a default, every release answered for, and nothing has been sent for `rest_s`."""
        run, book = self.run, self.run.book
        self.check()
        late = [(at, c) for at, c in self.commands if at > run.now - rest_s]
        assert not late, f"it never comes to rest: {late[:3]}"
        for actuator, setpoints in book.setpoints.items():
            assert not setpoints.columns["armed"].any(), f"R19: {actuator.name}: a debt is left"
            assert not setpoints.columns["held"].any()
        for sn, device in run.devices.items():
            for actuator, pair in device.now.items():
                assert (actuator, pair) in device.defaults, f"R19: {sn} {actuator.name} was left at {pair}"
        for key, membership in book.memberships.items():
            counts = membership.counts()
            assert counts.release_due == counts.release_confirmed + counts.release_refused, (key, counts)
            assert not membership.lingers, key
            # A release that was closed before is not told of debts that were paid later.
            assert counts.settled or (membership.release and membership.closed_at), (key, counts)
            for part in membership.parts:
                assert not (part.members["release"] == RELEASE_DUE).any(), key

    def check_closed(self) -> None:
        """After the close everything was told, and nothing that was told changes any more."""
        for key, membership in self.run.book.memberships.items():
            if not membership.replaced:
                assert membership.counts().closed, key
